"""Every check of `tests.chaos.shapes` fires: in a sound account one thing at a time is made wrong."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.work_item import DelayReason, Transition, WorkItem, WorkItemState
from tests.chaos.shapes.checks import CHECKS, violations
from tests.chaos.shapes.program import Attempt, Program
from tests.chaos.shapes.witnesses import Request, Run, ShapeAccount

BEGIN = datetime(2026, 11, 1, 12, tzinfo=UTC)
KINDS = WorkItemState

Plant = Callable[[ShapeAccount], None]
PLANTED: list[tuple[str, Plant]] = []


def planted(wanted: str) -> Callable[[Plant], Plant]:
    """Something wrong, and the beginning of what a check says of it."""

    def keep(plant: Plant) -> Plant:
        PLANTED.append((wanted, plant))
        return plant

    return keep


def at(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


def step(item: str, number: int, state: WorkItemState, when: datetime, actor: str = "task") -> Transition:
    before = None if number == 0 else (KINDS.INITIALIZED, KINDS.STARTED)[number - 1]
    return Transition(
        work_item_id=item, sequence=number, previous_state=before, next_state=state, at=when, actor=actor
    )


def item(key: str, lineage: str, attempt: int, begin: float, **facts: Any) -> WorkItem:
    known: dict[str, Any] = {
        "id": key,
        "task_id": "task",
        "run_id": "run",
        "task_type": "AnyShape",
        "lineage": lineage,
        "attempt": attempt,
        "state": KINDS.COMPLETED,
        "result": {"by": key},
        "not_before": at(begin + 0.1),
        "created_at": at(begin),
        "started_at": at(begin + 0.1),
        "ended_at": at(begin + 0.5),
    }
    return WorkItem.model_validate({**known, **facts})


def sound() -> ShapeAccount:
    """A task whose one lineage fails, is tried again and completes."""
    failure = Failure.of(FailureKind.PROVIDER_ERROR, "as planned")
    first = item("a", "line-0", 0, 0, state=KINDS.FAILED, result=None, failure=failure)
    retry = {"delay_seconds": 0.1, "delay_reason": DelayReason.BACKOFF}
    second = item("b", "line-0", 1, 0.5, **retry)
    steps = {
        "a": [step("a", 0, KINDS.INITIALIZED, at(0)), step("a", 1, KINDS.STARTED, at(0.1))],
        "b": [step("b", 0, KINDS.INITIALIZED, at(0.5)), step("b", 1, KINDS.STARTED, at(0.6))],
    }
    steps["a"].append(step("a", 2, KINDS.FAILED, at(0.5)))
    steps["b"].append(step("b", 2, KINDS.COMPLETED, at(1.0)))
    return ShapeAccount(
        program=Program(
            seed=1,
            name="shape-1",
            body=[["lineage", "line-0", [], "loop"]],
            attempts={"line-0": [Attempt("fail", 5), Attempt("ok", 5)]},
        ),
        task_id="task",
        runs=[
            Run(
                "run",
                state="completed",
                closed_at=at(1.1),
                scheduled=[("a", at(0.2)), ("b", at(0.7))],
                tries=1,
            )
        ],
        items=[first, second],
        transitions=steps,
        requests=[
            Request("a", "task", "line-0", 0, at(0.3), 1, ["initialized", "started"], "fail"),
            Request("b", "task", "line-0", 1, at(0.8), 1, ["initialized", "started"], "ok"),
        ],
        sightings=[first, second],
        listed=[
            {"id": "a", "state": "failed", "attempt": 0, "lineage": "line-0"},
            {"id": "b", "state": "completed", "attempt": 1, "lineage": "line-0"},
        ],
    )


def change(account: ShapeAccount, number: int, **facts: Any) -> None:
    items = list(account.items)
    items[number] = items[number].model_copy(update=facts)
    account.items = items


def test_nothing_is_wrong_in_a_sound_account() -> None:
    assert violations(sound()) == []


@planted("I13: the task stands still")
def the_task_stands_still(account: ShapeAccount) -> None:
    account.last.state = "open"


@planted("I13: the task was terminated")
def the_task_is_terminated(account: ShapeAccount) -> None:
    account.last.state = "terminated"


@planted("I8: a workflow task failed")
def a_workflow_task_fails(account: ShapeAccount) -> None:
    account.last.troubles.append("IllegalTransition")


@planted("I10: run run does not replay")
def a_history_does_not_replay(account: ShapeAccount) -> None:
    account.last.replay_error = "TMPRL1100"


@planted("I13: a worker could not remove run run from its cache")
def a_run_stays_in_a_cache(account: ShapeAccount) -> None:
    account.kept = {"run"}


@planted("I1: the request of line-0#1 (c) belongs to no work item")
def a_request_nobody_knows(account: ShapeAccount) -> None:
    account.requests = [account.requests[0], replace(account.requests[1], key="c")]


@planted("I1: the request of line-1#0 (b) left under the id of line-0#1")
def an_id_of_another(account: ShapeAccount) -> None:
    account.requests = [account.requests[0], replace(account.requests[1], lineage="line-1", attempt=0)]


@planted("I1: the request of line-0#1 (b) found its work item initialized")
def a_request_before_the_record(account: ShapeAccount) -> None:
    account.requests = [account.requests[0], replace(account.requests[1], held=["initialized"])]


@planted("I1: the request of line-0#1 (b) arrived before its start")
def a_request_before_the_start(account: ShapeAccount) -> None:
    account.requests = [account.requests[0], replace(account.requests[1], at=at(0.55))]


@planted("I2: 2 requests with the key b")
def a_second_request(account: ShapeAccount) -> None:
    account.requests = [*account.requests, account.requests[1]]


@planted("I2: Temporal tried a call again")
def a_second_try(account: ShapeAccount) -> None:
    account.requests = [account.requests[0], replace(account.requests[1], tries=2)]


@planted("I2: a history has 2 calls of b")
def a_second_call(account: ShapeAccount) -> None:
    account.last.scheduled.append(("b", at(0.9)))


@planted("I1: a history has a call of d, the ledger does not know it")
def an_unknown_call(account: ShapeAccount) -> None:
    account.last.scheduled.append(("d", at(0.9)))


@planted("I1: a history has a call of line-0#1 (b), the ledger says it never started")
def a_call_without_a_start(account: ShapeAccount) -> None:
    change(account, 1, started_at=None)


@planted("I3: line-0#0 (a) changed after its end: failure")
def an_outcome_changes(account: ShapeAccount) -> None:
    change(account, 0, failure=Failure.of(FailureKind.TIMED_OUT, "no, this"))


@planted("I3: line-0#1 (b) was superseded, no workflow task was lost")
def a_decision_is_replaced_for_no_reason(account: ShapeAccount) -> None:
    account.superseded = [account.items[1]]


def test_a_decision_of_a_lost_workflow_task_may_be_replaced() -> None:
    account = sound()
    account.runs[0].lost = 1
    seen = account.items[0].model_copy(update={"failure": Failure.of(FailureKind.TIMED_OUT, "lost")})
    account.sightings, account.superseded = [seen], [seen]
    assert violations(account) == []


@planted("I3: line-0#0 (a) is gone")
def a_row_is_gone(account: ShapeAccount) -> None:
    account.items = account.items[1:]


@planted("I3: line-0#1 (b) went from started to started")
def an_illegal_path(account: ShapeAccount) -> None:
    last = step("b", 2, KINDS.STARTED, at(1.0))
    account.transitions = {**account.transitions, "b": [*account.transitions["b"][:2], last]}


@planted("I3: line-0#1 (b) is failed, its last transition says completed")
def a_row_beside_its_transitions(account: ShapeAccount) -> None:
    change(account, 1, state=KINDS.FAILED)


@planted("I3: transition 1 of line-0#1 (b) does not follow")
def a_transition_is_missing(account: ShapeAccount) -> None:
    steps = account.transitions["b"]
    account.transitions = {**account.transitions, "b": [steps[0], steps[2]]}


@planted("I4: line-0#1 (b) started 0.065 s early")
def it_starts_before_its_time(account: ShapeAccount) -> None:
    change(account, 1, not_before=at(0.67), started_at=at(0.605))


@planted("I4: line-0#1 (b) started 0.395 s early")
def its_delay_is_too_short(account: ShapeAccount) -> None:
    change(account, 1, delay_seconds=0.5)


@planted("I5: line-0 has attempt 3, 2 retries are allowed")
def a_try_too_many(account: ShapeAccount) -> None:
    change(account, 1, attempt=3)


@planted("I5: line-0 has an attempt twice: [0, 0]")
def an_attempt_twice(account: ShapeAccount) -> None:
    change(account, 1, attempt=0)


@planted("I5: line-0 has the attempts [0, 2]")
def an_attempt_is_missing(account: ShapeAccount) -> None:
    change(account, 1, attempt=2)


@planted("I6: the task is completed, line-0#1 (b) is started")
def a_work_item_stays_open(account: ShapeAccount) -> None:
    change(account, 1, state=KINDS.STARTED)


@planted("I6: the request b left after the task had completed")
def a_request_after_the_end(account: ShapeAccount) -> None:
    account.last.closed_at = at(0.75)


@planted("I7: the task completed, its policy ('fail_fast', None) says that it fails")
def it_completes_against_its_policy(account: ShapeAccount) -> None:
    account.program = replace(account.program, policy=("fail_fast", None))


@planted("I7: the task failed with RetriesExhausted, its policy ('until_exhausted', None) does not")
def it_fails_against_its_policy(account: ShapeAccount) -> None:
    account.last.state, account.last.error_type = "failed", "RetriesExhausted"


@planted("I7: the task ended canceled, nobody canceled it")
def it_is_canceled_by_nobody(account: ShapeAccount) -> None:
    account.last.state = "canceled"


@planted("I8: line-0#1 (b) completed, its request says fail")
def it_completes_without_an_answer(account: ShapeAccount) -> None:
    account.requests = [account.requests[0], replace(account.requests[1], came="fail")]


@planted("I8: line-0#1 (b) holds the answer of a")
def it_holds_the_answer_of_another(account: ShapeAccount) -> None:
    change(account, 1, result={"by": "a"})


@planted("I8: line-0#0 (a) failed with worker_lost, no worker died")
def a_worker_is_lost_for_nothing(account: ShapeAccount) -> None:
    change(account, 0, failure=Failure.of(FailureKind.WORKER_LOST, "silence"))


@planted("I8: line-0#0 (a) failed with unexpected")
def a_bug_burns_an_attempt(account: ShapeAccount) -> None:
    change(account, 0, failure=Failure.of(FailureKind.UNEXPECTED, "a bug"))


@planted("line-0#1 (b): state is completed in the ledger, started in the task")
def the_task_tells_otherwise(account: ShapeAccount) -> None:
    assert account.listed is not None
    account.listed = [account.listed[0], {**account.listed[1], "state": "started"}]


@planted("the task does not know line-0#1 (b) of the ledger")
def the_task_has_forgotten(account: ShapeAccount) -> None:
    assert account.listed is not None
    account.listed = account.listed[:1]


@planted("the task knows line-0#1 (e), the ledger does not")
def the_ledger_has_forgotten(account: ShapeAccount) -> None:
    assert account.listed is not None
    account.listed = [*account.listed, {**account.listed[1], "id": "e"}]


@planted("I10: the closed task does not answer its query")
def it_does_not_answer(account: ShapeAccount) -> None:
    account.listed = None


@pytest.mark.parametrize(("wanted", "plant"), PLANTED, ids=lambda one: getattr(one, "__name__", ""))
def test_what_is_planted_is_found(wanted: str, plant: Plant) -> None:
    account = sound()
    plant(account)
    assert any(found.startswith(wanted) for found in violations(account)), violations(account)


def test_a_policy_may_count_what_the_code_has_canceled() -> None:
    account = sound()
    change(account, 1, state=KINDS.CANCELED, result=None)
    steps = account.transitions["b"]
    account.transitions = {**account.transitions, "b": [*steps[:2], step("b", 2, KINDS.CANCELED, at(1.0))]}
    assert not any(found.startswith("I7") for found in violations(account))
    account.last.state, account.last.error_type = "failed", "TaskFailed"
    assert not any(found.startswith("I7") for found in violations(account))


def test_a_policy_does_not_count_what_only_a_lost_workflow_task_knew() -> None:
    account = sound()
    account.program = replace(account.program, policy=("absorb", 1), retries=0)
    lost = [item(key, key, 0, 0, state=KINDS.CANCELED, result=None) for key in ("x", "y")]
    account.items = [*lost, account.items[1].model_copy(update={"attempt": 0})]
    steps = {
        one.id: [
            step(one.id, 0, KINDS.INITIALIZED, at(0)),
            step(one.id, 1, KINDS.STARTED, at(0.1)),
            step(one.id, 2, KINDS.CANCELED, at(0.2)),
        ]
        for one in lost
    }
    account.transitions = {**steps, "b": account.transitions["b"]}
    assert account.listed is not None
    account.listed = [{**account.listed[1], "attempt": 0}]
    assert not any(found.startswith("I7") for found in violations(account)), violations(account)
    rows = [{"id": one.id, "state": "canceled", "attempt": 0, "lineage": one.lineage} for one in lost]
    account.listed = [*account.listed, *rows]
    assert any(found.startswith("I7: the task completed") for found in violations(account))


def test_each_check_finds_something() -> None:
    silent = set(CHECKS)
    for _, plant in PLANTED:
        account = sound()
        plant(account)
        silent -= {check for check in silent if list(check(account))}
    assert not silent
