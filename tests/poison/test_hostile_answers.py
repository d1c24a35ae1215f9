"""Answers made to stop the worker: each is a failure, and meanwhile the worker does its other work."""

from __future__ import annotations

import asyncio
import gzip
import json
import time
import zlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Any

import openai
import pytest
from temporalio.exceptions import ApplicationError

from tasquencer.ai.provider import schemas
from tasquencer.ai.provider.client import make_client
from tasquencer.ai.provider.errors import error_failure
from tasquencer.ai.provider.redaction import Redactor
from tasquencer.ai.provider.reported import report_in
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.temporal.ai_calls import AiCalls
from tests.activities.calling import KEY, MODEL, activities_for, environment, failure_of, job
from tests.poison.wire import GOOD, head, nested, sending
from tests.support import answers
from tests.support.answers import Answer
from tests.support.patience import PATIENCE_SECONDS
from tests.support.provider import ScriptedProvider

K = FailureKind
LONGEST_STOP = 5.0
"""Seconds of this process's own work; the attacks stopped the event loop for a minute of it."""


@asynccontextmanager
async def nothing_stands_still() -> AsyncIterator[None]:
    """Fails if the event loop does not turn while this process works for `LONGEST_STOP` in the block.

    Other programs of a busy machine stop it, too, but then it does not work.
    """
    stops: list[float] = [0.0]

    async def turn() -> None:
        while True:
            begin, worked = time.monotonic(), time.process_time()
            await asyncio.sleep(0.01)
            stops.append(min(time.monotonic() - begin, time.process_time() - worked))

    turning = asyncio.create_task(turn())
    try:
        yield
    finally:
        turning.cancel()
    assert max(stops) < LONGEST_STOP


def pieces(status: str, count: int, piece: bytes = b"1\r\n \r\n") -> Answer:
    """A body in this many chunks of one byte."""
    return sending(head(status, b"transfer-encoding: chunked"), piece * count, b"0\r\n\r\n")


def encoded(body: bytes, encoding: str, code: int = 200) -> Answer:
    return answers.raw(body, code=code, headers={"content-encoding": encoding})


ATTACKS: dict[str, tuple[Callable[[], Answer], FailureKind]] = {
    # how it is made, so that only its test makes it, and the kind of failure
    "four layers around nothing": (lambda: frozen(200), K.PROVIDER_ERROR),
    "the same as an error": (lambda: frozen(500), K.PROVIDER_ERROR),
    "one layer around nothing": (lambda: encoded(nested(1, 1_000_000), "gzip"), K.PROVIDER_ERROR),
    "one layer around nothing as an error": (
        lambda: encoded(nested(1, 1_000_000), "gzip", 429),
        K.RATE_LIMITED,
    ),
    "a million pieces": (lambda: pieces("200 OK", 1_000_000), K.PROVIDER_ERROR),
    "a million pieces of an error": (lambda: pieces("503 Busy", 1_000_000), K.PROVIDER_ERROR),
    "br": (lambda: encoded(GOOD, "br"), K.PROVIDER_ERROR),
    "zstd": (lambda: encoded(GOOD, "zstd"), K.PROVIDER_ERROR),
    "deflate": (lambda: encoded(zlib.compress(GOOD), "deflate"), K.PROVIDER_ERROR),
    "gzip twice": (lambda: encoded(gzip.compress(gzip.compress(GOOD)), "gzip, gzip"), K.PROVIDER_ERROR),
}


def frozen(code: int) -> Answer:
    return encoded(nested(4, 20_000_000), "gzip, gzip, gzip, gzip", code)


@pytest.mark.parametrize("what", ATTACKS)
async def test_a_hostile_answer_holds_up_no_other_call(what: str) -> None:
    make, kind = ATTACKS[what]
    attack = make()
    async with (
        ScriptedProvider([attack]) as hostile,
        ScriptedProvider(then=answers.ok("mine")) as friendly,
        activities_for(friendly.base_url) as others,
    ):
        async with nothing_stands_still():
            attacked = asyncio.create_task(failure_of(hostile.base_url))
            while not attacked.done():
                assert (await environment().run(others.generate, job())).text == "mine"
        failure = await attacked
    assert failure.kind == kind
    assert len(failure.model_dump_json()) < 8_000


@pytest.mark.parametrize("encoding", ["br", "gzip, gzip", "zstd"])
@pytest.mark.parametrize("code", [200, 500])
async def test_an_encoding_that_nobody_asked_for_is_named(encoding: str, code: int) -> None:
    async with ScriptedProvider([encoded(b"\x1b\x03", encoding, code)]) as provider:
        failure = await failure_of(provider.base_url)
    assert f"content encoding '{encoding}', which was not asked for" in failure.message
    assert provider.requests[0].headers["accept-encoding"] == "gzip"


async def test_the_limit_of_the_call_holds_while_a_body_is_decoded() -> None:
    async def give(exchange: Any, body: Any) -> None:
        exchange._writer.write(head("200 OK", b"transfer-encoding: chunked", b"content-encoding: gzip"))
        exchange._writer.write(b"a\r\n\x1f\x8b\x08" + bytes(7) + b"\r\n")
        while True:
            exchange._writer.write(b"5\r\n\x00\x00\x00\xff\xff\r\n" * 100)
            await exchange._writer.drain()
            await asyncio.sleep(0.05)

    async with ScriptedProvider([Answer("gzip without end", give)]) as provider, nothing_stands_still():
        failure = await failure_of(provider.base_url, limit_seconds=2)
    assert (failure.kind, failure.outcome_unknown) == (K.TIMED_OUT, True)


@pytest.mark.parametrize("make", ["ours", "theirs"])
async def test_no_cookie_of_an_answer_goes_out_with_another_request(make: str) -> None:
    baking = {"set-cookie": "a=" + "x" * 1000 + "; Path=/"}
    async with ScriptedProvider(
        [answers.ok(headers=baking), answers.status(500, headers=baking), answers.ok()]
    ) as provider:
        options: dict[str, Any] = {"api_key": KEY, "base_url": provider.base_url}
        client = make_client(**options) if make == "ours" else openai.AsyncOpenAI(**options, max_retries=0)
        async with client, AiCalls(client, MODEL) as calls:
            await environment().run(calls.generate, job())
            with pytest.raises(ApplicationError):
                await environment().run(calls.generate, job())
            await environment().run(calls.generate, job())
        assert list(client._client.cookies.jar) == []
    assert ["cookie" in request.headers for request in provider.requests] == [False, False, False]


async def test_the_cookies_that_a_client_was_made_with_are_sent_on() -> None:
    async with ScriptedProvider([answers.ok(headers={"set-cookie": "mine=changed"})] * 2) as provider:
        http = openai.DefaultAsyncHttpxClient(cookies={"mine": "kept"})
        client = openai.AsyncOpenAI(api_key=KEY, base_url=provider.base_url, max_retries=0, http_client=http)
        async with client, AiCalls(client, MODEL) as calls:
            for _ in range(2):
                await environment().run(calls.generate, job())
    assert [request.headers["cookie"] for request in provider.requests] == ["mine=kept", "mine=kept"]


def fan(width: int, depth: int) -> dict[str, Any]:
    """A schema that offers this many equal ways at each of its levels."""
    levels: dict[str, Any] = {
        f"level{at}": {"anyOf": [{"$ref": f"#/$defs/level{at + 1}"}] * width} for at in range(depth)
    }
    return {"$defs": levels | {f"level{depth}": {"type": "string"}}, "$ref": "#/$defs/level0"}


ENDLESS: list[tuple[str, dict[str, Any], str]] = [
    ("a pattern that tracks back", {"type": "string", "pattern": "^(a+)+$"}, json.dumps("a" * 60 + "!")),
    ("a fan of references", fan(2, 40), "3"),
    (
        "uniqueItems",
        {"type": "array", "uniqueItems": True},
        json.dumps([{"a": at, "b": [at]} for at in range(30_000)]),
    ),
    ("patternProperties", {"patternProperties": {"^(a|a)*$": {}}}, json.dumps({"a" * 60 + "!": 1})),
]


@pytest.mark.parametrize(("schema", "text"), [row[1:] for row in ENDLESS], ids=[row[0] for row in ENDLESS])
async def test_a_schema_without_end_is_given_up_and_holds_up_no_other_call(
    schema: dict[str, Any], text: str
) -> None:
    async with (
        ScriptedProvider(then=answers.ok(text, usage=(900, 7))) as provider,
        ScriptedProvider(then=answers.ok("mine")) as friendly,
        activities_for(friendly.base_url) as others,
    ):
        async with nothing_stands_still():
            asked = job(output_schema=schema)
            attacked = asyncio.create_task(
                failure_of(provider.base_url, asked, limit_seconds=PATIENCE_SECONDS)
            )
            while not attacked.done():
                assert (await environment().run(others.generate, job())).text == "mine"
        failure = await attacked
    assert failure.kind == K.INVALID_OUTPUT
    assert "checking it takes more than" in failure.message
    assert failure.details["output_tokens"] == 7


async def test_schemas_are_checked_again_after_one_was_given_up() -> None:
    async with (
        ScriptedProvider([answers.ok(ENDLESS[0][2]), answers.ok("3"), answers.ok('"x"')]) as provider,
        activities_for(provider.base_url) as activities,
    ):
        failures = []
        for schema in (ENDLESS[0][1], {"type": "integer"}, {"type": "integer"}):
            try:
                answer = await environment().run(activities.generate, job(output_schema=schema))
                assert answer.text == "3"
            except ApplicationError as error:
                failures.append(Failure.model_validate(error.details[0]).message)
    assert "checking it takes more than" in failures[0]
    assert "'x' is not of type 'integer'" in failures[1]


async def test_an_output_that_takes_too_much_memory_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schemas, "_MEMORY_BYTES", 48 * 2**20)
    much = "[" + '{"a": 1},' * 180_000 + "{}]"
    async with schemas.SchemaChecks() as checks:
        assert await checks.problem_of_output("[{}]", {"type": "array"}) is None
        problem = await checks.problem_of_output(much, {"type": "array"})
    assert problem is not None
    assert "memory" in problem


async def test_the_processes_that_check_schemas_end_with_the_calls() -> None:
    async with ScriptedProvider([answers.ok("3")]) as provider:
        async with activities_for(provider.base_url) as activities:
            await environment().run(activities.generate, job(output_schema={"type": "integer"}))
            (process,) = activities._schema_checks._idle
            assert process.returncode is None
        assert process.returncode is not None


TEDIOUS = [
    "exceed", "\\", "retry ", "retry in 1h", "status code ", "insufficient a ", "no credits x", "violat ",
    "://a", "%4", "&#", '"code": "', "\\u00", "<title", "<", "1h", "9m38.016s ", "a", "rate limit ", "quota ",
    "context length of ", "blocked by ", "per ", "{", "[", "sk-", "authorization: ", "bearer ",
    "exceeded your a ", " ", "\n", "敏", "00:00:",
]  # fmt: skip


@pytest.mark.parametrize("code", [200, 400])
async def test_no_words_of_an_error_take_long_to_read(code: int) -> None:
    """Each error has as many characters as are looked at, and more."""
    headers = {
        "ratelimit": "r=0 " * 10_000,
        "x-ratelimit-remaining-x": "0",
        "x-ratelimit-reset-x": "1h" * 10_000,
    }
    for words in TEDIOUS:
        text = words * (30_000 // len(words))
        body = {"error": {"message": text, "code": text, "metadata": {"raw": text, "headers": {"a": text}}}}
        report_began = time.process_time()
        failure = classified(code, body, headers)
        assert time.process_time() - report_began < 1, words
        assert len(failure.model_dump_json()) < 8_000


def classified(code: int, body: Any, headers: dict[str, str]) -> Failure:
    clean = Redactor(("sk-test-0123456789abcdef",))
    return error_failure(code, "no", report_in(body, clean), headers, datetime.now(UTC))
