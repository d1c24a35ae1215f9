"""An agent of the OpenAI Agents SDK on Temporal. Every attempt of its requests and its tool is a work item.

    pip install "tasquencer[worker]" temporalio-openai-agents
    temporal server start-dev
    OPENAI_API_KEY=… python forecast.py "How is the weather in Oslo?"

`OPENAI_BASE_URL` and `MODEL` choose any OpenAI-compatible server, `TEMPORAL_ADDRESS` another Temporal server,
and `TASQ_DATABASE_URL` another ledger than a file in this folder.
"""

import asyncio
import os
import sys
from datetime import timedelta
from uuid import uuid4

from agents import Agent, OpenAIProvider, Runner
from openai import AsyncOpenAI
from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.openai_agents import ModelActivityParameters, OpenAIAgentsPlugin
from temporalio.openai_agents.workflow import activity_as_tool
from temporalio.worker import Worker

from tasquencer import TasquencerPlugin
from tasquencer.sql import SqlLedger

QUEUE = "forecasts"
MODEL = os.environ.get("MODEL", "gpt-5-mini")
LIMIT = timedelta(minutes=2)
RETRIES = RetryPolicy(maximum_attempts=5)


@activity.defn
async def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"Sunny in {city}"


@workflow.defn
class Forecast:
    """Asks the agent."""

    @workflow.run
    async def run(self, question: str) -> str:
        """Return its answer."""
        forecaster = Agent(
            name="forecaster",
            model=MODEL,
            instructions="Answer in one sentence. Ask the tool for the weather.",
            tools=[activity_as_tool(weather, start_to_close_timeout=LIMIT, retry_policy=RETRIES)],
        )
        return str((await Runner.run(forecaster, question)).final_output)


async def main(question: str) -> None:
    """Run a worker for the time of one question."""
    # max_retries=0: Temporal retries. A client that retries, too, sends requests that nobody sees.
    models = OpenAIProvider(openai_client=AsyncOpenAI(max_retries=0), use_responses=False)
    agents = OpenAIAgentsPlugin(
        ModelActivityParameters(start_to_close_timeout=LIMIT, retry_policy=RETRIES), model_provider=models
    )
    ledger = SqlLedger(os.environ.get("TASQ_DATABASE_URL", "sqlite:///attempts.db"))
    attempts = TasquencerPlugin(ledger, observe_activities=["*"])  # the one line
    address = os.environ.get("TEMPORAL_ADDRESS", "localhost:7233")
    temporal = await Client.connect(address, plugins=[agents, attempts])
    async with Worker(temporal, task_queue=QUEUE, workflows=[Forecast], activities=[weather]):
        name = f"forecast-{uuid4()}"
        print(await temporal.execute_workflow(Forecast.run, question, id=name, task_queue=QUEUE))
        print(f"Each attempt: tasq show {name}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:] or ["How is the weather in Oslo?"]))
