"""Each violation is planted in a good account, and found: a checker that finds nothing proves nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from tasquencer.ai.fan_out import AiFanOutRequest
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.temporal.reconciling import Reconciliation
from tests.chaos.accounts import Account, BatchAccount
from tests.chaos.checks import batch_violations, each_end_has_its_cause, violations
from tests.chaos.events import BUSY, Event, Events
from tests.chaos.good_account import (
    at,
    change_item,
    change_story,
    good_account,
    operated,
    terminated,
    timed_out,
)
from tests.chaos.histories import History, Trouble
from tests.chaos.plan import Options
from tests.chaos.report import missed_aims, recoveries, smallest_story
from tests.chaos.run import Outcome
from tests.stories.story import Call, Given, Reply


def _history(account: Account, **changes: object) -> Account:
    return replace(account, history=replace(account.history, **changes))  # type: ignore[arg-type]


def _call(account: Account, number: int, **changes: object) -> Account:
    calls = list(account.story.calls)
    calls[number] = replace(calls[number], **changes)  # type: ignore[arg-type]
    return change_story(account, calls=calls)


def _failure(account: Account, kind: FailureKind) -> Account:
    failure = Failure.of(kind, "said so")
    job = {**account.story.jobs["first"], "last_error": str(failure)}
    account = change_story(account, jobs={**account.story.jobs, "first": job}, sightings=[])
    return change_item(account, "first", failure=failure)


def _not_ended(account: Account) -> Account:
    return replace(_history(account, state="open", closed_at=None), outcome=None)


def _left_open(account: Account) -> Account:
    account = change_item(account, "second", state=WorkItemState.STARTED, ended_at=None, result=None)
    steps = {**account.story.transitions, "second": account.story.transitions["second"][:-1]}
    return change_story(account, transitions=steps)


def _settled_late(account: Account) -> Account:
    steps = list(account.story.transitions["second"])
    steps[-1] = steps[-1].model_copy(update={"actor": "reconciler"})
    return change_story(account, transitions={**account.story.transitions, "second": steps})


def _crowded(account: Account) -> Account:
    request = AiFanOutRequest(prompts=["task 0"], concurrency=1, max_retries=2)
    account = change_story(account, request=request)
    return _history(account, scheduled=[("first", at(0.1)), ("second", at(4))])


def _second_request(account: Account) -> Account:
    return change_story(account, calls=[*account.story.calls, account.story.calls[-1]])


def _stranger(account: Account) -> Account:
    call = Call("nobody", at(2), at(2.1), Given("ok", None, "x"), True, False, [])
    return change_story(account, calls=[*account.story.calls, call])


def _early(account: Account) -> Account:
    steps = list(account.story.transitions["second"])
    steps[1] = steps[1].model_copy(update={"at": at(5.5)})
    account = change_item(account, "second", started_at=at(5.5))
    return change_story(account, transitions={**account.story.transitions, "second": steps})


def _one_too_many(account: Account) -> Account:
    return change_story(account, request=account.story.request.model_copy(update={"max_retries": 0}))


def _changed(account: Account) -> Account:
    before: WorkItem = account.story.items[0].model_copy(update={"worker": "somebody else"})
    return change_story(account, sightings=[before])


def _vanished(account: Account) -> Account:
    gone = account.story.items[0].model_copy(update={"id": "gone"})
    return change_story(account, sightings=[gone])


def _without_events(account: Account) -> Account:
    return replace(account, events=[])


def _other_kill(account: Account) -> Account:
    return replace(account, events=[Event("kill worker", at(60), at(61))])


def _unasked_cancel(account: Account) -> Account:
    return replace(_history(account, state="canceled"), outcome=("canceled", account.history.result, "", ""))


_DEADLOCK = Trouble(at(1), at(4), "[TMPRL1101] Potential deadlock detected")


def _deadlock(account: Account, stopped: tuple[float, float] | tuple[()]) -> Account:
    account = _history(account, troubles=[_DEADLOCK])
    if not stopped:
        return account
    begin, end = stopped
    return replace(account, events=[*account.events, Event("pause at", at(begin), at(end), pid=77)])


def _wrong_answer(account: Account) -> Account:
    return _call(account, 1, given=Given("ok", None, "43"))


PLANTED: dict[str, tuple[Callable[[Account], Account], str]] = {
    "lost": (_not_ended, "lost: the task has not ended"),
    "terminated": (lambda a: _history(a, state="terminated"), "lost: the task was terminated"),
    "told otherwise": (
        lambda a: replace(a, outcome=("completed", {"text": "44"}, "", "")),
        "the client got",
    ),
    "open": (_left_open, "I6: the task is closed, retry 1 (second) is started"),
    "settled late": (_settled_late, "I6: the task left retry 1 (second) open"),
    "crowded": (_crowded, "2 calls at once when second was made, 1 are allowed"),
    "not started": (lambda a: _call(a, 0, held=["initialized"]), "I1: first try was initialized when"),
    "not recorded": (lambda a: _call(a, 0, held=[]), "I1: first try was unknown when"),
    "before its start": (lambda a: _call(a, 1, at=at(6)), "I1: the request of retry 1 arrived before"),
    "no work item": (_stranger, "I1: request nobody belongs to no work item"),
    "no call in the history": (
        lambda a: _history(a, scheduled=a.history.scheduled[:1]),
        "I1: the history knows nothing of the request of retry 1",
    ),
    "a call unknown to the ledger": (
        lambda a: _history(a, scheduled=[*a.history.scheduled, ("x", at(3))]),
        "I1: the history has a call of x",
    ),
    "two requests": (_second_request, "I2: 2 requests with the key second"),
    "two calls": (
        lambda a: _history(a, scheduled=[*a.history.scheduled, a.history.scheduled[-1]]),
        "I2: the history has 2 calls of second",
    ),
    "retried by Temporal": (lambda a: _history(a, tries=2), "I2: Temporal made a call 2 times"),
    "changed": (_changed, "I3: first try was failed and has changed since"),
    "vanished": (_vanished, "I3: first try has disappeared from the ledger"),
    "early": (_early, "I4: retry 1 started"),
    "another delay": (lambda a: change_item(a, "second", delay_seconds=0.5), "I4: retry 1"),
    "too many": (_one_too_many, "I5: main has 2 work items"),
    "unasked cancel": (_unasked_cancel, "I7: the task ended canceled, nobody canceled it"),
    "disobeyed cancel": (
        lambda a: _history(a, cancel_at=at(2)),
        "I7: the task was canceled, yet it completed",
    ),
    "failed workflow task": (
        lambda a: _history(a, troubles=[Trouble(at(1), at(1.1), "NON_DETERMINISTIC_ERROR")]),
        "I8: a workflow task failed: NON_DETERMINISTIC_ERROR",
    ),
    "deadlock": (lambda a: _deadlock(a, stopped=()), "I8: a workflow task failed: [TMPRL1101]"),
    "deadlock in a short pause": (
        lambda a: _deadlock(a, stopped=(2.5, 3.5)),
        "I8: a workflow task failed: [TMPRL1101]",
    ),
    "deadlock after a pause": (
        lambda a: _deadlock(a, stopped=(-9, -2)),
        "I8: a workflow task failed: [TMPRL1101]",
    ),
    "no replay": (lambda a: replace(a, query_error="nondeterminism"), "I10: the closed task does not answer"),
    "unknown to the task": (
        lambda a: replace(change_story(a, listed=a.story.listed[:1]), listed=a.story.listed[:1]),
        "the task does not know retry 1",
    ),
    "unknown to the ledger": (
        lambda a: change_story(a, items=a.story.items[:1]),
        "the task knows second, the ledger does not",
    ),
    "wrong answer": (_wrong_answer, "retry 1 completed with '42'"),
    "no answer": (lambda a: change_story(a, calls=a.story.calls[:1]), "retry 1 completed with '42'"),
    "nobody killed": (_without_events, "no worker was killed, stopped or cut off"),
    "killed at another time": (_other_kill, "no worker was killed, stopped or cut off"),
    "nobody stopped": (lambda a: _failure(a, FailureKind.WORKER_SHUTDOWN), "no worker was stopped"),
    "timed out early": (lambda a: _failure(a, FailureKind.TIMED_OUT), "timed_out before its time"),
    "another failure": (lambda a: _failure(a, FailureKind.RATE_LIMITED), "failed with rate_limited, the"),
    "unexpected": (lambda a: _failure(a, FailureKind.UNEXPECTED), "failed with unexpected, the"),
    "unreachable for no reason": (
        lambda a: _without_events(_failure(a, FailureKind.UNREACHABLE)),
        "failed with unreachable, the",
    ),
}


@pytest.mark.parametrize("account", [good_account, operated, terminated, timed_out])
def test_a_good_account_has_no_violations(account: Callable[[], Account]) -> None:
    assert violations(account()) == []


@pytest.mark.parametrize("name", PLANTED)
def test_a_planted_violation_is_found(name: str) -> None:
    plant, complaint = PLANTED[name]
    found = violations(plant(good_account()))
    assert any(complaint in one for one in found), found


@pytest.mark.parametrize(("scheduled", "found"), [(0.1, 1), (4, 0)], ids=["at once", "late"])
def test_a_call_that_begins_late_may_run_out_of_the_time_until_the_deadline(
    scheduled: float, found: int
) -> None:
    account = _call(good_account(), 0, given=Given("late", None, "42"))
    account = _without_events(_failure(account, FailureKind.TIMED_OUT))
    limits = {"attempt_timeout_seconds": 3, "deadline_seconds": 5}
    account = change_story(account, request=account.story.request.model_copy(update=limits))
    account = _history(account, scheduled=[("first", at(scheduled)), ("second", at(6.2))])
    assert len(list(each_end_has_its_cause(account))) == found


def _settled_as(account: Account, **changes: object) -> Account:
    *steps, last = account.story.transitions["second"]
    steps.append(last.model_copy(update=changes))
    return change_story(account, transitions={**account.story.transitions, "second": steps})


def _settled_early(account: Account) -> Account:
    account = change_item(account, "second", ended_at=at(7))
    return _settled_as(account, at=at(7))


def _acted(account: Account, reply: Reply) -> Account:
    act = replace(operated().story.acts[0], name="cancel_work_item", reply=reply)
    return _settled_as(change_story(account, acts=[act]), actor="anna", reason=act.reason, at=at(7))


PLANTED_IN_WHAT_WAS_CUT_OFF: dict[str, tuple[Callable[[], Account], Callable[[Account], Account], str]] = {
    "terminated by nobody": (
        terminated,
        lambda a: replace(a, terminated_because=None),
        "lost: the task was terminated, nobody asked for that",
    ),
    "no timeout": (
        timed_out,
        lambda a: change_story(a, run_timeout_seconds=None),
        "lost: the task was timed out, nobody asked for that",
    ),
    "before its time": (
        timed_out,
        lambda a: _history(a, closed_at=at(11)),
        "lost: the task was timed out before its time",
    ),
    "for no reason": (
        timed_out,
        _without_events,
        "lost: the task was timed out, though nothing kept it from ending before",
    ),
    "told otherwise": (
        terminated,
        lambda a: replace(a, outcome=("canceled", {}, "", "")),
        "the client got canceled",
    ),
    "left open by a terminate": (
        terminated,
        _left_open,
        "I6: the task is closed, retry 1 (second) is started",
    ),
    "left open by a timeout": (timed_out, _left_open, "I6: the task is closed, retry 1 (second) is started"),
    "settled without the reason": (
        terminated,
        lambda a: _settled_as(a, reason="the task was terminated"),
        "I6: retry 1 (second) was settled because of 'the task was terminated', expected",
    ),
    "settled for another reason": (
        timed_out,
        lambda a: _settled_as(a, reason="the task was terminated: because bert says so"),
        "because bert says so', expected \"the task ran into Temporal's timeout\"",
    ),
    "settled under way": (terminated, _settled_early, "I6: retry 1 (second) was settled before its task was"),
    "no replay": (
        terminated,
        lambda a: replace(a, query_error="nondeterminism"),
        "I10: the closed task does not answer",
    ),
    "a call unknown to the ledger": (
        terminated,
        lambda a: _history(a, scheduled=[*a.history.scheduled, ("x", at(3))]),
        "I1: the history has a call of x",
    ),
    "a stranger acted": (
        terminated,
        lambda a: change_story(_acted(a, Reply.ACCEPTED), acts=[]),
        "anna acted, but never asked to",
    ),
}


@pytest.mark.parametrize("name", PLANTED_IN_WHAT_WAS_CUT_OFF)
def test_a_planted_violation_is_found_in_a_task_that_was_cut_off(name: str) -> None:
    good, plant, complaint = PLANTED_IN_WHAT_WAS_CUT_OFF[name]
    found = violations(plant(good()))
    assert any(complaint in one for one in found), found


def test_an_action_that_was_taken_and_not_answered_before_a_terminate_may_have_acted() -> None:
    account = _acted(terminated(), Reply.LOST)
    account = change_item(account, "second", ended_at=at(7))
    assert violations(account) == []


def test_a_task_that_was_cut_off_in_its_first_workflow_task_answers_no_query() -> None:
    says = "RPCError: Workflow execution closed before WorkflowTaskStarted event"
    assert violations(replace(terminated(), listed=None, query_error=says)) == []
    assert violations(replace(good_account(), listed=None, query_error=says)) != []


@pytest.mark.parametrize("cut_off", [terminated, timed_out])
def test_a_task_that_was_cut_off_before_its_first_record_has_nothing(cut_off: Callable[[], Account]) -> None:
    account = change_story(cut_off(), items=[], transitions={}, calls=[], listed=[])
    account = replace(account, listed=[])
    assert violations(account) == []
    assert violations(change_story(account, calls=cut_off().story.calls)) != []


@pytest.mark.parametrize(
    ("changes", "complaint"),
    [
        ({"reply": Reply.REFUSED}, "was not accepted, yet it acted"),
        ({"actor": "bert"}, "anna acted, but never asked to"),
        ({"name": "fail_work_item"}, "led to completed"),
        ({"answered_at": at(6.6)}, "not between question and answer"),
    ],
)
def test_an_action_that_counts_otherwise_than_told_is_found(
    changes: dict[str, object], complaint: str
) -> None:
    account = operated()
    act = replace(account.story.acts[0], **changes)  # type: ignore[arg-type]
    found = violations(change_story(account, acts=[act]))
    assert any(complaint in one for one in found), found


def test_an_action_whose_answer_was_lost_is_given_the_benefit_of_the_doubt() -> None:
    account = operated()
    act = replace(account.story.acts[0], reply=Reply.GONE)
    account = replace(change_story(account, acts=[act]), uncertain=frozenset({"anna"}))
    assert violations(account) == []


@pytest.mark.parametrize(
    "event",
    [
        Event("pause worker", at(1), at(6), worker="worker 0"),
        Event("pause at", at(1), at(6), worker="worker 0", note="request"),
        Event("kill temporal", at(0.5), at(4.5)),
        Event("refuse", at(1), at(6), worker="worker 0", peer="temporal"),
    ],
)
def test_whatever_silences_a_worker_explains_its_loss(event: Event) -> None:
    assert violations(replace(good_account(), events=[event])) == []


def test_a_long_stop_of_a_worker_explains_a_deadlock() -> None:
    assert violations(_deadlock(good_account(), stopped=(1.5, 3.9))) == []


def _late(account: Account) -> Account:
    """The first call ran into its limit, though its answer was on the way, and nothing happened meanwhile."""
    account = _call(_failure(account, FailureKind.TIMED_OUT), 0, given=Given("late", None, "42"))
    request = account.story.request.model_copy(update={"attempt_timeout_seconds": 3})
    listed = [{**account.story.listed[0], "failure_kind": FailureKind.TIMED_OUT}, account.story.listed[1]]
    account = change_story(account, request=request, listed=listed)
    return _without_events(replace(account, listed=listed))


@pytest.mark.parametrize(
    ("plant", "complaint"),
    [
        (_without_events, "no worker was killed, stopped or cut off"),
        (_late, "and nothing was disturbed"),
        (lambda a: _deadlock(a, stopped=()), "I8: a workflow task failed: [TMPRL1101]"),
    ],
    ids=["lost worker", "late answer", "deadlock"],
)
def test_a_busy_machine_explains_what_it_made_late_and_nothing_else(
    plant: Callable[[Account], Account], complaint: str
) -> None:
    account = plant(good_account())
    later, meanwhile = Event(BUSY, at(30), at(30.7)), Event(BUSY, at(2), at(2.7))
    for events in (account.events, [*account.events, later]):
        (found,) = violations(replace(account, events=events))
        assert complaint in found
    assert violations(replace(account, events=[*account.events, meanwhile])) == []


def test_a_busy_machine_explains_no_other_failed_workflow_task() -> None:
    account = _history(good_account(), troubles=[Trouble(at(1), at(1.1), "NON_DETERMINISTIC_ERROR")])
    assert violations(replace(account, events=[*account.events, Event(BUSY, at(1), at(1.7))])) != []


def test_a_recovery_on_a_busy_machine_is_not_measured_against_the_aim() -> None:
    account = _killed_at(-4.6)
    account = replace(account, events=[*account.events, Event(BUSY, at(1), at(1.7))])
    assert missed_aims(_outcome(account)) == []


def test_a_cut_to_the_provider_explains_no_lost_worker() -> None:
    event = Event("cut", at(1), at(1), worker="worker 0", peer="provider")
    assert violations(replace(good_account(), events=[event])) != []


_TASKS = {"row 0": "completed", "row 1": "failed", "row 2": "terminated", "row 3": "canceled"}
_RECORDED = {"row 0": "completed", "row 1": "failed", "row 2": "failed", "row 3": "canceled"}
_RESULT = {"rows": 4, "completed": 1, "failed": 2, "canceled": 1}


def test_a_good_batch_has_no_violations() -> None:
    history = History(troubles=[_DEADLOCK])
    pause = Event("pause at", at(1.5), at(3.9))
    assert batch_violations(BatchAccount(_RESULT, _RECORDED, _TASKS, history), [pause]) == []


@pytest.mark.parametrize(
    ("batch", "complaint"),
    [
        (BatchAccount(None, _RECORDED, _TASKS), "lost: the batch has not completed"),
        (BatchAccount(_RESULT, _RECORDED | {"row 0": "failed"}, _TASKS), "row 0 is failed in the batch"),
        (BatchAccount(_RESULT, _RECORDED, _TASKS | {"row 0": "missing"}), "row 0 is completed in the batch"),
        (BatchAccount(_RESULT | {"completed": 2}, _RECORDED, _TASKS), "the client got"),
        (BatchAccount(_RESULT | {"rows": 5}, _RECORDED, _TASKS), "the client got"),
        (
            BatchAccount(_RESULT, _RECORDED, _TASKS, History(troubles=[_DEADLOCK])),
            "I8: a workflow task failed: [TMPRL1101]",
        ),
        (
            BatchAccount(_RESULT, _RECORDED, _TASKS, query_error="nondeterminism"),
            "I10: the batch does not answer",
        ),
    ],
)
def test_a_planted_violation_of_a_batch_is_found(batch: BatchAccount, complaint: str) -> None:
    found = batch_violations(batch, [])
    assert any(complaint in one for one in found), found


def test_the_smallest_story_tells_of_all_accounts_in_the_order_of_time() -> None:
    account = _without_events(good_account())
    account = replace(account, events=[Event("cut", at(1), at(1), peer="provider")])
    told = smallest_story([(account, violations(account))])
    times = [float(line.split()[0]) for line in told.splitlines() if line.strip()[:1].isdigit()]
    assert times == sorted(times)
    for part in ("! first try", "~~ cut to provider", "history: call of first", "request of first try", "42"):
        assert part in told


@pytest.mark.parametrize(
    ("call_ended_at", "name"),
    [(at(1), "recovery of calls after SIGKILL"), (at(0.9), "  of decisions")],
    ids=["in its call", "after its call"],
)
def test_a_recovery_is_that_of_a_call_if_the_kill_ended_one(call_ended_at: datetime, name: str) -> None:
    outcome = _outcome(_call(good_account(), 0, ended_at=call_ended_at, complete=True))
    assert {key: found for key, found in recoveries(outcome).items() if found} == {name: [4.0]}


def test_a_recovery_is_that_of_a_decision_if_the_kill_ended_one_besides_the_call() -> None:
    account = _killed_at(1)
    assert recoveries(_outcome(account))["  nothing else disturbed"] == [4.0]
    account = _history(account, lost_at={at(0.8)})
    assert {key: found for key, found in recoveries(_outcome(account)).items() if found} == {
        "  of decisions": [4.0]
    }


def _outcome(account: Account, *events: Event, **facts: Any) -> Outcome:
    noted = Events()
    for event in (*account.events, *events):
        noted.begin(event.kind, worker=event.worker, pid=event.pid, quiet=event.quiet).at = event.at
    outcome = Outcome(
        options=Options(),
        accounts=[account],
        events=noted,
        rss={},
        cached=[],
        seconds=0,
        sightings=0,
        unlooked=0,
        reconciled=Reconciliation(),
        batch=None,
    )
    return replace(outcome, **facts)


def _killed_at(seconds: float) -> Account:
    """A task whose call was ended at 5 s, by a kill after which nothing else was done."""
    kill = Event("kill worker", at(seconds), worker="worker 0", pid=77, quiet=True)
    account = change_item(good_account(), "first", started_at=at(seconds - 0.5), ended_at=at(5))
    account = _history(account, scheduled=[("first", at(seconds - 0.4))])
    return replace(account, events=[kill])


def _samples(*megabytes: float) -> list[tuple[datetime, int, float]]:
    return [(at(number), 7, size) for number, size in enumerate(size for size in megabytes for _ in range(5))]


def test_a_run_within_its_aims_misses_none() -> None:
    batch = BatchAccount(_RESULT, _RECORDED, _TASKS)
    steady = {"witness": _samples(80, 100, 104, 102, 108)}
    assert missed_aims(_outcome(_killed_at(1), batch=batch, rss=steady)) == []


@pytest.mark.parametrize(
    ("outcome", "complaint"),
    [
        (
            _outcome(good_account(), Event("worker does not end", at(9), worker="worker 0")),
            "worker does not end worker 0",
        ),
        (
            _outcome(good_account(), Event("worker ended by itself", at(9), worker="worker 0")),
            "worker ended by itself worker 0",
        ),
        (
            _outcome(good_account(), batch=BatchAccount(None, _RECORDED, _TASKS)),
            "lost: the batch has not completed",
        ),
        (
            _outcome(good_account(), reconciled=Reconciliation(undecided=3)),
            "the reconciler could not decide about 3 work items",
        ),
        (_outcome(_killed_at(-4.6)), "a call went on 9.6 s after a SIGKILL, at most 9.5 s are allowed"),
        (
            _outcome(good_account(), *[Event("kill worker", at(30), pid=78, quiet=True)] * 5),
            "no call was under way at any of 5 kills",
        ),
        (
            _outcome(good_account(), rss={"witness": _samples(80, 100, 100, 100, 112)}),
            "the memory of witness went to 112% of what it was early in the run",
        ),
    ],
)
def test_a_missed_aim_is_told(outcome: Outcome, complaint: str) -> None:
    missed = missed_aims(outcome)
    assert len(missed) == 1
    assert complaint in missed[0]


def test_an_event_that_is_not_over_lasts() -> None:
    event = Event("kill temporal", at(1))
    assert event.overlaps(at(100), at(101))
    assert not event.overlaps(at(0), at(1) - timedelta(seconds=0.1))
    assert isinstance(event.at, datetime)
