from __future__ import annotations

import asyncio
import json
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from tasquencer.devkit.processes import ChildProcess
from tests.support.answers import (
    Answer,
    Hold,
    closed,
    content_filter,
    empty_text,
    error_in_200,
    html,
    huge,
    insufficient_quota,
    malformed_json,
    no_choices,
    ok,
    rate_limited,
    refusal,
    reset,
    slow,
    stall,
    status,
    stream_without_finish,
    truncated,
)
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.provider import ProviderRequest, ScriptedProvider


def client_of(provider: ScriptedProvider, *, timeout: float = PATIENCE_SECONDS) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=provider.base_url, api_key="sk-test", max_retries=0, timeout=timeout)


async def ask(client: AsyncOpenAI, prompt: str = "Say hello") -> openai.types.chat.ChatCompletion:
    return await client.chat.completions.create(
        model="some-model",
        messages=[{"role": "user", "content": prompt}],
        extra_headers={"Idempotency-Key": "item-1"},
    )


async def test_a_good_answer_carries_text_usage_model_finish_reason_and_request_id() -> None:
    answer = ok("Bonjour", usage=(3, 4), finish_reason="length", model="other-model", request_id="req_9")
    async with ScriptedProvider([answer]) as provider, client_of(provider) as client:
        completion = await ask(client)

    assert completion.choices[0].message.content == "Bonjour"
    assert completion.choices[0].finish_reason == "length"
    assert completion.model == "other-model"
    assert completion.usage is not None
    assert (completion.usage.prompt_tokens, completion.usage.completion_tokens) == (3, 4)
    assert completion._request_id == "req_9"


async def test_every_request_is_recorded_with_time_headers_and_body() -> None:
    before = datetime.now(UTC)
    async with ScriptedProvider([ok()]) as provider, client_of(provider) as client:
        await ask(client, "What is new?")
        record = await provider.wait_for_end(0)

    assert (record.number, record.method, record.path) == (0, "POST", "/v1/chat/completions")
    assert record.idempotency_key == "item-1"
    assert record.authorization == "Bearer sk-test"
    assert record.prompt == "What is new?"
    assert record.body["model"] == "some-model"
    assert before <= record.at <= datetime.now(UTC)
    assert record.ended_at is not None and record.ended_at - record.at < timedelta(seconds=60)
    assert (record.status, record.complete, record.client_left) == (200, True, False)


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (rate_limited("7"), openai.RateLimitError),
        (insufficient_quota(), openai.RateLimitError),
        (status(401), openai.AuthenticationError),
        (
            status(400, {"error": {"message": "no", "code": "context_length_exceeded"}}),
            openai.BadRequestError,
        ),
        (status(503, headers={"retry-after": "3"}), openai.InternalServerError),
        (html(502), openai.InternalServerError),
        (malformed_json(), json.JSONDecodeError),
        (truncated(), openai.APIConnectionError),
        (reset(), openai.APIConnectionError),
        (closed(), openai.APIConnectionError),
    ],
    ids=repr,
)
async def test_a_bad_answer_reaches_the_openai_client_as_the_error_it_has_for_it(
    answer: Answer, error: type[Exception]
) -> None:
    async with ScriptedProvider([answer]) as provider, client_of(provider) as client:
        with pytest.raises(error):
            await ask(client)
        assert len(provider.requests) == 1


async def test_headers_and_codes_of_a_refused_request_arrive_as_scripted() -> None:
    script = [
        rate_limited("1.5", headers={"retry-after-ms": "1500", "x-should-retry": "false"}),
        insufficient_quota(),
    ]
    async with ScriptedProvider(script) as provider, client_of(provider) as client:
        with pytest.raises(openai.RateLimitError) as limited:
            await ask(client)
        with pytest.raises(openai.RateLimitError) as spent:
            await ask(client)

    headers = limited.value.response.headers
    assert (headers["retry-after"], headers["retry-after-ms"], headers["x-should-retry"]) == (
        "1.5",
        "1500",
        "false",
    )
    assert limited.value.code == "rate_limit_exceeded"
    assert spent.value.code == "insufficient_quota"


async def test_answers_with_status_200_that_are_no_answers_arrive_as_such() -> None:
    script = [html(), error_in_200(), no_choices(), empty_text(), refusal("No."), content_filter()]
    async with ScriptedProvider(script) as provider, client_of(provider) as client:
        page = await ask(client)
        error = await ask(client)
        none = await ask(client)
        empty = await ask(client)
        refused = await ask(client)
        filtered = await ask(client)

    assert str(page).startswith("<!DOCTYPE html>")
    assert "error" in error.model_dump()
    assert none.choices == []
    assert empty.choices[0].message.content == ""
    assert (refused.choices[0].message.content, refused.choices[0].message.refusal) == (None, "No.")
    assert filtered.choices[0].finish_reason == "content_filter"


async def test_a_slow_and_a_huge_answer_arrive_whole() -> None:
    script = [slow("drip", pause_seconds=0.01, pieces=5), huge(3_000_000)]
    async with ScriptedProvider(script) as provider, client_of(provider) as client:
        assert (await ask(client)).choices[0].message.content == "drip"
        assert len((await ask(client)).choices[0].message.content or "") == 3_000_000


async def test_a_stream_ends_with_a_finish_reason_unless_scripted_otherwise() -> None:
    async with (
        ScriptedProvider([ok("one two"), stream_without_finish("one")]) as provider,
        client_of(provider) as client,
    ):
        for text, reasons in [("one two", ["stop"]), ("one", [])]:
            stream = await client.chat.completions.create(
                model="m", messages=[{"role": "user", "content": "x"}], stream=True
            )
            chunks = [chunk.choices[0] async for chunk in stream]
            assert "".join(chunk.delta.content or "" for chunk in chunks) == text
            assert [chunk.finish_reason for chunk in chunks if chunk.finish_reason] == reasons


async def test_a_held_answer_comes_when_it_is_released() -> None:
    hold = Hold()
    async with ScriptedProvider([stall(hold, ok("late"))]) as provider, client_of(provider) as client:
        asking = asyncio.create_task(ask(client))
        await provider.wait_for_requests(1)
        assert provider.requests[0].ended_at is None
        hold.release()
        assert (await asking).choices[0].message.content == "late"


async def test_a_client_that_leaves_is_recorded_at_once() -> None:
    async with ScriptedProvider([stall()]) as provider, client_of(provider) as client:
        asking = asyncio.create_task(ask(client))
        await provider.wait_for_requests(1)
        left_at = datetime.now(UTC)
        asking.cancel()
        record = await provider.wait_for_end(0)

    assert (record.status, record.complete, record.client_left) == (None, False, True)
    assert record.ended_at is not None
    assert record.ended_at - left_at < timedelta(seconds=20)


async def test_a_client_that_times_out_in_the_middle_of_an_answer_is_recorded() -> None:
    answer = slow(pause_seconds=60)
    # Not at once: on a busy machine, too, the answer must have begun.
    async with ScriptedProvider([answer]) as provider, client_of(provider, timeout=10) as client:
        with pytest.raises(openai.APITimeoutError):
            await ask(client)
        record = await provider.wait_for_end(0)

    assert (record.status, record.complete, record.client_left) == (200, False, True)


async def test_a_mapping_answers_by_prompt_and_a_callable_by_request() -> None:
    by_prompt = {"a": [ok("A1"), ok("A2")], "b": [ok("B1")]}
    async with ScriptedProvider(by_prompt) as provider, client_of(provider) as client:
        texts = [(await ask(client, prompt)).choices[0].message.content for prompt in "aba"]
    assert texts == ["A1", "B1", "A2"]

    def echo(request: ProviderRequest) -> Answer:
        return ok(f"{request.number}: {request.prompt}")

    async with ScriptedProvider(echo) as provider, client_of(provider) as client:
        answers = await asyncio.gather(*(ask(client, "same") for _ in range(20)))
    texts = [answer.choices[0].message.content for answer in answers]
    assert sorted(texts, key=str) == sorted((f"{number}: same" for number in range(20)), key=str)


async def test_a_request_beyond_the_script_is_refused_and_fails_the_test() -> None:
    with pytest.raises(AssertionError, match=r"1 requests more than the script foresees: \['Say hello'\]"):
        async with ScriptedProvider([ok()]) as provider, client_of(provider) as client:
            await ask(client)
            with pytest.raises(openai.InternalServerError, match="script is spent"):
                await ask(client)


async def test_the_answer_for_the_rest_is_given_once_the_script_is_spent() -> None:
    async with ScriptedProvider([status(500)], then=ok("rest")) as provider, client_of(provider) as client:
        with pytest.raises(openai.InternalServerError):
            await ask(client)
        assert [(await ask(client)).choices[0].message.content for _ in range(3)] == ["rest"] * 3


@pytest.mark.parametrize(
    ("path", "body", "expected"),
    [
        ("/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, (400, "'model'")),
        ("/chat/completions", {"model": "m", "messages": []}, (400, "'messages'")),
        (
            "/chat/completions",
            {"model": "m", "messages": [{"role": "user", "content": ""}]},
            (400, "content"),
        ),
        ("/responses", {"model": "m"}, (400, "'input'")),
        ("/embeddings", {"model": "m"}, (404, "/v1/embeddings")),
    ],
)
async def test_a_request_of_the_wrong_shape_is_refused_and_spends_no_answer(
    path: str, body: dict[str, object], expected: tuple[int, str]
) -> None:
    async with (
        ScriptedProvider([ok()]) as provider,
        httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client,
    ):
        answer = await client.post(provider.base_url + path, json=body, headers={"authorization": "Bearer x"})
        assert answer.status_code == expected[0]
        assert expected[1] in answer.json()["error"]["message"]
        async with client_of(provider) as real:
            assert (await ask(real)).choices[0].message.content == "Hello!"


async def test_it_runs_as_a_program_with_a_script_and_a_log(tmp_path: Path) -> None:
    script, log = tmp_path / "script.json", tmp_path / "log.jsonl"
    script.write_text(
        json.dumps([{"answer": "rate_limited", "retry_after": "2"}, {"answer": "ok", "text": "hi"}])
    )
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "tests.support.provider",
        "--script",
        script,
        "--log",
        log,
    ]
    process = ChildProcess("the provider", command)
    try:

        async def ready() -> bool:
            return process.output().endswith("\n")

        await process.wait_ready(ready, timeout_seconds=PATIENCE_SECONDS)
        async with AsyncOpenAI(base_url=process.last_line(), api_key="x", max_retries=0) as client:
            with pytest.raises(openai.RateLimitError):
                await ask(client)
            assert (await ask(client)).choices[0].message.content == "hi"

        async def logged() -> bool:  # a request's end, a moment after its answer
            return log.read_text().count("\n") == 4

        await eventually(logged, "two requests and their ends in the log")
    finally:
        await process.stop()
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    assert [(line["event"], line["number"], line["status"]) for line in lines] == [
        ("request", 0, None),
        ("end", 0, 429),
        ("request", 1, None),
        ("end", 1, 200),
    ]
