"""Each row of the table in docs/reference/failures.md, from an HTTP answer to the error in Temporal."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest
from temporalio.exceptions import ApplicationErrorCategory

from tasquencer.core.failure import FailureKind
from tasquencer.devkit.http_server import Exchange
from tests.activities.calling import KEY, MODEL, SHORT_SECONDS, answer_of, error_of, failure_of, job, schema
from tests.support import answers
from tests.support.answers import Answer
from tests.support.patience import PATIENCE_SECONDS
from tests.support.provider import ScriptedProvider

K = FailureKind


def coded(code: int, name: str, kind: str = "some_type", message: str = "no") -> Answer:
    return answers.status(code, {"error": {"message": message, "type": kind, "code": name}})


def built(**fields: Any) -> Answer:
    """A 200 with this JSON object."""
    return answers.raw(json.dumps(fields).encode())


def choice(**fields: Any) -> Answer:
    return built(choices=[{"index": 0, "finish_reason": "stop"} | fields])


def sending(name: str, *parts: bytes) -> Answer:
    """These bytes on the wire, as they are, and then the end of the connection."""

    async def give(exchange: Exchange, body: Any) -> None:
        for part in parts:
            exchange._writer.write(part)
        await exchange._writer.drain()
        exchange.close()

    return Answer(name, give)


DEEP = b'{"choices": ' + b"[" * 10_000 + b"]" * 10_000 + b"}"

ROWS: list[tuple[str, Answer, FailureKind, bool]] = [
    # what the provider does, its answer, the kind, whether it qualifies for a retry
    ("429", answers.rate_limited(), K.RATE_LIMITED, True),
    ("429 without a body", answers.raw(b"", code=429), K.RATE_LIMITED, True),
    ("429, money spent", answers.insufficient_quota(), K.QUOTA_EXCEEDED, False),
    ("429, money spent by type only", coded(429, "", "insufficient_quota"), K.QUOTA_EXCEEDED, False),
    ("402", answers.status(402), K.QUOTA_EXCEEDED, False),
    ("408", answers.status(408), K.TIMED_OUT, True),
    ("connection reset", answers.reset(), K.UNREACHABLE, True),
    ("connection closed", answers.closed(), K.UNREACHABLE, True),
    ("409", answers.status(409), K.PROVIDER_ERROR, True),
    ("500", answers.status(500), K.PROVIDER_ERROR, True),
    ("502 as a web page", answers.html(502), K.PROVIDER_ERROR, True),
    ("503", answers.status(503), K.PROVIDER_ERROR, True),
    ("529", answers.status(529), K.PROVIDER_ERROR, True),
    ("307", answers.raw(b"", code=307, headers={"location": "/v2"}), K.PROVIDER_ERROR, True),
    ("error in a 200", answers.error_in_200(), K.PROVIDER_ERROR, True),
    ("error text in a 200", built(error="model is loading"), K.PROVIDER_ERROR, True),
    ("error object in a 200", built(object="error", message="no"), K.PROVIDER_ERROR, True),
    ("error of the choice", choice(error={"message": "no", "code": 502}), K.PROVIDER_ERROR, True),
    ("web page in a 200", answers.html(200), K.PROVIDER_ERROR, True),
    ("malformed JSON", answers.malformed_json(), K.PROVIDER_ERROR, True),
    ("nothing in a 200", answers.raw(b""), K.PROVIDER_ERROR, True),
    ("204", answers.raw(b"", code=204), K.PROVIDER_ERROR, True),
    ("binary in a 200", answers.raw(bytes(range(256))), K.PROVIDER_ERROR, True),
    ("JSON nested 10,000 deep", answers.raw(DEEP), K.PROVIDER_ERROR, True),
    ("a JSON number", answers.raw(b"7"), K.PROVIDER_ERROR, True),
    ("no choices", answers.no_choices(), K.PROVIDER_ERROR, True),
    ("null choices", built(choices=None), K.PROVIDER_ERROR, True),
    ("no message", choice(message=None), K.PROVIDER_ERROR, True),
    ("body breaks off", answers.truncated(), K.PROVIDER_ERROR, True),
    ("not HTTP", sending("SSH", b"SSH-2.0-OpenSSH_9.6\r\n\r\n"), K.PROVIDER_ERROR, True),
    (
        "a length that is none",
        sending("length", b"HTTP/1.1 200 OK\r\ncontent-length: many\r\n\r\n{}"),
        K.PROVIDER_ERROR,
        True,
    ),
    (
        "broken compression",
        answers.raw(b"no gzip", headers={"content-encoding": "gzip"}),
        K.PROVIDER_ERROR,
        True,
    ),
    ("empty text", answers.empty_text(""), K.INVALID_OUTPUT, True),
    ("blank text", answers.empty_text(" \n"), K.INVALID_OUTPUT, True),
    ("null text", answers.empty_text(None), K.INVALID_OUTPUT, True),
    ("refusal", answers.refusal(), K.REFUSED, False),
    (
        "refusal as a part",
        choice(message={"content": [{"type": "refusal", "refusal": "no"}]}),
        K.REFUSED,
        False,
    ),
    ("content filter", answers.content_filter(), K.REFUSED, False),
    ("content filter with text", answers.ok("half", finish_reason="content_filter"), K.REFUSED, False),
    ("content filter as a 400", coded(400, "content_filter"), K.REFUSED, False),
    ("400", answers.status(400), K.INVALID_REQUEST, False),
    ("400, context too long", coded(400, "context_length_exceeded"), K.INVALID_REQUEST, False),
    ("500, context too long", coded(500, "context_length_exceeded"), K.INVALID_REQUEST, False),
    ("404", answers.status(404), K.INVALID_REQUEST, False),
    ("405", answers.status(405), K.INVALID_REQUEST, False),
    ("413", answers.status(413), K.INVALID_REQUEST, False),
    ("418", answers.status(418), K.INVALID_REQUEST, False),
    ("422", answers.status(422, {"detail": [{"msg": "no"}]}), K.INVALID_REQUEST, False),
    ("401", answers.status(401), K.UNAUTHORIZED, False),
    ("403", answers.status(403), K.UNAUTHORIZED, False),
    ("text of 3 MB", answers.huge(3_000_000), K.TOO_LARGE, False),
    ("text of 20 MB", answers.huge(20_000_000), K.TOO_LARGE, False),
]


@pytest.mark.parametrize(
    ("answer", "kind", "transient"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS]
)
async def test_what_the_provider_does_becomes_a_failure_of_its_kind_after_exactly_one_request(
    answer: Answer, kind: FailureKind, transient: bool
) -> None:
    async with ScriptedProvider([answer]) as provider:  # a second request would fail the test
        error = await error_of(provider.base_url)
    assert len(provider.requests) == 1
    failure = error.details[0]
    assert (error.type, failure["kind"]) == (kind, kind)
    assert (failure["transient"], error.non_retryable) == (transient, True)
    assert error.category == ApplicationErrorCategory.BENIGN
    assert error.__cause__ is None
    assert error.__context__ is None
    assert failure["message"]
    assert "\n" not in failure["message"]
    assert failure["details"]["model"] == MODEL
    assert 0 < failure["details"]["latency_seconds"] < PATIENCE_SECONDS


def test_every_kind_that_a_call_can_report_has_its_row() -> None:
    others = {
        K.WORKER_LOST,
        K.WORKER_SHUTDOWN,
        K.NOT_PICKED_UP,
        K.OPERATOR,
        K.UNEXPECTED,
    }  # not the provider's doing
    assert {row[2] for row in ROWS} == set(FailureKind) - others


@pytest.fixture
async def nobody() -> AsyncIterator[str]:
    """A URL where nothing listens: the port is taken, but not open."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{taken.getsockname()[1]}/v1"


async def test_a_refused_connection_is_unreachable_and_the_work_was_surely_not_done(nobody: str) -> None:
    failure = await failure_of(nobody)
    assert (failure.kind, failure.transient, failure.outcome_unknown) == ("unreachable", True, False)
    assert "ConnectError" in failure.message


async def test_a_name_that_does_not_resolve_is_unreachable(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []

    async def resolve(host: object, *args: object, **kwargs: object) -> None:
        asked.append(host)
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    monkeypatch.setattr(asyncio.get_running_loop(), "getaddrinfo", resolve)
    failure = await failure_of("http://provider.invalid/v1")
    assert asked
    assert (failure.kind, failure.transient, failure.outcome_unknown) == ("unreachable", True, False)


async def test_a_failed_tls_handshake_is_unreachable() -> None:
    async with ScriptedProvider() as provider:
        failure = await failure_of(provider.base_url.replace("http:", "https:"))
    assert (failure.kind, failure.transient) == ("unreachable", True)


async def test_a_base_url_without_a_scheme_is_a_request_that_cannot_be_sent() -> None:
    failure = await failure_of("provider.invalid/v1")
    assert (failure.kind, failure.transient) == ("invalid_request", False)


@pytest.mark.parametrize("answer", [answers.reset(), answers.closed(), answers.truncated()])
async def test_after_a_connection_that_broke_with_the_request_out_the_outcome_is_unknown(
    answer: Answer,
) -> None:
    async with ScriptedProvider([answer]) as provider:
        assert (await failure_of(provider.base_url)).outcome_unknown


@pytest.mark.parametrize("answer", [answers.rate_limited(), answers.status(500), answers.status(400)])
async def test_after_an_error_status_the_work_was_not_done(answer: Answer) -> None:
    async with ScriptedProvider([answer]) as provider:
        assert not (await failure_of(provider.base_url)).outcome_unknown


@pytest.mark.parametrize("how", ["reset", "close"])
async def test_an_answer_that_breaks_off_keeps_what_its_headers_said(how: str) -> None:
    def breaking(code: int) -> Answer:
        async def give(exchange: Exchange, body: Any) -> None:
            headers = [("content-length", "1000"), ("x-request-id", "req_7"), ("retry-after", "7")]
            await exchange.start(code, headers)
            await exchange.send(b'{"error"')
            (exchange.reset if how == "reset" else exchange.close)()

        return Answer("breaks off", give)

    async with ScriptedProvider([breaking(200), breaking(429)]) as provider:
        good, limited = await failure_of(provider.base_url), await failure_of(provider.base_url)
    assert good.kind == "provider_error"
    assert good.message.startswith("the answer broke off after ")
    assert limited.kind == "rate_limited"
    assert limited.message.startswith("429 from the provider: ")
    for failure in (good, limited):
        assert failure.retry_after_seconds == 7
        assert failure.details["provider_request_id"] == "req_7"


async def test_silence_times_out_with_the_outcome_unknown_and_the_connection_closed() -> None:
    async with ScriptedProvider([answers.stall()]) as provider:
        failure = await failure_of(provider.base_url, limit_seconds=SHORT_SECONDS)
        assert (await provider.wait_for_end(0)).client_left
    assert (failure.kind, failure.transient, failure.outcome_unknown) == ("timed_out", True, True)
    assert failure.message == f"no answer within {SHORT_SECONDS:g} s"
    latency = failure.details["latency_seconds"]
    assert isinstance(latency, float) and latency >= SHORT_SECONDS - 0.1


async def test_an_answer_that_drips_is_cut_off_by_the_same_limit_although_no_single_read_is_slow() -> None:
    drip = answers.slow(pause_seconds=0.5, pieces=100)
    async with ScriptedProvider([drip]) as provider:
        failure = await failure_of(provider.base_url, limit_seconds=SHORT_SECONDS)
        assert (await provider.wait_for_end(0)).client_left
    assert failure.kind == "timed_out"


@pytest.mark.parametrize("code", [200, 500])
async def test_an_endless_body_is_read_up_to_a_cap(code: int) -> None:
    sent, much = 0, 48 * 1024 * 1024  # what the kernel keeps for a reader that has gone counts, too

    async def give(exchange: Exchange, body: Any) -> None:
        nonlocal sent
        await exchange.start(code, [("content-type", "application/json")])
        while sent < much:
            await exchange.send(b" " * 65_536)
            sent += 65_536

    async with ScriptedProvider([Answer("endless", give)]) as provider:
        failure = await failure_of(provider.base_url)
        await provider.wait_for_end(0)
    assert failure.kind == ("too_large" if code == 200 else "provider_error")
    assert failure.details["status_code"] == code
    assert sent < much


async def test_a_redirect_is_not_followed_and_its_target_named() -> None:
    async with ScriptedProvider() as elsewhere:
        target = f"{elsewhere.base_url}/chat/completions"
        there = answers.raw(b"", code=308, headers={"location": f"{target}?token=abc"})
        async with ScriptedProvider([there]) as provider:
            failure = await failure_of(provider.base_url)
    assert elsewhere.requests == []
    assert failure.message == (
        f"308 from the provider: it redirects to {target}, which is not followed; correct the base URL"
    )


WAITS: list[tuple[dict[str, str], float | None]] = [
    ({"retry-after": "7"}, 7),
    ({"retry-after": "0"}, 0),
    ({"retry-after": "1.5"}, 1.5),
    ({"Retry-After": "600"}, 600),
    ({"retry-after-ms": "250"}, 0.25),
    ({"retry-after-ms": "250", "retry-after": "7"}, 0.25),
    ({"retry-after-ms": "soon", "retry-after": "7"}, 7),
    ({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0),
    ({"retry-after": "nan"}, None),
    ({"retry-after": "inf"}, None),
    ({"retry-after": "-5"}, None),
    ({"retry-after": "1e308"}, None),
    ({"retry-after": "soon"}, None),
    ({"retry-after": ""}, None),
    ({}, None),
]


@pytest.mark.parametrize(("headers", "seconds"), WAITS)
@pytest.mark.parametrize("code", [429, 503])
async def test_what_the_provider_asks_to_wait_is_understood_in_every_form(
    code: int, headers: dict[str, str], seconds: float | None
) -> None:
    async with ScriptedProvider([answers.status(code, headers=headers)]) as provider:
        failure = await failure_of(provider.base_url)
    assert failure.retry_after_seconds == seconds
    assert ("asks to wait" in failure.message) == (seconds is not None)


async def test_an_http_date_is_a_wait_until_then() -> None:
    at = datetime.now(UTC) + timedelta(seconds=600)
    async with ScriptedProvider([answers.rate_limited(format_datetime(at, usegmt=True))]) as provider:
        failure = await failure_of(provider.base_url)
    assert failure.retry_after_seconds == pytest.approx(600, abs=60)


async def test_an_error_in_a_200_may_ask_to_wait_too() -> None:
    body = {"error": {"message": "busy"}}
    async with ScriptedProvider([answers.status(200, body, headers={"retry-after": "7"})]) as provider:
        failure = await failure_of(provider.base_url)
    assert (failure.kind, failure.retry_after_seconds) == ("provider_error", 7)


@pytest.mark.parametrize(
    ("said", "transient"), [("false", False), ("False", False), ("true", True), ("", True)]
)
async def test_a_provider_that_says_not_to_retry_is_heeded(said: str, transient: bool) -> None:
    async with ScriptedProvider([answers.status(503, headers={"x-should-retry": said})]) as provider:
        failure = await failure_of(provider.base_url)
    assert (failure.kind, failure.transient) == ("provider_error", transient)


@pytest.mark.parametrize("code", [200, 400, 401, 404, 422, 500])
async def test_a_provider_that_says_to_retry_is_heeded_for_any_status(code: int) -> None:
    async with ScriptedProvider([answers.status(code, headers={"x-should-retry": "true"})]) as provider:
        assert (await failure_of(provider.base_url)).transient


async def test_the_message_is_one_line_that_says_what_the_provider_said() -> None:
    async with ScriptedProvider([answers.rate_limited("7")]) as provider:
        failure = await failure_of(provider.base_url)
    assert failure.message == "429 from the provider: Rate limit reached (asks to wait 7 s)"
    assert failure.details["provider_code"] == "rate_limit_exceeded"
    assert failure.details["status_code"] == 429


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (answers.status(404, {"error": "model 'x' not found"}), "model 'x' not found"),
        (answers.status(404, {"message": "no such model"}), "no such model"),
        (answers.status(422, {"detail": "no such field"}), "no such field"),
        (
            answers.raw(b'[{"error": {"message": "API key not valid", "code": 400}}]', code=400),
            "API key not valid",
        ),
        (answers.html(503), "Bad gateway"),
        (answers.raw(b"upstream\n is gone", code=503, content_type="text/plain"), "upstream is gone"),
        (answers.raw(b"", code=503), "Service Unavailable"),
        (answers.raw(b"\xff\xfe\x00", code=503), "\ufffd\ufffd\ufffd"),
        (answers.raw(DEEP, code=503), '{"choices": [[['),
    ],
)
async def test_the_providers_words_are_found_in_whatever_shape_it_has_for_errors(
    answer: Answer, said: str
) -> None:
    async with ScriptedProvider([answer]) as provider:
        failure = await failure_of(provider.base_url)
    assert failure.message.startswith(f"{failure.details['status_code']} from the provider: {said}")


async def test_a_failure_keeps_what_the_provider_billed_for_it() -> None:
    answer = answers.ok("", finish_reason="length", usage=(900, 100), model="tiny-1b", request_id="req_7")
    async with ScriptedProvider([answer]) as provider:
        failure = await failure_of(
            provider.base_url, price=lambda model, read, written: (read + written) / 1000
        )
    assert failure.kind == "invalid_output"
    details = dict(failure.details)
    assert details.pop("latency_seconds")
    assert details == {
        "model": "tiny-1b",
        "finish_reason": "length",
        "provider_request_id": "req_7",
        "input_tokens": 900,
        "output_tokens": 100,
        "cost_usd": 1.0,
        "status_code": 200,
    }


AGE = schema(age={"type": "integer"})


@pytest.mark.parametrize(
    ("text", "finish_reason", "said"),
    [
        ('{"age": 3', "stop", "it is not JSON"),
        ("Sure! Here it is", "stop", "it is not JSON"),
        ('{"age": NaN}', "stop", "it is not JSON"),
        ('{"age": "three"}', "stop", "at $.age: 'three' is not of type 'integer'"),
        ("{}", "stop", "'age' is a required property"),
        ('{"age": 3}', "length", "token limit"),
        ('{"age": 3, "x": ' + "[" * 5000 + "]" * 5000 + "}", "stop", "nested too deeply"),
        ('{"age": 3, "x": ' + "[" * 500 + "]" * 500 + "}", "stop", "nested too deeply"),
    ],
)
async def test_output_that_does_not_fit_the_schema_asked_for_is_invalid(
    text: str, finish_reason: str, said: str
) -> None:
    async with ScriptedProvider([answers.ok(text, finish_reason=finish_reason)]) as provider:
        failure = await failure_of(provider.base_url, job(output_schema=AGE))
    assert (failure.kind, failure.transient) == ("invalid_output", True)
    assert said in failure.message
    assert failure.details["output_tokens"] == 7


async def test_brackets_in_texts_and_side_by_side_do_not_nest() -> None:
    text = '{"age": 3, "said": "\\"' + "[{" * 600 + '", "x": [' + "[],{}," * 600 + "1]}"
    async with ScriptedProvider([answers.ok(text)]) as provider:
        answer = await answer_of(provider.base_url, job(output_schema=AGE))
    assert answer.text == text


async def test_a_schema_that_is_none_fails_before_anything_is_sent() -> None:
    async with ScriptedProvider() as provider:
        failure = await failure_of(provider.base_url, job(output_schema={"type": "integre"}))
    assert (failure.kind, failure.transient) == ("invalid_request", False)
    assert "'integre' is not valid" in failure.message
    assert provider.requests == []


async def test_a_schema_does_not_make_the_worker_fetch_what_it_refers_to() -> None:
    async with ScriptedProvider([answers.ok('{"age": 3}')]) as provider:
        refers: dict[str, Any] = {"$ref": f"{provider.base_url}/schema.json"}
        failure = await failure_of(provider.base_url, job(output_schema=refers))
        assert len(provider.requests) == 1
    assert failure.kind == "invalid_output"
    assert "refers to something unknown" in failure.message


ECHOES = [
    f"Incorrect API key provided: {KEY}. You can find yours in your account.",
    f"header 'authorization: Bearer {KEY}' is wrong",
    f"{' ' * 30_000}{KEY}",
    f"{'x ' * 490}{KEY}",
]


@pytest.mark.parametrize("echo", ECHOES)
@pytest.mark.parametrize("key", [KEY, "not-shaped-like-a-key"])
@pytest.mark.parametrize("code", [200, 401, 500])
@pytest.mark.parametrize("shape", ["json", "text", "code"])
async def test_a_key_that_the_provider_echoes_is_not_recorded(
    echo: str, key: str, code: int, shape: str
) -> None:
    echo = echo.replace(KEY, key)
    answer = {
        "json": answers.status(code, {"error": {"message": echo}}),
        "text": answers.raw(echo.encode(), code=code, content_type="text/plain"),
        "code": answers.status(code, {"error": {"message": "no", "code": key, "type": key}}),
    }[shape]
    async with ScriptedProvider([answer]) as provider:
        error = await error_of(provider.base_url, key=key)
    recorded = json.dumps([str(error), error.details], ensure_ascii=False)
    assert "from the provider" in recorded or "the provider answered" in recorded
    for start in range(len(key) - 7):
        assert key[start : start + 8] not in recorded


async def test_a_key_that_cannot_be_sent_is_not_recorded_either() -> None:
    async with ScriptedProvider() as provider:
        error = await error_of(provider.base_url, key="secret-first-line\nsecret-second")
    assert error.type == "invalid_request"
    assert "secret" not in json.dumps([str(error), error.details])


async def test_text_that_no_database_can_hold_is_mended_in_failures() -> None:
    body = b'{"error": {"message": "bad \\u0000 and \\ud800 end", "code": "x\\u0000"}}'
    async with ScriptedProvider([answers.raw(body, code=500)]) as provider:
        failure = await failure_of(provider.base_url)
    assert failure.message == "500 from the provider: bad \ufffd and \ufffd end"
    assert failure.details["provider_code"] == "x\ufffd"
