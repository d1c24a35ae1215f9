"""The agent on the OpenAI Agents SDK's integration with Temporal."""

from __future__ import annotations

from datetime import timedelta

from agents import Agent, OpenAIProvider, Runner
from openai import AsyncOpenAI
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.openai_agents import ModelActivityParameters, OpenAIAgentsPlugin
from temporalio.openai_agents.workflow import activity_as_tool
from temporalio.worker import Worker

WORKFLOW = "OpenAiAgent"
INPUT = "Look everything up."
LIMIT = timedelta(minutes=2)


@activity.defn
async def look_up(number: int) -> str:
    """Look a number up."""
    return f"{number} is fine"


@workflow.defn(name=WORKFLOW)
class OpenAiAgent:
    @workflow.run
    async def run(self, question: str) -> str:
        tools = [activity_as_tool(look_up, start_to_close_timeout=LIMIT)]
        agent = Agent(name="desk", model="instant", tools=tools)
        return str((await Runner.run(agent, question, max_turns=20)).final_output)


async def worker(address: str, queue: str, ledger: str) -> Worker:
    """Return its worker; it keeps no ledger."""
    models = OpenAIProvider(openai_client=AsyncOpenAI(max_retries=0), use_responses=False)
    parameters = ModelActivityParameters(start_to_close_timeout=LIMIT)
    plugin = OpenAIAgentsPlugin(parameters, model_provider=models)
    client = await Client.connect(address, plugins=[plugin])
    return Worker(client, task_queue=queue, workflows=[OpenAiAgent], activities=[look_up])
