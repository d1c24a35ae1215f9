"""Checks of what is written: the ledger by itself, beside the query, its domain records and the history."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime, timedelta
from itertools import pairwise

from tests.stories.story import Story, label_of, text_of

__all__ = [
    "LAG",
    "TICK",
    "nothing_stays_open",
    "paths_are_legal",
    "the_ai_jobs_agree",
    "the_history_replays",
    "the_query_agrees_with_the_ledger",
    "what_ended_never_changed",
]

LAG = timedelta(seconds=5)
"""A call learns of its cancellation in the answer to a heartbeat, and the machine may be busy."""

TICK = timedelta(microseconds=1)
"""What a time may lose on its way through a float."""

_LEGAL_PATHS = {
    ("initialized", "canceled"),
    *(("initialized", "started", end) for end in ("completed", "failed", "canceled")),
}


def paths_are_legal(story: Story) -> Iterator[str]:
    """Each work item goes a legal path to one end, and its row says the same as its log."""
    for item in story.items:
        log, name = story.transitions.get(item.id, []), label_of(item)
        path = tuple(step.next_state.value for step in log)
        if path not in _LEGAL_PATHS:
            if path and item.state is log[-1].next_state and not item.state.is_terminal:
                continue  # it dangles, which is another complaint
            yield f"{name}: its path is {' → '.join(path) or 'empty'}"
            continue
        if [step.sequence for step in log] != list(range(len(log))):
            yield f"{name}: its transitions are numbered {[step.sequence for step in log]}"
        if [step.previous_state for step in log] != [None, *(step.next_state for step in log[:-1])]:
            yield f"{name}: its transitions do not follow one another"
        if item.state is not log[-1].next_state:
            yield f"{name}: the row is {item.state}, the log says {log[-1].next_state}"
        times = [item.created_at, *([item.started_at] if item.started_at else []), item.ended_at]
        if [step.at for step in log] != times:
            yield f"{name}: row and log disagree on its times"
        if any(earlier > later for earlier, later in pairwise(step.at for step in log)):
            yield f"{name}: its times run backwards"


def what_ended_never_changed(story: Story) -> Iterator[str]:
    """I3."""
    now = {item.id: item for item in story.items}
    for seen in story.sightings:
        if seen.id not in now:
            yield f"I3: {label_of(seen)} has disappeared from the ledger"
        elif seen.state.is_terminal and seen != now[seen.id]:
            yield f"I3: {label_of(seen)} was {seen.state} and has changed since"


def nothing_stays_open(story: Story) -> Iterator[str]:
    """I6."""
    for item in story.items:
        if not item.state.is_terminal:
            yield f"I6: the task is closed, {label_of(item)} is {item.state}"
    for call in story.calls:
        if call.ended_at is None or call.ended_at > story.ending.closed_at + LAG:
            yield f"I6: the task is closed, request {call.key} went on"


def the_query_agrees_with_the_ledger(story: Story) -> Iterator[str]:
    """The task's own answer agrees with the ledger."""
    told = {row["id"]: row for row in story.listed}
    for item in story.items:
        if item.id not in told and item.id not in story.forgotten:
            yield f"the query does not list {label_of(item)}"
    for stranger in told.keys() - {item.id for item in story.items}:
        yield f"the query lists {stranger}, the ledger does not know it"
    created = [str(row["created_at"]) for row in story.listed]
    if created != sorted(created):
        yield "the query does not list the oldest first"
    # The first two are large and are not listed, the third only the ledger knows.
    left_out = {"payload", "result", "worker"}
    for item in story.items:
        if item.id in told:
            row, theirs = item.model_dump(mode="json", exclude=left_out), told[item.id]
            for name in row:
                if row[name] != theirs.get(name) and not _was_decided_again(story, getattr(item, name)):
                    yield (
                        f"{label_of(item)}: {name} is {row[name]!r} in the ledger, "
                        f"{theirs.get(name)!r} in the query"
                    )


def _was_decided_again(story: Story, in_the_ledger: object) -> bool:
    """Whether this is the time of a workflow task that came to nothing: the ledger keeps what it wrote."""
    return isinstance(in_the_ledger, datetime) and any(
        abs(in_the_ledger - at) <= TICK for at in story.lost_at
    )


def the_ai_jobs_agree(story: Story) -> Iterator[str]:
    """The domain record of each work item says the same as the work item."""
    for item in story.items:
        job = story.jobs.get(item.id)
        wanted = {
            "prompt": story.prompts.get(item.lineage, job and job["prompt"]),
            "attempt": item.attempt,
            "status": "pending" if item.state == "initialized" else item.state.value,
            "result": text_of(item),
            "last_error": str(item.failure) if item.failure is not None else None,
        }
        found = None if job is None else {name: job.get(name) for name in wanted}
        if found != wanted:
            yield f"{label_of(item)}: its AI job is {found}, expected {wanted}"


def the_history_replays(story: Story) -> Iterator[str]:
    """I10, of this release."""
    if story.replay:
        yield f"I10: the history does not replay: {story.replay}"
