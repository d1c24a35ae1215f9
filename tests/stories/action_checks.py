"""Checks of the actions: every accepted one is in the ledger with its actor, once; no other left a trace."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from tasquencer.core.task_state import TASK_ACTOR
from tasquencer.core.work_item import Transition, WorkItemState
from tests.stories.story import CANCEL_TASK, LEADS_TO, Act, Reply, Story

__all__ = ["each_action_counts_once"]


@dataclass(frozen=True)
class _Action:
    """What was sent under one update id, and what came of it."""

    acts: Sequence[Act]
    steps: Sequence[Transition]

    @property
    def accepted(self) -> list[Act]:
        return [act for act in self.acts if act.reply is Reply.ACCEPTED]

    def __str__(self) -> str:
        return f"{self.acts[0].name} {self.acts[0].update_id}"


def each_action_counts_once(story: Story) -> Iterator[str]:
    """See the module."""
    steps = defaultdict[str, list[Transition]](list)
    for item in story.items:
        for step in story.transitions[item.id]:
            steps[step.actor].append(step)
    for stranger in sorted(steps.keys() - {TASK_ACTOR} - {act.actor for act in story.acts}):
        yield f"{stranger} acted, but never asked to"
    acts = defaultdict[str, list[Act]](list)
    for act in story.acts:
        if act.name != CANCEL_TASK:
            acts[act.update_id].append(act)
    for same in acts.values():
        action = _Action(same, [step for act in same for step in steps[act.actor]])
        if any(act.reply is Reply.LOST for act in same):
            yield f"{action} was taken on and never answered"
        if action.accepted:
            yield from _did_it_once(story, action)
        elif action.steps:
            yield f"{action} was not accepted, yet it acted"


def _did_it_once(story: Story, action: _Action) -> Iterator[str]:
    told = action.accepted[0].told
    if any(act.value != action.accepted[0].value for act in action.accepted):
        yield f"{action} was answered in two ways"
        return
    made = Counter(step.work_item_id for step in action.steps)
    for work_item_id, times in made.items():
        if times > 1:
            yield f"{action} acted on {work_item_id} {times} times"
        if work_item_id not in told:
            yield f"{action} acted on {work_item_id}, the answer names {told}"
    for work_item_id in told:
        if work_item_id not in made and not _never_had_its_turn(story, action, work_item_id):
            yield f"{action} was accepted and did nothing to {work_item_id}"
    for step in action.steps:
        yield from _did_what_it_says(story, action, step)


def _never_had_its_turn(story: Story, action: _Action, work_item_id: str) -> bool:
    """In a fan-out a work item whose wait is ended may wait for its turn, and then end with the task."""
    if action.acts[0].name != "retry_now" or story.concurrency is None:
        return False
    path = [step.next_state for step in story.transitions.get(work_item_id, ())]
    return path == [WorkItemState.INITIALIZED, WorkItemState.CANCELED]


def _did_what_it_says(story: Story, action: _Action, step: Transition) -> Iterator[str]:
    act = next(act for act in action.acts if act.actor == step.actor)
    if step.next_state is not LEADS_TO[act.name]:
        yield f"{action} led to {step.next_state}"
    if act.work_item_id not in (None, step.work_item_id):
        yield f"{action} acted on {step.work_item_id}, it was meant for {act.work_item_id}"
    if act.reason not in (step.reason or ""):
        yield f"{action}: its reason is not in the ledger"
    first, last = min(one.sent_at for one in action.acts), max(one.answered_at for one in action.accepted)
    waits_for_its_turn = story.concurrency is not None and act.name == "retry_now"
    if step.at < first or (step.at > last and not waits_for_its_turn):
        yield f"{action} acted at {step.at}, not between question and answer"
    looked = [one.recorded for one in action.accepted if one.recorded is not None]
    if any(step.actor not in recorded for recorded in looked) and not waits_for_its_turn:
        yield f"{action} was answered before it was in the ledger"
