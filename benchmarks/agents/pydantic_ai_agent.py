"""The agent on Pydantic AI's durability for Temporal."""

from __future__ import annotations

from datetime import timedelta

from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.durable_exec.temporal import PydanticAIPlugin, TemporalDurability
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from temporalio import workflow
from temporalio.client import Client
from temporalio.worker import Worker

WORKFLOW = "PydanticAgent"
INPUT = "Look everything up."


async def look_up(number: int) -> str:
    """Look a number up."""
    return f"{number} is fine"


agent = Agent(
    OpenAIChatModel("instant", provider=OpenAIProvider(openai_client=AsyncOpenAI(max_retries=0))),
    name="desk",
    tools=[look_up],
    capabilities=[TemporalDurability(activity_config={"start_to_close_timeout": timedelta(minutes=2)})],
)


@workflow.defn(name=WORKFLOW)
class PydanticAgent:
    __pydantic_ai_agents__ = (agent,)

    @workflow.run
    async def run(self, question: str) -> str:
        return str((await agent.run(question)).output)


async def worker(address: str, queue: str, ledger: str) -> Worker:
    """Return its worker; it keeps no ledger."""
    client = await Client.connect(address, plugins=[PydanticAIPlugin()])
    return Worker(client, task_queue=queue, workflows=[PydanticAgent])
