"""The files of OpenAI's Batch API, read and written."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from openai.types.chat import ChatCompletion

from tasquencer.batch.openai_output import error_line, result_line
from tasquencer.batch.rows import RowFailure, RowState, check_row, parse_line
from tasquencer.batch.store import RowAnswer, UnansweredRow
from tasquencer.core.errors import InvalidRequest

MESSAGES = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello!"}]


def line(**fields: Any) -> bytes:
    whole = {"custom_id": "request-1", "method": "POST", "url": "/v1/chat/completions"} | fields
    return json.dumps(whole).encode()


def test_a_line_is_a_row() -> None:
    body = {"model": "gpt-5-mini", "messages": MESSAGES, "max_tokens": 1000, "temperature": 0.2}
    row_id, request = parse_line(line(body=body), 1)
    assert row_id == "request-1"
    assert request == {
        "model": "gpt-5-mini",
        "messages": MESSAGES,
        "max_output_tokens": 1000,
        "temperature": 0.2,
    }
    check_row({}, request)


def test_what_a_request_can_say_is_carried_out() -> None:
    schema = {"type": "object", "properties": {}}
    told = {"top_p": 0.5, "seed": 7, "stop": ["END"], "reasoning_effort": "low"}
    asked = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
    _, request = parse_line(line(body={"messages": MESSAGES, **told, "response_format": asked}), 1)

    assert request == {"messages": MESSAGES, **told, "output_schema": schema}
    check_row({}, request)


def test_null_and_what_changes_nothing_is_left_out() -> None:
    body = {
        "model": None,
        "messages": [{"role": "user", "content": "Hello!", "name": None, "tool_calls": None}],
        "max_completion_tokens": 5,
        "max_tokens": None,
        "n": 1,
        "stream": False,
        "tools": None,
        "response_format": {"type": "text"},
        "metadata": {"topic": "moons"},
    }
    row_id, request = parse_line(line(body=body, custom_id=None), 7)
    assert row_id == "line-7"
    assert request == {
        "messages": [{"role": "user", "content": "Hello!"}],
        "max_output_tokens": 5,
        "metadata": {"topic": "moons"},
    }
    check_row({"model": "m"}, request)


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"url": "/v1/embeddings"}, "url: must be /v1/chat/completions, not '/v1/embeddings'"),
        ({"url": "/v1/responses"}, "url: must be /v1/chat/completions, not '/v1/responses'"),
        ({"method": "GET"}, "method: must be POST, not 'GET'"),
        ({"body": None}, "body: must be a JSON object"),
        ({"prompt": "x"}, "prompt: unknown field"),
        (
            {"body": {"messages": MESSAGES, "tools": [{"type": "function"}]}},
            "body.tools: cannot be carried out",
        ),
        ({"body": {"messages": MESSAGES, "n": 2}}, "body.n: cannot be carried out"),
        ({"body": {"messages": MESSAGES, "stream": True}}, "body.stream: cannot be carried out"),
        (
            {"body": {"messages": MESSAGES, "response_format": {"type": "json_object"}}},
            "body.response_format: cannot be carried out",
        ),
        ({"body": {"messages": MESSAGES, "logit_bias": {"5": 1}}}, "body.logit_bias: cannot be carried out"),
        (
            {"body": {"messages": MESSAGES, "max_tokens": 1, "max_completion_tokens": 2}},
            "body.max_completion_tokens, body.max_tokens: give one of them, not both",
        ),
    ],
)
def test_what_cannot_be_carried_out_is_refused(fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_line(line(**{"body": {"messages": MESSAGES}, **fields}), 1)
    assert problem in refused.value.problems


def test_a_result_is_what_the_openai_library_reads() -> None:
    at = datetime(2026, 11, 29, tzinfo=UTC)
    answer = RowAnswer(
        position=0,
        number=1,
        row_id="request-1",
        text="Hi!",
        model="gpt-5-mini",
        finish_reason="stop",
        work_item_id="w1",
        attempts=2,
        ended_at=at,
        input_tokens=3,
        output_tokens=2,
        cost_usd=0.1,
    )
    told: Any = result_line(answer)
    assert (told["id"], told["custom_id"], told["error"]) == ("batch_req_w1", "request-1", None)
    assert told["response"]["status_code"] == 200
    completion = ChatCompletion.model_validate(told["response"]["body"], strict=True)
    assert completion.choices[0].message.content == "Hi!"
    assert completion.created == at.timestamp()
    assert completion.usage is not None and completion.usage.total_tokens == 5


def test_a_row_without_an_answer_is_an_error_line() -> None:
    failure = RowFailure(type="RetriesExhausted", kind="rate_limited", message="slow down")
    row = UnansweredRow(position=4, row_id="r", request={}, state=RowState.FAILED, failure=failure)
    assert error_line(row) == {
        "id": "batch_req_row-4",
        "custom_id": "r",
        "response": None,
        "error": {"code": "rate_limited", "message": "slow down"},
    }
