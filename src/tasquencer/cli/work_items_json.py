"""Work items as JSON for programs, with the ledger's names."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import JsonValue

from tasquencer.ai.usage import Usage
from tasquencer.cli.rendering import Records, sum_of
from tasquencer.core.work_item import Transition, WorkItem

__all__ = ["listed", "shown"]


def listed(item: WorkItem, paused: JsonValue) -> dict[str, JsonValue]:
    """Return a work item without its payload and result, with the pause that holds it back."""
    dumped: dict[str, JsonValue] = item.model_dump(mode="json", exclude={"payload", "result"})
    return dumped | _failure_columns(item) | {"paused": paused}


def shown(
    task_id: str,
    items: Sequence[WorkItem],
    records: Records,
    transitions: Mapping[str, Sequence[Transition]],
    paused: JsonValue,
) -> dict[str, Any]:
    """Return a whole task: its pause, its work items with their AI jobs and transitions, and the totals."""
    return {
        "task_id": task_id,
        "task_type": items[0].task_type,
        "paused": paused,
        "work_items": [
            item.model_dump(mode="json")
            | _failure_columns(item)
            | {
                "ai_job": records.get(item.id),
                "transitions": [change.model_dump(mode="json") for change in transitions.get(item.id, ())],
            }
            for item in items
        ],
        "totals": {
            "work_items": len(items),
            "states": dict(Counter(item.state.value for item in items)),
            **{name: sum_of(records, name) for name in Usage.model_fields},
        },
    }


def _failure_columns(item: WorkItem) -> dict[str, JsonValue]:
    return {
        "failure_kind": item.failure.kind if item.failure is not None else None,
        "failure_message": item.failure.message if item.failure is not None else None,
    }
