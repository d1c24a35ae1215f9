"""Shows work items to people. Pure functions turn records into Rich renderables and lines."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from types import MappingProxyType
from typing import TYPE_CHECKING

from pydantic import JsonValue
from rich.box import SIMPLE_HEAD
from rich.table import Table
from rich.text import Text

from tasquencer.ai.tool_calls import as_content, is_tool_call
from tasquencer.ai.usage import Usage
from tasquencer.cli.steps import by_step, retries_of, waits_for_approval
from tasquencer.core.display_text import terminal_line
from tasquencer.core.task_state import TASK_ACTOR
from tasquencer.core.wording import attempt_label, counted, delay_label, duration, elapsed, moment
from tasquencer.core.work_item import Transition, WorkItem, WorkItemState

if TYPE_CHECKING:
    from tasquencer.sql.task_listing import TaskSummary

__all__ = [
    "Records",
    "attempt_of",
    "attempts_table",
    "came_to",
    "cost_label",
    "listing_table",
    "live_table",
    "sum_of",
    "tasks_table",
    "totals",
    "transitions_table",
    "usage_labels",
]

Records = Mapping[str, Mapping[str, JsonValue]]
"""AI jobs by the ids of their work items."""

_STYLES = {
    WorkItemState.INITIALIZED: "yellow",
    WorkItemState.STARTED: "cyan",
    WorkItemState.COMPLETED: "green",
    WorkItemState.FAILED: "red",
    WorkItemState.CANCELED: "magenta",
}

_LINEAGE = ["lineage"]
"""The column that a table needs if there are several."""

_LIVE_MESSAGE_LENGTH = 120
_LISTED_MESSAGE_LENGTH = 200
_SHOWN_RESULT = 60
_MESSAGE_LENGTH = 500

_TIME = "%Y-%m-%d %H:%M:%S"
_CREATED = "created (UTC)"
_STARTED = "started (UTC)"


def attempt_of(item: WorkItem, max_retries: object) -> str:
    """`retry 2 of 3`, or `retry 2` if the number of retries is not known."""
    return attempt_label(item.attempt, max_retries) if isinstance(max_retries, int) else item.label


def cost_label(cost_usd: object) -> str:
    """`$0.00012`, `unknown`."""
    if not isinstance(cost_usd, int | float):
        return "unknown"
    if 0 < cost_usd < 0.000001:
        return "<$0.000001"
    whole, _, fraction = f"{cost_usd:.6f}".rstrip("0").partition(".")
    return f"${whole}.{fraction:0<2}"


def usage_labels(usage: Mapping[str, JsonValue]) -> list[str]:
    """`42 tokens in, 118 out` and `cost $0.0004`."""
    tokens = _tokens(usage)
    return ([tokens] if tokens else []) + [f"cost {cost_label(usage.get('cost_usd'))}"]


def live_table(items: Sequence[WorkItem], *, max_retries: int | None, now: datetime, most_rows: int) -> Table:
    """Return the work items of a running task as a table, those of an agent by turn and tool.

    Args:
        items: Oldest first.
        max_retries: From the request. None: not known.
        now: Counts the backoff down.
        most_rows: How many work items fit. If there are more, the newest are shown.
    """
    shown = items[-most_rows:]
    several = _several_lineages(items)
    table = _table(*_LINEAGE[:several], "attempt", "state", "delay", "took", "outcome")
    for name, item in by_step(shown):
        table.add_row(
            *[Text(name)][:several],
            Text(attempt_of(item, retries_of(item, max_retries))),
            _state_now(item, now),
            Text(delay_label(item)),
            Text(_took(item, now)),
            _failure(item, _LIVE_MESSAGE_LENGTH) if item.failure else Text(came_to(item)),
        )
    if len(items) > len(shown):
        table.caption = f"the newest {len(shown)} of {counted(len(items), 'work item')}"
    return table


def attempts_table(
    items: Sequence[WorkItem],
    records: Records,
    transitions: Mapping[str, Sequence[Transition]] = MappingProxyType({}),
    *,
    wide: bool = True,
) -> Table:
    """Return a task's work items from the ledger as a table, with their cost.

    They come oldest first, those of an agent by turn and tool.

    Args:
        items: The work items.
        records: Their AI jobs.
        transitions: Used to mark results that a person or program gave.
        wide: True to show the dates and the workers. Without them the table fits 80 columns.
    """
    several = _several_lineages(items)
    last = ["worker"] if wide else []
    table = _table(*_LINEAGE[:several], "attempt", "state", "delay", _STARTED, "took", "outcome", *last)
    for name, item in by_step(items):
        record = records.get(item.id, {})
        started = item.started_at.strftime(_TIME if wide else "%H:%M:%S") if item.started_at else ""
        outcome = _failure(item)
        giver = _giver(item, transitions.get(item.id, ()))
        for part in (
            _start(item),
            _decision(item) or _usage(record),
            _tools(item),
            giver and f"given by {giver}",
        ):
            if part:
                outcome.append(f"{' · ' if outcome else ''}{part}")
        table.add_row(
            *[Text(name)][:several],
            Text(attempt_of(item, record.get("max_retries"))),
            Text(item.state, style=_STYLES[item.state]),
            Text(delay_label(item)),
            Text(started),
            Text(_took(item)),
            outcome,
            *[Text(terminal_line(item.worker or ""))][:wide],
        )
    return table


def listing_table(
    items: Sequence[WorkItem],
    records: Records,
    pauses: Mapping[str, str] = MappingProxyType({}),
    *,
    wide: bool = True,
) -> Table:
    """Return work items of many tasks as a table. If not `wide`, it leaves out columns to fit 80.

    Args:
        items: The work items.
        records: Their AI jobs.
        pauses: By task id, who has paused the task. Shown with its open work items.
        wide: True to show all columns.
    """
    more = ["delay", "took"] if wide else []
    table = _table(_CREATED, "task", "attempt", "state", *more, "failure")
    for item in items:
        last = _failure(item, _LISTED_MESSAGE_LENGTH)
        if not item.state.is_terminal and item.task_id in pauses:
            last = _pause(pauses[item.task_id])
        elif item.failure and not wide:
            last = Text(terminal_line(item.failure.kind))
        table.add_row(
            Text(item.created_at.strftime(_TIME)),
            Text(terminal_line(item.task_id)),
            Text(attempt_of(item, records.get(item.id, {}).get("max_retries"))),
            Text(item.state, style=_STYLES[item.state]),
            *[Text(delay_label(item)), Text(_took(item))][: len(more)],
            last,
        )
    return table


def tasks_table(
    tasks: Sequence[TaskSummary],
    now: datetime,
    pauses: Mapping[str, str] = MappingProxyType({}),
    *,
    wide: bool = True,
) -> Table:
    """Return tasks with attempts, cost and age as a table. If not `wide`, it leaves out columns to fit 80.

    Args:
        tasks: The tasks.
        now: For their ages.
        pauses: By task id, who has paused the task. The table has a column for them only if there are some.
        wide: True to show all columns.
    """
    usual = ("state", "attempts", *["tokens"][:wide], "cost", "age")
    table = _table(*[_CREATED][:wide], "task", *["type"][:wide], *usual, *["paused"][: bool(pauses)])
    for task in tasks:
        usage = task.usage.model_dump()
        table.add_row(
            *[Text(task.created_at.strftime(_TIME))][:wide],
            Text(terminal_line(task.task_id)),
            *[Text(terminal_line(task.task_type))][:wide],
            Text(task.state, style=_STYLES[WorkItemState(task.state)]),
            Text(f"{task.attempts:,}"),
            *[Text(_tokens(usage))][:wide],
            Text(cost_label(task.cost_usd) if task.models else ""),
            Text(duration(math.floor((now - task.created_at).total_seconds()))),
            *[_pause(pauses.get(task.task_id, ""))][: bool(pauses)],
        )
    return table


def transitions_table(items: Sequence[WorkItem], transitions: Mapping[str, Sequence[Transition]]) -> Table:
    """Return every change of every work item as a table: time, actor, reason."""
    table = _table("work item", "attempt", "at (UTC)", "state", "actor", "reason")
    table.columns[0].overflow = "fold"
    for item in items:
        for change in transitions.get(item.id, ()):
            first = change.sequence == 0
            table.add_row(
                Text(terminal_line(item.id) if first else ""),
                Text(item.label if first else ""),
                Text(change.at.strftime(f"{_TIME}.%f")[:-3]),
                Text(change.next_state, style=_STYLES[change.next_state]),
                Text(terminal_line(change.actor)),
                Text(terminal_line(change.reason or "")),
            )
    return table


def totals(items: Sequence[WorkItem], records: Records) -> str:
    """`3 work items: 1 completed, 2 failed · 42 tokens in, 118 out · cost $0.0004 · 7.2 s`.

    A task without AI jobs has neither tokens nor cost.
    """
    states = Counter(item.state for item in items)
    named = ", ".join(f"{states[state]} {state}" for state in WorkItemState if states[state])
    parts = [f"{counted(len(items), 'work item')}: {named}"]
    if records:
        parts += usage_labels({name: sum_of(records, name) for name in Usage.model_fields})
    if items and all(item.ended_at for item in items):
        ends = [item.ended_at for item in items if item.ended_at is not None]
        parts.append(duration((max(ends) - min(item.created_at for item in items)).total_seconds()))
    return " · ".join(parts)


def _table(*columns: str) -> Table:
    """Return a table that folds long cells, because half an id or number is worse than a long row."""
    table = Table(box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False, header_style="bold")
    for name in columns:
        table.add_column(
            name,
            no_wrap=name in ("attempt", "state", "took"),
            overflow="fold",
            min_width={
                _CREATED: 10,
                "state": 11,
                "took": 6,
                _STARTED: 8,
                "task": 17,
                "failure": 16,
                "outcome": 16,
            }.get(name),
        )
    return table


def _several_lineages(items: Iterable[WorkItem]) -> bool:
    return len({item.lineage for item in items}) > 1


def _state_now(item: WorkItem, now: datetime) -> Text:
    style = _STYLES[item.state]
    if waits_for_approval(item):
        return Text("waits for approval", style="yellow")
    if item.state is not WorkItemState.INITIALIZED:
        return Text(item.state, style=style)
    left = math.ceil((item.not_before - now).total_seconds())
    return Text(f"starts in {duration(left)}" if left > 0 else "starts now", style=style)


def _took(item: WorkItem, now: datetime | None = None) -> str:
    took = elapsed(item)
    if took is None and now is not None and item.state is WorkItemState.STARTED and item.started_at:
        took = float(max(0, math.floor((now - item.started_at).total_seconds())))
    return duration(took) if took is not None else ""


def _failure(item: WorkItem, width: int = _MESSAGE_LENGTH) -> Text:
    if item.failure is None:
        return Text("")
    message = terminal_line(item.failure.message, width)
    return Text.assemble((terminal_line(item.failure.kind), "bold"), ": ", message)


def _pause(paused: str) -> Text:
    return Text(terminal_line(paused, _LISTED_MESSAGE_LENGTH), style="yellow")


def _start(item: WorkItem) -> str:
    """`starts at 2026-11-23 19:10:04 UTC`, for a retry that waits."""
    is_waiting = item.state is WorkItemState.INITIALIZED and item.delay_seconds
    return f"starts at {moment(item.not_before)}" if is_waiting else ""


def _giver(item: WorkItem, transitions: Sequence[Transition]) -> str:
    """Return the person or program that gave the result, or "" if it came from the task's own work."""
    if item.state is not WorkItemState.COMPLETED or not transitions or transitions[-1].actor == TASK_ACTOR:
        return ""
    return terminal_line(transitions[-1].actor)


def came_to(item: WorkItem) -> str:
    """Return what a completed work item of an agent came to: a decision, a tool's result, or tool calls."""
    return _decision(item) or _tools(item)


def _tools(item: WorkItem) -> str:
    """Which tools a model turn calls, or what a tool has returned."""
    if item.state is not WorkItemState.COMPLETED or item.result is None:
        return ""
    if is_tool_call(item):
        return terminal_line(as_content(item.result), _SHOWN_RESULT)
    calls = item.result.get("tool_calls") if isinstance(item.result, dict) else None
    if not isinstance(calls, list):
        return ""
    names = [str(call.get("name")) for call in calls if isinstance(call, dict)]
    return "calls " + terminal_line(", ".join(names), _SHOWN_RESULT)


def _decision(item: WorkItem) -> str:
    """`approve`, `reject: Shorter.`. Empty if the work item is not a decided review."""
    if not isinstance(item.result, dict) or not isinstance(decision := item.result.get("decision"), str):
        return ""
    comments = item.result.get("comments")
    return terminal_line(f"{decision}: {comments}" if comments else decision, _MESSAGE_LENGTH)


def _usage(record: Mapping[str, JsonValue]) -> str:
    parts = [_tokens(record)]
    if record.get("cost_usd") is not None:
        parts.append(cost_label(record["cost_usd"]))
    return ", ".join(part for part in parts if part)


def _tokens(record: Mapping[str, JsonValue]) -> str:
    """`42 tokens in, 118 out`."""
    counts = ((record.get("input_tokens"), "tokens in"), (record.get("output_tokens"), "out"))
    return ", ".join(f"{count:,} {name}" for count, name in counts if isinstance(count, int))


def sum_of(records: Records, name: str) -> float | None:
    """Return the sum of a number over the AI jobs that have it, or None if none has it."""
    values = [value for record in records.values() if isinstance(value := record.get(name), int | float)]
    return sum(values) if values else None
