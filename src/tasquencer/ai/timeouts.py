"""How the time limits of an AI call nest: the HTTP exchange ends before Temporal gives up on the activity."""

from __future__ import annotations

from datetime import timedelta

__all__ = ["CALL_MARGIN", "call_limit"]

CALL_MARGIN = timedelta(seconds=5)
"""The start-to-close timeout of an AI call's activity is the attempt's timeout plus this.

So it is the activity that notices the timeout: it closes the connection and reports `timed_out` with what it
knows. Temporal's own timeout is for an activity that can no longer speak.
"""


def call_limit(start_to_close: timedelta | None) -> timedelta | None:
    """How long the whole HTTP exchange may take, given the activity's start-to-close timeout.

    A timeout that leaves no room for the margin is halved instead; no timeout gives no limit.
    """
    if start_to_close is None:
        return None
    return start_to_close - CALL_MARGIN if start_to_close > CALL_MARGIN else start_to_close / 2
