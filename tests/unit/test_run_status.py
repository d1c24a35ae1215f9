"""What the status of a run says about a workflow task that began at a given time."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from tasquencer.temporal.run_status import Status

BEGAN = datetime(2026, 1, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("status", "is_past"),
    [
        pytest.param(Status(is_closed=True), True, id="the run has ended"),
        pytest.param(Status(is_closed=False, waits=True), True, id="the next one waits for a worker"),
        pytest.param(
            Status(is_closed=False, began=BEGAN + timedelta(milliseconds=3)),
            True,
            id="a later one has begun",
        ),
        pytest.param(Status(is_closed=False, began=BEGAN), False, id="it is under way"),
        pytest.param(
            Status(is_closed=False, began=BEGAN + timedelta(microseconds=999)),
            False,
            id="rounded differently",
        ),
        pytest.param(Status(is_closed=False), False, id="an old server that says nothing"),
    ],
)
def test_a_workflow_task_is_past_only_if_temporal_says_so(status: Status, is_past: bool) -> None:
    assert status.is_past(BEGAN) is is_past
