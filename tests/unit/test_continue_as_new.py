"""A task that continues as new continues exactly where it was."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

import pytest
from pydantic import JsonValue

from tasquencer.ai.usage import Usage, total_usage
from tasquencer.core.carried import CarriedTask
from tasquencer.core.entries import DomainRecord
from tasquencer.core.errors import IllegalTransition, TaskMisused
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.hooks import NextAttempt, StateChange
from tasquencer.core.policy import Verdict
from tasquencer.core.retry import Delay, RetryRecipe
from tasquencer.core.task_state import TaskState
from tasquencer.core.work_item import DelayReason, WorkItem, WorkItemState
from tasquencer.testing import InMemoryLedger
from tests.unit.driving import NOON, after, failed, rate_limited, refused, task


def continued(state: TaskState, **options: Any) -> TaskState:
    """The task in its next run: only JSON crosses over."""
    carried = state.carry().model_dump_json()
    onward = task(prefix="x", **options)
    onward.resume(CarriedTask.model_validate_json(carried))
    return onward


def test_attempt_numbers_and_counts_go_on() -> None:
    state = task()
    state.begin("job", now=NOON)
    failed(state, "w0")
    failed(state, "w1")

    onward = continued(state)
    assert onward.counts() == state.counts()
    assert onward.begin("job", now=after(100)).id == "w2"
    failed(onward, "w2")

    assert [(item.id, item.attempt, item.delay_seconds) for item in onward.work_items()] == [
        ("w0", 0, 0),
        ("w1", 1, 1),
        ("w2", 2, 2),
        ("x0", 3, 4),  # 1 × 2²: the backoff continues too
    ]
    failed(onward, "x0")
    assert onward.failure().type == "RetriesExhausted"


def test_nothing_is_recorded_again() -> None:
    state = task()
    state.begin("job", now=NOON)
    failed(state, "w0")

    onward = continued(state)
    onward.begin("job", now=NOON)

    assert onward.take_entries() == []


@pytest.mark.parametrize(("started", "expected"), [(False, [1, 2]), (True, [2])])
async def test_sequences_go_on_so_that_the_ledger_agrees(started: bool, expected: list[int]) -> None:
    ledger = InMemoryLedger()
    state = task()
    state.begin("job", now=NOON)
    if started:
        state.start("w0", now=NOON)
    await ledger.record(state.take_entries())

    onward = continued(state)
    onward.begin("job", now=NOON)
    if not started:
        onward.start("w0", now=NOON)
    onward.complete("w0", "done", now=NOON)
    entries = onward.take_entries()
    await ledger.record(entries)

    assert [entry.transition.sequence for entry in entries] == expected
    assert [transition.sequence for transition in await ledger.transitions("w0")] == [0, 1, 2]


def test_the_planned_start_is_kept() -> None:
    state = task()
    state.begin("job", now=NOON)
    failed(state, "w0", rate_limited(600), at=5)

    onward = continued(state)

    assert onward.begin("job", now=after(30)).not_before == after(605)  # 5 + 600


def test_a_deadline_goes_on_and_still_refuses_a_late_retry() -> None:
    state = task(deadline=after(10), started_at=NOON)
    state.begin("job", now=NOON)

    onward = continued(state)
    assert (onward.deadline, onward.started_at) == (after(10), NOON)
    onward.begin("job", now=after(9))
    failed(onward, "w0", at=9.5)

    assert onward.failure().type == "DeadlineExceeded"


def hook_with(payload: JsonValue) -> Any:
    def hook(change: StateChange) -> NextAttempt | None:
        if change.transition.next_state is not WorkItemState.FAILED:
            return None
        return NextAttempt(payload, Delay(timedelta(0), DelayReason.BACKOFF))

    return hook


def test_a_payload_that_a_hook_changed_survives() -> None:
    state = task(on_work_item_state_changed=hook_with({"smaller": True}))
    state.begin("job", now=NOON)
    failed(state, "w0")

    twice = continued(continued(state))

    assert twice.begin("job", now=NOON).payload == {"smaller": True}


def test_a_payload_that_a_hook_changed_to_null_survives() -> None:
    state = task(on_work_item_state_changed=hook_with(None))
    state.begin("job", now=NOON)
    failed(state, "w0")

    assert continued(state).begin("job", now=NOON).payload is None


def test_an_unchanged_payload_travels_once() -> None:
    state = task()
    state.begin({"prompt": "a long story"}, now=NOON)
    failed(state, "w0")

    assert state.carry().model_dump_json().count("a long story") == 1
    assert continued(state).begin({"prompt": "a long story"}, now=NOON).payload == {"prompt": "a long story"}


def test_small_results_travel_along_large_ones_and_long_failures_stay_behind() -> None:
    state = task()
    for name in ("a", "b", "c"):
        state.begin(name, now=NOON, lineage=name)
    state.start("w0", now=NOON)
    state.complete("w0", "a huge answer" * 30_000, now=NOON)
    state.start("w2", now=NOON)
    state.complete("w2", "an answer", now=NOON)
    state.start("w1", now=NOON)
    state.fail("w1", Failure.of(FailureKind.TIMED_OUT, "m" * 2000, note="not needed"), now=NOON)

    carried = state.carry()

    assert "a huge answer" not in carried.model_dump_json()
    assert carried.work_items[2].result == "an answer"
    assert "not needed" not in carried.model_dump_json()
    failure = carried.work_items[1].failure
    assert failure is not None
    assert (failure.kind, failure.message) == ("timed_out", "m" * 49 + "…")


def test_the_tokens_and_the_cost_of_each_attempt_travel_along() -> None:
    used: dict[str, Any] = {"input_tokens": 3, "output_tokens": 12, "cost_usd": 0.25}
    state = task()
    state.begin("a", now=NOON, lineage="a")
    state.begin("b", now=NOON, lineage="b")
    state.start("w0", now=NOON)
    state.complete("w0", {"text": "long " * 100_000, **used}, now=NOON)
    state.start("w1", now=NOON)
    failure = Failure.of(FailureKind.INVALID_OUTPUT, "empty", model="m", is_free=False, **used)
    state.fail("w1", failure, now=NOON)

    onward = continued(state)
    first, second, *_ = onward.work_items()

    assert first.result == used
    assert second.failure is not None
    assert second.failure.details == used
    assert total_usage(onward.work_items()) == Usage(input_tokens=6, output_tokens=24, cost_usd=0.5)


def test_terminal_work_items_stay_immutable() -> None:
    state = task()
    state.begin("job", now=NOON)
    failed(state, "w0")

    onward = continued(state)
    onward.begin("job", now=NOON)

    with pytest.raises(IllegalTransition, match="immutable"):
        onward.start("w0", now=NOON)


def test_a_settled_lineage_gives_its_last_work_item() -> None:
    state = task()
    for name in ("a", "b"):
        state.begin(name, now=NOON, lineage=name)
    state.start("w0", now=NOON)
    state.complete("w0", 1, now=NOON)

    onward = continued(state)

    assert (onward.begin("a", now=NOON, lineage="a").id, onward.latest("a").state) == ("w0", "completed")
    assert onward.begin("b", now=NOON, lineage="b").state == "initialized"
    onward.start("w1", now=NOON)
    assert onward.complete("w1", 2, now=NOON) is Verdict.COMPLETE


def test_a_carried_lineage_too_is_begun_only_once() -> None:
    state = task()
    state.begin("job", now=NOON)
    onward = continued(state)
    onward.begin("job", now=NOON)

    with pytest.raises(TaskMisused, match="already begun"):
        onward.begin("job", now=NOON)


def test_only_a_new_task_can_resume() -> None:
    state = task()
    state.begin("job", now=NOON)

    with pytest.raises(TaskMisused, match="only a new task can resume"):
        state.resume(state.carry())


def test_a_lineage_goes_on_with_its_own_recipe() -> None:
    own = RetryRecipe(max_retries=1, initial_interval=timedelta(seconds=30))
    state = task()
    state.begin("a", now=NOON, lineage="a", recipe=own)

    onward = continued(state)
    onward.begin("a", now=NOON, lineage="a", recipe=own)
    failed(onward, "w0")

    assert onward.latest("a").delay_seconds == 30


def test_a_work_item_that_fails_before_its_lineage_is_taken_up_is_retried_by_its_own_recipe() -> None:
    own = RetryRecipe(max_retries=9, initial_interval=timedelta(seconds=30))
    state = task()
    state.begin("job", now=NOON, recipe=own)
    state.start("w0", now=NOON)

    onward = continued(state)
    onward.fail("w0", rate_limited(), now=NOON, actor="anna", reason="by an operator")
    onward.begin("job", now=NOON, recipe=own)

    assert onward.latest().delay_seconds == 30


@pytest.mark.parametrize("event", ["close", "cancel", "teardown"])
def test_a_work_item_that_ends_before_its_lineage_is_taken_up_still_has_its_payload(event: str) -> None:
    def record_of(item: WorkItem, recipe: RetryRecipe) -> DomainRecord:
        assert item.payload is not None, "a domain record needs the payload"
        return DomainRecord(table="jobs", values={"payload": item.payload})

    state = task(record_of=record_of)
    for name in ("a", "b"):
        state.begin(name, now=NOON, lineage=name)

    onward = continued(state, record_of=record_of)
    if event == "close":
        onward.close(now=NOON, reason="the task was canceled")
    elif event == "cancel":
        onward.cancel("w1", now=NOON, reason="by an operator", actor="anna")
    else:
        onward.begin("a", now=NOON, lineage="a")
        failed(onward, "w0", refused())

    assert onward.work_item("w1").state == "canceled"
