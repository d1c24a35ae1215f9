"""Texts that databases cannot hold, wherever they come from, on SQLite and on PostgreSQL."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from temporalio import activity, workflow
from temporalio.api.common.v1 import Payload
from temporalio.client import WorkflowUpdateFailedError
from temporalio.common import RawValue

from tasquencer.core.work_item import WorkItem
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal import Task
from tests.poison.conftest import Ground, ground_on
from tests.poison.wire import head, sending
from tests.support.answers import Answer, raw, stall, status
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.provider import ProviderRequest
from tests.support.tasks import Tasks, failure_of_task, tasks_on
from workflows.ai_agent import AiAgentTask

CHOICE = b'{"message": {"content": "a\\u0000b\\ud800c\\ud83d\\ude00"}, "finish_reason": "st\\u0000op"}'
ANSWERS: dict[str, Answer] = {
    "good": raw(b'{"id": "\\u0000x", "model": "m\\udc00", "choices": [' + CHOICE + b"]}"),
    "error": raw(b'{"error": {"message": "a\\u0000b\\ud800", "code": "\\u0000"}}', code=400),
    "page": status(400, "<title>a\x00b</title>"),
    "binary": raw(b"\x00\xff\xfe\xed\xa0\x80", code=400),
    "header": sending(head("400 No", b"x-request-id: \x80\xff", b"content-length: 0")),
    "stall": stall(),
}


def script(request: ProviderRequest) -> Answer:
    return ANSWERS[request.prompt]


async def started(tasks: Tasks, handle: Any) -> WorkItem:
    async def probe() -> WorkItem | None:
        return next((item for item in await tasks.work_items(handle) if item.state == "started"), None)

    return await eventually(probe, "a work item that is started")


async def test_what_databases_cannot_hold_is_mended_or_refused_wherever_it_comes_from(
    dev_server: EmbeddedTemporal, new_database: Callable[[], Awaitable[str]]
) -> None:
    async with ground_on(dev_server, await new_database(), script) as ground:
        await asyncio.gather(
            _in_an_answer(ground),
            *(_in_an_error(ground, name) for name in ("error", "page", "binary", "header")),
            _by_hand(ground),
        )


async def _in_an_answer(ground: Ground) -> None:
    result, handle = await ground.tasks.run("AiAgentTask", {"prompt": "good", "metadata": {"é🎉": "\u2028"}})
    assert (result["text"], result["model"]) == ("a\ufffdb\ufffdc😀", "m\ufffd")
    (item,) = await ground.tasks.work_items(handle)
    record = (await ground.tasks.ledger.domain_records("ai_jobs", [item.id]))[item.id]
    assert record["result"] == "a\ufffdb\ufffdc😀"
    assert (record["finish_reason"], record["provider_request_id"]) == ("st\ufffdop", "\ufffdx")


async def _in_an_error(ground: Ground, prompt: str) -> None:
    error, handle = await ground.tasks.failure("AiAgentTask", {"prompt": prompt})
    assert error.type == "NotRetryable"
    (item,) = await ground.tasks.work_items(handle)
    assert item.failure is not None
    assert item.failure.kind == "invalid_request"
    assert "\x00" not in str(item.failure)


async def _by_hand(ground: Ground) -> None:
    handle = await ground.tasks.start("AiAgentTask", {"prompt": "stall"})
    item = await started(ground.tasks, handle)
    good = {"actor": "anna", "work_item_id": item.id, "reason": "enough"}
    for odd in (b'"a\\u0000"', b'"\\ud800"'):
        for place in ("actor", "reason", "work_item_id", "result", "result.text", "result.model"):
            given = json.dumps(good | {"result": {"text": "from a person"}}).encode()
            written = {
                "actor": given.replace(b'"anna"', odd),
                "reason": given.replace(b'"enough"', odd),
                "work_item_id": given.replace(json.dumps(item.id).encode(), odd),
                "result": given.replace(b'"text"', odd),
                "result.text": given.replace(b'"from a person"', odd),
                "result.model": given.replace(b'"from a person"', b'"from a person", "model": ' + odd),
            }[place]
            payload = RawValue(Payload(metadata={"encoding": b"json/plain"}, data=written))
            with pytest.raises(WorkflowUpdateFailedError) as caught:
                await handle.execute_update("complete_work_item", payload)
            assert str(caught.value.cause).startswith(("InvalidRequest: ", "ActionRefused: ")), place
    await handle.execute_update("cancel_work_item", good | {"reason": "é🎉\u2028"})
    await failure_of_task(handle)


@workflow.defn(name="AnyResult", sandboxed=False)
class AnyResult:
    """A task of one's own that takes any result from outside."""

    def __init__(self) -> None:
        self._task = Task()

    @workflow.run
    async def run(self) -> Any:
        async for work_item in self._task.attempts({"do": "it"}):
            async with work_item:
                work_item.complete(await work_item.outcome())
        return self._task.result()


ODD_RESULTS = [
    b'{"a": "\\ud800"}',
    b'{"a\\u0000": 1}',
    b"NaN",
    b"[1e400]",
    b"[" * 150 + b"]" * 150,
    b"[" * 5_000 + b"]" * 5_000,
]


async def test_a_result_that_cannot_be_kept_is_refused_by_a_task_that_takes_any(
    dev_server: EmbeddedTemporal, ground: Ground
) -> None:
    async with tasks_on(dev_server.address, [AnyResult], [], ledger=ground.tasks.ledger) as tasks:
        handle = await tasks.start("AnyResult")
        item = await started(tasks, handle)
        head_ = json.dumps({"actor": "anna", "work_item_id": item.id}).encode()[:-1] + b', "result": '
        for odd in ODD_RESULTS:
            payload = RawValue(Payload(metadata={"encoding": b"json/plain"}, data=head_ + odd + b"}"))
            with pytest.raises(WorkflowUpdateFailedError) as caught:
                await handle.execute_update("complete_work_item", payload)
            assert str(caught.value.cause).startswith("InvalidRequest: "), odd[:20]
        payload = RawValue(Payload(metadata={"encoding": b"json/plain"}, data=head_ + b'[{"a": [1.5]}]}'))
        await handle.execute_update("complete_work_item", payload)
        assert await asyncio.wait_for(handle.result(), PATIENCE_SECONDS) == [{"a": [1.5]}]


class AnotherGenerate:
    """Answers in ways that ours does not."""

    def __init__(self, answer: Any) -> None:
        self._answer = answer

    @activity.defn(name="generate")
    async def generate(self, job: Any) -> Any:
        return self._answer


@pytest.mark.parametrize(
    "answer",
    [
        None,
        "text",
        7,
        [],
        {},
        {"text": None},
        {"text": "a", "input_tokens": 2**63},
        {"text": "a", "cost_usd": -1},
        b"\xff",
        RawValue(Payload(metadata={"encoding": b"binary/encrypted"}, data=b"\xff")),
        RawValue(Payload(metadata={"encoding": b"json/plain"}, data=b'{"text": "\\ud800"}')),
        {"text": "t" * 2_050_000},
    ],
    ids=lambda answer: repr(answer)[:30],
)
async def test_what_another_generate_returns_is_a_failure_and_leaves_no_task_stuck(
    dev_server: EmbeddedTemporal, answer: Any, ground: Ground
) -> None:
    calls = AnotherGenerate(answer)
    async with tasks_on(
        dev_server.address, [AiAgentTask], [calls.generate], ledger=ground.tasks.ledger
    ) as tasks:
        handle = await tasks.start("AiAgentTask", {"prompt": "?"})
        error = await asyncio.wait_for(failure_of_task(handle), PATIENCE_SECONDS)
        (item,) = await tasks.work_items(handle)
    assert (error.type, error.details[0]["kind"]) == ("NotRetryable", "unexpected")
    assert item.state == "failed"


async def test_what_a_newer_generate_adds_to_an_answer_does_no_harm(
    dev_server: EmbeddedTemporal, ground: Ground
) -> None:
    calls = AnotherGenerate({"text": "Hi", "mood": "good"})
    async with tasks_on(
        dev_server.address, [AiAgentTask], [calls.generate], ledger=ground.tasks.ledger
    ) as tasks:
        result, _ = await tasks.run("AiAgentTask", {"prompt": "?"})
    assert result["text"] == "Hi"
