"""Agents of Pydantic AI, as an application has them: nothing here knows of tasquencer."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from openai import AsyncOpenAI
from pydantic_ai import Agent
from pydantic_ai.durable_exec.temporal import TemporalAgent, TemporalDurability
from pydantic_ai.models.openai import OpenAIChatModel
from pydantic_ai.providers.openai import OpenAIProvider
from temporalio import workflow
from temporalio.common import RetryPolicy
from temporalio.workflow import ActivityConfig

CLIENT = AsyncOpenAI(api_key="sk-of-the-test", base_url="http://127.0.0.1:9/v1", max_retries=0)
"""Its base URL is that of the test's provider."""

FAILURES: list[Exception] = []
"""What the tool raises next."""

_LIMITS: ActivityConfig = {
    "start_to_close_timeout": timedelta(seconds=30),
    "retry_policy": RetryPolicy(
        initial_interval=timedelta(milliseconds=200), backoff_coefficient=2, maximum_attempts=5
    ),
}


class WeatherDown(Exception):
    """The tool fails."""


async def weather(city: str) -> str:
    """Tell the weather in a city."""
    if FAILURES:
        raise FAILURES.pop(0)
    return f"Sunny in {city}"


def _model() -> OpenAIChatModel:
    return OpenAIChatModel("gpt-5-mini", provider=OpenAIProvider(openai_client=CLIENT))


durable = Agent(
    _model(),
    name="forecaster",
    instructions="Answer in one sentence.",
    tools=[weather],
    capabilities=[TemporalDurability(activity_config=_LIMITS)],
)

wrapped = TemporalAgent(
    Agent(_model(), name="old_forecaster", instructions="Answer in one sentence.", tools=[weather]),
    activity_config=_LIMITS,
)


async def _watch(_context: Any, events: Any) -> None:
    async for _ in events:
        pass


streaming = Agent(
    _model(),
    name="streamer",
    capabilities=[TemporalDurability(activity_config=_LIMITS, event_stream_handler=_watch)],
)


@workflow.defn
class Forecast:
    """Asks the agent with the durability capability."""

    __pydantic_ai_agents__ = (durable,)

    @workflow.run
    async def run(self, prompt: str) -> str:
        return (await durable.run(prompt)).output


@workflow.defn
class OldForecast:
    """Asks the wrapped agent."""

    __pydantic_ai_agents__ = (wrapped,)

    @workflow.run
    async def run(self, prompt: str) -> str:
        return (await wrapped.run(prompt)).output


@workflow.defn
class Streamed:
    """Asks an agent that streams, twice."""

    __pydantic_ai_agents__ = (streaming,)

    @workflow.run
    async def run(self, prompt: str) -> str:
        await streaming.run(prompt)
        return (await streaming.run(prompt)).output
