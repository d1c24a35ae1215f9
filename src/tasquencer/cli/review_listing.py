"""Shows waiting reviews to people and programs. Pure functions."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime

from pydantic import JsonValue
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tasquencer.ai.review import Review, first_line, review_in
from tasquencer.core.display_text import terminal_line
from tasquencer.core.wording import duration, moment, one_line
from tasquencer.core.work_item import WorkItem

__all__ = ["PendingReview", "heading", "listed_review", "pending_in", "reviews_table"]

_COMMENTS_SHOWN = 500


@dataclass(frozen=True)
class PendingReview:
    """A work item that waits for a person's decision about a draft."""

    item: WorkItem
    review: Review

    @property
    def since(self) -> datetime:
        """When it began to wait."""
        return self.item.started_at or self.item.created_at

    @property
    def due_at(self) -> datetime | None:
        """When it times out."""
        return self.review.due_at(self.since)

    def has_reminded(self, now: datetime) -> bool:
        """Return whether its reminder is due."""
        reminds_at = self.review.reminds_at(self.since)
        return reminds_at is not None and reminds_at <= now


def pending_in(items: Iterable[WorkItem]) -> list[PendingReview]:
    """Return the reviews among started work items."""
    return [PendingReview(item, review) for item in items if (review := review_in(item)) is not None]


def reviews_table(pending: Sequence[PendingReview], now: datetime, *, wide: bool = True) -> Table:
    """Return the waiting reviews as a table, in this order. Not `wide`, it has fewer columns, to fit 80."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in ("task", *["work item"][:wide], "review", "waits", "due", "draft"):
        table.add_column(name, overflow="fold", no_wrap=name == "waits")
    for one in pending:
        table.add_row(
            Text(terminal_line(one.item.task_id)),
            *[Text(terminal_line(one.item.id))][:wide],
            Text(terminal_line(one.item.lineage)),
            Text(_waits(one, now)),
            Text(_due(one, now), style="yellow" if one.has_reminded(now) else ""),
            Text(terminal_line(first_line(one.review.draft), 120 if wide else 40)),
        )
    return table


def listed_review(pending: PendingReview, now: datetime, *, whole: bool = False) -> dict[str, JsonValue]:
    """Return the review as JSON for programs. `whole` adds the draft itself."""
    due_at = pending.due_at
    listed: dict[str, JsonValue] = {
        "task_id": pending.item.task_id,
        "task_type": pending.item.task_type,
        "work_item_id": pending.item.id,
        "lineage": pending.item.lineage,
        "number": pending.review.number,
        "since": pending.since.isoformat(),
        "reminded": pending.has_reminded(now),
        "due_at": None if due_at is None else due_at.isoformat(),
        "first_line": first_line(pending.review.draft),
    }
    if whole:
        listed |= {"draft": pending.review.draft, "comments": pending.review.comments}
    return listed


def heading(pending: PendingReview) -> list[str]:
    """Return the introduction to the draft: how long it has been waiting, and the last comments."""
    due = "" if pending.due_at is None else f", until {moment(pending.due_at)}"
    lines = [
        f"{pending.item.lineage} of task {pending.item.task_id}, waiting since {moment(pending.since)}{due}"
    ]
    if pending.review.comments is not None:
        lines.append(f"the previous draft was rejected: {one_line(pending.review.comments, _COMMENTS_SHOWN)}")
    return lines


def _waits(pending: PendingReview, now: datetime) -> str:
    return duration(max(0, round((now - pending.since).total_seconds())))


def _due(pending: PendingReview, now: datetime) -> str:
    reminded = "reminded" if pending.has_reminded(now) else ""
    if pending.due_at is None:
        return reminded
    left = (pending.due_at - now).total_seconds()
    due = f"in {duration(round(left))}" if left > 0 else "now"
    return ", ".join(part for part in (due, reminded) if part)
