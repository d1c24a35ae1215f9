"""Policies, hooks and records come from users: what they do wrong is named, and nothing is decided by it."""

from __future__ import annotations

from decimal import Decimal
from fractions import Fraction
from typing import Any

import pytest

from tasquencer import Counts, TaskMisused, Verdict, absorb_failures
from tasquencer.core.carried import CarriedTask
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.work_item import Transition, WorkItemState
from tests.unit.driving import NOON as AT, task


def _raises(*_: Any) -> Any:
    raise ZeroDivisionError("division by zero")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"policy": _raises}, "the policy raised ZeroDivisionError: division by zero"),
        ({"policy": lambda *_: None}, "the policy must return a Verdict, it returned NoneType None"),
        ({"policy": lambda *_: "complete"}, "the policy must return a Verdict, it returned str 'complete'"),
        (
            {"on_work_item_state_changed": _raises},
            "the hook `on_work_item_state_changed` raised ZeroDivisionError: division by zero",
        ),
        (
            {"on_work_item_state_changed": lambda _: True},
            "the hook `on_work_item_state_changed` must return a NextAttempt or None, it returned bool True",
        ),
        (
            {"record_of": _raises},
            "the function given as `record` raised ZeroDivisionError: division by zero",
        ),
        (
            {"record_of": lambda *_: {}},
            "the function given as `record` must return a DomainRecord or None, it returned dict {}",
        ),
    ],
)
def test_what_a_function_of_the_users_does_wrong_is_named(options: dict[str, Any], message: str) -> None:
    state = task(**options)
    with pytest.raises(TaskMisused) as raised:
        state.begin({}, now=AT)
    assert str(raised.value) == message


@pytest.mark.parametrize("fraction", [0.29, Decimal("0.29"), Fraction(29, 100)])
@pytest.mark.parametrize(("lost", "verdict"), [(29, Verdict.COMPLETE), (30, Verdict.FAIL)])
def test_a_fraction_counts_exactly(fraction: Any, lost: int, verdict: Verdict) -> None:
    ended = Transition(
        work_item_id="one",
        sequence=2,
        previous_state=WorkItemState.STARTED,
        next_state=WorkItemState.FAILED,
        at=AT,
        actor="task",
    )
    counts = Counts(failed_lineages=lost, completed_lineages=100 - lost)
    assert absorb_failures(fraction=fraction)(ended, counts) is verdict


@pytest.mark.parametrize("fraction", [-0.1, 1.1, float("nan"), float("inf"), "much", Decimal("NaN")])
def test_a_fraction_that_is_none_is_refused_where_it_is_given(fraction: Any) -> None:
    with pytest.raises(ValueError, match="fraction must be a number from 0 to 1, found"):
        absorb_failures(fraction=fraction)


def test_a_verdict_travels_along_when_the_task_continues_as_new() -> None:
    before = task()
    first = before.begin({}, now=AT, lineage="first")
    before.begin({}, now=AT, lineage="second")
    before.cancel(first.id, now=AT, reason="no longer wanted", actor="anna")
    assert before.verdict is Verdict.FAIL
    carried = CarriedTask.model_validate_json(before.carry().model_dump_json())
    after = task()
    after.resume(carried)
    assert after.verdict is Verdict.FAIL
    assert after.failure().message == before.failure().message


def test_a_log_has_all_entries_of_a_work_item_that_has_just_ended() -> None:
    state = task()
    item = state.begin({}, now=AT)
    state.take_entries()
    state.start(item.id, now=AT)
    state.fail(item.id, Failure.of(FailureKind.REFUSED, "no"), now=AT)
    entries = state.take_entries()
    assert [entry.transition.sequence for entry in state.log(item.id)] == [0, 1, 2]
    assert state.log(item.id)[1:] == entries
    state.take_entries()
    assert state.log(item.id) == []
