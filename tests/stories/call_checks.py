"""I1 and I2, and what each work item ended with: the ledger beside the log of the provider."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from datetime import timedelta

from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.task_state import TASK_ACTOR
from tasquencer.core.work_item import WorkItem, WorkItemState
from tests.stories.record_checks import LAG
from tests.stories.story import Call, Story, label_of, text_of

__all__ = ["each_end_has_its_cause", "each_request_has_its_work_item"]

_WITHOUT_AN_ANSWER = (FailureKind.TIMED_OUT, FailureKind.WORKER_LOST, FailureKind.WORKER_SHUTDOWN)
"""Kinds of failure that need no answer, and not even a request."""

_SHORTEST_CALL = timedelta(seconds=1)
"""What a call gets at least where the deadline is near."""


def each_request_has_its_work_item(story: Story) -> Iterator[str]:
    """I1 and I2."""
    items = {item.id: item for item in story.items}
    for key, number in Counter(call.key for call in story.calls).items():
        if key not in items:
            yield f"I1: request {key} belongs to no work item"
        elif number > 1:
            yield f"I2: {number} requests of {label_of(items[key])}"
    for call in story.calls:
        if call.key not in items:
            continue
        item, name = items[call.key], label_of(items[call.key])
        if call.held is not None and "started" not in call.held:
            yield f"I1: {name} was {'/'.join(call.held) or 'unknown'} when its request arrived"
        # A start carries the time of its decision, so it is earlier than its record, which is earlier
        # than the request; all three by the clock of one machine.
        elif item.started_at is None or call.at < item.started_at:
            yield f"I1: the request of {name} arrived before its start"
        elif item.ended_at is not None and call.at > item.ended_at + LAG:
            yield f"I1: the request of {name} arrived after its end"


def each_end_has_its_cause(story: Story) -> Iterator[str]:
    """What a work item ended with is what the provider answered, unless somebody else ended it."""
    for item in story.items:
        call, name = story.call_of(item), label_of(item)
        if item.started_at is None or item.ended_at is None:
            continue
        if story.ended_by(item) != TASK_ACTOR or item.state is WorkItemState.CANCELED:
            yield from _the_call_was_stopped(item, call)
        elif item.state is WorkItemState.COMPLETED:
            answered = call is not None and call.given.kind is None and call.complete
            if call is None or not answered or text_of(item) != call.given.text:
                given = None if call is None else call.given
                yield f"{name} completed with {text_of(item)!r}, the provider's answer is {given}"
        elif item.failure is not None and item.failure.kind in _WITHOUT_AN_ANSWER:
            yield from _no_answer_came(story, item, item.failure)
        elif item.failure is not None:
            yield from _the_failure_is_the_provider_s(item, item.failure, call)


def _the_call_was_stopped(item: WorkItem, call: Call | None) -> Iterator[str]:
    if call is None or item.ended_at is None:
        return  # it ended before its request was sent
    if call.ended_at is None or call.ended_at > item.ended_at + LAG:
        yield f"the request of {label_of(item)} went on after the work item had ended"
    elif call.given.endless and not call.client_left:
        yield f"the request of {label_of(item)} was not disconnected"


def _no_answer_came(story: Story, item: WorkItem, failure: Failure) -> Iterator[str]:
    start, end = item.started_at, item.ended_at
    if start is None or end is None:
        return
    if failure.kind != FailureKind.TIMED_OUT:
        if not any(start - LAG <= death <= end for death in story.deaths):
            yield f"{label_of(item)} failed with {failure.kind}, no worker died or was stopped"
        return
    limit = timedelta(seconds=story.request.attempt_timeout_seconds)
    if story.deadline is not None:
        # What is left is reckoned at the start, and the deadline may have come nearer until the call is made.
        limit = min(limit, max(story.deadline - start, _SHORTEST_CALL) - LAG / 10)
    if end - start < limit:
        yield f"{label_of(item)} timed out before its time"


def _the_failure_is_the_provider_s(item: WorkItem, failure: Failure, call: Call | None) -> Iterator[str]:
    name, given = f"{label_of(item)} failed with", None if call is None else call.given
    if given is None or failure.kind != given.kind:
        yield f"{name} {failure.kind}, the provider's answer is {given}"
    elif failure.retry_after_seconds != given.retry_after:
        asked = f"the provider asked for {given.retry_after} s"
        yield f"{name} a Retry-After of {failure.retry_after_seconds} s, {asked}"
