"""What a provider asks us to wait, read from the headers of its answer.

Sources: RFC 9110 §10.2.3 (`Retry-After`: seconds or an HTTP date) and the OpenAI API's
`retry-after-ms`, which is the more precise and wins where both are readable. Decimal seconds are
accepted because providers send them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime

__all__ = ["LONGEST_RETRY_AFTER", "parse_retry_after"]

LONGEST_RETRY_AFTER = timedelta(days=3650)
"""Anything beyond is taken for garbage, like a negative number, and ignored."""


def parse_retry_after(headers: Mapping[str, str], now: datetime) -> timedelta | None:
    """How long the provider asks to wait, or None if it says nothing readable.

    Negative, infinite, NaN and unreadable values are ignored; a date in the past means no wait.

    Args:
        headers: The answer's headers; the names are looked up in lower case and as given.
        now: The current time, for an HTTP date; aware.
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
