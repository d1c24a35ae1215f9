"""An agent of the OpenAI Agents SDK, as an application has it: nothing here knows of tasquencer."""

from __future__ import annotations

from datetime import timedelta

from agents import Agent, ModelSettings, OpenAIProvider, Runner
from openai import AsyncOpenAI
from temporalio import activity, workflow
from temporalio.common import RetryPolicy
from temporalio.openai_agents import ModelActivityParameters, OpenAIAgentsPlugin
from temporalio.openai_agents.workflow import activity_as_tool

RETRIES = RetryPolicy(initial_interval=timedelta(milliseconds=200), backoff_coefficient=2, maximum_attempts=5)

FAILURES: list[Exception] = []
"""What the tool raises next."""


class WeatherDown(Exception):
    """The tool fails."""


@activity.defn
async def weather(city: str) -> str:
    """Tell the weather in a city."""
    if FAILURES:
        raise FAILURES.pop(0)
    return f"Sunny in {city}"


@activity.defn
async def plain(value: str) -> str:
    """No tool of an agent."""
    return value


def plugin(base_url: str, *, max_retries: int = 0) -> OpenAIAgentsPlugin:
    """The framework's plugin."""
    client = AsyncOpenAI(api_key="sk-of-the-test", base_url=base_url, max_retries=max_retries)
    return OpenAIAgentsPlugin(
        model_params=ModelActivityParameters(
            start_to_close_timeout=timedelta(seconds=30), retry_policy=RETRIES, streaming_topic="events"
        ),
        model_provider=OpenAIProvider(openai_client=client, use_responses=False),
    )


def _agent() -> Agent[None]:
    tool = activity_as_tool(weather, start_to_close_timeout=timedelta(seconds=30), retry_policy=RETRIES)
    return Agent(
        name="forecaster",
        instructions="Answer in one sentence.",
        model="gpt-5-mini",
        model_settings=ModelSettings(include_usage=True),
        tools=[tool],
    )


@workflow.defn
class Forecast:
    """Asks the agent, and executes an activity of its own before."""

    @workflow.run
    async def run(self, prompt: str) -> str:
        await workflow.execute_activity(plain, "p", start_to_close_timeout=timedelta(seconds=30))
        return str((await Runner.run(_agent(), prompt)).final_output)


@workflow.defn
class Streamed:
    """Asks the agent for a streamed answer."""

    @workflow.run
    async def run(self, prompt: str) -> str:
        result = Runner.run_streamed(_agent(), prompt)
        async for _ in result.stream_events():
            pass
        return str(result.final_output)
