"""The default policy waits for the retries, and a task without an answer is not complete."""

from __future__ import annotations

from tasquencer.core.policy import Verdict, fail_fast
from tasquencer.core.retry import RetryRecipe
from tests.unit.driving import NOON, after, failed, refused, task


def test_a_task_completes_once_each_of_its_lineages_has_a_result() -> None:
    state = task()
    state.begin("a", now=NOON, lineage="a")
    state.begin("b", now=NOON, lineage="b")
    state.start("w0", now=NOON)
    state.start("w1", now=NOON)

    assert state.complete("w0", "done", now=NOON) is Verdict.CONTINUE
    assert state.complete("w1", "done", now=NOON) is Verdict.COMPLETE


def test_a_failure_that_is_retried_does_not_fail_the_task() -> None:
    state = task()
    state.begin("job", now=NOON)

    failed(state, "w0")

    assert state.verdict is Verdict.CONTINUE
    assert [item.state for item in state.open_work_items()] == ["initialized"]


def test_a_task_fails_when_no_retry_is_left() -> None:
    state = task(recipe=RetryRecipe(max_retries=1))
    state.begin("job", now=NOON)

    failed(state, "w0")
    failed(state, "w1", at=1)

    assert (state.verdict, state.failure().type) == (Verdict.FAIL, "RetriesExhausted")


def test_a_task_fails_when_the_failure_does_not_qualify() -> None:
    state = task()
    state.begin("job", now=NOON)

    failed(state, "w0", refused())

    assert (state.verdict, state.failure().type) == (Verdict.FAIL, "NotRetryable")


def test_a_task_whose_last_work_item_is_canceled_fails() -> None:
    """Tasquencer's own default would complete it."""
    state = task()
    state.begin("job", now=NOON)

    assert state.cancel("w0", now=after(1), reason="not wanted") is Verdict.FAIL


def test_fail_fast_fails_at_the_first_failure_whatever_retry_is_planned() -> None:
    """As Tasquencer's own default does."""
    state = task(policy=fail_fast)
    state.begin("job", now=NOON)

    failed(state, "w0")

    assert state.verdict is Verdict.FAIL
    assert [item.state for item in state.work_items()] == ["failed", "canceled"]
