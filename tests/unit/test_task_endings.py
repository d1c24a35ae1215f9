"""How a task that did not complete ends: the type of its error, its one line, its last failure."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tasquencer.core.entries import LedgerEntry
from tasquencer.core.errors import TaskMisused
from tasquencer.core.explanation import TaskFailure
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.hooks import StateChange
from tasquencer.core.policy import Counts, Verdict, fail_fast, until_exhausted
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.task_state import TaskState
from tasquencer.core.work_item import Transition, WorkItemState
from tests.unit.driving import NOON, after, failed, rate_limited, refused, task


def test_spent_retries_end_in_retries_exhausted() -> None:
    state = task(recipe=RetryRecipe(max_retries=2))
    state.begin("job", now=NOON)
    for number in range(3):
        failed(state, f"w{number}")

    assert state.failure() == TaskFailure(
        "RetriesExhausted",
        "retry 2 of 2 failed with rate_limited: slow down; all retries are spent",
        rate_limited(),
    )


def test_a_task_without_retries_says_so() -> None:
    state = task(recipe=RetryRecipe(max_retries=0))
    state.begin("job", now=NOON)
    failed(state, "w0")

    assert state.failure() == TaskFailure(
        "RetriesExhausted",
        "first try failed with rate_limited: slow down; no retries are allowed",
        rate_limited(),
    )


@pytest.mark.parametrize("retries_before", [0, 3])
def test_a_failure_that_does_not_qualify_ends_in_not_retryable(retries_before: int) -> None:
    state = task()
    state.begin("job", now=NOON)
    for number in range(retries_before):
        failed(state, f"w{number}")
    failed(state, f"w{retries_before}", refused())

    label = "first try" if not retries_before else "retry 3 of 3"
    assert state.failure() == TaskFailure(
        "NotRetryable", f"{label} failed with refused: no, which does not qualify for a retry", refused()
    )


def test_a_wait_beyond_the_deadline_fails_the_task_at_once_and_says_when() -> None:
    state = task(deadline=after(60))
    state.begin("job", now=NOON)
    failed(state, "w0", rate_limited(90), at=10)

    assert state.verdict is Verdict.FAIL
    assert len(state.work_items()) == 1
    assert state.failure() == TaskFailure(
        "DeadlineExceeded",
        "first try failed with rate_limited: slow down; after a wait of 1 min 30 s (retry_after) "
        "the next try could start at 2026-11-23 12:01:40 UTC, "  # 10 + 90 s
        "the deadline is 2026-11-23 12:01:00 UTC",
        rate_limited(90),
    )


@pytest.mark.parametrize(
    ("deadline", "follows"),
    [
        (0.5, False),  # the wait of 1 s ends after it
        (1, False),  # no attempt starts at the deadline itself
        (1.001, True),
        (60, True),
        (None, True),
    ],
)
def test_a_retry_follows_only_if_it_could_start_before_the_deadline(
    deadline: float | None, follows: bool
) -> None:
    state = task(deadline=None if deadline is None else after(deadline))
    state.begin("job", now=NOON)
    failed(state, "w0")

    assert (len(state.work_items()) == 2) is follows
    assert (state.verdict is Verdict.FAIL) is not follows


def test_the_wait_is_never_shortened_for_the_deadline() -> None:
    state = task(deadline=after(100))
    state.begin("job", now=NOON)
    failed(state, "w0", rate_limited(99.999))

    assert state.latest().not_before == after(99.999)


def test_jitter_counts_against_the_deadline() -> None:
    state = task(recipe=RetryRecipe(jitter=1), random=lambda *_: 0.5, deadline=after(1.4))
    state.begin("job", now=NOON)
    failed(state, "w0")  # 1 s + 1 s × 0.5 = 1.5 s

    assert state.failure().type == "DeadlineExceeded"


def test_a_failure_that_does_not_qualify_is_not_blamed_on_the_deadline() -> None:
    state = task(deadline=after(0.5))
    state.begin("job", now=NOON)
    failed(state, "w0", refused())

    assert state.failure().type == "NotRetryable"


def test_a_lineage_may_have_a_deadline_of_its_own() -> None:
    state = task(deadline=after(60))
    state.begin("a", now=NOON, lineage="a", deadline=after(0.5))
    state.begin("b", now=NOON, lineage="b")
    failed(state, "w1")
    failed(state, "w0")

    assert [item.lineage for item in state.work_items()] == ["a", "b", "b"]
    assert state.failure().type == "DeadlineExceeded"
    assert state.failure().message.startswith("a: first try failed")
    assert state.failure().message.endswith("the deadline is 2026-11-23 12:00:00 UTC")


@pytest.mark.parametrize("step", ["initialized", "started"])
def test_a_canceled_work_item_ends_in_task_failed_with_its_reason(step: str) -> None:
    state = task()
    state.begin("job", now=NOON)
    if step == "started":
        state.start("w0", now=NOON)
    state.cancel("w0", now=NOON, reason="no longer wanted", actor="anna")

    assert state.failure() == TaskFailure("TaskFailed", "first try was canceled: no longer wanted", None)


def test_a_policy_that_allows_no_retry_ends_in_task_failed() -> None:
    state = task(policy=fail_fast)
    state.begin("job", now=NOON)
    failed(state, "w0")

    assert state.failure() == TaskFailure(
        "TaskFailed",
        "first try failed with rate_limited: slow down (the task's policy allows no further try)",
        rate_limited(),
    )


def test_fail_fast_at_the_last_retry_still_says_that_the_retries_are_spent() -> None:
    state = task(policy=fail_fast, recipe=RetryRecipe(max_retries=0))
    state.begin("job", now=NOON)
    failed(state, "w0")

    assert state.failure().type == "RetriesExhausted"


def test_a_failure_that_may_not_be_retried_ends_in_task_failed() -> None:
    state = task()
    state.begin("job", now=NOON)
    state.start("w0", now=NOON)
    state.fail("w0", rate_limited(), now=NOON, may_retry=False)

    assert state.failure() == TaskFailure(
        "TaskFailed", "first try failed with rate_limited: slow down", rate_limited()
    )


def test_a_hook_that_gives_up_early_ends_in_task_failed() -> None:
    def give_up(change: StateChange) -> None:
        return None

    state = task(on_work_item_state_changed=give_up)
    state.begin("job", now=NOON)
    failed(state, "w0")

    assert state.failure().type == "TaskFailed"


def test_with_several_lineages_the_one_that_failed_is_named() -> None:
    state = task(recipe=RetryRecipe(max_retries=1))
    for name in ("a", "b"):
        state.begin(name, now=NOON, lineage=name)
    failed(state, "w1")
    failed(state, "w2", at=1)

    assert state.failure().message == (
        "b: retry 1 of 1 failed with rate_limited: slow down; all retries are spent"
    )


def test_a_policy_that_waits_for_all_lineages_still_tells_which_failure_it_was() -> None:
    def when_all_ended(transition: Transition, counts: Counts) -> Verdict:
        return Verdict.CONTINUE if counts.open_lineages else until_exhausted(transition, counts)

    state = task(policy=when_all_ended)
    for name in ("a", "b"):
        state.begin(name, now=NOON, lineage=name)
    failed(state, "w0", refused())
    state.start("w1", now=NOON)
    state.complete("w1", "done", now=NOON)

    assert state.verdict is Verdict.FAIL
    assert state.failure().failure == refused()
    assert state.failure().message.startswith("a: first try failed with refused: no")


@pytest.mark.parametrize("completed", [False, True])
def test_a_task_that_did_not_fail_has_no_failure_to_tell(completed: bool) -> None:
    state = task()
    state.begin("job", now=NOON)
    if completed:
        state.start("w0", now=NOON)
        state.complete("w0", 1, now=NOON)

    with pytest.raises(TaskMisused, match="the task has not failed"):
        state.failure()


def test_the_message_is_one_line_whatever_the_failure_says() -> None:
    state = task()
    state.begin("job", now=NOON)
    failed(state, "w0", Failure.of(FailureKind.REFUSED, "no\nand\r\nno again"))

    assert len(state.failure().message.splitlines()) == 1


@pytest.mark.parametrize("asked", [1e300, 3e11])  # no timedelta holds the one, no datetime the other
def test_a_retry_after_beyond_all_calendars_is_no_crash(asked: float) -> None:
    state = task(deadline=NOON + timedelta(hours=1))
    state.begin("job", now=NOON)
    failed(state, "w0", rate_limited(asked))

    assert state.failure().type == "DeadlineExceeded"


def test_a_work_item_whose_turn_comes_after_the_deadline_is_given_up() -> None:
    state = task(deadline=NOON + timedelta(seconds=10))
    state.begin("job", now=NOON)
    failed(state, "w0", at=1)

    assert not state.expire("w1", now=NOON + timedelta(seconds=9.9))
    assert state.expire("w1", now=NOON + timedelta(seconds=10))

    assert state.work_item("w1").state == "canceled"
    ended = state.failure()
    assert ended.type == "DeadlineExceeded"
    assert ended.message.startswith("retry 1 of 3 was given up: it could not start before the deadline, ")
    assert ended.failure == rate_limited()


def test_an_end_that_the_ledger_holds_takes_the_place_of_the_cancellation() -> None:
    state = task(policy=fail_fast)
    for name in ("one", "two"):
        state.begin("job", now=NOON, lineage=name)
    state.start("w1", now=NOON)
    state.take_entries()
    failed(state, "w0", refused())
    entries = state.take_entries()
    assert [one.transition.next_state for one in entries if one.work_item.id == "w1"] == ["canceled"]

    known = _end_of(state, "w1", rate_limited(), at=3)
    adopted = state.adopt(known, entries)

    assert state.work_item("w1").failure == rate_limited()
    assert state.work_item("w1").payload == "job"
    assert (state.counts().failed, state.counts().canceled, state.counts().failed_lineages) == (2, 0, 2)
    assert [one.transition for one in adopted if one.work_item.id == "w1"] == [known.transition]
    assert [one for one in adopted if one.work_item.id == "w0"] == [
        one for one in entries if one.work_item.id == "w0"
    ]
    assert not state.has_entries
    assert state.failure().type == "NotRetryable"


def test_only_a_cancellation_gives_way_to_what_the_ledger_holds() -> None:
    state = task()
    state.begin("job", now=NOON)
    failed(state, "w0")
    known = _end_of(state, "w0", refused(), at=3)
    with pytest.raises(TaskMisused, match="'w0' is failed"):
        state.adopt(known, state.take_entries())


def _end_of(state: TaskState, work_item_id: str, failure: Failure, *, at: float) -> LedgerEntry:
    """How the work item failed, as a lost worker has recorded it."""
    update = {"state": WorkItemState.FAILED, "failure": failure, "ended_at": after(at)}
    return LedgerEntry(
        transition=Transition(
            work_item_id=work_item_id,
            sequence=2,
            previous_state=WorkItemState.STARTED,
            next_state=WorkItemState.FAILED,
            at=after(at),
            actor="task",
        ),
        work_item=state.work_item(work_item_id).model_copy(update=update),
    )
