"""Violations of `lineage_checks`."""

from __future__ import annotations

from tasquencer.core.task_state import TASK_ACTOR
from tasquencer.core.work_item import DelayReason, WorkItemState
from tests.stories.good import exhausted, fan_out, fan_out_failed, retried_by_hand, too_late
from tests.stories.lineage_checks import (
    each_lineage_is_bounded,
    no_more_at_once_than_allowed,
    no_retry_is_left_out,
    nothing_starts_after_the_deadline,
    nothing_starts_early,
)
from tests.stories.planting import (
    Planted,
    both,
    call,
    ended,
    ending,
    item,
    job,
    nothing_seen,
    request,
    started,
    step,
)
from tests.stories.playing import at

__all__ = ["IN_LINEAGES"]

HURRIED_BY_NOBODY = both(
    item(2, delay_reason=DelayReason.OPERATOR, started_at=at(29)), step(2, 1, actor=TASK_ACTOR)
)
RECORDED_LATE = both(item(2, created_at=at(10)), step(2, 0, at=at(10)))
WAITS_TOO_LONG = both(
    item(2, delay_seconds=25.0, not_before=at(34)),
    started(2, 34),
    ended(2, 36),
    call(2, at=at(35), ended_at=at(36)),
    ending(closed_at=at(37)),
)
FOLLOWS_A_CANCELED_ONE = both(
    item(0, state=WorkItemState.CANCELED, failure=None),
    step(0, 2, next_state=WorkItemState.CANCELED),
    job(0, status="canceled", last_error=None),
)

IN_LINEAGES = [
    Planted(
        nothing_starts_early,
        "I4: first try has a delay",
        retried_by_hand,
        both(item(0, delay_seconds=1), nothing_seen),
    ),
    Planted(
        nothing_starts_early,
        "I4: prompt-1: first try started before its not_before",
        fan_out,
        item(0, not_before=at(2)),
    ),
    Planted(nothing_starts_early, "retry 2 was hurried by nobody", retried_by_hand, HURRIED_BY_NOBODY),
    Planted(
        nothing_starts_early, "its not_before is not its start", retried_by_hand, item(1, not_before=at(6))
    ),
    Planted(
        nothing_starts_early, "its delay is not what it waited", retried_by_hand, item(1, delay_seconds=3)
    ),
    Planted(
        nothing_starts_early,
        "retry 2 was not recorded when the try before failed",
        retried_by_hand,
        RECORDED_LATE,
    ),
    Planted(
        nothing_starts_early,
        "retry 2: its not_before is not the end before plus the delay",
        retried_by_hand,
        item(2, not_before=at(28)),
    ),
    Planted(nothing_starts_early, "I4: retry 2 started early", retried_by_hand, started(2, 28)),
    Planted(
        nothing_starts_early,
        "retry 2 waits 5.0 s, the recipe says 20.0 s",
        retried_by_hand,
        item(2, delay_seconds=5.0, not_before=at(14)),
    ),
    Planted(
        nothing_starts_early, "retry 2 waits 25.0 s, the recipe says 20.0 s", retried_by_hand, WAITS_TOO_LONG
    ),
    Planted(
        nothing_starts_early,
        "the reason for its wait is retry_after",
        retried_by_hand,
        item(2, delay_reason=DelayReason.RETRY_AFTER),
    ),
    Planted(
        each_lineage_is_bounded,
        "I5: lineage prompt-4 was never asked for",
        fan_out_failed,
        item(2, lineage="prompt-4"),
    ),
    Planted(
        each_lineage_is_bounded,
        "I5: the attempts of main are numbered [0, 2]",
        exhausted,
        both(item(1, attempt=2), job(1, attempt=2)),
    ),
    Planted(
        each_lineage_is_bounded,
        "I5: main has 2 work items, at most 1 are allowed",
        exhausted,
        request(max_retries=0),
    ),
    Planted(
        each_lineage_is_bounded,
        "I5: in main a work item follows one that did not fail",
        exhausted,
        FOLLOWS_A_CANCELED_ONE,
    ),
    Planted(
        nothing_starts_after_the_deadline,
        "retry 2 started after the deadline",
        retried_by_hand,
        request(deadline_seconds=20),
    ),
    Planted(
        no_more_at_once_than_allowed,
        "2 work items were started at once, 1 are allowed",
        fan_out,
        request(concurrency=1),
    ),
    Planted(
        no_retry_is_left_out,
        "I7: nothing follows retry 1, though a retry is left",
        exhausted,
        request(max_retries=2),
    ),
    Planted(
        no_retry_is_left_out,
        "I7: nothing follows first try, though a retry is left",
        too_late,
        request(deadline_seconds=30),
    ),
]
