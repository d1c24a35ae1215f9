"""Read the wait that a provider asks for from the headers of its answer.

Sources: RFC 9110 §10.2.3 (`Retry-After`: seconds or an HTTP date) and the OpenAI API's
`retry-after-ms`, which is more precise and wins if both are readable. Decimal seconds are accepted
because providers send them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

__all__ = ["LONGEST_RETRY_AFTER", "parse_retry_after"]

LONGEST_RETRY_AFTER = timedelta(days=3650)
"""Longer waits are ignored as garbage, like negative numbers."""


def parse_retry_after(headers: Mapping[str, str], now: datetime) -> timedelta | None:
    """Return how long the provider asks to wait, or None if the headers have no readable value.

    Negative, infinite, NaN and unreadable values are ignored. A date in the past means no wait.

    Args:
        headers: The answer's headers. Names are looked up in lower case and as given.
        now: The current time (aware), for an HTTP date.
    """
    lowered = {name.lower(): value for name, value in headers.items()}
    milliseconds = _number(lowered.get("retry-after-ms"))
    precise = None if milliseconds is None else _sensible(milliseconds / 1000)
    if precise is not None:
        return precise
    value = lowered.get("retry-after")
    seconds = _number(value)
    if seconds is not None:
        return _sensible(seconds)
    moment = _http_date(value)
    return None if moment is None else _sensible(max(0.0, (moment - now).total_seconds()))


def _number(value: str | None) -> float | None:
    if value is None or not value.isascii() or "_" in value:
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _http_date(value: str | None) -> datetime | None:
    if not value:
        return None
    try:
        moment = parsedate_to_datetime(value)
    except (TypeError, ValueError, OverflowError):
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def _sensible(seconds: float) -> timedelta | None:
    return timedelta(seconds=seconds) if seconds <= LONGEST_RETRY_AFTER.total_seconds() else None
