"""No input, answer or update makes the parts that read them raise what they do not promise, or keep what is
too large or cannot be stored."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import HealthCheck, given, settings, strategies as st
from pydantic import BaseModel

from tasquencer.ai.answer import AiAnswer, parse_answer, returned_answer
from tasquencer.ai.fan_out import AiFanOutRequest, parse_fan_out
from tasquencer.ai.provider.answers import judge
from tasquencer.ai.provider.body import read_body
from tasquencer.ai.provider.classify import classify
from tasquencer.ai.provider.client import MAXIMUM_BODY_BYTES, _raise_error_status
from tasquencer.ai.provider.redaction import Redactor
from tasquencer.ai.provider.reply import Reply, ReplyEnd
from tasquencer.ai.request import AiAgentRequest, parse_request
from tasquencer.ai.review import ReviewedDraftRequest, parse_decision, parse_reviewed_draft
from tasquencer.batch.rows import AiBatchRequest, check_row, parse_batch, parse_line
from tasquencer.core.actions import CancelWorkItem, CompleteWorkItem, FailWorkItem, RetryNow, parse_action
from tasquencer.core.errors import InvalidRequest
from tasquencer.core.failure import Failure, FailureKind

few = settings(max_examples=150, suppress_health_check=[HealthCheck.too_slow])
NOW = datetime(2026, 11, 23, 12, tzinfo=UTC)

any_text = st.text(st.characters(exclude_categories=()), max_size=20)
"""Lone surrogates and NUL included."""

scalars = st.none() | st.booleans() | st.integers() | st.integers(-(10**40), 10**40) | st.floats() | any_text
values = st.recursive(
    scalars,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(any_text, inner, max_size=4),
    max_leaves=12,
)
"""What `json.loads` may return."""

plain_text = st.text(min_size=1, max_size=20)
numbers = st.integers(0, 5) | st.floats(0, 5, allow_nan=False)


def objects(names: list[str], **likely: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with these fields, likely values more often than others, and now and then a field too many."""
    fields = {name: (likely[name] | likely[name] | values) if name in likely else values for name in names}
    asked = st.fixed_dictionaries({}, optional={name: fields[name] for name in names})
    return st.builds(
        lambda known, more: known | more, asked, st.just({}) | st.dictionaries(any_text, values, max_size=1)
    )


messages = st.lists(
    objects(["role", "content"], role=st.sampled_from(["user", "assistant"]), content=plain_text), max_size=3
)
likely: dict[str, st.SearchStrategy[Any]] = {
    "prompt": plain_text,
    "prompts": st.lists(plain_text, max_size=3),
    "messages": messages,
    "system": plain_text | st.none(),
    "model": plain_text | st.none(),
    "temperature": st.floats(0, 2),
    "max_output_tokens": st.integers(1, 100),
    "max_retries": st.integers(0, 5),
    "retry": objects(
        ["initial_interval_seconds", "backoff_coefficient", "jitter", "retry_on"], jitter=numbers
    ),
    "attempt_timeout_seconds": st.floats(0.1, 100),
    "heartbeat_timeout_seconds": st.floats(1, 100),
    "deadline_seconds": st.floats(0.1, 100) | st.none(),
    "metadata": st.dictionaries(plain_text, st.text(), max_size=3),
    "concurrency": st.integers(1, 5),
    "policy": st.sampled_from(
        ["absorb_failures", "fail_fast", {"name": "require_successes", "successes": 1}]
    ),
    "max_revisions": st.integers(0, 5),
    "reminder_seconds": st.none(),
}


def fields_of(model: type[BaseModel]) -> st.SearchStrategy[dict[str, Any]]:
    """Objects with all those fields of a request that have a likely value, and some with odd ones."""
    names = [name for name in model.model_fields if name in likely]
    asked = "prompts" if "prompts" in names else "prompt"
    others = {name: likely[name] for name in names if name not in (asked, "messages")}
    sound = st.fixed_dictionaries({asked: likely[asked]}, optional=others)
    return sound | objects(names, **{name: likely[name] for name in names})


database = sqlite3.connect(":memory:", check_same_thread=False)


def assert_storable(kept: str) -> None:
    """A text column takes it: SQLite gives it back, PostgreSQL knows neither NUL nor lone surrogates."""
    (found,) = database.execute("SELECT ?", (kept,)).fetchone()
    assert found == kept
    assert "\x00" not in kept
    kept.encode()


def assert_json_storable(kept: str) -> None:
    """PostgreSQL's JSON knows no NUL either, however it is written."""
    assert_storable(kept)
    for text in texts_in(json.loads(kept)):
        assert_storable(text)


def texts_in(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [text for part in (*value, *value.values()) for text in texts_in(part)]
    if isinstance(value, list):
        return [text for part in value for text in texts_in(part)]
    return [value] if isinstance(value, str) else []


def parsed(parse: Callable[[Any], Any], raw: Any) -> Any:
    """What is accepted; None for a refusal, which must be fit for an error's message."""
    refused = ""
    try:
        return parse(raw)
    except InvalidRequest as refusal:
        refused = str(refusal)
    assert 0 < len(refused) < 8_000
    refused.encode()
    return None


REQUESTS: list[tuple[Callable[[Any], Any], type[BaseModel]]] = [
    (parse_request, AiAgentRequest),
    (parse_fan_out, AiFanOutRequest),
    (parse_batch, AiBatchRequest),
    (parse_reviewed_draft, ReviewedDraftRequest),
]


@pytest.mark.parametrize(("parse", "model"), REQUESTS, ids=lambda one: getattr(one, "__name__", None))
@few
@given(data=st.data())
def test_an_input_is_a_request_that_can_be_kept_or_is_refused(
    parse: Callable[[Any], Any], model: type[BaseModel], data: st.DataObject
) -> None:
    request = parsed(parse, data.draw(fields_of(model) | values))
    if request is None:
        return
    written = request.model_dump_json(exclude_defaults=True)
    assert parse(json.loads(written)) == request
    if isinstance(request, AiBatchRequest):
        request.policy.decide()
        return
    jobs = request.jobs() if isinstance(request, AiFanOutRequest) else [request.job()]
    for job in jobs:
        kept = job.model_dump_json()
        assert_json_storable(kept)
        assert_storable(job.prompt)
        assert type(job).model_validate_json(kept) == job
    request.recipe()


@few
@given(
    st.one_of(
        st.binary(),
        st.tuples(fields_of(AiAgentRequest) | values, values).map(lambda told: _with_id(*told)),
    )
)
def test_a_line_of_a_batch_is_a_row_that_can_be_kept_or_is_refused(line: bytes) -> None:
    row = parsed(lambda told: parse_line(told, 1), line)
    if row is None:
        return
    row_id, request = row
    assert_storable(row_id)
    if parsed(lambda told: check_row({}, told), request) is not None:
        assert_json_storable(json.dumps(request))
        assert_json_storable(json.dumps(request, ensure_ascii=False))


def _with_id(raw: Any, row_id: Any) -> bytes:
    line = {**raw, "id": row_id} if isinstance(raw, dict) else raw
    return json.dumps(line).encode()


def test_the_requests_that_are_tried_are_refused_and_accepted() -> None:
    """Else the test above would say little."""
    seen: list[bool] = []

    @settings(few, derandomize=True)
    @given(fields_of(AiAgentRequest))
    def look(raw: dict[str, Any]) -> None:
        seen.append(parsed(parse_request, raw) is not None)

    look()
    assert 0.1 < sum(seen) / len(seen) < 0.9


names = ["actor", "reason", "work_item_id", "result"]
actions = objects(names, actor=plain_text, reason=plain_text, work_item_id=plain_text, result=values)


@pytest.mark.parametrize("kind", [RetryNow, CompleteWorkItem, FailWorkItem, CancelWorkItem])
@few
@given(raw=actions | values)
def test_an_update_is_an_action_that_can_be_kept_or_is_refused(kind: type[Any], raw: Any) -> None:
    action = parsed(lambda given: parse_action(kind, given), raw)
    if action is not None:
        assert_json_storable(action.model_dump_json())


facts = objects(
    [*AiAnswer.model_fields],
    text=plain_text,
    model=plain_text,
    input_tokens=st.integers(0, 9),
    cost_usd=numbers,
)


@pytest.mark.parametrize("read", [parse_answer, lambda raw: returned_answer(raw).model_dump()])
@few
@given(raw=facts | values)
def test_an_answer_from_elsewhere_can_be_kept_or_is_refused(read: Callable[[Any], Any], raw: Any) -> None:
    kept = parsed(read, raw)
    if kept is not None:
        assert_json_storable(json.dumps(kept))
        assert_json_storable(AiAnswer.model_validate(kept).model_dump_json())


@few
@given(
    objects(["decision", "comments"], decision=st.sampled_from(["approve", "reject"]), comments=plain_text)
    | values
)
def test_a_decision_can_be_kept_or_is_refused(raw: Any) -> None:
    kept = parsed(parse_decision, raw)
    if kept is not None:
        assert_json_storable(json.dumps(kept))


message = objects(["content", "refusal"], content=plain_text, refusal=st.none())
choices = st.lists(
    objects(["message", "finish_reason", "error"], message=message, error=st.none()), max_size=2
)
usages = objects(["prompt_tokens", "completion_tokens"], prompt_tokens=st.integers(0, 99))
completions = objects(
    ["id", "object", "model", "choices", "usage", "error"], choices=choices, usage=usages, error=st.none()
)
header_values = st.text(st.characters(max_codepoint=255, exclude_characters="\r\n"), max_size=20)
headers = st.dictionaries(
    st.sampled_from(
        ["x-request-id", "retry-after", "retry-after-ms", "x-should-retry", "content-type", "location"]
    ),
    header_values | st.floats().map(str),
    max_size=4,
)


def written(value: Any) -> bytes:
    return json.dumps(value).encode()


bodies = st.binary(max_size=100) | (completions | values).map(written)
schemas = st.none() | st.just({"type": "object", "required": ["a"]}) | st.just({"$ref": "#/nowhere"})


def assert_kept_small(outcome: Failure | AiAnswer) -> None:
    kept = outcome.model_dump_json()
    assert_json_storable(kept)
    if isinstance(outcome, Failure):
        assert outcome.kind != FailureKind.UNEXPECTED
        assert len(kept) < 8_000
        assert Failure.model_validate_json(kept) == outcome
    else:
        assert outcome.text.strip()


@few
@given(bodies, headers, st.sampled_from(ReplyEnd), schemas)
def test_a_reply_is_an_answer_or_a_failure_that_can_be_kept(
    body: bytes, fields: dict[str, str], end: ReplyEnd, schema: Any
) -> None:
    outcome = judge(
        Reply(200, fields, body, end),
        asked_model="tiny-1",
        output_schema=schema,
        price=lambda *_: 0.1,
        clean=Redactor(("secret-key",)),
        now=NOW,
    )
    assert_kept_small(outcome)


errors = objects(
    ["error", "detail", "message"], error=objects(["message", "code", "type"], message=plain_text)
)


@few
@given(
    st.integers(100, 599).filter(lambda code: not 200 <= code < 300),
    st.binary(max_size=100) | (errors | values).map(written),
    headers,
)
def test_an_error_status_is_a_failure_that_can_be_kept(
    code: int, body: bytes, fields: dict[str, str]
) -> None:
    raw = [(name.encode(), value.encode("latin-1")) for name, value in fields.items()]
    request = httpx2.Request("POST", "http://provider/v1")
    response = httpx2.Response(code, headers=raw, stream=Parts([body]), request=request)
    with pytest.raises(openai.APIStatusError) as caught:
        asyncio.run(_raise_error_status(response))
    failure = classify(caught.value, now=NOW, clean=Redactor(("secret-key",)))
    assert_kept_small(failure)
    assert failure.message.startswith(f"{code} from the provider: ")


class Parts(httpx2.AsyncByteStream):
    def __init__(self, parts: list[bytes]) -> None:
        self._parts = parts

    async def __aiter__(self) -> AsyncIterator[bytes]:
        for part in self._parts:
            yield part


encodings = st.sampled_from(["", "gzip", "deflate", "br", "zstd", "identity", "gzip, deflate", "x", ","])


@few
@given(st.lists(st.binary(max_size=50), max_size=5), encodings | header_values)
def test_a_body_is_read_whatever_its_encoding_is_said_to_be(parts: list[bytes], encoding: str) -> None:
    response = httpx2.Response(
        200,
        headers=[(b"content-encoding", encoding.encode("latin-1"))],
        stream=Parts(parts),
        request=httpx2.Request("POST", "http://provider/v1"),
    )
    body, end = asyncio.run(read_body(response, MAXIMUM_BODY_BYTES))
    assert end in (ReplyEnd.COMPLETE, ReplyEnd.INTERRUPTED, ReplyEnd.ENCODED)
    assert len(body) <= MAXIMUM_BODY_BYTES


@few
@given(st.text(max_size=60), st.text(min_size=8, max_size=30), st.integers(0, 30), st.integers(0, 30))
def test_no_piece_of_a_secret_is_left_by_redaction(around: str, secret: str, begin: int, end: int) -> None:
    cut = secret[min(begin, end) : max(begin, end)]
    left = Redactor((secret,))(f"{around}{secret}{around}{cut}")
    assert not any(
        secret[at : at + 8] in left
        for at in range(len(secret) - 7)
        if secret[at : at + 8] not in "[redacted]"
    )
