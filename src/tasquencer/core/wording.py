"""Texts for people: durations, attempts, and the table of a task's work items.

People read "first try" and "retry 2 of 3", never "attempt 3 of 4".
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from itertools import islice
from operator import attrgetter

from tasquencer.core.display_text import markdown_line
from tasquencer.core.entries import LedgerEntry
from tasquencer.core.work_item import DelayReason, WorkItem, WorkItemState

__all__ = [
    "attempt_label",
    "counted",
    "delay_label",
    "duration",
    "elapsed",
    "markdown_table",
    "moment",
    "one_line",
    "record_label",
]

_UNITS = (("d", 86_400, "h", 3_600), ("h", 3_600, "min", 60), ("min", 60, "s", 1))

_LABELED = 3
"""Work items that a label lists one by one."""

_ROWS_SHOWN = 10
"""Rows of the table in the Web UI. A task with more work items shows its newest ones."""


def one_line(text: str, width: int) -> str:
    """Return the text as one line of at most ``width`` characters."""
    line = " ".join(text.split())
    return line if len(line) <= width else line[: width - 1] + "…"


def duration(seconds: float) -> str:
    """`0 s`, `350 ms`, `4 s`, `2.5 s`, `3 min 20 s`, `2 h 5 min`, `4 d 3 h`."""
    if seconds < 0.9995:
        return f"{round(seconds * 1000)} ms" if seconds >= 0.0005 else "0 s"
    if seconds < 59.95:
        return f"{seconds:.1f}".removesuffix(".0") + " s"
    whole = round(seconds)
    for unit, size, smaller, smaller_size in _UNITS:
        if whole >= size:
            count, rest = divmod(whole, size)
            part = rest // smaller_size
            return f"{count} {unit} {part} {smaller}" if part else f"{count} {unit}"
    raise AssertionError("unreachable")


def moment(at: datetime) -> str:
    """Return a time in the form `2026-11-23 19:10:04 UTC`."""
    return at.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%S UTC")


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """`1 task`, `1,234 tasks`."""
    return f"{number:,} {noun if number == 1 else plural or noun + 's'}"


def attempt_label(attempt: int, max_retries: int) -> str:
    """`first try`, `retry 2 of 3`."""
    return "first try" if attempt == 0 else f"retry {attempt} of {max_retries}"


def delay_label(work_item: WorkItem, after: str | None = None) -> str:
    """`4 s backoff`, `7 s asked by the provider`. ``after`` adds the kind of the failure before it."""
    why = {
        DelayReason.FIRST_TRY: "",
        DelayReason.BACKOFF: " backoff",
        DelayReason.RETRY_AFTER: " asked by the provider",
        DelayReason.FALLBACK: " fallback",
        DelayReason.OPERATOR: " ended by an operator",
    }[work_item.delay_reason]
    if work_item.delay_reason is DelayReason.FIRST_TRY:
        return "none"
    return f"{duration(work_item.delay_seconds)}{why}" + (f" after {markdown_line(after)}" if after else "")


def record_label(entries: Sequence[LedgerEntry], max_retries: Callable[[WorkItem], int]) -> str:
    """Summarize the entries: `first try failed: rate_limited; retry 1 of 3 waits 2 s`.

    Args:
        entries: In order. If several are about the same work item, only the last one counts.
        max_retries: Returns how many retries the lineage of a work item has.
    """
    items = list({entry.work_item.id: entry.work_item for entry in entries}.values())
    if len(items) > _LABELED:
        states = Counter(item.state for item in items)
        return ", ".join(f"{count} {state}" for state, count in states.items())
    told = []
    for item in items:
        label = attempt_label(item.attempt, max_retries(item))
        if item.state is WorkItemState.INITIALIZED:
            told.append(f"{label} waits {duration(item.delay_seconds)}")
        else:
            told.append(
                f"{label} {item.state}" + (f": {markdown_line(item.failure.kind)}" if item.failure else "")
            )
    return "; ".join(told)


def elapsed(work_item: WorkItem) -> float | None:
    """Return the seconds between its start and its end, if it has both."""
    if work_item.started_at is None or work_item.ended_at is None:
        return None
    return max(0.0, (work_item.ended_at - work_item.started_at).total_seconds())


_MARKS = {
    # Every font has these characters. Not every font has emoji.
    WorkItemState.INITIALIZED: "…",
    WorkItemState.STARTED: "▸",
    WorkItemState.COMPLETED: "✓",
    WorkItemState.FAILED: "✗",
    WorkItemState.CANCELED: "–",
}
_UNBROKEN = "\u00a0"
_GAP = 2 * _UNBROKEN
"""The end of a cell. The Web UI draws tables without lines and without space between the columns."""


def markdown_table(work_items: Iterable[WorkItem], max_retries: Callable[[WorkItem], int]) -> str:
    """Return the Markdown table of work items that the Web UI shows as a workflow's current details.

    The table fits a pane of half a page: failures stand below their state, and only texts may wrap. If there
    are many work items, it shows the newest ones, puts those that wait for their first start last, and counts
    all.

    Args:
        work_items: Oldest first.
        max_retries: Returns how many retries the lineage of a work item has.
    """
    items = list(work_items)
    shown = items[-_ROWS_SHOWN:]
    if len(items) > _ROWS_SHOWN:
        begun = (item for item in reversed(items) if not _waits_for_its_first_turn(item))
        shown = list(islice(begun, _ROWS_SHOWN))[::-1] or shown
    lineages = any(item.lineage != items[0].lineage for item in items)
    header = [*(["lineage"] if lineages else []), "attempt", "state", "delay", "took"]
    lines = [_row(header), "|" + " :-- |" * (len(header) - 1) + " --: |"]
    for item in shown:
        took = elapsed(item)
        lines.append(
            _row(
                [
                    *([markdown_line(item.lineage)] if lineages else []),
                    attempt_label(item.attempt, max_retries(item)).replace(" ", _UNBROKEN),
                    _state(item),
                    delay_label(item).replace(" ", _UNBROKEN, 2),
                    duration(took).replace(" ", _UNBROKEN) if took is not None else "",
                ]
            )
        )
    if len(items) > len(shown):
        states = Counter(map(attrgetter("state"), items))  # called at each write, so it must be fast
        counted = ", ".join(f"{states[state]} {state}" for state in WorkItemState if states[state])
        lines.append(
            f"\nThe newest {len(shown)} of {len(items)} work items ({counted}); `tasq show` lists all."
        )
    return "\n".join(lines)


def _waits_for_its_first_turn(item: WorkItem) -> bool:
    return item.state is WorkItemState.INITIALIZED and item.delay_reason is DelayReason.FIRST_TRY


def _row(cells: list[str]) -> str:
    return "| " + "".join(f"{cell}{_GAP} | " for cell in cells[:-1]) + f"{cells[-1]} |"


def _state(item: WorkItem) -> str:
    if item.state is WorkItemState.INITIALIZED:
        date, time, zone = moment(item.not_before).split()
        text = f"waits until {date} {time}{_UNBROKEN}{zone}"
    elif item.failure is not None:
        kind, message = markdown_line(item.failure.kind), markdown_line(item.failure.message, 120)
        text = f"{item.state}: **{kind}**<br>{message}"
    else:
        text = item.state.value
    return f"{_MARKS[item.state]}{_UNBROKEN}{text}"
