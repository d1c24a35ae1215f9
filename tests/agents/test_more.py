"""Streams, names that come twice, hidden payloads, and clients that retry by themselves."""

from __future__ import annotations

import logging
from typing import Any

import pytest
from openai import AsyncOpenAI
from pydantic_ai.durable_exec.temporal import PydanticAIPlugin
from temporalio.worker import Replayer

from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal import TasquencerPlugin
from tasquencer.temporal.agent_steps import client_retries
from tasquencer.testing import InMemoryLedger
from tests.agents import openai_agents, pydantic_agents
from tests.agents.scenes import agents_on
from tests.support.answers import ok, status, tool_call
from tests.support.encryption import encrypting
from tests.support.provider import ScriptedProvider

both_modes = pytest.mark.parametrize("mode", ["observe_activities", "adopt_activities"])


@both_modes
async def test_streams_of_pydantic_ai_and_a_name_that_comes_twice(
    dev_server: EmbeddedTemporal, mode: str
) -> None:
    script = [status(503), ok("One.", usage=(30, 4)), ok("Two.", usage=(31, 5))]
    async with (
        ScriptedProvider(script) as provider,
        agents_on(
            dev_server, [pydantic_agents.Streamed], [PydanticAIPlugin()], options={mode: ["*"]}
        ) as scene,
    ):
        pydantic_agents.CLIENT.base_url = provider.base_url
        result, task_id = await scene.run("Streamed")
        rows = await scene.rows(task_id, 3)
        jobs = await scene.jobs(rows)
    assert result == "Two."
    first, _, second = rows
    assert [row.lineage for row in rows][:2] == ["streamer: model turn 1"] * 2
    assert second.lineage.startswith("streamer: model turn 1 #") and second.attempt == 0
    assert first.failure is not None and first.failure.kind == "provider_error"
    assert [(job["status"], job["input_tokens"], job["output_tokens"]) for job in jobs if job] == [
        ("failed", None, None),
        ("completed", 30, 4),
        ("completed", 31, 5),
    ]


@both_modes
async def test_streams_of_openai_s_agents(dev_server: EmbeddedTemporal, mode: str) -> None:
    script = [status(503), tool_call("weather", {"city": "Oslo"}), ok("Sunny.", usage=(30, 4))]
    openai_agents.FAILURES.clear()
    async with (
        ScriptedProvider(script) as provider,
        agents_on(
            dev_server,
            [openai_agents.Streamed],
            [openai_agents.plugin(provider.base_url)],
            [openai_agents.weather],
            options={mode: ["*"]},
        ) as scene,
    ):
        result, task_id = await scene.run("Streamed")
        rows = await scene.rows(task_id, 4)
        jobs = await scene.jobs(rows)
    assert result == "Sunny."
    names = [row.lineage.removeprefix("forecaster: ") for row in rows]
    assert (names[0] != rows[0].lineage) == (mode == "adopt_activities")
    assert [(name, row.attempt, row.state.value) for name, row in zip(names, rows, strict=True)] == [
        ("model turn 1", 0, "failed"),
        ("model turn 1", 1, "completed"),
        ("tool weather", 0, "completed"),
        ("model turn 2", 0, "completed"),
    ]
    assert rows[0].failure is not None and rows[0].failure.kind == "provider_error"
    last = jobs[3]
    assert last is not None and (last["input_tokens"], last["output_tokens"]) == (30, 4)
    assert (last["model"], last["result"]) == ("gpt-5-mini", "Sunny.")


@both_modes
@pytest.mark.parametrize("record_payloads", [None, True], ids=["by default", "on request"])
async def test_with_a_codec_no_text_is_kept_but_tokens_are(
    dev_server: EmbeddedTemporal, record_payloads: bool | None, mode: str
) -> None:
    options = {mode: ["*"], "record_payloads": record_payloads}
    pydantic_agents.FAILURES.clear()
    async with (
        ScriptedProvider([status(503), ok("An answer.", usage=(30, 4))]) as provider,
        agents_on(
            dev_server,
            [pydantic_agents.Forecast],
            [PydanticAIPlugin()],
            options=options,
            client_options={"data_converter": encrypting},
        ) as scene,
    ):
        pydantic_agents.CLIENT.base_url = provider.base_url
        _, task_id = await scene.run("Forecast", "A secret question")
        rows = await scene.rows(task_id, 2)
        jobs = await scene.jobs(rows)
    held = str(jobs) + "".join(row.model_dump_json() for row in rows)
    assert ("secret question" in held, "An answer." in held) == (bool(record_payloads),) * 2
    assert [row.lineage for row in rows] == ["forecaster: model turn 1"] * 2
    last = jobs[1]
    assert last is not None and (last["input_tokens"], last["model"]) == (30, "gpt-5-mini")


@pytest.mark.parametrize(
    ("framework", "mode"),
    [
        ("pydantic_ai", "observe_activities"),
        ("openai_agents", "observe_activities"),
        ("openai_agents", "adopt_activities"),
    ],
)
async def test_a_client_that_retries_by_itself_is_warned_of_once(
    dev_server: EmbeddedTemporal, framework: str, mode: str, caplog: pytest.LogCaptureFixture
) -> None:
    pydantic_agents.FAILURES.clear()
    async with ScriptedProvider([ok("One."), ok("Two.")]) as provider:
        workflows: list[type] = [pydantic_agents.Forecast]
        plugins: list[Any] = [PydanticAIPlugin()]
        activities: list[Any] = []
        if framework == "openai_agents":
            workflows = [openai_agents.Forecast]
            plugins = [openai_agents.plugin(provider.base_url, max_retries=2)]
            activities = [openai_agents.weather, openai_agents.plain]
        pydantic_agents.CLIENT.base_url = provider.base_url
        pydantic_agents.CLIENT.max_retries = 2
        try:
            with caplog.at_level(logging.WARNING, "tasquencer.temporal.agent_steps"):
                options = {mode: ["*"]}
                async with agents_on(dev_server, workflows, plugins, activities, options=options) as scene:
                    for _ in range(2):
                        await scene.run("Forecast")
        finally:
            pydantic_agents.CLIENT.max_retries = 0
    logged = [record.getMessage() for record in caplog.records if record.name.endswith("agent_steps")]
    assert len(logged) == 1 and "max_retries=2" in logged[0], logged


async def test_the_history_of_an_adopted_agent_replays(dev_server: EmbeddedTemporal) -> None:
    pydantic_agents.FAILURES[:] = [pydantic_agents.WeatherDown("no signal")]
    adopting = {"adopt_activities": ["*"]}
    async with (
        ScriptedProvider([status(503), tool_call("weather", {"city": "Oslo"}), ok("Sunny.")]) as provider,
        agents_on(dev_server, [pydantic_agents.Forecast], [PydanticAIPlugin()], options=adopting) as scene,
    ):
        pydantic_agents.CLIENT.base_url = provider.base_url
        _, task_id = await scene.run("Forecast")
        history = await scene.client.get_workflow_handle(task_id).fetch_history()
    for patterns in (["*"], []):
        ours = TasquencerPlugin(InMemoryLedger(), adopt_activities=patterns)
        replayer = Replayer(workflows=[pydantic_agents.Forecast], plugins=[PydanticAIPlugin(), ours])
        await replayer.replay_workflow(history)


def test_a_client_that_does_not_retry_is_none_to_warn_of() -> None:
    client = AsyncOpenAI(api_key="k", base_url="http://127.0.0.1:9", max_retries=0)

    async def call() -> object:
        return client

    assert client_retries(call) == 0
    client.max_retries = 3
    assert client_retries(call) == 3
    assert client_retries(None) == 0
