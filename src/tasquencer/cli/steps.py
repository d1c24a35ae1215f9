"""The steps of an agent as people read them: by turn, and within a turn by tool.

A lineage such as `ask-1/turn-2/refund/approval` is the approval of a tool call in the second turn. Other
lineages are no steps: they keep their names and their places.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from tasquencer.ai.tool_calls import is_approval, is_turn
from tasquencer.core.display_text import terminal_line
from tasquencer.core.lineage import MAIN_LINEAGE
from tasquencer.core.work_item import WorkItem, WorkItemState

__all__ = ["by_step", "retries_of", "step_name", "waits_for_approval"]

_TURN = re.compile(r"(?P<turn>(?:(?P<conversation>.+)/)?turn-(?P<number>\d+))(?:/(?P<call>[^/]+))?")
"""A turn or a tool call, without the approval."""


@dataclass(frozen=True)
class _Step:
    turn: str
    conversation: str
    number: int
    call: str | None
    is_approval: bool

    @classmethod
    def of(cls, item: WorkItem) -> _Step | None:
        approves = is_approval(item)
        found = _TURN.fullmatch(item.lineage.removesuffix("/approval") if approves else item.lineage)
        if found is None:
            return None
        conversation = found["conversation"] or ""
        return cls(found["turn"], conversation, int(found["number"]), found["call"], approves)


def by_step(items: Sequence[WorkItem]) -> list[tuple[str, WorkItem]]:
    """Return the work items with their names in a table: each turn, then its tool calls, then the next turn.

    Work items that are no steps of an agent stay where they are.

    Args:
        items: Oldest first. Conversations that begin together come in the order of their names.
    """
    conversations = _places(items)
    lineages: dict[str, int] = {}
    places: list[tuple[int, int, int, int]] = []
    turns = set()
    for at, item in enumerate(items):
        step = _Step.of(item)
        lineage = lineages.setdefault(item.lineage, at)
        if step is None:
            places.append((at, 0, 0, at))
            continue
        if step.call is None:
            turns.add(step.turn)
        within = lineage if step.call is not None else -1
        places.append((conversations[step.conversation], step.number, within, at))
    ordered = [items[place[-1]] for place in sorted(places)]
    return [(_in_table(item, turns), item) for item in ordered]


def _places(items: Sequence[WorkItem]) -> dict[str, int]:
    """Return the place of each conversation: those of their oldest work items, by time and then by name."""
    firsts: dict[str, int] = {}
    for at, item in enumerate(items):
        if (step := _Step.of(item)) is not None:
            firsts.setdefault(step.conversation, at)
    names = sorted(firsts, key=lambda name: (items[firsts[name]].created_at, _natural(name)))
    return dict(zip(names, sorted(firsts.values()), strict=True))


def _natural(name: str) -> list[tuple[str, int]]:
    """Return the name as something to sort by: `prompt-2` comes before `prompt-10`."""
    return [(text, int(number or 0)) for text, number in re.findall(r"(\D*)(\d*)", name)]


def _in_table(item: WorkItem, turns: set[str]) -> str:
    step = _Step.of(item)
    if step is None or step.call is None or step.turn not in turns:
        return terminal_line(item.lineage)
    return "  " + terminal_line(item.lineage.removeprefix(f"{step.turn}/"))


def step_name(item: WorkItem) -> str:
    """`turn 2`, `turn 2 · tool refund`, `ask-1 · turn 2`. The lineage if it is no step, but "" for `main`."""
    step = _Step.of(item)
    if step is None:
        return "" if item.lineage == MAIN_LINEAGE else terminal_line(item.lineage)
    parts = [step.conversation, f"turn {step.number}", f"tool {step.call}" if step.call else ""]
    if step.is_approval:
        parts.append("approval")
    return terminal_line(" · ".join(part for part in parts if part))


def retries_of(item: WorkItem, max_retries: int | None) -> int | None:
    """Return the number of retries that a request allows for the work item. A tool has its own number."""
    return max_retries if is_turn(item) else None


def waits_for_approval(item: WorkItem) -> bool:
    """Return whether a person must approve a tool call now."""
    return item.state is WorkItemState.STARTED and is_approval(item)
