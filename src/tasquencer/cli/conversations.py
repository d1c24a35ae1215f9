"""The order in which people read the work items of agents."""

from __future__ import annotations

from collections.abc import Sequence

from tasquencer.ai.tool_calls import conversation_of
from tasquencer.core.work_item import WorkItem

__all__ = ["by_conversation"]


def by_conversation(items: Sequence[WorkItem]) -> list[WorkItem]:
    """Put the work items of each conversation together, and in it those of each turn and each tool call.

    Args:
        items: Oldest first. A conversation comes where its oldest work item is.
    """
    conversations: dict[str, int] = {}
    lineages: dict[str, int] = {}
    order: dict[str, tuple[int, int]] = {}
    for place, item in enumerate(items):
        conversation = conversation_of(item.lineage)
        if conversation is None:
            order[item.id] = (place, 0)
        else:
            first = conversations.setdefault(conversation, place)
            order[item.id] = (first, lineages.setdefault(item.lineage, place))
    return sorted(items, key=lambda item: order[item.id])
