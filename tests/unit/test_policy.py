"""The two policies that come with the package, from counts to a verdict."""

from __future__ import annotations

import pytest

from tasquencer.policy import Counts, Verdict, fail_fast, until_exhausted
from tasquencer.work_item import Transition, WorkItemState
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
