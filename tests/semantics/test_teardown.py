"""What is still open when a task ends is canceled, and nobody is asked about it."""

from __future__ import annotations

from datetime import timedelta

from tasquencer.core.hooks import NextAttempt, StateChange
from tasquencer.core.policy import TaskPolicy, Verdict, require_successes, until_exhausted
from tasquencer.core.retry import Delay
from tasquencer.core.task_state import TaskState
from tasquencer.core.work_item import DelayReason, WorkItemState
from tests.semantics.asked import Asked
from tests.unit.driving import NOON, after, refused, task


def again_after_a_cancel(change: StateChange) -> NextAttempt | None:
    if change.transition.next_state is WorkItemState.CANCELED:
        return NextAttempt("again", Delay(timedelta(0), DelayReason.BACKOFF))
    return None


def three_lineages(policy: TaskPolicy) -> tuple[TaskState, Asked]:
    """Two work items are started, the third one waits; its hook would follow a canceled one by another."""
    asked = Asked(hook=again_after_a_cancel, policy=policy)
    state = task(on_work_item_state_changed=asked.hook, policy=asked.policy)
    for lineage in ("a", "b", "c"):
        state.begin("job", now=NOON, lineage=lineage)
    state.start("w0", now=NOON)
    state.start("w1", now=NOON)
    state.take_entries()
    asked.log.clear()
    return state, asked


def canceled(state: TaskState) -> list[tuple[str, str | None]]:
    """The work items that were canceled since, with the reason."""
    transitions = [entry.transition for entry in state.take_entries()]
    return [(one.work_item_id, one.reason) for one in transitions if one.next_state == "canceled"]


def test_when_a_task_fails_nobody_is_asked_about_what_is_canceled() -> None:
    state, asked = three_lineages(until_exhausted)

    assert state.fail("w0", refused(), now=after(1)) is Verdict.FAIL

    assert canceled(state) == [("w1", "the task failed"), ("w2", "the task failed")]
    assert asked.log == [("hook", "w0", "failed"), ("policy", "w0", "failed")]
    assert len(state.work_items()) == 3


def test_when_a_task_completes_nobody_is_asked_about_what_is_canceled() -> None:
    state, asked = three_lineages(require_successes(1))

    assert state.complete("w0", "done", now=after(1)) is Verdict.COMPLETE

    assert canceled(state) == [("w1", "the task completed"), ("w2", "the task completed")]
    assert asked.log == [("hook", "w0", "completed"), ("policy", "w0", "completed")]
    assert len(state.work_items()) == 3


def test_when_a_task_is_canceled_nobody_is_asked_about_anything() -> None:
    state, asked = three_lineages(until_exhausted)

    state.close(now=after(1), reason="the task was canceled")

    assert [item for item, _ in canceled(state)] == ["w0", "w1", "w2"]
    assert asked.log == []
    assert state.verdict is Verdict.CONTINUE
