"""An agent of Pydantic AI on Temporal. Every attempt of its model requests and of its tool is a work item.

    pip install "tasquencer[worker]" "pydantic-ai-slim[openai]"
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

from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.durable_exec.temporal import PydanticAIPlugin, TemporalDurability
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from temporalio import workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.worker import Worker

from tasquencer import TasquencerPlugin
from tasquencer.sql import SqlLedger

QUEUE = "forecasts"

# max_retries=0: Temporal retries. A client that retries, too, sends requests that nobody sees.
client = AsyncOpenAI(max_retries=0)


async def weather(city: str) -> str:
    """Tell the weather in a city."""
    return f"Sunny in {city}"


forecaster = Agent(
    OpenAIChatModel(os.environ.get("MODEL", "gpt-5-mini"), provider=OpenAIProvider(openai_client=client)),
    name="forecaster",
    instructions="Answer in one sentence. Ask the tool for the weather.",
    tools=[weather],
    capabilities=[
        TemporalDurability(
            activity_config={
                "start_to_close_timeout": timedelta(minutes=2),
                "retry_policy": RetryPolicy(maximum_attempts=5),
            }
        )
    ],
)


@workflow.defn
class Forecast:
    """Asks the agent."""

    __pydantic_ai_agents__ = (forecaster,)

    @workflow.run
    async def run(self, question: str) -> str:
        """Return its answer."""
        answer: str = (await forecaster.run(question)).output
        return answer


async def main(question: str) -> None:
    """Run a worker for the time of one question."""
    ledger = SqlLedger(os.environ.get("TASQ_DATABASE_URL", "sqlite:///attempts.db"))
    attempts = TasquencerPlugin(ledger, observe_activities=["*"])  # the one line
    address = os.environ.get("TEMPORAL_ADDRESS", "localhost:7233")
    temporal = await Client.connect(address, plugins=[PydanticAIPlugin(), attempts])
    async with Worker(temporal, task_queue=QUEUE, workflows=[Forecast]):
        name = f"forecast-{uuid4()}"
        print(await temporal.execute_workflow(Forecast.run, question, id=name, task_queue=QUEUE))
        print(f"Each attempt: tasq show {name}")


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:] or ["How is the weather in Oslo?"]))
