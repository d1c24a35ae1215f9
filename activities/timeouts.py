"""How the time limits of an AI call nest: the HTTP exchange ends before Temporal gives up on the activity."""

from __future__ import annotations

from datetime import timedelta

from tasquencer.ai import CALL_MARGIN

__all__ = ["call_limit"]


def call_limit(start_to_close: timedelta | None) -> timedelta | None:
    """How long the whole HTTP exchange may take, given the activity's start-to-close timeout.

    A timeout that leaves no room for the margin is halved instead; no timeout gives no limit.
    """
    if start_to_close is None:
        return None
    return start_to_close - CALL_MARGIN if start_to_close > CALL_MARGIN else start_to_close / 2
