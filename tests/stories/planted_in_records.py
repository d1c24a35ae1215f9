"""Violations of `record_checks`."""

from __future__ import annotations

from dataclasses import replace

from tasquencer.core.work_item import WorkItemState
from tests.stories.good import canceled, decided_again, forgotten, retried_by_hand
from tests.stories.planting import Planted, both, call, item, job, step, story_with, without_step
from tests.stories.playing import at
from tests.stories.record_checks import (
    nothing_stays_open,
    paths_are_legal,
    the_ai_jobs_agree,
    the_history_replays,
    the_query_agrees_with_the_ledger,
    what_ended_never_changed,
)
from tests.stories.story import Story

__all__ = ["IN_RECORDS"]


def _lists_one_more(story: Story) -> Story:
    return replace(story, listed=[*story.listed, {**story.listed[-1], "id": "w9"}])


def _lists_the_newest_first(story: Story) -> Story:
    return replace(story, listed=story.listed[::-1])


def _lists_one_less(story: Story) -> Story:
    return replace(story, listed=story.listed[:2])


def _lists_another_end(story: Story) -> Story:
    return replace(story, listed=[{**story.listed[0], "ended_at": None}, *story.listed[1:]])


def _has_no_job(story: Story) -> Story:
    return replace(story, jobs={key: job for key, job in story.jobs.items() if key != "w1"})


NEVER_SETTLED = both(
    item(0, state=WorkItemState.STARTED, ended_at=None), without_step(0, 2), job(0, status="started")
)
CREATED_LATE = both(item(0, created_at=at(1), not_before=at(0)), step(0, 0, at=at(1)))

IN_RECORDS = [
    Planted(paths_are_legal, "its path is initialized → failed", retried_by_hand, without_step(0, 1)),
    Planted(paths_are_legal, "are numbered [0, 2, 2]", retried_by_hand, step(0, 1, sequence=2)),
    Planted(paths_are_legal, "do not follow one another", retried_by_hand, step(0, 1, previous_state=None)),
    Planted(
        paths_are_legal,
        "the row is failed, the log says completed",
        retried_by_hand,
        step(0, 2, next_state=WorkItemState.COMPLETED),
    ),
    Planted(paths_are_legal, "row and log disagree on its times", retried_by_hand, step(0, 1, at=at(1))),
    Planted(paths_are_legal, "its times run backwards", canceled, CREATED_LATE),
    Planted(what_ended_never_changed, "was failed and has changed", retried_by_hand, item(0, worker="x")),
    Planted(
        what_ended_never_changed,
        "retry 1 has disappeared from the ledger",
        canceled,
        story_with(sightings=retried_by_hand().items[1:2]),
    ),
    Planted(nothing_stays_open, "the task is closed, first try is started", canceled, NEVER_SETTLED),
    Planted(
        nothing_stays_open,
        "the task is closed, request w0 went on",
        retried_by_hand,
        call(0, ended_at=at(39)),
    ),
    Planted(
        nothing_stays_open, "the task is closed, request w0 went on", retried_by_hand, call(0, ended_at=None)
    ),
    Planted(the_query_agrees_with_the_ledger, "does not list retry 2", retried_by_hand, _lists_one_less),
    Planted(the_query_agrees_with_the_ledger, "the query lists w9", retried_by_hand, _lists_one_more),
    Planted(the_query_agrees_with_the_ledger, "the oldest first", retried_by_hand, _lists_the_newest_first),
    Planted(the_query_agrees_with_the_ledger, "ended_at is", retried_by_hand, _lists_another_end),
    Planted(
        the_query_agrees_with_the_ledger,
        "retry 1: ended_at is",
        decided_again,
        story_with(lost_at=frozenset({at(9)})),
    ),
    Planted(
        the_query_agrees_with_the_ledger,
        "the query does not list retry 1",
        forgotten,
        step(1, 1, reason="it was no longer wanted"),
    ),
    Planted(the_ai_jobs_agree, "its AI job is None", retried_by_hand, _has_no_job),
    Planted(the_ai_jobs_agree, "its AI job is", retried_by_hand, job(0, prompt="!")),
    Planted(the_ai_jobs_agree, "its AI job is", retried_by_hand, job(0, attempt=1)),
    Planted(the_ai_jobs_agree, "its AI job is", retried_by_hand, job(0, status="started")),
    Planted(the_ai_jobs_agree, "its AI job is", retried_by_hand, job(0, last_error=None)),
    Planted(the_ai_jobs_agree, "its AI job is", retried_by_hand, job(2, result=None)),
    Planted(the_history_replays, "does not replay: changed", retried_by_hand, story_with(replay="changed")),
]
