"""Whatever a task is given as its input, it fails at once and says why, or does what it was asked."""

from __future__ import annotations

import asyncio
import json
from typing import Any

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue

from tests.poison.conftest import Ground
from tests.support.answers import Answer, ok
from tests.support.patience import PATIENCE_SECONDS
from tests.support.provider import ProviderRequest
from tests.support.tasks import failure_of_task

NOT_JSON = 'the input must be one JSON object such as {"prompt": "…"}, not '


def script(request: ProviderRequest) -> Answer:
    return ok("Hi")


def raw(data: bytes, encoding: bytes | None = b"json/plain", **metadata: bytes) -> RawValue:
    kept = {} if encoding is None else {"encoding": encoding}
    return RawValue(Payload(metadata=kept | metadata, data=data))


def nested(levels: int, *, prompt: bool = False) -> RawValue:
    inner = b"[" * levels + b"]" * levels
    if prompt:
        return raw(b'{"prompt": ' + inner + b"}")
    return raw(b'{"messages": [{"role": "user", "content": [{"text": ' + inner + b"}]}]}")


PAYLOAD = b"temporal.api.common.v1.Payload"
REFUSED: list[tuple[str, list[Any], str]] = [
    ("two inputs", [{"prompt": "a"}, {"prompt": "b"}], "the workflow takes one input, 2 were given"),
    ("three inputs", [None, 1, "x"], "the workflow takes one input, 3 were given"),
    ("two inputs that cannot be read", [raw(b"{"), raw(b"\xff", b"binary/none")], "takes one input"),
    ("a list", [[{"prompt": "a"}]], NOT_JSON + "a list"),
    ("a number", [7], NOT_JSON + "a number"),
    ("nothing", [None], NOT_JSON + "nothing"),
    ("a truth", [True], NOT_JSON + "bool"),
    ("an empty payload", [raw(b"")], NOT_JSON + "bytes"),
    ("no UTF-8", [raw(b'{"prompt": "\xff"}')], NOT_JSON + "bytes"),
    ("bytes", [b'{"prompt": "a"}'], NOT_JSON + "bytes"),
    ("an encoding that nobody knows", [raw(b"\x00", b"binary/encrypted")], NOT_JSON + "bytes"),
    ("no encoding", [raw(b'{"prompt": "a"}', None)], NOT_JSON + "bytes"),
    ("a message that nobody knows", [raw(b"{}", b"json/protobuf", messageType=b"no.Such")], NOT_JSON),
    ("a message that is broken", [raw(b"{", b"json/protobuf", messageType=PAYLOAD)], NOT_JSON),
    ("a binary message that is broken", [raw(b"\xff", b"binary/protobuf", messageType=PAYLOAD)], NOT_JSON),
    ("10,000 levels", [nested(10_000, prompt=True)], NOT_JSON + "bytes"),
    ("10,000 levels of content", [nested(10_000)], NOT_JSON + "bytes"),
    ("240 levels of content", [nested(240)], "messages.0.content: must not be nested deeper than 100"),
    ("101 levels of content", [nested(99)], "messages.0.content: must not be nested deeper than 100"),
    (
        "a million values",
        [raw(b'{"messages": [{"role": "user", "content": [{"a": [' + b"1," * 700_000 + b"1]}]}]}")],
        "messages: the input has more than 10,000 names and values",
    ),
    ("a surrogate in a name", [raw(b'{"prompt": "a", "\\ud800": 1}')], "valid string"),
    ("a surrogate in a label", [raw(b'{"prompt": "a", "metadata": {"\\udc00": "x"}}')], "lone surrogates"),
    (
        "a surrogate in a role",
        [raw(b'{"messages": [{"role": "\\ud800", "content": "a"}]}')],
        "messages.0.role",
    ),
    ("a NUL in a label", [{"prompt": "a", "metadata": {"a": "\x00"}}], "metadata.a: must not contain NUL"),
    ("NaN", [raw(b'{"prompt": "a", "temperature": NaN}')], "temperature: "),
    ("1e400", [raw(b'{"prompt": "a", "deadline_seconds": 1e400}')], "deadline_seconds: "),
    ("4,000 digits", [raw(b'{"prompt": "a", "max_output_tokens": ' + b"9" * 4_000 + b"}")], "max_output_tok"),
    ("5,000 digits", [raw(b'{"prompt": "a", "max_retries": ' + b"9" * 5_000 + b"}")], NOT_JSON + "bytes"),
    ("an unknown name of a megabyte", [{"prompt": "a", "k" * 1_500_000: 1}], "kkk…: unknown field"),
    ("100,000 unknown names", [{"prompt": "a"} | {f"k{n}": 1 for n in range(100_000)}], "; and 99,980 more"),
    (
        "100,000 wrong labels",
        [{"prompt": "a", "metadata": {f"k{n}": 1 for n in range(100_000)}}],
        "metadata: the input has more than 10,000 names and values",
    ),
    ("2,000 labels", [{"prompt": "a", "metadata": {f"k{n}": "" for n in range(2_000)}}], "metadata: "),
    ("a million messages", [{"messages": [1] * 900_000}], "messages: "),
]


@pytest.mark.parametrize(("args", "says"), [row[1:] for row in REFUSED], ids=[row[0] for row in REFUSED])
async def test_an_input_that_is_no_request_fails_the_task_at_once(
    ground: Ground, args: list[Any], says: str
) -> None:
    handle = await ground.tasks.start("AiAgentTask", *args)
    error = await asyncio.wait_for(failure_of_task(handle), PATIENCE_SECONDS)
    assert error.type == "InvalidRequest"
    assert says in error.message
    assert len(error.message) < 8_000
    assert await ground.tasks.work_items(handle) == []


@pytest.mark.parametrize("workflow", ["AiFanOutTask", "AiBatchTask", "ReviewedDraft"])
@pytest.mark.parametrize(
    "args", [[{}, {}], [7], [raw(b"\xff", b"binary/encrypted")], [raw(b'{"\\ud800": 1}')]], ids=repr
)
async def test_the_other_tasks_fail_at_once_too(ground: Ground, workflow: str, args: list[Any]) -> None:
    handle = await ground.tasks.start(workflow, *args)
    error = await asyncio.wait_for(failure_of_task(handle), PATIENCE_SECONDS)
    assert error.type == "InvalidRequest"


@pytest.mark.parametrize(
    "given",
    [
        raw(b'\xef\xbb\xbf{"prompt": "a"}'),
        raw(b'{"prompt": "b", "prompt": "a"}'),
        raw(json.dumps({"prompt": "a", "metadata": {"é": "🎉"}}).encode()),
        raw('{"prompt": "a"}'.encode("utf-16")),
        nested(98),
    ],
    ids=["byte order mark", "the same key twice", "escaped", "UTF-16", "100 levels"],
)
async def test_an_odd_input_that_is_a_request_is_answered(ground: Ground, given: RawValue) -> None:
    result, handle = await ground.tasks.run("AiAgentTask", given)
    assert result["text"] == "Hi"
    (item,) = await ground.tasks.work_items(handle)
    assert item.state == "completed"
