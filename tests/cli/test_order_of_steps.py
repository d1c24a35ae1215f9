"""The order in which `tasq show` lists the work items of conversations."""

from __future__ import annotations

from tasquencer.cli.steps import by_step
from tests.unit.driving import after, task


def test_turns_and_tools_of_a_conversation_come_together() -> None:
    state = task()
    oldest_first = [
        "main",
        "a/turn-1",
        "b/turn-1",
        "a/turn-1/x",
        "b/turn-1/x",
        "other",
        "a/turn-1/y",
        "a/turn-2",
    ]
    for place, lineage in enumerate(oldest_first):
        state.begin("work", now=after(place), lineage=lineage)
    first = state.latest("a/turn-1/x")
    again = first.model_copy(update={"id": "again", "attempt": 1})

    listed = [(item.lineage, item.attempt) for _, item in by_step([*state.work_items(), again])]

    assert listed == [
        ("main", 0),
        ("a/turn-1", 0),
        ("a/turn-1/x", 0),
        ("a/turn-1/x", 1),
        ("a/turn-1/y", 0),
        ("a/turn-2", 0),
        ("b/turn-1", 0),
        ("b/turn-1/x", 0),
        ("other", 0),
    ]


def test_conversations_that_begin_together_come_in_the_order_of_their_names() -> None:
    state = task()
    for lineage in ("prompt-10/turn-1", "prompt-2/turn-1", "prompt-2/turn-1/b", "prompt-2/turn-1/a"):
        state.begin("work", now=after(0), lineage=lineage)

    assert [item.lineage for _, item in by_step(state.work_items())] == [
        "prompt-2/turn-1",
        "prompt-2/turn-1/b",
        "prompt-2/turn-1/a",
        "prompt-10/turn-1",
    ]
