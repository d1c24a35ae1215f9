"""Ways to plant something wrong in a story."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

from tests.stories.checks import Check
from tests.stories.playing import at, listed
from tests.stories.story import Act, Call, Story

__all__ = [
    "Plant",
    "Planted",
    "act",
    "both",
    "call",
    "ended",
    "ending",
    "item",
    "job",
    "nothing_seen",
    "request",
    "started",
    "step",
    "story_with",
    "without_step",
]

_Known = TypeVar("_Known", Act, Call)

Plant = Callable[[Story], Story]
"""Makes a wrong story of a good one."""


@dataclass(frozen=True)
class Planted:
    """A violation, and how it is found.

    Attributes:
        check: Finds it, and no other check does.
        says: Part of its sentence.
        good: The story in which it is planted.
        plant: Plants it.
    """

    check: Check
    says: str
    good: Callable[[], Story]
    plant: Plant


def both(*plants: Plant) -> Plant:
    """One after the other."""

    def plant(story: Story) -> Story:
        for one in plants:
            story = one(story)
        return story

    return plant


def story_with(**fields: Any) -> Plant:
    """Something else is known of the task."""
    return lambda story: replace(story, **fields)


def item(number: int, /, **fields: Any) -> Plant:
    """The work item is another one, in the ledger and in the query."""

    def plant(story: Story) -> Story:
        items = list(story.items)
        items[number] = items[number].model_copy(update=fields)
        return replace(story, items=items, listed=listed(items))

    return plant


def step(number: int, sequence: int, /, **fields: Any) -> Plant:
    """A transition of the work item is another one."""

    def plant(story: Story) -> Story:
        key = story.items[number].id
        log = list(story.transitions[key])
        log[sequence] = log[sequence].model_copy(update=fields)
        return replace(story, transitions={**story.transitions, key: log})

    return plant


def without_step(number: int, sequence: int) -> Plant:
    """A transition of the work item is missing."""

    def plant(story: Story) -> Story:
        key = story.items[number].id
        log = [one for one in story.transitions[key] if one.sequence != sequence]
        return replace(story, transitions={**story.transitions, key: log})

    return plant


def started(number: int, seconds: float) -> Plant:
    """The work item started at another time, by row and log."""
    return both(item(number, started_at=at(seconds)), step(number, 1, at=at(seconds)))


def ended(number: int, seconds: float) -> Plant:
    """The work item ended at another time, by row and log."""
    return both(item(number, ended_at=at(seconds)), step(number, -1, at=at(seconds)))


def job(number: int, /, **fields: Any) -> Plant:
    """The domain record of the work item is another one."""

    def plant(story: Story) -> Story:
        key = story.items[number].id
        return replace(story, jobs={**story.jobs, key: {**story.jobs[key], **fields}})

    return plant


def call(number: int, /, **fields: Any) -> Plant:
    """The provider knows something else of a request."""
    return lambda story: replace(story, calls=_changed(story.calls, number, fields))


def act(number: int, /, **fields: Any) -> Plant:
    """An operator knows something else of an action."""
    return lambda story: replace(story, acts=_changed(story.acts, number, fields))


def _changed(known: Sequence[_Known], number: int, fields: Mapping[str, Any]) -> list[_Known]:
    return [replace(one, **fields) if place == number else one for place, one in enumerate(known)]


def ending(**fields: Any) -> Plant:
    """The task ended in another way."""
    return lambda story: replace(story, ending=replace(story.ending, **fields))


def request(**fields: Any) -> Plant:
    """The task was asked something else."""
    return lambda story: replace(story, request=story.request.model_copy(update=fields))


nothing_seen: Plant = story_with(sightings=())
"""Nobody had looked into the ledger before."""
