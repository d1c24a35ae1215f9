"""The time limits of an AI call. The HTTP exchange ends before Temporal's timeout of the activity."""

from __future__ import annotations

from datetime import timedelta

__all__ = ["CALL_MARGIN", "call_limit"]

CALL_MARGIN = timedelta(seconds=5)
"""The start-to-close timeout of an AI call's activity is the attempt's timeout plus this.

So the activity notices the timeout first, closes the connection and reports `timed_out` with the facts that
it has. Temporal's own timeout is for an activity that no longer reacts.
"""


def call_limit(start_to_close: timedelta | None) -> timedelta | None:
    """Return how long the whole HTTP exchange may take, given the activity's start-to-close timeout.

    A timeout that is too short for the margin is halved instead. No timeout means no limit.
    """
    if start_to_close is None:
        return None
    return start_to_close - CALL_MARGIN if start_to_close > CALL_MARGIN else start_to_close / 2
