"""The policies that come with the package, from counts to a verdict."""

from __future__ import annotations

import pytest

from tasquencer.core.policy import (
    Counts,
    Verdict,
    absorb_failures,
    fail_fast,
    require_successes,
    until_exhausted,
)
from tasquencer.core.work_item import Transition, WorkItemState
from tests.unit.driving import NOON

ALL = list(WorkItemState)


def transition_to(state: WorkItemState) -> Transition:
    return Transition(
        work_item_id="w", sequence=1, previous_state=None, next_state=state, at=NOON, actor="task"
    )


@pytest.mark.parametrize("state", ALL)
@pytest.mark.parametrize(
    ("counts", "verdict"),
    [
        (Counts(open_lineages=1), Verdict.CONTINUE),
        (Counts(open_lineages=1, completed_lineages=1), Verdict.CONTINUE),
        (Counts(open_lineages=1, failed=2), Verdict.CONTINUE),  # failed work items whose retry is open
        (Counts(completed_lineages=1), Verdict.COMPLETE),
        (Counts(completed_lineages=2, failed=5, completed=2), Verdict.COMPLETE),
        (Counts(failed_lineages=1), Verdict.FAIL),
        (Counts(canceled_lineages=1), Verdict.FAIL),
        (Counts(failed_lineages=1, open_lineages=1), Verdict.FAIL),
        (Counts(canceled_lineages=1, completed_lineages=1), Verdict.FAIL),
    ],
)
def test_until_exhausted_looks_at_lineages_alone(
    counts: Counts, verdict: Verdict, state: WorkItemState
) -> None:
    assert until_exhausted(transition_to(state), counts) is verdict


@pytest.mark.parametrize(
    ("state", "counts", "verdict"),
    [
        (WorkItemState.INITIALIZED, Counts(open_lineages=1), Verdict.CONTINUE),
        (WorkItemState.STARTED, Counts(open_lineages=1), Verdict.CONTINUE),
        (WorkItemState.FAILED, Counts(open_lineages=1), Verdict.FAIL),  # a retry is planned all the same
        (WorkItemState.FAILED, Counts(failed_lineages=1), Verdict.FAIL),
        (WorkItemState.CANCELED, Counts(canceled_lineages=1), Verdict.FAIL),
        (WorkItemState.COMPLETED, Counts(completed_lineages=1, open_lineages=1), Verdict.CONTINUE),
        (WorkItemState.COMPLETED, Counts(completed_lineages=2), Verdict.COMPLETE),
    ],
)
def test_fail_fast_fails_at_the_first_failed_or_canceled_work_item(
    state: WorkItemState, counts: Counts, verdict: Verdict
) -> None:
    assert fail_fast(transition_to(state), counts) is verdict


FAILED, COMPLETED = WorkItemState.FAILED, WorkItemState.COMPLETED


@pytest.mark.parametrize(
    ("arguments", "state", "counts", "verdict"),
    [
        ({}, FAILED, Counts(failed_lineages=3, open_lineages=1), Verdict.CONTINUE),
        ({}, FAILED, Counts(failed_lineages=4), Verdict.COMPLETE),
        ({"limit": 2}, FAILED, Counts(failed_lineages=1, canceled_lineages=1), Verdict.COMPLETE),
        ({"limit": 2}, FAILED, Counts(failed_lineages=3, open_lineages=5), Verdict.FAIL),
        ({"fraction": 0.5}, FAILED, Counts(failed_lineages=2, open_lineages=2), Verdict.CONTINUE),
        ({"fraction": 0.5}, FAILED, Counts(failed_lineages=3, open_lineages=1), Verdict.FAIL),
        ({"fraction": 0}, COMPLETED, Counts(completed_lineages=2), Verdict.COMPLETE),
    ],
)
def test_absorb_failures_fails_when_more_is_lost_than_allowed(
    arguments: dict[str, float], state: WorkItemState, counts: Counts, verdict: Verdict
) -> None:
    assert absorb_failures(**arguments)(transition_to(state), counts) is verdict  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("state", "counts", "verdict"),
    [
        (WorkItemState.INITIALIZED, Counts(open_lineages=1), Verdict.CONTINUE),
        (COMPLETED, Counts(completed_lineages=1, open_lineages=3), Verdict.CONTINUE),
        (COMPLETED, Counts(completed_lineages=2, open_lineages=3), Verdict.COMPLETE),
        (FAILED, Counts(completed_lineages=1, open_lineages=1, failed_lineages=3), Verdict.CONTINUE),
        (FAILED, Counts(completed_lineages=1, failed_lineages=4), Verdict.FAIL),
        (COMPLETED, Counts(completed_lineages=1), Verdict.FAIL),
    ],
)
def test_require_successes_completes_with_enough_and_fails_when_they_are_out_of_reach(
    state: WorkItemState, counts: Counts, verdict: Verdict
) -> None:
    assert require_successes(2)(transition_to(state), counts) is verdict


def test_a_policy_with_senseless_arguments_is_refused() -> None:
    with pytest.raises(ValueError, match="limit"):
        absorb_failures(limit=-1)
    with pytest.raises(ValueError, match="fraction"):
        absorb_failures(fraction=1.5)
    with pytest.raises(ValueError, match="successes"):
        require_successes(0)
