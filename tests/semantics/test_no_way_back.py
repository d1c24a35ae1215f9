"""No work item goes back to `initialized`: what is tried again is another work item."""

from __future__ import annotations

from tasquencer.core.work_item import LEGAL_TRANSITIONS, WorkItemState
from tests.unit.driving import NOON, failed, task


def test_no_state_leads_back_to_initialized() -> None:
    came_from = {state for state, nexts in LEGAL_TRANSITIONS.items() if WorkItemState.INITIALIZED in nexts}
    assert came_from == {None}


def test_a_retry_is_another_work_item_and_the_failed_one_stays_as_it_ended() -> None:
    state = task()
    state.begin("job", now=NOON)
    failed(state, "w0")

    first, second = state.work_items()

    assert (first.id, first.attempt, first.state) == ("w0", 0, "failed")
    assert (second.id, second.attempt, second.state) == ("w1", 1, "initialized")
    assert (second.lineage, second.payload) == (first.lineage, first.payload)
