"""Durations and times as people type them."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

__all__ = ["parse_duration", "parse_since"]

_UNITS = {"ms": 0.001, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0, "d": 86400.0}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*(ms|s|min|m|h|d)?")


def parse_duration(text: str) -> float:
    """Read a duration in seconds: `1.5`, `500ms`, `30s`, `5m`, `2h`, `1d`. Without a unit it is seconds.

    Raises:
        ValueError: the message says what was expected.
    """
    match = _DURATION.fullmatch(text.strip())
    if match is None:
        raise ValueError(f"{text!r} is not a duration such as 30, 500ms, 5m, 2h or 1d")
    return float(match[1]) * _UNITS[match[2] or "s"]


def parse_since(text: str, now: datetime) -> datetime:
    """Read a time, given as its age or as an ISO time: `30m`, `2d`, `2026-11-23T19:10:04+01:00`.

    A time without an offset is UTC, like all times of the ledger.

    Raises:
        ValueError: the message says what was expected.
    """
    try:
        at = datetime.fromisoformat(text.strip())
    except ValueError:
        try:
            return now - timedelta(seconds=parse_duration(text))
        except (ValueError, OverflowError):
            expected = "neither a duration such as 30m, 1h or 2d nor a time such as 2026-11-23T19:10"
            raise ValueError(f"{text!r} is {expected}") from None
    return at if at.tzinfo is not None else at.replace(tzinfo=UTC)
