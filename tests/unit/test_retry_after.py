"""What a provider asks us to wait, in all the forms that providers send."""

from __future__ import annotations

from datetime import timedelta

import pytest
from hypothesis import given, strategies as st

from tasquencer.core.retry_after import LONGEST_RETRY_AFTER, parse_retry_after
from tests.unit.driving import NOON


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("0", 0),
        ("1", 1),
        ("120", 120),
        (" 7 ", 7),
        ("+5", 5),
        ("1.5", 1.5),
        ("0.02", 0.02),
        ("1e3", 1000),
        ("-0", 0),
        ("315360000", 315_360_000),  # 3650 days, the longest
    ],
)
def test_a_number_is_seconds(value: str, expected: float) -> None:
    assert parse_retry_after({"retry-after": value}, NOON) == timedelta(seconds=expected)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("Mon, 23 Nov 2026 12:00:30 GMT", 30),  # RFC 9110 IMF-fixdate
        ("Monday, 23-Nov-26 12:00:30 GMT", 30),  # RFC 850
        ("Mon Nov 23 12:00:30 2026", 30),  # asctime, which is UTC
        ("Mon, 23 Nov 2026 14:00:30 +0200", 30),
        ("Mon, 23 Nov 2026 12:00:30 -0000", 30),
        ("Tue, 24 Nov 2026 12:00:00 GMT", 86_400),
        ("Mon, 23 Nov 2026 12:00:00 GMT", 0),
        ("Mon, 23 Nov 2026 11:59:59 GMT", 0),  # past: no wait
        ("Wed, 21 Oct 2015 07:28:00 GMT", 0),
    ],
)
def test_a_date_is_the_time_until_then_and_a_past_one_is_no_wait(value: str, expected: float) -> None:
    assert parse_retry_after({"retry-after": value}, NOON) == timedelta(seconds=expected)


@pytest.mark.parametrize(
    "value",
    [
        "-5",
        "-0.001",
        "nan",
        "NaN",
        "inf",
        "-inf",
        "Infinity",
        "1e400",
        "9" * 400,
        "315360001",  # a second more than 3650 days
        "",
        "   ",
        "soon",
        "7 s",
        "1_000",
        "0x10",
        "1,5",
        "120, 240",
        "٣",  # ARABIC-INDIC DIGIT THREE, which float() reads
        "１０",  # FULLWIDTH DIGITS
        "1\x00",
        "2026-11-23T12:00:30Z",
        "Mon, 32 Nov 2026 12:00:30 GMT",
        "Mon, 23 Foo 2026 12:00:30 GMT",
        "Mon, 23 Nov 2026 12:00:30 +9999",
        "Mon, 23 Nov 2026 12:00:30 +99999999999999",
        "Fri, 31 Dec 9999 23:59:59 GMT",  # too far to be meant
        "Fri, 31 Dec 9999 23:59:59 -0100",
    ],
)
def test_what_is_negative_endless_or_unreadable_is_ignored(value: str) -> None:
    assert parse_retry_after({"retry-after": value}, NOON) is None


def test_no_header_is_no_wish() -> None:
    assert parse_retry_after({}, NOON) is None
    assert parse_retry_after({"x-ratelimit-reset": "5"}, NOON) is None


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({"retry-after-ms": "1500"}, 1.5),
        ({"retry-after-ms": "0.5"}, 0.0005),
        ({"retry-after-ms": "1500", "retry-after": "60"}, 1.5),  # the more precise wins
        ({"retry-after-ms": "-1", "retry-after": "60"}, 60),
        ({"retry-after-ms": "nan", "retry-after": "60"}, 60),
        ({"retry-after-ms": "soon", "retry-after": "Mon, 23 Nov 2026 12:00:30 GMT"}, 30),
        ({"Retry-After": "3"}, 3),
        ({"RETRY-AFTER": "3"}, 3),
        ({"Retry-After-Ms": "3000"}, 3),
    ],
)
def test_milliseconds_win_where_readable_and_names_ignore_case(
    headers: dict[str, str], expected: float
) -> None:
    assert parse_retry_after(headers, NOON) == timedelta(seconds=expected)


def test_milliseconds_beyond_belief_leave_the_word_to_retry_after() -> None:
    headers = {"retry-after-ms": "9" * 30, "retry-after": "60"}

    assert parse_retry_after(headers, NOON) == timedelta(seconds=60)


@given(st.text(), st.text())
def test_no_text_whatever_makes_it_raise_or_ask_for_more_than_the_longest(
    seconds: str, milliseconds: str
) -> None:
    for headers in ({"retry-after": seconds}, {"retry-after-ms": milliseconds, "retry-after": seconds}):
        asked = parse_retry_after(headers, NOON)

        assert asked is None or timedelta(0) <= asked <= LONGEST_RETRY_AFTER


@given(st.floats(0, 3e8))
def test_any_sensible_number_is_read_back_as_it_was_sent(number: float) -> None:
    assert parse_retry_after({"retry-after": repr(number)}, NOON) == timedelta(seconds=number)
