"""Unmodified agents of both frameworks: each attempt of each model request and each tool is a work item."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import pytest
from pydantic_ai.durable_exec.temporal import PydanticAIPlugin

from tasquencer.core.work_item import DelayReason, WorkItem
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tests.agents import openai_agents, pydantic_agents
from tests.agents.scenes import FIVE_REQUESTS, PLACES, Scene, agents_on
from tests.support.provider import ScriptedProvider

MODES = [{"observe_activities": ["*"]}, {"adopt_activities": ["*"]}]
IDS = ["observed", "adopted"]

UNHEARD = "60"
"""A wait that is asked for in vain. On a busy machine the backoff is not near it."""


def outcomes(rows: list[WorkItem]) -> list[tuple[str, int, str]]:
    return [
        (row.lineage, row.attempt, row.state.value if row.failure is None else row.failure.kind)
        for row in rows
    ]


def expected(agent: str, tool_failure: str, *, tool: str | None = None) -> list[tuple[str, int, str]]:
    tool = tool or f"{agent}tool weather"
    return [
        (f"{agent}model turn 1", 0, "rate_limited"),
        (f"{agent}model turn 1", 1, "provider_error"),
        (f"{agent}model turn 1", 2, "completed"),
        (tool, 0, tool_failure),
        (tool, 1, "completed"),
        (f"{agent}model turn 2", 0, "provider_error"),
        (f"{agent}model turn 2", 1, "completed"),
    ]


async def check(scene: Scene, rows: list[WorkItem], *, honours: bool = True) -> None:
    """Delays, tokens and cost are those of the script."""
    reasons = [row.delay_reason for row in rows]
    first, backoff = DelayReason.FIRST_TRY, DelayReason.BACKOFF
    after = DelayReason.RETRY_AFTER if honours else backoff
    assert reasons == [first, after, backoff, first, backoff, first, backoff]
    assert rows[1].delay_seconds >= (0.99 if honours else 0.15)
    for before, row in pairwise(rows):
        if row.attempt:
            assert before.ended_at is not None and row.started_at is not None
            assert 0.15 < row.delay_seconds <= (row.started_at - before.ended_at).total_seconds() + 0.001
    assert rows[0].failure is not None
    assert rows[0].failure.retry_after_seconds == float("1" if honours else UNHEARD)
    assert "Rate limit reached" in rows[0].failure.message
    jobs = await scene.jobs(rows)
    assert [job is not None for job in jobs] == [True, True, True, False, False, True, True]
    known = [job for job in jobs if job is not None]
    assert [job["status"] for job in known] == ["failed", "failed", "completed", "failed", "completed"]
    assert {job["model"] for job in known} == {"gpt-5-mini"}
    assert [job["attempt"] for job in known] == [0, 1, 2, 0, 1]
    assert {job["max_retries"] for job in known} == {4}
    assert known[0]["prompt"] == "How is the weather?"
    counted = ("input_tokens", "output_tokens", "cached_tokens", "reasoning_tokens")
    assert [known[2][name] for name in counted] == [100, 20, 40, 5]
    assert [known[4][name] for name in counted[:2]] == [150, 10]
    assert '"weather"' in str(known[2]["result"]) and known[4]["result"] == "Sunny."
    # gpt-5-mini: 0.25 $ for a million input tokens, a tenth of it from the cache, 2 $ for a million of output
    assert known[2]["cost_usd"] == pytest.approx((60 * 0.25 + 40 * 0.025 + 20 * 2) / 1e6)
    assert known[4]["cost_usd"] == pytest.approx((150 * 0.25 + 10 * 2) / 1e6)
    assert known[0]["cost_usd"] is None and known[0]["last_error"] == str(rows[0].failure)
    assert all(isinstance(job["latency_seconds"], float) for job in known)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("options", MODES, ids=IDS)
@pytest.mark.parametrize("workflow", ["Forecast", "OldForecast"], ids=["durability", "wrapped"])
async def test_an_agent_of_pydantic_ai(
    dev_server: EmbeddedTemporal, workflow: str, options: dict[str, Any], place: str
) -> None:
    pydantic_agents.FAILURES[:] = [pydantic_agents.WeatherDown("no signal")]
    workflows = [pydantic_agents.Forecast, pydantic_agents.OldForecast]
    # Without the capability Pydantic AI does not hand the provider's wish on to Temporal. Adopting does.
    honours = workflow == "Forecast" or "adopt_activities" in options
    async with (
        ScriptedProvider(FIVE_REQUESTS("1" if honours else UNHEARD)) as provider,
        agents_on(dev_server, workflows, [PydanticAIPlugin()], place=place, options=options) as scene,
    ):
        pydantic_agents.CLIENT.base_url = provider.base_url
        result, task_id = await scene.run(workflow)
        rows = await scene.rows(task_id, 7)
    assert result == "Sunny." and len(provider.requests) == 5
    agent = "forecaster: " if workflow == "Forecast" else "old_forecaster: "
    assert outcomes(rows) == expected(agent, "WeatherDown")
    await check(scene, rows, honours=honours)


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("options", MODES, ids=IDS)
async def test_an_agent_of_openai(dev_server: EmbeddedTemporal, options: dict[str, Any], place: str) -> None:
    openai_agents.FAILURES[:] = [openai_agents.WeatherDown("no signal")]
    activities = [openai_agents.weather, openai_agents.plain]
    async with (
        ScriptedProvider(FIVE_REQUESTS()) as provider,
        agents_on(
            dev_server,
            [openai_agents.Forecast],
            [openai_agents.plugin(provider.base_url)],
            activities,
            place=place,
            options=options,
        ) as scene,
    ):
        result, task_id = await scene.run("Forecast")
        plain, *rows = await scene.rows(task_id, 8)
    assert result == "Sunny." and len(provider.requests) == 5
    is_adopted = "adopt_activities" in options
    name = "plain #1" if is_adopted else "1"
    assert (plain.lineage, plain.attempt, plain.state.value) == (name, 0, "completed")
    # A workflow knows the agent's name, the summary of its model requests. An activity does not.
    agent = "forecaster: " if is_adopted else ""
    assert outcomes(rows) == expected(agent, "WeatherDown", tool="tool weather")
    await check(scene, rows)
