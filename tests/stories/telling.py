"""Tells a story in the order of time, for the reader of a failed test."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from tasquencer.core.work_item import Transition, WorkItem, WorkItemState
from tests.stories.story import Act, Call, Story, label_of

__all__ = ["told"]


def told(story: Story) -> str:
    """The story in order of time, in seconds since the task's start."""
    start = story.ending.started_at
    lines = sorted(_lines(story), key=lambda line: line[0])
    return "\n".join(f"  {(at - start).total_seconds():8.3f}  {line}" for at, line in lines)


def _lines(story: Story) -> Iterator[tuple[datetime, str]]:
    names = {item.id: f"{label_of(item)} ({item.id[:8]})" for item in story.items}
    ending = story.ending
    asked = story.request.model_dump(mode="json", exclude_defaults=True)
    yield ending.started_at, f"task {story.task_id} {asked}"
    if ending.cancel_at is not None:
        yield ending.cancel_at, "the task is to be canceled"
    for at in story.lost_at:
        yield at, "a workflow task begins that comes to nothing"
    for at in story.deaths:
        yield at, "a worker dies"
    for item in story.items:
        for step in story.transitions.get(item.id, ()):
            yield step.at, _step(names[item.id], item, step)
    for call in story.calls:
        yield from _call(names.get(call.key or "", call.key or "nothing"), call)
    for act in story.acts:
        yield from _act(names.get(act.work_item_id or "", act.work_item_id or ""), act)
    outcome = dict(ending.result) or f"{ending.type} {ending.message}"
    yield ending.closed_at, f"task {ending.state} {outcome}"


def _step(name: str, item: WorkItem, step: Transition) -> str:
    said = f"{name} {step.next_state} by {step.actor}"
    if step.next_state is WorkItemState.STARTED:
        said += f" after {item.delay_seconds:g} s {item.delay_reason}"
    if step.next_state is WorkItemState.FAILED:
        said += f" {item.failure}"
    return f"{said}: {step.reason}" if step.reason else said


def _call(name: str, call: Call) -> Iterator[tuple[datetime, str]]:
    ledger = "" if call.held is None else f"; ledger: {'/'.join(call.held)}"
    yield call.at, f"request of {name}, answer {call.given.name}{ledger}"
    if call.ended_at is not None:
        how = "the client left" if call.client_left else "answered" if call.complete else "broken off"
        yield call.ended_at, f"request of {name} over: {how}"


def _act(name: str, act: Act) -> Iterator[tuple[datetime, str]]:
    yield act.sent_at, f"{act.actor} sends {act.name} {name} as {act.update_id}"
    yield act.answered_at, f"{act.actor} gets: {act.reply} {act.says or dict(act.value)}"
