"""Violations of `ending_checks`."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tasquencer.core.named_policy import NamedPolicy
from tests.stories.ending_checks import a_cancel_is_obeyed, the_end_says_what_happened, the_policy_decides
from tests.stories.good import (
    canceled,
    exhausted,
    expired,
    fan_out,
    fan_out_failed,
    given_up,
    impatient,
    retried_by_hand,
)
from tests.stories.planting import Plant, Planted, act, both, call, ended, ending, item, request, step
from tests.stories.playing import at
from tests.stories.story import Story

__all__ = ["IN_ENDINGS"]

BEGINS_AFTER_THE_CANCEL = both(
    item(0, created_at=at(5), started_at=at(5), not_before=at(5)),
    step(0, 0, at=at(5)),
    step(0, 1, at=at(5)),
    call(0, at=at(5)),
    ending(cancel_seen_at=at(4)),
)
GOES_ON_AFTER_THE_CANCEL = both(
    ended(0, 11), call(0, ended_at=at(11)), ending(closed_at=at(12), cancel_seen_at=at(4))
)
GOES_ON_AFTER_THE_DECISION = both(ended(2, 5), call(0, ended_at=at(5)))


def _by(**policy: Any) -> Plant:
    return request(policy=NamedPolicy(**policy))


def _another_text(story: Story) -> Story:
    results = [{**row, "text": "no"} for row in story.ending.result["results"]]
    return replace(story, ending=replace(story.ending, result={**story.ending.result, "results": results}))


def _miscounts(story: Story) -> Story:
    return replace(story, ending=replace(story.ending, result={**story.ending.result, "failed": 2}))


IN_ENDINGS = [
    Planted(
        a_cancel_is_obeyed,
        "ended canceled, nobody canceled it",
        canceled,
        both(ending(cancel_at=None), act(0, answered_at=at(7))),
    ),
    Planted(
        a_cancel_is_obeyed,
        "the cancel of operator-6 was accepted, the history does not know it",
        retried_by_hand,
        act(5, answered_at=at(32)),
    ),
    Planted(a_cancel_is_obeyed, "was canceled, yet it completed", retried_by_hand, ending(cancel_at=at(33))),
    Planted(a_cancel_is_obeyed, "was canceled, yet it failed", exhausted, ending(cancel_at=at(10.5))),
    Planted(a_cancel_is_obeyed, "first try began after the", canceled, BEGINS_AFTER_THE_CANCEL),
    Planted(a_cancel_is_obeyed, "first try went on after the", canceled, GOES_ON_AFTER_THE_CANCEL),
    Planted(
        the_policy_decides,
        "the task failed, its policy had not decided",
        fan_out_failed,
        _by(name="absorb_failures", limit=1),
    ),
    Planted(
        the_policy_decides,
        "the task failed, its policy had not decided",
        fan_out_failed,
        _by(name="absorb_failures", fraction=0.4),
    ),
    Planted(
        the_policy_decides,
        "the task failed, its policy had not decided",
        fan_out_failed,
        _by(name="require_successes", successes=2),
    ),
    Planted(
        the_policy_decides,
        "the task completed, by its policy it failed",
        fan_out,
        _by(name="absorb_failures", fraction=0.3),
    ),
    Planted(
        the_policy_decides,
        "the task completed, by its policy it failed",
        fan_out,
        _by(name="until_exhausted"),
    ),
    Planted(
        the_policy_decides, "the task completed, by its policy it failed", fan_out, _by(name="fail_fast")
    ),
    Planted(
        the_policy_decides,
        "the task completed, by its policy it failed",
        fan_out,
        _by(name="require_successes", successes=3),
    ),
    Planted(
        the_policy_decides,
        "prompt-3: first try went on after the policy had decided",
        fan_out,
        _by(name="require_successes", successes=1),
    ),
    Planted(
        the_policy_decides,
        "prompt-3: first try went on after the policy had decided",
        fan_out_failed,
        ended(2, 5),
    ),
    Planted(
        the_policy_decides,
        "prompt-3: first try was canceled before its task ended",
        fan_out_failed,
        ended(2, 3),
    ),
    Planted(the_policy_decides, "first try was canceled before its task ended", canceled, ended(0, 3)),
    Planted(
        the_end_says_what_happened,
        "the task failed as DeadlineExceeded, expected TaskFailed",
        given_up,
        ending(type="DeadlineExceeded"),
    ),
    Planted(
        the_end_says_what_happened,
        "the task failed as TaskFailed, expected DeadlineExceeded",
        expired,
        ending(type="TaskFailed"),
    ),
    Planted(
        the_end_says_what_happened,
        "the task failed as RetriesExhausted, expected TaskFailed",
        impatient,
        ending(type="RetriesExhausted"),
    ),
    Planted(the_end_says_what_happened, "is not that of retry 2", retried_by_hand, ending(result={})),
    Planted(the_end_says_what_happened, "are not those of the work items", fan_out, _another_text),
    Planted(the_end_says_what_happened, "the result counts 2 failed, found 1", fan_out, _miscounts),
    Planted(
        the_end_says_what_happened,
        "the task failed as TaskFailed, expected RetriesExhausted",
        exhausted,
        ending(type="TaskFailed"),
    ),
    Planted(
        the_end_says_what_happened,
        "the task failed as RetriesExhausted, expected NotRetryable",
        fan_out_failed,
        ending(type="RetriesExhausted"),
    ),
    Planted(the_end_says_what_happened, "does not say what failed: no", exhausted, ending(message="no")),
]
