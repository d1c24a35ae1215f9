"""The order in which people read the work items of agents."""

from __future__ import annotations

import re
from collections.abc import Sequence
from datetime import datetime

from tasquencer.ai.tool_calls import conversation_of
from tasquencer.core.work_item import WorkItem

__all__ = ["by_conversation"]


def by_conversation(items: Sequence[WorkItem]) -> list[WorkItem]:
    """Put the work items of each conversation together, and in it those of each turn and each tool call.

    Args:
        items: Oldest first. A conversation comes where its oldest work item is. What began at the same time
            comes in the order of the names.
    """
    conversations: dict[str | None, datetime] = {}
    lineages: dict[str, datetime] = {}
    for item in items:
        conversations.setdefault(conversation_of(item.lineage), item.created_at)
        lineages.setdefault(item.lineage, item.created_at)

    def order(place: int) -> tuple[datetime, _Name, datetime, _Name, int]:
        item = items[place]
        conversation = conversation_of(item.lineage)
        if conversation is None:
            return item.created_at, [], item.created_at, [], place
        whole, part = conversations[conversation], lineages[item.lineage]
        return whole, _natural(conversation), part, _natural(item.lineage), place

    return [items[place] for place in sorted(range(len(items)), key=order)]


_Name = list[tuple[str, int]]


def _natural(name: str) -> _Name:
    """Return the name as something to sort by: `prompt-2` comes before `prompt-10`."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]
