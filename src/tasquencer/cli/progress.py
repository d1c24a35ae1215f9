"""Changes of a task's work items since the last look, as lines for a log."""

from __future__ import annotations

from collections.abc import Sequence

from tasquencer.cli.rendering import attempt_of, came_to
from tasquencer.cli.steps import retries_of, step_name, waits_for_approval
from tasquencer.core.display_text import terminal_line
from tasquencer.core.wording import delay_label, duration, elapsed
from tasquencer.core.work_item import WorkItem, WorkItemState

__all__ = ["progress_lines"]


def progress_lines(
    before: Sequence[WorkItem], after: Sequence[WorkItem], *, max_retries: int | None
) -> list[str]:
    """Return a line for each work item that is new or changed its state, oldest first."""
    known = {item.id: item.state for item in before}
    failures = {(item.lineage, item.attempt): item.failure for item in after}
    lines = []
    for item in after:
        if known.get(item.id) is item.state:
            continue
        earlier = failures.get((item.lineage, item.attempt - 1))
        name = step_name(item)
        said = "waits for approval"
        if not waits_for_approval(item):
            event = _event(item, earlier.kind if earlier is not None else None)
            said = f"{attempt_of(item, retries_of(item, max_retries))} {event}"
        lines.append(f"{name}: {said}" if name else said)
    return lines


def _event(item: WorkItem, after: str | None) -> str:
    took = elapsed(item)
    spent = f" after {duration(took)}" if took is not None else ""
    match item.state:
        case WorkItemState.INITIALIZED if item.delay_seconds > 0:
            return f"waits: {delay_label(item, after)}"
        case WorkItemState.FAILED if item.failure is not None:
            return f"failed{spent}: {terminal_line(str(item.failure), 500)}"
        case WorkItemState.INITIALIZED | WorkItemState.STARTED:
            return str(item.state)
        case state:
            came = came_to(item)
            return f"{state}{spent}" + (f": {came}" if came else "")
