"""A hook may ask for one more attempt in the lineage of a work item that has ended, and for nothing else."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tasquencer.core.errors import TaskMisused, TooManyWorkItems
from tasquencer.core.hooks import NextAttempt, StateChange
from tasquencer.core.policy import Verdict
from tasquencer.core.retry import Delay, RetryRecipe
from tasquencer.core.work_item import DelayReason
from tests.unit.driving import NOON, after, failed, task

AT_ONCE = Delay(timedelta(0), DelayReason.BACKOFF)


def follow_up_of_a_result(change: StateChange) -> NextAttempt | None:
    if change.work_item.result == "look closer":
        return NextAttempt("a closer look", AT_ONCE)
    return None


def test_a_completed_work_item_may_be_followed_by_another_one() -> None:
    state = task(on_work_item_state_changed=follow_up_of_a_result)
    state.begin("a look", now=NOON)
    state.start("w0", now=NOON)

    assert state.complete("w0", "look closer", now=NOON) is Verdict.CONTINUE

    assert state.latest().payload == "a closer look"
    state.start("w1", now=after(1))
    assert state.complete("w1", "found", now=after(1)) is Verdict.COMPLETE


def test_a_hook_cannot_add_to_a_work_item_that_is_still_open() -> None:
    def impatient(change: StateChange) -> NextAttempt | None:
        return NextAttempt("another", AT_ONCE)

    with pytest.raises(TaskMisused, match="a hook asked for another attempt while 'w0' is still initialized"):
        task(on_work_item_state_changed=impatient).begin("job", now=NOON)


def test_an_attempt_whose_wait_would_end_at_the_deadline_is_left_out() -> None:
    state = task(deadline=after(1))
    state.begin("job", now=NOON)

    failed(state, "w0")

    assert [item.id for item in state.work_items()] == ["w0"]
    assert (state.verdict, state.failure().type) == (Verdict.FAIL, "DeadlineExceeded")


def test_a_hook_cannot_go_beyond_the_recipe() -> None:
    state = task(on_work_item_state_changed=follow_up_of_a_result, recipe=RetryRecipe(max_retries=1))
    state.begin("a look", now=NOON)
    state.start("w0", now=NOON)
    state.complete("w0", "look closer", now=NOON)
    state.start("w1", now=NOON)

    with pytest.raises(TooManyWorkItems, match="already has its 2 work items"):
        state.complete("w1", "look closer", now=NOON)
