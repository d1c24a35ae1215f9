"""Writes results as lines of the output file and the error file of OpenAI's Batch API."""

from __future__ import annotations

from typing import Any

from pydantic import JsonValue

from tasquencer.batch.store import RowAnswer, UnansweredRow

__all__ = ["error_line", "result_line"]


def result_line(answer: RowAnswer) -> dict[str, JsonValue]:
    """Return an answer as a line of the Batch API's output file."""
    tokens = (answer.input_tokens or 0, answer.output_tokens or 0)
    message: JsonValue = {"role": "assistant", "content": answer.text, "refusal": None}
    choice: JsonValue = {
        "index": 0,
        "message": message,
        "logprobs": None,
        "finish_reason": answer.finish_reason or "stop",
    }
    body: JsonValue = {
        "id": f"chatcmpl-{answer.work_item_id}",
        "object": "chat.completion",
        "created": 0 if answer.ended_at is None else int(answer.ended_at.timestamp()),
        "model": answer.model,
        "choices": [choice],
        "usage": {
            "prompt_tokens": tokens[0],
            "completion_tokens": tokens[1],
            "total_tokens": sum(tokens),
        },
    }
    response: JsonValue = {"status_code": 200, "request_id": answer.work_item_id, "body": body}
    return _line(answer.work_item_id, answer.row_id, response, None)


def error_line(row: UnansweredRow) -> dict[str, JsonValue]:
    """Return a row without an answer as a line of the Batch API's error file."""
    code, message = "Canceled", "the batch ended before it"
    if row.failure is not None:
        code, message = row.failure.kind or row.failure.type, row.failure.message
    return _line(f"row-{row.position}", row.row_id, None, {"code": code, "message": message})


def _line(identity: str, custom_id: str, response: JsonValue, error: JsonValue) -> dict[str, Any]:
    return {"id": f"batch_req_{identity}", "custom_id": custom_id, "response": response, "error": error}
