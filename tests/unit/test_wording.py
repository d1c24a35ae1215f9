"""How the package speaks to people."""

from __future__ import annotations

import re
from datetime import timedelta, timezone

import pytest

from tasquencer.core.entries import LedgerEntry
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.wording import (
    attempt_label,
    delay_label,
    duration,
    elapsed,
    markdown_table,
    moment,
    one_line,
    record_label,
)
from tasquencer.core.work_item import DelayReason, Transition, WorkItem, WorkItemState
from tests.unit.driving import NOON, after, failed, rate_limited, task


def three(item: WorkItem) -> int:
    return 3


def plain(table: str) -> list[str]:
    """The lines, without what only keeps the columns apart and short texts unbroken."""
    return [line.replace("\u00a0\u00a0", "").replace("\u00a0", " ") for line in table.splitlines()]


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (0.0001, "0 s"),
        (0.0006, "1 ms"),
        (0.35, "350 ms"),
        (0.999, "999 ms"),
        (0.9995, "1 s"),
        (1, "1 s"),
        (2.5, "2.5 s"),
        (2.54, "2.5 s"),
        (4, "4 s"),
        (10, "10 s"),
        (59.9, "59.9 s"),
        (60, "1 min"),
        (200, "3 min 20 s"),  # 3 × 60 + 20
        (3600, "1 h"),
        (7500, "2 h 5 min"),  # 2 × 3600 + 5 × 60
        (7559, "2 h 5 min"),
        (86_400, "1 d"),
        (4 * 86_400 + 3 * 3600 + 59, "4 d 3 h"),
        (31_536_000, "365 d"),
    ],
)
def test_a_duration_has_at_most_two_units(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(("seconds", "expected"), [(59.96, "1 min"), (3599.6, "1 h"), (86_399.6, "1 d")])
def test_a_duration_just_below_a_unit_is_rounded_up_to_it(seconds: float, expected: str) -> None:
    assert duration(seconds) == expected


@pytest.mark.parametrize(
    ("attempt", "expected"), [(0, "first try"), (1, "retry 1 of 3"), (3, "retry 3 of 3")]
)
def test_people_read_first_try_and_retries(attempt: int, expected: str) -> None:
    assert attempt_label(attempt, 3) == expected


def test_a_work_item_names_its_attempt() -> None:
    state = task()
    state.begin("job", now=NOON)
    failed(state, "w0")

    assert [item.label for item in state.work_items()] == ["first try", "retry 1"]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("short", "short"),
        ("exactly 10", "exactly 10"),
        ("more than 10", "more than…"),
        (" two\n\tlines ", "two lines"),
        ("", ""),
    ],
)
def test_one_line_is_at_most_as_wide_as_asked(text: str, expected: str) -> None:
    assert one_line(text, 10) == expected
    assert len(expected) <= 10


def test_a_moment_is_read_in_utc() -> None:
    assert moment(after(4)) == "2026-11-23 12:00:04 UTC"


def test_a_moment_of_another_zone_is_told_in_utc() -> None:
    assert moment(NOON.astimezone(timezone(timedelta(hours=2)))) == "2026-11-23 12:00:00 UTC"


@pytest.mark.parametrize(
    ("reason", "seconds", "kind", "expected"),
    [
        (DelayReason.FIRST_TRY, 0, None, "none"),
        (DelayReason.BACKOFF, 4, None, "4 s backoff"),
        (DelayReason.BACKOFF, 4, "rate_limited", "4 s backoff after rate_limited"),
        (DelayReason.RETRY_AFTER, 7, None, "7 s asked by the provider"),
        (DelayReason.OPERATOR, 2.5, None, "2.5 s ended by an operator"),
    ],
)
def test_a_delay_is_told_with_its_reason(
    reason: DelayReason, seconds: float, kind: str | None, expected: str
) -> None:
    item = task().begin("job", now=NOON).model_copy(update={"delay_reason": reason, "delay_seconds": seconds})

    assert delay_label(item, kind) == expected


@pytest.mark.parametrize(
    ("started", "ended", "expected"),
    [(None, None, None), (1, None, None), (None, 1, None), (1, 3.5, 2.5), (3, 1, 0)],  # a clock may go back
)
def test_elapsed_is_the_time_between_start_and_end(
    started: float | None, ended: float | None, expected: float | None
) -> None:
    times = {
        "started_at": None if started is None else after(started),
        "ended_at": None if ended is None else after(ended),
    }

    assert elapsed(task().begin("job", now=NOON).model_copy(update=times)) == expected


def test_the_table_of_a_task_shows_every_work_item_with_delay_and_failure() -> None:
    state = task()
    state.begin("job", now=NOON)
    state.start("w0", now=NOON)
    state.fail("w0", rate_limited(7), now=after(0.35))
    state.start("w1", now=after(8))
    state.fail("w1", Failure.of(FailureKind.TIMED_OUT, "no answer"), now=after(10.5))

    assert plain(markdown_table(state.work_items(), three)) == [
        "| attempt | state | delay | took |",
        "| :-- | :-- | :-- | --: |",
        r"| first try | ✗ failed: **rate_limited**<br>slow down | none | 350 ms |",
        r"| retry 1 of 3 | ✗ failed: **timed_out**<br>no answer | 7 s asked by the provider | 2.5 s |",
        "| retry 2 of 3 | … waits until 2026-11-23 12:00:12 UTC | 2 s backoff |  |",  # 10.5 + 2 s
    ]


@pytest.mark.parametrize("state", WorkItemState)
def test_every_state_has_a_row(state: WorkItemState) -> None:
    item = task().begin("job", now=NOON).model_copy(update={"state": state})

    row = markdown_table([item], three).splitlines()[-1]

    assert ("waits until" if state is WorkItemState.INITIALIZED else state.value) in row


def test_the_table_of_several_lineages_names_them() -> None:
    state = task()
    for name in ("a", "b"):
        state.begin("job", now=NOON, lineage=name, recipe=RetryRecipe(max_retries=5))
    failed(state, "w0")

    lines = plain(markdown_table(state.work_items(), lambda item: state.recipe_of(item).max_retries))

    assert lines[0].startswith("| lineage | attempt |")
    assert [line.split(" | ")[:2] for line in lines[2:]] == [
        ["| a", "first try"],
        ["| b", "first try"],
        ["| a", "retry 1 of 5"],
    ]


def test_the_table_stays_a_table_whatever_the_failure_says() -> None:
    state = task()
    state.begin("job", now=NOON)
    failed(state, "w0", Failure.of(FailureKind.REFUSED, "a | b\n| c" + "x" * 500))

    row = markdown_table(state.work_items(), three).splitlines()[-1]

    assert r"a \| b \| c" in row
    assert row.replace(r"\|", "").count("|") == 5  # four cells
    assert len(row) < 220


def test_what_a_provider_says_is_never_taken_for_markup() -> None:
    state = task()
    state.begin("job", now=NOON)
    said = "<b>bad</b> ![](http://example.org/i.png) [a](b) `c` *d* _e_ ~f~ &amp; \\ #"
    failed(state, "w0", Failure.of(FailureKind.REFUSED, said))

    row = plain(markdown_table(state.work_items(), three))[-1]

    shown = row.partition("<br>")[2].partition(" | ")[0]
    assert re.sub(r"\\([!-/:-@\[-`{-~])", r"\1", shown) == said  # as CommonMark reads it
    assert not re.search(r"(?<!\\)[<>\[\]`*_~&!#]", shown)


def test_a_long_table_shows_the_newest_work_items_and_says_so() -> None:
    state = task(recipe=RetryRecipe(max_retries=24))
    state.begin("job", now=NOON)
    for number in range(24):
        failed(state, f"w{number}")

    lines = plain(markdown_table(state.work_items(), lambda item: 24))

    assert len(lines) == 2 + 10 + 2
    assert lines[2].startswith("| retry 15 of 24 |")  # 25 work items, the newest 10
    assert lines[11].startswith("| retry 24 of 24 |")
    assert lines[-1] == ("The newest 10 of 25 work items (1 initialized, 24 failed); `tasq show` lists all.")


def test_in_a_long_table_what_waits_for_its_first_turn_makes_room_for_what_happens() -> None:
    state = task()
    for number in range(30):
        state.begin("job", now=NOON, lineage=f"prompt-{number + 1}")
    failed(state, "w0")
    state.start("w1", now=NOON)

    lines = plain(markdown_table(state.work_items(), three))

    assert [line.split(" | ")[0] for line in lines[2:5]] == ["| prompt-1", "| prompt-2", "| prompt-1"]
    assert "The newest 3 of 31 work items (29 initialized, 1 started, 1 failed)" in lines[-1]


def test_a_table_of_nothing_has_a_header() -> None:
    assert len(markdown_table([], three).splitlines()) == 2


def entry(
    attempt: int, state: WorkItemState, delay: float = 0.0, failure: Failure | None = None
) -> LedgerEntry:
    item = WorkItem(
        id=f"w{attempt}",
        task_id="t",
        run_id="r",
        task_type="x",
        lineage="main",
        attempt=attempt,
        state=state,
        delay_seconds=delay,
        failure=failure,
        not_before=NOON,
        created_at=NOON,
    )
    transition = Transition(
        work_item_id=item.id, sequence=0, previous_state=None, next_state=state, at=NOON, actor="task"
    )
    return LedgerEntry(transition=transition, work_item=item)


SLOW = Failure.of(FailureKind.RATE_LIMITED, "slow down")


@pytest.mark.parametrize(
    ("entries", "label"),
    [
        ([entry(0, WorkItemState.INITIALIZED), entry(0, WorkItemState.STARTED)], "first try started"),
        (
            [entry(0, WorkItemState.FAILED, failure=SLOW), entry(1, WorkItemState.INITIALIZED, 2)],
            "first try failed: rate_limited; retry 1 of 3 waits 2 s",
        ),
        ([entry(3, WorkItemState.COMPLETED)], "retry 3 of 3 completed"),
        ([entry(number, WorkItemState.STARTED) for number in range(5)], "5 started"),
    ],
)
def test_a_label_says_what_is_recorded(entries: list[LedgerEntry], label: str) -> None:
    assert record_label(entries, lambda item: 3) == label
