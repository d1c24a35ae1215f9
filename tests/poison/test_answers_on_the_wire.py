"""Answers that are no proper HTTP, or proper HTTP that means harm: each is a failure of its kind."""

from __future__ import annotations

import asyncio
import gzip
import json
from datetime import UTC, datetime
from typing import Any

import pytest
from temporalio.exceptions import ApplicationError

from tasquencer.ai.provider.answers import judge
from tasquencer.ai.provider.redaction import Redactor
from tasquencer.ai.provider.reply import Reply
from tasquencer.core.failure import Failure, FailureKind
from tests.activities.calling import (
    SHORT_SECONDS,
    activities_for,
    answer_of,
    environment,
    failure_of,
    free,
    job,
)
from tests.poison.wire import GOOD, bomb, endless, head, sending
from tests.support import answers
from tests.support.answers import Answer
from tests.support.patience import PATIENCE_SECONDS
from tests.support.provider import ScriptedProvider

K = FailureKind

BAD: list[tuple[str, Answer, FailureKind]] = [
    ("HTTP/0.9: a body without a head", sending(GOOD), K.UNREACHABLE),
    ("a head that breaks off", sending(b"HTTP/1.1 200 OK\r\ncontent-le"), K.UNREACHABLE),
    ("a header without end", endless(b"HTTP/1.1 200 OK\r\nx: ", b"x" * 65_536), K.PROVIDER_ERROR),
    ("headers without end", endless(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 10_000), K.PROVIDER_ERROR),
    ("a status of no class", sending(head("999 What", b"content-length: 0")), K.PROVIDER_ERROR),
    ("a status of two digits", sending(head("20 OK", b"content-length: 0")), K.PROVIDER_ERROR),
    ("a header with a NUL", sending(head("200 OK", b"x: a\x00b", b"content-length: 0")), K.PROVIDER_ERROR),
    ("a negative length", sending(head("200 OK", b"content-length: -5"), GOOD), K.PROVIDER_ERROR),
    (
        "two lengths",
        sending(head("200 OK", b"content-length: 5", b"content-length: 9"), GOOD),
        K.PROVIDER_ERROR,
    ),
    ("a length short of the body", sending(head("200 OK", b"content-length: 5"), GOOD), K.PROVIDER_ERROR),
    (
        "chunks of no size",
        sending(head("200 OK", b"transfer-encoding: chunked"), b"zz\r\n", GOOD),
        K.PROVIDER_ERROR,
    ),
    (
        "a chunk of negative size",
        sending(head("200 OK", b"transfer-encoding: chunked"), b"-5\r\n", GOOD),
        K.PROVIDER_ERROR,
    ),
    (
        "an unknown transfer encoding",
        sending(head("200 OK", b"transfer-encoding: rot13"), GOOD),
        K.PROVIDER_ERROR,
    ),
    (
        "101",
        sending(head("101 Switching Protocols", b"upgrade: x", b"connection: upgrade")),
        K.PROVIDER_ERROR,
    ),
    ("204 with a body", sending(head("204 No Content", b"content-length: 9"), GOOD), K.PROVIDER_ERROR),
    ("205", sending(head("205 Reset Content", b"content-length: 0")), K.PROVIDER_ERROR),
    ("300", answers.raw(b"", code=300), K.PROVIDER_ERROR),
    ("301 to nowhere", answers.raw(b"", code=301), K.PROVIDER_ERROR),
    (
        "302 to itself",
        answers.raw(b"", code=302, headers={"location": "/v1/chat/completions"}),
        K.PROVIDER_ERROR,
    ),
    ("303 to no URL", answers.raw(b"", code=303, headers={"location": "http://[:::/\\"}), K.PROVIDER_ERROR),
    ("304", sending(head("304 Not Modified", b'etag: "x"')), K.PROVIDER_ERROR),
    ("UTF-16", answers.raw(GOOD.decode().encode("utf-16")), K.PROVIDER_ERROR),
    (
        "gzip that breaks off",
        answers.raw(gzip.compress(GOOD * 100)[:50], headers={"content-encoding": "gzip"}),
        K.PROVIDER_ERROR,
    ),
    (
        "gzip with a wrong checksum",
        answers.raw(gzip.compress(GOOD)[:-8] + bytes(8), headers={"content-encoding": "gzip"}),
        K.PROVIDER_ERROR,
    ),
    ("no deflate", answers.raw(GOOD, headers={"content-encoding": "deflate"}), K.PROVIDER_ERROR),
    (
        "more encodings than anybody applies",
        answers.raw(bomb(2, 1), headers={"content-encoding": ", ".join(["gzip"] * 20)}),
        K.PROVIDER_ERROR,
    ),
    ("a gzip bomb", answers.raw(bomb(), headers={"content-encoding": "gzip"}), K.TOO_LARGE),
    (
        "a gzip bomb in gzip",
        answers.raw(bomb(2), headers={"content-encoding": "gzip, gzip"}),
        K.PROVIDER_ERROR,
    ),
    (
        "a gzip bomb as an error",
        answers.raw(bomb(), code=429, headers={"content-encoding": "gzip"}),
        K.RATE_LIMITED,
    ),
    (
        "a gzip bomb as a web page",
        answers.raw(bomb(), code=502, content_type="text/html", headers={"content-encoding": "gzip"}),
        K.PROVIDER_ERROR,
    ),
    ("an error that is binary", answers.raw(bytes(range(256)) * 4, code=400), K.INVALID_REQUEST),
    ("an error of a megabyte", answers.status(503, "<p>" + "busy " * 200_000), K.PROVIDER_ERROR),
    ("an error without end", endless(head("503 Busy"), b"<p>" * 20_000), K.PROVIDER_ERROR),
    ("millions of values", answers.raw(b'{"choices": [' + b"[]," * 2_000_000 + b"1]}"), K.PROVIDER_ERROR),
    (
        "millions of empty texts",
        answers.raw(b'{"choices": [' + b'"",' * 2_000_000 + b"1]}"),
        K.PROVIDER_ERROR,
    ),
    ("millions of quotation marks", answers.raw(b'"' * 8_000_000), K.PROVIDER_ERROR),
    ("a number of 10,000 digits", answers.raw(b'{"choices": ' + b"9" * 10_000 + b"}"), K.PROVIDER_ERROR),
    (
        "the same key twice",
        answers.raw(b'{"choices": 1, ' + GOOD[1:-1] + b', "choices": []}'),
        K.PROVIDER_ERROR,
    ),
]
COMPLETE: list[tuple[str, Answer]] = [
    (
        "a chunk beyond the body",
        sending(head("200 OK", b"transfer-encoding: chunked"), b"FFFFFFFFFFFFFFF\r\n", GOOD),
    ),
    ("a length beyond the body", sending(head("200 OK", b"content-length: 9999"), GOOD)),
    (
        "chunks without an end",
        sending(head("200 OK", b"transfer-encoding: chunked"), b"%x\r\n%b\r\n" % (len(GOOD), GOOD)),
    ),
    (
        "chunks that break off",
        sending(head("200 OK", b"transfer-encoding: chunked"), b"%x\r\n%b\r\n7" % (len(GOOD), GOOD)),
    ),
    ("gzip without its header", answers.raw(gzip.compress(GOOD))),
    ("a header without its gzip", answers.raw(GOOD, headers={"content-encoding": "gzip"})),
    ("no encoding, said so", answers.raw(GOOD, headers={"content-encoding": "identity"})),
    ("gzip", answers.raw(gzip.compress(GOOD), headers={"content-encoding": "x-gzip"})),
]
STALLING: dict[str, Answer] = {
    "interim answers without end": endless(b"", b"HTTP/1.1 103 Early Hints\r\nlink: x\r\n\r\n" * 100, 0.01),
    "100 and then silence": sending(b"HTTP/1.1 100 Continue\r\n\r\n", stays=True),
    "a head that drips": endless(b"HTTP/1.1 200 OK\r\nx: ", b"x", 0.05),
    "a body that drips": endless(head("200 OK"), b" ", 0.05),
    "an error that drips": endless(head("500 Broken"), b" ", 0.05),
    "chunks that drip": endless(head("200 OK", b"transfer-encoding: chunked"), b"1\r\n \r\n", 0.05),
    "a body that is never sent": sending(head("200 OK", b"content-length: 10"), stays=True),
}


async def _of(activities: Any, prompt: str = "Say hello", limit_seconds: float = PATIENCE_SECONDS) -> Failure:
    with pytest.raises(ApplicationError) as caught:
        await environment(limit_seconds).run(activities.generate, job(prompt))
    return Failure.model_validate(caught.value.details[0])


def assert_recordable(failure: Failure) -> None:
    """Whatever came, what is kept is small and valid."""
    assert failure.kind != K.UNEXPECTED
    assert len(failure.model_dump_json().encode()) < 8_000
    assert "\x00" not in f"{failure.message}{failure.details}"


@pytest.mark.parametrize(("answer", "kind"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
async def test_a_bad_answer_is_a_failure_and_the_next_call_of_the_same_client_gets_its_own_answer(
    answer: Answer, kind: FailureKind
) -> None:
    async with (
        ScriptedProvider([answer, answers.ok("mine")]) as provider,
        activities_for(provider.base_url) as activities,
    ):
        failure = await _of(activities)
        following = await environment().run(activities.generate, job())
    assert failure.kind == kind, failure
    assert_recordable(failure)
    assert following.text == "mine"
    assert len(provider.requests) == 2


@pytest.mark.parametrize("answer", [row[1] for row in COMPLETE], ids=[row[0] for row in COMPLETE])
async def test_a_body_that_is_whole_counts_whatever_is_wrong_around_it(answer: Answer) -> None:
    async with ScriptedProvider([answer]) as provider:
        assert (await answer_of(provider.base_url)).text == "Hi"


async def test_an_answer_that_does_not_come_to_its_end_times_out() -> None:
    script = {name: [answer] for name, answer in STALLING.items()}
    async with ScriptedProvider(script) as provider, activities_for(provider.base_url) as activities:
        # All at once: the limit is long, so that a busy machine sends the request before.
        failures = await asyncio.gather(*(_of(activities, name, SHORT_SECONDS) for name in STALLING))
        ends = [await provider.wait_for_end(number) for number in range(len(STALLING))]
    assert {end.prompt: end.client_left for end in ends} == dict.fromkeys(STALLING, True)
    for name, failure in zip(STALLING, failures, strict=True):
        assert (failure.kind, failure.outcome_unknown) == (K.TIMED_OUT, True), name
        assert_recordable(failure)


@pytest.mark.parametrize(
    ("usage", "tokens"),
    [
        (b'{"prompt_tokens": 1e400, "completion_tokens": -1e400}', (None, None)),
        (b'{"prompt_tokens": NaN, "completion_tokens": -7}', (None, None)),
        (b'{"prompt_tokens": 3.0, "completion_tokens": 2.5}', (3, None)),
        (b'{"prompt_tokens": 9223372036854775808, "completion_tokens": 2147483647}', (None, 2**31 - 1)),
        (b'{"prompt_tokens": 1, "prompt_tokens": 2, "completion_tokens": "3"}', (2, None)),
        (b"[1, 2]", (None, None)),
        (b'"many"', (None, None)),
    ],
)
async def test_a_usage_of_odd_numbers_is_unknown_and_the_answer_counts(
    usage: bytes, tokens: tuple[int | None, int | None]
) -> None:
    body = GOOD[:-1] + b', "usage": ' + usage + b"}"
    async with ScriptedProvider([answers.raw(body)]) as provider:
        answer = await answer_of(provider.base_url)
    assert (answer.text, answer.input_tokens, answer.output_tokens) == ("Hi", *tokens)


async def test_the_model_that_answered_is_recorded_though_another_was_asked() -> None:
    async with ScriptedProvider([answers.ok("Hi", model="another-1")]) as provider:
        assert (await answer_of(provider.base_url, job(model="asked-1"))).model == "another-1"


ODD: list[Any] = [
    None,
    True,
    7,
    -1,
    1.5,
    10**30,
    "",
    "x",
    "\x00",
    [],
    {},
    [[]],
    [{}],
    [None],
    {"a": {"b": []}},
]
PLACES = [
    "id", "object", "model", "error", "choices", "usage", "choices.0", "choices.0.message", "choices.0.error",
    "choices.0.finish_reason", "choices.0.message.content", "choices.0.message.refusal",
    "usage.prompt_tokens", "usage.completion_tokens",
]  # fmt: skip


def _with(place: str, value: Any) -> bytes:
    completion: Any = {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "model": "tiny-1",
        "choices": [{"index": 0, "message": {"content": "Hi", "refusal": None}, "finish_reason": "stop"}],
        "usage": {"prompt_tokens": 1, "completion_tokens": 1},
    }
    *way, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    found = completion
    for part in way:
        found = found[part]
    found[last] = value
    return json.dumps(completion).encode()


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("value", ODD, ids=repr)
def test_a_value_of_a_wrong_type_is_a_failure_or_does_not_matter(place: str, value: Any) -> None:
    outcome = judge(
        Reply(200, {}, _with(place, value)),
        asked_model="tiny-1",
        output_schema=None,
        price=free,
        clean=Redactor(),
        now=datetime.now(UTC),
    )
    if isinstance(outcome, Failure):
        assert outcome.kind in (K.PROVIDER_ERROR, K.INVALID_OUTPUT, K.REFUSED)
        assert_recordable(outcome)
    else:
        assert outcome.text in ("Hi", "x", "\ufffd")


@pytest.mark.parametrize("place", ["error", "error.message", "error.code", "error.type"])
async def test_an_error_of_wrong_types_is_a_failure_all_the_same(place: str) -> None:
    def body(value: Any) -> bytes:
        fields = {"message": "no", "code": "c", "type": "t"}
        return json.dumps({"error": value if place == "error" else fields | {place[6:]: value}}).encode()

    script = [answers.raw(body(value), code=429) for value in ODD]
    async with ScriptedProvider(script) as provider, activities_for(provider.base_url) as activities:
        for _ in ODD:
            failure = await _of(activities)
            assert failure.message.startswith("429 from the provider: ")
            assert_recordable(failure)


async def test_headers_that_no_database_can_hold_are_mended() -> None:
    odd = sending(head("429 Slow", b"x-request-id: a\xff\xfeb", b"retry-after: \xff", b"content-length: 0"))
    async with ScriptedProvider([odd]) as provider:
        failure = await failure_of(provider.base_url)
    assert (failure.kind, failure.retry_after_seconds) == (K.RATE_LIMITED, None)
    assert_recordable(failure)
