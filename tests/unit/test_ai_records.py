"""The domain record of an AI work item in each of its states, and the result of its task."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from tasquencer.ai.answer import AiAgentResult, AiAnswer
from tasquencer.ai.job import AiJob, ChatMessage
from tasquencer.ai.record import AI_JOBS, ai_job_record
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.work_item import WorkItem, WorkItemState
from tests.unit.driving import NOON, task

JOB = AiJob(messages=[ChatMessage(role="user", content="Hello")], model="asked")
ANSWER = AiAnswer(
    text="Hi!",
    model="answered",
    finish_reason="stop",
    provider_request_id="req-1",
    input_tokens=3,
    output_tokens=5,
    cost_usd=0.25,
    latency_seconds=1.5,
    cached_tokens=2,
    reasoning_tokens=4,
)
NOTHING_YET = {
    "prompt": "Hello",
    "model": "asked",
    "max_retries": 7,
    "attempt": 0,
    "status": "pending",
    "result": None,
    "last_error": None,
    "finish_reason": None,
    "provider_request_id": None,
    "input_tokens": None,
    "output_tokens": None,
    "cost_usd": None,
    "latency_seconds": None,
    "cached_tokens": None,
    "reasoning_tokens": None,
}


def item_in(state: WorkItemState, **facts: object) -> WorkItem:
    item = WorkItem(
        id="w0",
        task_id="task-1",
        run_id="run-1",
        task_type="AiAgentTask",
        lineage="main",
        attempt=0,
        state=state,
        payload=JOB.model_dump(mode="json"),
        not_before=NOON,
        created_at=NOON,
    )
    return item.model_copy(update=facts)


@pytest.mark.parametrize(
    ("item", "changes"),
    [
        (item_in(WorkItemState.INITIALIZED), {}),
        (item_in(WorkItemState.STARTED, attempt=2), {"status": "started", "attempt": 2}),
        (
            item_in(WorkItemState.COMPLETED, result=ANSWER.model_dump(mode="json")),
            {
                "status": "completed",
                "model": "answered",
                "result": "Hi!",
                "finish_reason": "stop",
                "provider_request_id": "req-1",
                "input_tokens": 3,
                "output_tokens": 5,
                "cost_usd": 0.25,
                "latency_seconds": 1.5,
                "cached_tokens": 2,
                "reasoning_tokens": 4,
            },
        ),
        (
            # By hand: an operator gives the text alone.
            item_in(WorkItemState.COMPLETED, result={"text": "Hi!"}),
            {"status": "completed", "result": "Hi!"},
        ),
        (
            item_in(
                WorkItemState.FAILED,
                failure=Failure.of(
                    FailureKind.INVALID_OUTPUT,
                    "cut off",
                    text="half an ans",
                    model="answered",
                    finish_reason="length",
                    provider_request_id="req-2",
                    input_tokens=3,
                    output_tokens=9,
                    cost_usd=0.5,
                    latency_seconds=2.5,
                    cached_tokens=1,
                ),
            ),
            {
                "status": "failed",
                "model": "answered",
                "last_error": "invalid_output: cut off",
                "finish_reason": "length",
                "provider_request_id": "req-2",
                "input_tokens": 3,
                "output_tokens": 9,
                "cost_usd": 0.5,
                "latency_seconds": 2.5,
                "cached_tokens": 1,
            },
        ),
        (
            item_in(WorkItemState.FAILED, failure=Failure.of(FailureKind.UNREACHABLE, "no connection")),
            {"status": "failed", "last_error": "unreachable: no connection"},
        ),
        (item_in(WorkItemState.CANCELED), {"status": "canceled"}),
    ],
    ids=lambda value: value.state.value if isinstance(value, WorkItem) else "",
)
def test_the_record_tells_what_is_known_in_each_state(item: WorkItem, changes: dict[str, object]) -> None:
    record = ai_job_record(item, RetryRecipe(max_retries=7))

    assert record.table == AI_JOBS == "ai_jobs"
    assert record.values == {**NOTHING_YET, **changes}


def test_the_record_of_a_task_follows_its_work_items() -> None:
    state = task(record_of=ai_job_record)
    state.begin(JOB.model_dump(mode="json"), now=NOON)
    state.start("w0", now=NOON)
    state.complete("w0", ANSWER.model_dump(mode="json"), now=NOON)

    records = [entry.record for entry in state.take_entries()]

    assert [record.values["status"] for record in records if record] == ["pending", "started", "completed"]


def test_the_result_of_a_task_is_that_of_its_last_work_item() -> None:
    item = item_in(WorkItemState.COMPLETED, result=ANSWER.model_dump(mode="json"))
    paid = Failure.of(FailureKind.INVALID_OUTPUT, "empty", input_tokens=3, output_tokens=0, cost_usd=0.5)
    unpaid = Failure.of(FailureKind.RATE_LIMITED, "slow down", input_tokens="many")
    attempts = [item_in(WorkItemState.FAILED, failure=failure) for failure in (paid, unpaid)]

    assert AiAgentResult.of(item, [*attempts, item]).model_dump(mode="json") == {
        "text": "Hi!",
        "model": "answered",
        "finish_reason": "stop",
        "work_item_id": "w0",
        "attempts": 3,
        "input_tokens": 3,
        "output_tokens": 5,
        "cost_usd": 0.25,
        "total": {"input_tokens": 6, "output_tokens": 5, "cost_usd": 0.75},
    }


def test_a_result_given_by_hand_needs_only_a_text() -> None:
    item = item_in(WorkItemState.COMPLETED, result={"text": "from a person"})
    result = AiAgentResult.of(item, [item])

    assert (result.text, result.model, result.cost_usd) == ("from a person", None, None)


def test_a_result_without_a_text_is_refused() -> None:
    item = item_in(WorkItemState.COMPLETED, result={})

    with pytest.raises(ValidationError, match="text"):
        AiAgentResult.of(item, [item])
