"""What becomes of open work items: every way in which their run and the latest one can stand."""

from __future__ import annotations

import pytest

from tasquencer.ledger.reconciliation import LEAVE, Cause, Judgement, Run, RunStatus, judge, reason_of
from tests.unit.driving import NOON, after

RUNNING, COMPLETED, FAILED = RunStatus.RUNNING, RunStatus.COMPLETED, RunStatus.FAILED
CANCELED, TERMINATED, TIMED_OUT = RunStatus.CANCELED, RunStatus.TERMINATED, RunStatus.TIMED_OUT
CONTINUED = RunStatus.CONTINUED_AS_NEW

GRACE = after(60) - NOON
NOW = after(1000)
LONG_AGO = 100
JUST_IN_TIME, TOO_LATE = 940, 941  # 1000 - 60 s of grace


def a_run(
    name: str,
    status: RunStatus,
    closed: float = LONG_AGO,
    *,
    chain: str = "first",
    started: float = 0,
    reset: bool = False,
) -> Run:
    closed_at = None if status is RUNNING else after(closed)
    return Run(name, chain, status, after(started), closed_at, was_reset=reset)


def leave() -> tuple[None, bool, None]:
    return (None, False, None)


CASES: dict[str, tuple[Run | None, Run | None, tuple[Cause | None, bool, str | None]]] = {
    # One run
    "it is running": (a_run("a", RUNNING), a_run("a", RUNNING), leave()),
    "it was terminated": (
        a_run("a", TERMINATED), a_run("a", TERMINATED), (Cause.TERMINATED, False, "a")),
    "it was terminated a grace period ago": (
        a_run("a", TERMINATED, JUST_IN_TIME), a_run("a", TERMINATED, JUST_IN_TIME),
        (Cause.TERMINATED, False, "a")),
    "it was terminated just now": (
        a_run("a", TERMINATED, TOO_LATE), a_run("a", TERMINATED, TOO_LATE), leave()),
    "it timed out": (a_run("a", TIMED_OUT), a_run("a", TIMED_OUT), (Cause.TIMED_OUT, False, "a")),
    "it completed": (a_run("a", COMPLETED), a_run("a", COMPLETED), (Cause.ENDED, False, "a")),
    "it failed": (a_run("a", FAILED), a_run("a", FAILED), (Cause.ENDED, False, "a")),
    "it was canceled": (a_run("a", CANCELED), a_run("a", CANCELED), (Cause.ENDED, False, "a")),
    # Forgotten
    "Temporal knows nothing": (None, None, (Cause.UNKNOWN, False, None)),
    "the run is forgotten, a later one is running": (
        None, a_run("b", RUNNING), (Cause.UNKNOWN, True, None)),
    "the run is forgotten, a later one has closed": (
        None, a_run("b", COMPLETED), (Cause.UNKNOWN, False, None)),
    "the run is forgotten, a later one has just closed": (None, a_run("b", COMPLETED, TOO_LATE), leave()),
    # Continued as new
    "the chain continues": (a_run("a", CONTINUED), a_run("b", RUNNING), leave()),
    "the chain has completed": (a_run("a", CONTINUED), a_run("b", COMPLETED), (Cause.ENDED, False, "b")),
    "the chain was terminated": (
        a_run("a", CONTINUED), a_run("b", TERMINATED), (Cause.TERMINATED, False, "b")),
    "the chain timed out": (a_run("a", CONTINUED), a_run("b", TIMED_OUT), (Cause.TIMED_OUT, False, "b")),
    "the chain has just been terminated": (
        a_run("a", CONTINUED), a_run("b", TERMINATED, TOO_LATE), leave()),
    "the run has just continued, and the later one is closed": (
        a_run("a", CONTINUED, TOO_LATE), a_run("b", COMPLETED), leave()),
    # Reset
    "a reset abandoned the run": (
        a_run("a", TERMINATED, reset=True), a_run("b", RUNNING), (Cause.RESET, True, "a")),
    "a reset to an earlier run abandoned it": (
        a_run("b", TERMINATED), a_run("c", RUNNING), (Cause.RESET, True, "b")),
    "a reset abandoned it just now": (
        a_run("a", TERMINATED, TOO_LATE, reset=True), a_run("b", RUNNING), leave()),
    "the run of the reset has closed": (
        a_run("a", TERMINATED, reset=True), a_run("b", COMPLETED), (Cause.RESET, False, "a")),
    "the run of the reset has just closed": (
        a_run("a", TERMINATED, reset=True), a_run("b", COMPLETED, TOO_LATE), leave()),
    "the chain was reset in this run": (
        a_run("a", CONTINUED, reset=True), a_run("c", RUNNING), (Cause.RESET, True, "a")),
    "a task that had completed was reset": (
        a_run("a", COMPLETED, reset=True), a_run("b", RUNNING), (Cause.ENDED, True, "a")),
    # Retried by Temporal
    "the run timed out and is retried": (
        a_run("a", TIMED_OUT), a_run("b", RUNNING), (Cause.TIMED_OUT, True, "a")),
    "the run timed out, so did its retry": (
        a_run("a", TIMED_OUT), a_run("b", TIMED_OUT), (Cause.TIMED_OUT, False, "a")),
    # Another task with the same id
    "another task has taken the id": (
        a_run("a", TERMINATED), a_run("x", RUNNING, chain="x", started=200), (Cause.TERMINATED, False, "a")),
    "another task has taken the id, after a chain": (
        a_run("a", CONTINUED), a_run("x", RUNNING, chain="x", started=200), (Cause.ENDED, False, "a")),
    "another task has just taken the id": (
        a_run("a", CONTINUED), a_run("x", RUNNING, chain="x", started=TOO_LATE), leave()),
    # Seen in the moment in which another one was made
    "the run was still running, a later one is": (a_run("a", RUNNING), a_run("b", RUNNING), leave()),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
def test_open_work_items_are_judged_by_their_run_and_the_latest(case: str) -> None:
    own, latest, (cause, only_unlisted, ended_by) = CASES[case]
    runs = {run.id: run for run in (own, latest) if run is not None}
    expected = Judgement(cause, only_unlisted, None if ended_by is None else runs[ended_by])
    assert judge(own, latest, now=NOW, grace=GRACE) == expected


@pytest.mark.parametrize("status", [status for status in RunStatus if status is not RUNNING])
def test_no_closed_task_keeps_open_work_items_for_ever(status: RunStatus) -> None:
    for own in (*(a_run("a", one) for one in RunStatus if one is not RUNNING), None):
        assert judge(own, a_run("b", status), now=NOW, grace=GRACE).cause is not None


@pytest.mark.parametrize("own", [a_run("a", status) for status in RunStatus], ids=lambda run: run.status)
def test_what_a_later_run_may_list_is_never_settled_unasked(own: Run) -> None:
    judgement = judge(own, a_run("b", RUNNING), now=NOW, grace=GRACE)
    assert judgement == LEAVE or judgement.only_unlisted


@pytest.mark.parametrize(
    ("cause", "told", "reason"),
    [
        (Cause.TERMINATED, "wrong\ncustomer", "the task was terminated: wrong customer"),
        (Cause.TERMINATED, " ", "the task was terminated"),
        (Cause.TERMINATED, None, "the task was terminated"),
        (Cause.TERMINATED, "x" * 600, f"the task was terminated: {'x' * 499}…"),
        (Cause.TIMED_OUT, "x", "the task ran into Temporal's timeout"),
        (Cause.RESET, "x", "a reset left this attempt behind"),
        (Cause.UNKNOWN, None, "Temporal no longer has this task"),
        (Cause.ENDED, None, "the task ended without it"),
    ],
)
def test_the_reason_says_why_in_one_line(cause: Cause, told: str | None, reason: str) -> None:
    assert reason_of(cause, told) == reason
