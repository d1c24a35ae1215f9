"""The state machine of a task: which event is legal when, who is asked, what is recorded."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime, timedelta

import pytest
from pydantic import JsonValue

from tasquencer.core.entries import DomainRecord
from tasquencer.core.errors import IllegalTransition, TaskMisused, TooManyWorkItems, UnknownWorkItem
from tasquencer.core.hooks import NextAttempt, StateChange, retry_by_recipe
from tasquencer.core.policy import Counts, Verdict, fail_fast, until_exhausted
from tasquencer.core.retry import Delay, RetryOn, RetryRecipe
from tasquencer.core.task_state import TaskState
from tasquencer.core.work_item import DelayReason, Transition, WorkItem, WorkItemState
from tasquencer.testing import InMemoryLedger
from tests.unit.driving import NOON, after, failed, rate_limited, refused, task

EVENTS: dict[str, Callable[[TaskState, str, datetime], Verdict]] = {
    "start": lambda state, item, now: state.start(item, now=now),
    "complete": lambda state, item, now: state.complete(item, "done", now=now),
    "fail": lambda state, item, now: state.fail(item, rate_limited(), now=now),
    "cancel": lambda state, item, now: state.cancel(item, now=now, reason="not wanted"),
}
PATHS: dict[str, tuple[str, ...]] = {
    "initialized": (),
    "started": ("start",),
    "completed": ("start", "complete"),
    "failed": ("start", "fail"),
    "canceled": ("start", "cancel"),
}


def nothing_follows(change: StateChange) -> None:
    return None


def never_decide(transition: Transition, counts: Counts) -> Verdict:
    return Verdict.CONTINUE


def states(state: TaskState) -> list[str]:
    return [item.state.value for item in state.work_items()]


# Legal and illegal


@pytest.mark.parametrize(
    ("found", "event", "expected"),
    [
        ("initialized", "start", "started"),
        ("initialized", "complete", None),
        ("initialized", "fail", None),
        ("initialized", "cancel", "canceled"),
        ("started", "start", None),
        ("started", "complete", "completed"),
        ("started", "fail", "failed"),
        ("started", "cancel", "canceled"),
        ("completed", "start", None),
        ("completed", "complete", None),
        ("completed", "fail", None),
        ("completed", "cancel", None),
        ("failed", "start", None),
        ("failed", "complete", None),
        ("failed", "fail", None),
        ("failed", "cancel", None),
        ("canceled", "start", None),
        ("canceled", "complete", None),
        ("canceled", "fail", None),
        ("canceled", "cancel", None),
    ],
)
def test_a_work_item_changes_as_the_table_says_and_in_no_other_way(
    found: str, event: str, expected: str | None
) -> None:
    state = task(policy=never_decide, on_work_item_state_changed=nothing_follows)
    item = state.begin("job", now=NOON)
    for step in PATHS[found]:
        EVENTS[step](state, item.id, after(1))
    before = state.work_item(item.id)
    state.take_entries()

    if expected is None:
        with pytest.raises(IllegalTransition) as raised:
            EVENTS[event](state, item.id, after(2))
        assert raised.value.state == found
        assert state.work_item(item.id) == before
        assert state.take_entries() == []
    else:
        EVENTS[event](state, item.id, after(2))
        assert state.work_item(item.id).state == expected


@pytest.mark.parametrize("ended", ["completed", "failed", "canceled"])
def test_the_error_says_that_a_terminal_work_item_is_immutable(ended: str) -> None:
    state = task(policy=never_decide, on_work_item_state_changed=nothing_follows)
    item = state.begin("job", now=NOON)
    for step in PATHS[ended]:
        EVENTS[step](state, item.id, NOON)

    with pytest.raises(IllegalTransition) as raised:
        state.complete(item.id, "again", now=NOON)

    assert str(raised.value) == (
        f"work item 'w0' cannot become completed: it is {ended} (a terminal work item is immutable)"
    )


@pytest.mark.parametrize("event", list(EVENTS))
def test_an_unknown_work_item_is_named(event: str) -> None:
    state = task()
    state.begin("job", now=NOON)

    with pytest.raises(UnknownWorkItem) as raised:
        EVENTS[event](state, "nobody", NOON)

    assert str(raised.value) == "task 'task-1' has no work item 'nobody'"


def test_a_lineage_begins_only_once() -> None:
    state = task()
    state.begin("job", now=NOON)

    with pytest.raises(TaskMisused, match="lineage 'main' was already begun"):
        state.begin("job", now=NOON)

    assert len(state.work_items()) == 1


def test_asking_for_a_lineage_that_never_began_says_what_to_do() -> None:
    with pytest.raises(TaskMisused, match=r"lineage 'main' was never begun: call attempts\(\) first"):
        task().latest()


# What a work item records


def test_the_first_work_item_waits_for_nothing() -> None:
    item = task().begin({"ask": 1}, now=NOON)

    assert item == WorkItem(
        id="w0",
        task_id="task-1",
        run_id="run-1",
        task_type="Test",
        lineage="main",
        attempt=0,
        state=WorkItemState.INITIALIZED,
        payload={"ask": 1},
        delay_seconds=0,
        delay_reason=DelayReason.FIRST_TRY,
        not_before=NOON,
        created_at=NOON,
    )


def test_a_retry_is_recorded_with_its_delay_and_reason_when_its_predecessor_ends() -> None:
    state = task()
    state.begin("job", now=NOON)
    state.start("w0", now=after(1))
    state.fail("w0", rate_limited(7), now=after(3), worker="me@here")

    ended, retry = state.work_items()
    assert (ended.state, ended.started_at, ended.ended_at, ended.worker) == (
        WorkItemState.FAILED,
        after(1),
        after(3),
        "me@here",
    )
    assert ended.failure == rate_limited(7)
    assert (retry.state, retry.attempt, retry.payload) == (WorkItemState.INITIALIZED, 1, "job")
    assert (retry.delay_seconds, retry.delay_reason) == (7, DelayReason.RETRY_AFTER)
    assert (retry.created_at, retry.not_before) == (after(3), after(10))  # 3 + 7
    assert state.latest() == retry
    assert state.before(retry) == ended
    assert state.before(ended) is None


def test_the_delays_of_a_task_that_always_fails_are_one_two_and_four_seconds() -> None:
    state = task()
    state.begin("job", now=NOON)
    for number in range(4):
        failed(state, f"w{number}")

    assert [item.delay_seconds for item in state.work_items()] == [0, 1, 2, 4]
    assert states(state) == ["failed"] * 4
    assert state.verdict is Verdict.FAIL


def test_the_random_number_is_drawn_for_failures_alone() -> None:
    drawn: list[float] = []

    def random() -> float:
        drawn.append(0.5)
        return 0.5

    state = task(recipe=RetryRecipe(jitter=1), random=random)
    state.begin("job", now=NOON)
    failed(state, "w0")
    state.start("w1", now=NOON)
    state.complete("w1", None, now=NOON)

    assert drawn == [0.5]
    assert state.work_item("w1").delay_seconds == 1.5  # 1 + 1 × 1 × 0.5


def test_a_result_of_null_is_a_result() -> None:
    state = task()
    state.begin("job", now=NOON)
    state.start("w0", now=NOON)

    assert state.complete("w0", None, now=NOON) is Verdict.COMPLETE
    assert state.work_item("w0").result is None


# The hook


def test_the_hook_is_asked_before_the_policy() -> None:
    calls: list[str] = []

    def hook(change: StateChange) -> NextAttempt | None:
        calls.append(f"hook {change.work_item.id} {change.transition.next_state}")
        return retry_by_recipe(change)

    def policy(transition: Transition, counts: Counts) -> Verdict:
        calls.append(f"policy {transition.work_item_id} {transition.next_state} open={counts.open_lineages}")
        return until_exhausted(transition, counts)

    state = task(policy=policy, on_work_item_state_changed=hook)
    state.begin("job", now=NOON)
    failed(state, "w0")

    assert [call for call in calls if "w1" not in call] == [
        "hook w0 initialized",
        "policy w0 initialized open=1",
        "hook w0 started",
        "policy w0 started open=1",
        "hook w0 failed",
        "policy w0 failed open=1",  # the hook's retry already keeps the lineage open
    ]
    assert calls.index("policy w1 initialized open=1") > calls.index("hook w0 failed")


def test_the_hook_sees_every_transition_the_creation_included() -> None:
    seen: list[str] = []

    def hook(change: StateChange) -> None:
        seen.append(change.transition.next_state)

    state = task(on_work_item_state_changed=hook)
    state.begin("job", now=NOON)
    state.start("w0", now=NOON)

    assert seen == ["initialized", "started"]


def test_the_hook_sees_the_payload_the_recipe_and_the_outcome() -> None:
    seen: list[StateChange] = []

    def hook(change: StateChange) -> None:
        seen.append(change)

    recipe = RetryRecipe(max_retries=7)
    state = task(recipe=recipe, random=lambda *_: 0.25, on_work_item_state_changed=hook)
    state.begin({"ask": 1}, now=NOON)
    failed(state, "w0")

    _, started, ended = seen
    assert started.jitter == 0
    assert ended.jitter == 0.25
    assert ended.recipe is recipe
    assert ended.work_item.payload == {"ask": 1}
    assert ended.work_item.failure == rate_limited()
    assert ended.transition.previous_state is WorkItemState.STARTED


def test_a_hook_may_change_the_payload_and_the_delay_of_the_next_attempt() -> None:
    def hook(change: StateChange) -> NextAttempt | None:
        if change.transition.next_state is not WorkItemState.FAILED:
            return None
        return NextAttempt("smaller", Delay(timedelta(seconds=9), DelayReason.BACKOFF))

    state = task(on_work_item_state_changed=hook)
    state.begin("job", now=NOON)
    failed(state, "w0")

    assert (state.latest().payload, state.latest().delay_seconds) == ("smaller", 9)


def test_a_hook_may_follow_a_canceled_work_item_with_another_attempt() -> None:
    def hook(change: StateChange) -> NextAttempt | None:
        if change.transition.next_state is not WorkItemState.CANCELED:
            return None
        return NextAttempt("job", Delay(timedelta(0), DelayReason.OPERATOR))

    state = task(on_work_item_state_changed=hook)
    state.begin("job", now=NOON)

    assert state.cancel("w0", now=NOON, reason="stuck") is Verdict.CONTINUE
    assert states(state) == ["canceled", "initialized"]


@pytest.mark.parametrize("max_retries", [0, 2])
def test_a_hook_that_asks_for_more_than_the_recipe_allows_is_refused(max_retries: int) -> None:
    def greedy(change: StateChange) -> NextAttempt | None:
        if change.transition.next_state is not WorkItemState.FAILED:
            return None
        return NextAttempt("job", Delay(timedelta(0), DelayReason.BACKOFF))

    state = task(recipe=RetryRecipe(max_retries=max_retries), on_work_item_state_changed=greedy)
    state.begin("job", now=NOON)
    for number in range(max_retries):
        failed(state, f"w{number}")

    with pytest.raises(
        TooManyWorkItems, match=rf"lineage 'main' already has its {max_retries + 1} work items?\b"
    ):
        failed(state, f"w{max_retries}")

    assert len(state.work_items()) == max_retries + 1


def test_a_hook_that_asks_while_the_work_item_runs_is_refused() -> None:
    def hasty(change: StateChange) -> NextAttempt | None:
        if change.transition.next_state is not WorkItemState.STARTED:
            return None
        return NextAttempt("job", Delay(timedelta(0), DelayReason.BACKOFF))

    state = task(on_work_item_state_changed=hasty)
    state.begin("job", now=NOON)

    with pytest.raises(TaskMisused, match="asked for another attempt while 'w0' is still started"):
        state.start("w0", now=NOON)


def test_a_hook_cannot_plan_a_start_before_the_end_of_the_predecessor() -> None:
    def hook(change: StateChange) -> NextAttempt | None:
        if change.transition.next_state is not WorkItemState.FAILED:
            return None
        return NextAttempt("job", Delay(timedelta(seconds=-5), DelayReason.BACKOFF))

    state = task(on_work_item_state_changed=hook)
    state.begin("job", now=NOON)

    with pytest.raises(TaskMisused, match="must not be negative"):
        failed(state, "w0", at=1)


def test_a_failure_that_may_not_be_retried_ends_the_lineage_without_asking_for_more() -> None:
    state = task()
    state.begin("job", now=NOON)
    state.start("w0", now=NOON)

    assert state.fail("w0", rate_limited(), now=NOON, may_retry=False) is Verdict.FAIL
    assert states(state) == ["failed"]


# The policy, in one lineage and in several


@pytest.mark.parametrize("policy", [until_exhausted, fail_fast])
def test_a_single_success_completes_the_task(policy: Callable[[Transition, Counts], Verdict]) -> None:
    state = task(policy=policy)
    state.begin("job", now=NOON)

    assert state.start("w0", now=NOON) is Verdict.CONTINUE
    assert state.complete("w0", "done", now=NOON) is Verdict.COMPLETE


def test_until_exhausted_waits_for_the_retries_and_completes_at_a_late_success() -> None:
    state = task()
    state.begin("job", now=NOON)
    failed(state, "w0")
    failed(state, "w1")
    assert state.verdict is Verdict.CONTINUE
    state.start("w2", now=NOON)

    assert state.complete("w2", "done", now=NOON) is Verdict.COMPLETE


@pytest.mark.parametrize("step", ["initialized", "started"])
def test_until_exhausted_fails_the_task_at_a_canceled_work_item(step: str) -> None:
    state = task()
    state.begin("job", now=NOON)
    for event in PATHS[step]:
        EVENTS[event](state, "w0", NOON)

    assert state.cancel("w0", now=NOON, reason="stop") is Verdict.FAIL


def test_until_exhausted_fails_at_once_where_the_failure_does_not_qualify() -> None:
    state = task()
    state.begin("job", now=NOON)
    failed(state, "w0", refused())

    assert state.verdict is Verdict.FAIL
    assert states(state) == ["failed"]


def test_until_exhausted_retries_a_refusal_where_any_failure_qualifies() -> None:
    state = task(recipe=RetryRecipe(retry_on=RetryOn.ANY))
    state.begin("job", now=NOON)
    failed(state, "w0", refused())

    assert states(state) == ["failed", "initialized"]


def test_fail_fast_fails_at_the_first_failure_and_cancels_the_planned_retry() -> None:
    state = task(policy=fail_fast)
    state.begin("job", now=NOON)
    failed(state, "w0")

    assert state.verdict is Verdict.FAIL
    assert states(state) == ["failed", "canceled"]


def test_the_task_completes_when_the_last_of_its_lineages_does() -> None:
    state = task()
    for name in ("a", "b"):
        state.begin(name, now=NOON, lineage=name)
        state.start(state.latest(name).id, now=NOON)

    assert state.complete("w0", 1, now=NOON) is Verdict.CONTINUE
    assert state.complete("w1", 2, now=NOON) is Verdict.COMPLETE


def test_until_exhausted_keeps_the_other_lineages_running_while_one_retries() -> None:
    state = task()
    for name in ("a", "b"):
        state.begin(name, now=NOON, lineage=name)
    failed(state, "w0")

    assert state.verdict is Verdict.CONTINUE
    assert [(item.lineage, item.attempt, item.state.value) for item in state.work_items()] == [
        ("a", 0, "failed"),
        ("b", 0, "initialized"),
        ("a", 1, "initialized"),
    ]


def test_the_failure_of_one_lineage_tears_the_others_down() -> None:
    state = task()
    for name in ("a", "b", "c", "d"):
        state.begin(name, now=NOON, lineage=name)
    state.start("w1", now=NOON)
    state.start("w3", now=NOON)
    state.complete("w3", "kept", now=NOON)
    failed(state, "w0", refused(), at=5)

    assert state.verdict is Verdict.FAIL
    assert states(state) == ["failed", "canceled", "canceled", "completed"]
    assert state.open_work_items() == []
    assert [item.ended_at for item in state.work_items()[1:3]] == [after(5), after(5)]


def test_a_policy_may_complete_at_the_first_answer_and_cancel_the_rest() -> None:
    def first_answer(transition: Transition, counts: Counts) -> Verdict:
        return Verdict.COMPLETE if counts.completed_lineages else Verdict.CONTINUE

    state = task(policy=first_answer)
    for name in ("a", "b"):
        state.begin(name, now=NOON, lineage=name)
        state.start(state.latest(name).id, now=NOON)

    assert state.complete("w1", "done", now=NOON) is Verdict.COMPLETE
    assert states(state) == ["canceled", "completed"]


def test_the_teardown_asks_neither_hook_nor_policy() -> None:
    calls: list[str] = []

    def hook(change: StateChange) -> None:
        calls.append(f"hook {change.work_item.id}")

    def policy(transition: Transition, counts: Counts) -> Verdict:
        calls.append(f"policy {transition.work_item_id}")
        return fail_fast(transition, counts)

    state = task(policy=policy, on_work_item_state_changed=hook)
    for name in ("a", "b"):
        state.begin(name, now=NOON, lineage=name)
    state.start("w0", now=NOON)
    calls.clear()

    state.fail("w0", rate_limited(), now=NOON)
    assert calls == ["hook w0", "policy w0"]
    assert states(state) == ["failed", "canceled"]


def test_closing_cancels_what_is_open_and_asks_nobody() -> None:
    calls: list[str] = []

    def hook(change: StateChange) -> None:
        calls.append("hook")

    def policy(transition: Transition, counts: Counts) -> Verdict:
        calls.append("policy")
        return Verdict.CONTINUE

    state = task(policy=policy, on_work_item_state_changed=hook)
    for name in ("a", "b", "c"):
        state.begin(name, now=NOON, lineage=name)
    state.start("w1", now=NOON)
    state.start("w2", now=NOON)
    state.complete("w2", 1, now=NOON)
    calls.clear()
    state.take_entries()

    state.close(now=after(2), reason="the task was canceled")

    assert states(state) == ["canceled", "canceled", "completed"]
    assert calls == []
    assert [(entry.transition.work_item_id, entry.transition.reason) for entry in state.take_entries()] == [
        ("w0", "the task was canceled"),
        ("w1", "the task was canceled"),
    ]


def test_closing_one_lineage_leaves_the_others_alone() -> None:
    state = task()
    for name in ("a", "b"):
        state.begin(name, now=NOON, lineage=name)

    state.close(now=NOON, reason="enough", lineage="a")

    assert states(state) == ["canceled", "initialized"]


def test_closing_twice_records_nothing_more() -> None:
    state = task()
    state.begin("job", now=NOON)
    state.close(now=NOON, reason="stop")
    state.take_entries()

    state.close(now=NOON, reason="stop")

    assert state.take_entries() == []


def test_a_lineage_that_begins_after_the_task_failed_does_not_stay_open() -> None:
    state = task()
    state.begin("a", now=NOON, lineage="a")
    failed(state, "w0", refused())
    with pytest.raises(TaskMisused):
        state.begin("b", now=NOON, lineage="b")

    assert state.open_work_items() == []


def test_a_failed_task_stays_failed() -> None:
    verdicts = iter([Verdict.CONTINUE, Verdict.FAIL, Verdict.COMPLETE])
    state = task(policy=lambda transition, counts: next(verdicts))
    state.begin("a", now=NOON, lineage="a")
    state.start("w0", now=NOON)

    assert state.verdict is Verdict.FAIL
    with pytest.raises(TaskMisused, match="the task has failed"):
        state.begin("b", now=NOON, lineage="b")
    assert state.verdict is Verdict.FAIL


def test_the_policy_counts_work_items_and_lineages() -> None:
    state = task(policy=never_decide)
    for name in ("a", "b", "c", "d", "e"):
        state.begin(name, now=NOON, lineage=name)
    failed(state, "w0")  # a: one failed, its retry initialized
    failed(state, "w1", refused())  # b: failed for good
    state.start("w2", now=NOON)  # c: running
    state.start("w3", now=NOON)
    state.complete("w3", 1, now=NOON)  # d: completed
    state.cancel("w4", now=NOON, reason="stop")  # e: canceled

    assert state.counts() == Counts(
        initialized=1,  # a's retry
        started=1,  # c
        completed=1,  # d
        failed=2,  # a's first try, b
        canceled=1,  # e
        open_lineages=2,  # a, c
        completed_lineages=1,  # d
        failed_lineages=1,  # b
        canceled_lineages=1,  # e
    )


def test_a_lineage_retries_by_its_own_recipe() -> None:
    seen: list[RetryRecipe] = []

    def hook(change: StateChange) -> NextAttempt | None:
        seen.append(change.recipe)
        return retry_by_recipe(change)

    own = RetryRecipe(max_retries=1, initial_interval=timedelta(seconds=30))
    state = task(on_work_item_state_changed=hook)
    first = state.begin("a", now=NOON, lineage="a", recipe=own)
    second = state.begin("b", now=NOON, lineage="b")
    failed(state, "w0")
    failed(state, "w1")

    assert (state.recipe_of(first), state.recipe_of(second)) == (own, RetryRecipe())
    assert [state.latest(name).delay_seconds for name in ("a", "b")] == [30, 1]
    assert seen.count(own) == seen.count(RetryRecipe()) == 4


# What is handed to the ledger


def test_entries_come_in_the_order_of_the_transitions_and_only_once() -> None:
    state = task()
    state.begin("job", now=NOON)
    state.start("w0", now=after(1))
    state.fail("w0", rate_limited(), now=after(2), actor="anna", reason="looks wrong")

    waiting = state.has_entries
    told = [
        (
            entry.transition.work_item_id,
            entry.transition.sequence,
            entry.transition.previous_state,
            entry.transition.next_state,
            entry.transition.at,
            entry.transition.actor,
            entry.transition.reason,
        )
        for entry in state.take_entries()
    ]
    assert told == [
        ("w0", 0, None, "initialized", NOON, "task", None),
        ("w0", 1, "initialized", "started", after(1), "task", None),
        ("w0", 2, "started", "failed", after(2), "anna", "looks wrong"),
        ("w1", 0, None, "initialized", after(2), "task", "after rate_limited"),
    ]
    assert (waiting, state.has_entries) == (True, False)
    assert state.take_entries() == []


def test_a_failure_and_its_retry_are_taken_together() -> None:
    state = task()
    state.begin("job", now=NOON)
    state.start("w0", now=NOON)
    state.take_entries()

    state.fail("w0", rate_limited(), now=NOON)

    assert [(entry.work_item.id, entry.work_item.state.value) for entry in state.take_entries()] == [
        ("w0", "failed"),
        ("w1", "initialized"),
    ]


def test_only_the_first_entry_of_a_work_item_carries_its_payload() -> None:
    state = task()
    state.begin("job", now=NOON)
    state.start("w0", now=NOON)
    state.complete("w0", "done", now=NOON)

    assert [(entry.work_item.payload, entry.work_item.result) for entry in state.take_entries()] == [
        ("job", None),
        (None, None),
        (None, "done"),
    ]
    assert state.work_item("w0").payload == "job"


def test_each_entry_carries_the_domain_record_of_that_moment() -> None:
    def record_of(item: WorkItem, recipe: RetryRecipe) -> DomainRecord:
        values: dict[str, JsonValue] = {
            "payload": item.payload,
            "state": item.state.value,
            "most": recipe.max_retries,
        }
        return DomainRecord(table="jobs", values=values)

    state = task(record_of=record_of)
    state.begin("job", now=NOON)
    state.start("w0", now=NOON)

    assert [entry.record for entry in state.take_entries()] == [
        DomainRecord(table="jobs", values={"payload": "job", "state": "initialized", "most": 3}),
        DomainRecord(table="jobs", values={"payload": "job", "state": "started", "most": 3}),
    ]


async def test_the_ledger_takes_all_entries_twice() -> None:
    state = task(
        record_of=lambda item, recipe: DomainRecord(table="jobs", values={"state": item.state.value})
    )
    state.begin("job", now=NOON)
    failed(state, "w0")
    first = state.take_entries()
    state.start("w1", now=after(1))
    state.complete("w1", "done", now=after(2))
    second = state.take_entries()

    ledger = InMemoryLedger()
    for entries in (first, first, second, first, second):
        await ledger.record(entries)

    assert [transition.next_state for transition in await ledger.transitions("w1")] == [
        "initialized",
        "started",
        "completed",
    ]
    assert await ledger.domain_records("jobs", ["w0", "w1"]) == {
        "w0": {"state": "failed"},
        "w1": {"state": "completed"},
    }
