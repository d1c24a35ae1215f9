"""What the AI call sends, and how it keeps to its limits."""

from __future__ import annotations

import asyncio
import itertools
import logging
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx2
import openai
import pytest
from pydantic import JsonValue
from temporalio import activity
from temporalio.exceptions import ApplicationError

from tasquencer.ai.job import AiJob, ChatMessage
from tasquencer.ai.provider.client import make_client, output_limit_field
from tasquencer.ai.provider.exchange import Providers
from tasquencer.ai.provider.requests import chat_body
from tasquencer.ai.request import AiAgentRequest
from tasquencer.ai.timeouts import CALL_MARGIN, call_limit
from tasquencer.core.failure import Failure
from tasquencer.temporal.ai_calls import AiCalls, ClientRetries
from tests.activities.calling import (
    KEY,
    MODEL,
    WORK_ITEM,
    activities_for,
    answer_of,
    environment,
    failure_of,
    job,
    schema,
)
from tests.support import answers
from tests.support.provider import ProviderRequest, ScriptedProvider


async def sent(asked: AiJob) -> ProviderRequest:
    """The one request that the job makes."""
    async with ScriptedProvider([answers.ok('{"age": 3}')]) as provider:
        await answer_of(provider.base_url, asked)
    (request,) = provider.requests
    return request


async def test_a_plain_job_sends_model_and_messages_and_that_it_wants_no_stream() -> None:
    request = await sent(job("Say hello", metadata={"order": "7"}))
    assert request.path == "/v1/chat/completions"
    messages = [{"role": "user", "content": "Say hello"}]
    assert request.body == {"model": MODEL, "messages": messages, "stream": False}


async def test_the_work_items_id_is_the_idempotency_key() -> None:
    request = await sent(job())
    assert request.idempotency_key == WORK_ITEM
    assert request.authorization == f"Bearer {KEY}"


async def test_a_full_job_sends_all_its_fields() -> None:
    age = schema(age={"type": "integer"})
    parts: JsonValue = [{"type": "text", "text": "How old?"}]
    asked = AiJob(
        messages=[ChatMessage(role="system", content="Be brief."), ChatMessage(role="user", content=parts)],
        model="tiny-2",
        temperature=0,
        max_output_tokens=9,
        output_schema=age,
        top_p=0.5,
        seed=7,
        stop=["END"],
        reasoning_effort="low",
        extra_body={"service_tier": "flex"},
    )
    assert (await sent(asked)).body == {
        "service_tier": "flex",
        "model": "tiny-2",
        "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": parts}],
        "stream": False,
        "temperature": 0,
        "max_tokens": 9,
        "top_p": 0.5,
        "seed": 7,
        "stop": ["END"],
        "reasoning_effort": "low",
        "response_format": {
            "type": "json_schema",
            "json_schema": {
                "name": "output",
                "schema": {**age, "additionalProperties": False},
                "strict": True,
            },
        },
    }


async def test_a_schema_that_is_not_strict_is_sent_as_it_is() -> None:
    loose = {**schema(age={"type": "integer"}), "required": []}
    body = (await sent(job(output_schema=loose))).body
    assert body["response_format"]["json_schema"] == {"name": "output", "schema": loose, "strict": False}


async def test_a_conversation_with_tool_calls_is_sent_as_it_is() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    messages: list[dict[str, Any]] = [
        {"role": "user", "content": "1 + 1?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "content": "2", "tool_call_id": "c1"},
    ]
    assert sent_messages(messages) == messages


def sent_messages(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    asked = AiJob.model_validate({"messages": messages})
    found: list[dict[str, Any]] = chat_body(asked, MODEL, "max_tokens")["messages"]
    return found


async def test_a_request_of_the_contract_becomes_the_conversation_it_describes() -> None:
    request = AiAgentRequest(prompt="Hello", system="Be brief.", temperature=0.5)
    body = (await sent(request.job())).body
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    assert body["temperature"] == 0.5


@pytest.mark.parametrize(
    ("url", "model", "field"),
    [
        ("https://api.openai.com/v1/", "gpt-4o-mini", "max_completion_tokens"),
        ("https://eu.api.openai.com/v1/", "gpt-4o-mini", "max_completion_tokens"),
        ("https://mine.openai.azure.com/openai/v1/", "my-deployment", "max_completion_tokens"),
        ("https://gateway.example/v1/", "gpt-5-mini", "max_completion_tokens"),
        ("https://gateway.example/v1/", "o3", "max_completion_tokens"),
        ("https://openrouter.ai/api/v1/", "openai/gpt-5", "max_tokens"),
        ("http://127.0.0.1:11434/v1/", "gpt-oss:20b", "max_tokens"),
        ("http://127.0.0.1:8080/v1/", "smollm2", "max_tokens"),
        ("https://api.openai.com.evil.example/v1/", "gpt-4o", "max_tokens"),
    ],
)
def test_the_output_limit_has_the_name_that_the_server_understands(url: str, model: str, field: str) -> None:
    assert output_limit_field(httpx2.URL(url), model) == field


def test_a_client_that_retries_by_itself_is_refused() -> None:
    with pytest.raises(ClientRetries, match=r"max_retries=0, found 2"):
        AiCalls(openai.AsyncOpenAI(api_key=KEY), MODEL)


SCHEDULED_AGAIN: dict[str, Any] = {
    "scheduled_time": datetime(2026, 1, 1, tzinfo=UTC),
    "current_attempt_scheduled_time": datetime(2026, 1, 2, tzinfo=UTC),
}


@pytest.mark.parametrize("run", [{"attempt": 2}, {**SCHEDULED_AGAIN, "heartbeat_details": ["called"]}])
async def test_a_second_run_of_the_activity_sends_nothing(run: dict[str, Any]) -> None:
    async with ScriptedProvider() as provider, activities_for(provider.base_url) as activities:
        with pytest.raises(ApplicationError, match="a second time") as caught:
            await environment(**run).run(activities.generate, job())
    assert (caught.value.type, caught.value.non_retryable) == ("operator", True)
    assert Failure.model_validate(caught.value.details[0]).transient
    assert provider.requests == []


async def test_a_first_run_that_was_scheduled_twice_sends_its_request() -> None:
    async with (
        ScriptedProvider([answers.ok("Hello!")]) as provider,
        activities_for(provider.base_url) as activities,
    ):
        answer = await environment(**SCHEDULED_AGAIN).run(activities.generate, job())
    assert answer.text == "Hello!"


@pytest.mark.parametrize(
    ("start_to_close", "expected"),
    [
        (timedelta(seconds=305), timedelta(seconds=300)),
        (timedelta(seconds=6), timedelta(seconds=1)),
        (CALL_MARGIN, CALL_MARGIN / 2),
        (timedelta(seconds=1), timedelta(seconds=0.5)),
        (None, None),
    ],
)
def test_the_request_ends_before_the_activity_does(
    start_to_close: timedelta | None, expected: timedelta | None
) -> None:
    assert call_limit(start_to_close) == expected


async def test_heartbeats_go_on_while_the_call_runs_and_stop_with_it() -> None:
    beats: list[float] = []
    hold = answers.Hold()
    env = environment()

    def beat(*details: Any) -> None:
        beats.append(time.monotonic())
        if len(beats) == 4:
            hold.release()  # only heartbeats can end this call

    env.on_heartbeat = beat
    async with (
        ScriptedProvider([answers.stall(hold)]) as provider,
        activities_for(provider.base_url) as activities,
    ):
        await env.run(activities.generate, job())
    assert len(beats) >= 4
    assert "heartbeats" not in {task.get_name() for task in asyncio.all_tasks()}
    gaps = [later - earlier for earlier, later in itertools.pairwise(beats)]
    assert 0.3 < min(gaps) < 1  # a busy machine makes some of them longer, never shorter


async def test_the_time_between_two_heartbeats_can_be_chosen_within_the_timeout() -> None:
    beats: list[float] = []
    hold = answers.Hold()
    env = environment(heartbeat_timeout=timedelta(seconds=3))

    def beat(*details: Any) -> None:
        beats.append(time.monotonic())
        if len(beats) == 2:
            hold.release()

    env.on_heartbeat = beat
    async with (
        ScriptedProvider([answers.stall(hold)]) as provider,
        make_client(api_key=KEY, base_url=provider.base_url) as client,
    ):
        activities = AiCalls(client, MODEL, heartbeat_interval=timedelta(minutes=1))
        await env.run(activities.generate, job())
    assert 0.9 < beats[1] - beats[0] < 30  # a third of the timeout, not a minute


async def test_a_cancellation_closes_the_connection_at_once_and_propagates() -> None:
    env = environment()
    async with (
        ScriptedProvider([answers.stall()]) as provider,
        activities_for(provider.base_url) as activities,
    ):
        call = asyncio.ensure_future(env.run(activities.generate, job()))
        await provider.wait_for_requests(1)
        begin = time.monotonic()
        env.cancel()
        request = await provider.wait_for_end(0)
        took = time.monotonic() - begin
        with pytest.raises(asyncio.CancelledError):
            await call
    assert request.client_left
    assert took < 20  # not the limit of the call


async def test_a_connection_is_used_again_but_never_a_request() -> None:
    async with (
        ScriptedProvider([answers.ok(), answers.status(500), answers.ok()]) as provider,
        activities_for(provider.base_url) as activities,
    ):
        env = environment()
        await env.run(activities.generate, job("1"))
        with pytest.raises(ApplicationError):
            await env.run(activities.generate, job("2"))
        await env.run(activities.generate, job("3"))
    assert [request.prompt for request in provider.requests] == ["1", "2", "3"]


async def test_a_bug_is_a_failure_of_its_own_that_is_logged_and_not_retried(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    async def broken(*args: object, **kwargs: object) -> Mapping[str, object]:
        raise ZeroDivisionError(f"with {KEY}")

    monkeypatch.setattr(Providers, "exchange", broken)
    with caplog.at_level(logging.ERROR, logger=activity.logger.name):
        failure = await failure_of("http://127.0.0.1:1/v1")
    assert (failure.kind, failure.transient, failure.outcome_unknown) == ("unexpected", False, True)
    assert failure.message == "ZeroDivisionError: with [redacted]"
    assert "in broken" in caplog.text
    assert KEY not in caplog.text


def test_the_time_limits_import_nothing_that_a_workflow_may_not() -> None:
    program = (
        "import sys, tasquencer.ai.timeouts; print('openai' in sys.modules or 'temporalio' in sys.modules)"
    )
    shown = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert shown.stdout == "False\n"
