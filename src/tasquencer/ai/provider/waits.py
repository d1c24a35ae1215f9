"""Finds the wait that a provider asks for, in all places where providers put it.

The longest wait among `Retry-After` (and similar headers), the fields of the body and its sentences counts.
If there is none, the time counts at which an exhausted limit is refilled.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime

from tasquencer.core.retry_after import LONGEST_RETRY_AFTER, parse_retry_after

__all__ = ["asked_in_headers", "asked_in_text", "field_wait", "is_wait_field", "refill"]

_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3_600.0, "d": 86_400.0}
_STEP = re.compile(
    r"(\d{1,12}(?:\.\d{1,12})?)\s?"
    r"(ms|millis(?:econds?)?|msecs?|s|secs?|seconds?|m|mins?|minutes?|h|hrs?|hours?|d|days?)(?![a-z])"
)
_CLOCK = re.compile(r"(\d{1,5}):(\d\d):(\d\d(?:\.\d{1,9})?)")
_DURATION = r"(?:\d[\d.]{0,20}\s?[a-z]{1,12}(?:,|\sand)?\s?){1,5}"
_ASKED = re.compile(
    r"\b(?:again|retry|retrying|retried|wait|waiting|back ?off|backoff|replenished|resets?|available|"
    r"retry[-_]?(?:delay|after))\b"
    rf"[^\d\n.;]{{0,30}}?({_CLOCK.pattern}|{_DURATION})"
)
"""A sentence such as "please try again in 9m38.016s", in lower case."""

_FIELDS = {
    "retrydelay": 1.0,
    "retryafter": 1.0,
    "retryafterseconds": 1.0,
    "retryafterms": 0.001,
    "retryin": 1.0,
    "retryinseconds": 1.0,
    "resetsinseconds": 1.0,
    "resetinseconds": 1.0,
    "estimatedtime": 1.0,
    "cooldowntime": 1.0,
    "waitseconds": 1.0,
}
"""Fields of error bodies that contain a wait, and the seconds in their unit."""

_EPOCH = 1e9
"""Numbers from here on are times since 1970 in seconds, and from a thousand times that in milliseconds."""

_MOST_HEADER = 500
"""Maximum characters of a header that are read."""

_REFILL_IN_ONE_HEADER = re.compile(r"\b(?:remaining|r)\s*=\s*0\b.*?\b(?:reset|t)\s*=\s*(\d{1,12})")


def is_wait_field(name: str) -> bool:
    """Return whether a field of this name (lower case, letters and digits only) contains a wait."""
    return name in _FIELDS


def field_wait(name: str, value: object) -> float | None:
    """Return the seconds in a field of an error's body: a number, `34.07s`, or an object with `seconds`."""
    if isinstance(value, dict):
        value = value.get("seconds")
    if isinstance(value, str):
        seconds = _duration(value)
        if seconds is not None:
            return _sensible(seconds)
    number = _number(value)
    return None if number is None else _sensible(number * _FIELDS[name])


def asked_in_text(text: str) -> float | None:
    """Return the longest wait in seconds in a text in lower case."""
    found = (_duration(match[1]) for match in _ASKED.finditer(text))
    return max((wait for wait in map(_sensible, found) if wait is not None), default=None)


def asked_in_headers(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds in `Retry-After` or a similar header."""
    asked = parse_retry_after(headers, now)
    if asked is None and "x-ms-retry-after-ms" in headers:
        asked = parse_retry_after({"retry-after-ms": headers["x-ms-retry-after-ms"]}, now)
    return None if asked is None else asked.total_seconds()


def refill(headers: Mapping[str, str], now: datetime) -> float | None:
    """Return the seconds until the exhausted limits in the headers are refilled, or None."""
    waits = [wait for wait in _refills(headers, now) if wait]
    return max(waits, default=None)


def _refills(headers: Mapping[str, str], now: datetime) -> Iterator[float | None]:
    for name, value in headers.items():
        if "ratelimit" not in name.replace("-", ""):
            continue
        if "reset" in name:
            left = _number(headers.get(name.replace("reset", "remaining")))
            if left == 0:
                yield _reset(value, now)
        elif found := _REFILL_IN_ONE_HEADER.search(value[:_MOST_HEADER].lower()):
            yield _sensible(float(found[1]))


def _reset(value: str, now: datetime) -> float | None:
    """Return the seconds until a reset: `1m0.5s`, seconds, an epoch, or a date as in RFC 3339."""
    number = _number(value)
    if number is not None:
        if number >= _EPOCH:
            number = number / (1_000 if number >= _EPOCH * 1_000 else 1) - now.timestamp()
        return _sensible(max(0.0, number))
    seconds = _duration(value.lower())
    if seconds is not None:
        return _sensible(seconds)
    try:
        moment = datetime.fromisoformat(value.strip())
        aware = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
        return _sensible(max(0.0, (aware - now).total_seconds()))
    except (ValueError, OverflowError):
        return None


def _duration(text: str) -> float | None:
    clock = _CLOCK.match(text.strip())
    if clock:
        hours, minutes, seconds = clock.groups()
        return int(hours) * 3_600 + int(minutes) * 60 + float(seconds)
    steps = _STEP.findall(text.lower())
    if not steps:
        return None
    return sum(float(count) * _SECONDS[_unit(name)] for count, name in steps)


def _unit(name: str) -> str:
    return "ms" if name == "ms" or name.startswith(("milli", "msec")) else name[0]


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and (not value.isascii() or "_" in value):
        return None
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return None
    return number if math.isfinite(number) and number >= 0 else None


def _sensible(seconds: float | None) -> float | None:
    return seconds if seconds is not None and seconds <= LONGEST_RETRY_AFTER.total_seconds() else None
