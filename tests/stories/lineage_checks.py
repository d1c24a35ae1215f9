"""Checks of each lineage by itself: its retries, their delays, the deadline; and of the limit they share."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta
from itertools import pairwise

from tasquencer.core.task_state import TASK_ACTOR
from tasquencer.core.work_item import DelayReason, WorkItem, WorkItemState
from tests.stories.record_checks import TICK
from tests.stories.story import Story, label_of

__all__ = [
    "each_lineage_is_bounded",
    "no_more_at_once_than_allowed",
    "no_retry_is_left_out",
    "nothing_starts_after_the_deadline",
    "nothing_starts_early",
    "why_no_retry",
]


def nothing_starts_early(story: Story) -> Iterator[str]:
    """I4."""
    for items in story.lineages.values():
        first = items[0]
        if (first.delay_seconds, first.delay_reason) != (0, DelayReason.FIRST_TRY):
            yield f"I4: {label_of(first)} has a delay"
        if first.started_at is not None and first.started_at < first.not_before:
            yield f"I4: {label_of(first)} started before its not_before"
        for before, item in pairwise(items):
            if item.delay_reason is DelayReason.OPERATOR:
                yield from _was_hurried(story, item)
            else:
                yield from _waited(story, before, item)


def _was_hurried(story: Story, item: WorkItem) -> Iterator[str]:
    name = f"I4: {label_of(item)} was hurried"
    starts = [step for step in story.transitions[item.id] if step.next_state is WorkItemState.STARTED]
    if not starts or starts[0].actor == TASK_ACTOR or item.started_at is None:
        yield f"{name} by nobody"
    elif item.not_before != item.started_at:
        yield f"{name}, its not_before is not its start"
    elif abs(item.started_at - item.created_at - timedelta(seconds=item.delay_seconds)) > TICK:
        yield f"{name}, its delay is not what it waited"


def _waited(story: Story, before: WorkItem, item: WorkItem) -> Iterator[str]:
    if before.ended_at is None or before.failure is None:
        return  # that is another complaint
    name, recipe = f"I4: {label_of(item)}", story.request.recipe()
    delay = timedelta(seconds=item.delay_seconds)
    if item.created_at != before.ended_at:
        yield f"{name} was not recorded when the try before failed"
    if abs(item.not_before - before.ended_at - delay) > TICK:
        yield f"{name}: its not_before is not the end before plus the delay"
    if item.started_at is not None and item.started_at < before.ended_at + delay - TICK:
        yield f"{name} started early"
    asked = timedelta(seconds=before.failure.retry_after_seconds or 0)
    backoff = recipe.initial_interval * recipe.backoff_coefficient**before.attempt
    base = max(asked, min(backoff, recipe.maximum_interval or backoff))
    if not base - TICK <= delay <= base * (1 + recipe.jitter) + TICK:
        yield f"{name} waits {item.delay_seconds} s, the recipe says {base.total_seconds()} s"
    elif item.delay_reason != ("retry_after" if asked == base > backoff else "backoff"):
        yield f"{name}: the reason for its wait is {item.delay_reason}"


def each_lineage_is_bounded(story: Story) -> Iterator[str]:
    """I5."""
    for lineage in story.lineages.keys() - story.prompts.keys():
        yield f"I5: lineage {lineage} was never asked for"
    for lineage, items in story.lineages.items():
        if [item.attempt for item in items] != list(range(len(items))):
            yield f"I5: the attempts of {lineage} are numbered {[item.attempt for item in items]}"
        elif len(items) > (most := story.request.max_retries + 1):
            yield f"I5: {lineage} has {len(items)} work items, at most {most} are allowed"
        elif any(item.state is not WorkItemState.FAILED for item in items[:-1]):
            yield f"I5: in {lineage} a work item follows one that did not fail"


def nothing_starts_after_the_deadline(story: Story) -> Iterator[str]:
    """A task with a deadline begins nothing at or after it."""
    for item in story.items:
        if story.deadline is not None and item.started_at is not None and item.started_at >= story.deadline:
            yield f"{label_of(item)} started after the deadline"


def no_more_at_once_than_allowed(story: Story) -> Iterator[str]:
    """The concurrency of a fan-out bounds the work items that are started."""
    started = [item for item in story.items if item.started_at is not None]
    for item in started:
        at = item.started_at
        if at is None or story.concurrency is None:
            continue
        # A place that is free at a moment may be taken in the same moment.
        others = [
            one for one in started if one.started_at and one.started_at <= at < (one.ended_at or at + TICK)
        ]
        if len(others) > story.concurrency:
            yield f"{len(others)} work items were started at once, {story.concurrency} are allowed"
            return


def no_retry_is_left_out(story: Story) -> Iterator[str]:
    """A lineage that ends with a failure has no retry left, unless its task was canceled meanwhile."""
    for items in story.lineages.values():
        last, cancel_at = items[-1], story.ending.cancel_at
        if last.state is not WorkItemState.FAILED or last.ended_at is None:
            continue
        if (cancel_at is None or last.ended_at < cancel_at) and why_no_retry(story, last) is None:
            yield f"I7: nothing follows {label_of(last)}, though a retry is left"


def why_no_retry(story: Story, item: WorkItem) -> str | None:
    """The type of failure that forbids a retry of the failed work item; None: nothing forbids it."""
    recipe = story.request.recipe()
    if item.failure is None or item.ended_at is None:
        return None
    if not recipe.qualifies(item.failure):
        return "NotRetryable"
    if item.attempt >= recipe.max_retries:
        return "RetriesExhausted"
    longest = recipe.delay(item.attempt, item.failure, 1.0).duration
    late = story.deadline is not None and item.ended_at + longest >= story.deadline
    return "DeadlineExceeded" if late else None
