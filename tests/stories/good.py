"""Good stories: what a task leaves behind in which everything went as promised."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from tasquencer.core.failure import Failure, FailureKind
from tests.stories.playing import Play, at
from tests.stories.story import CANCEL_TASK, Given, Reply, Story

__all__ = [
    "canceled",
    "decided_again",
    "exhausted",
    "expired",
    "fan_out",
    "fan_out_failed",
    "forgotten",
    "given_up",
    "hurried_in_vain",
    "impatient",
    "retried_by_hand",
    "too_late",
]


def retried_by_hand() -> Story:
    """Rate limited (w0), hurried and failed by a person (w1), answered (w2)."""
    play = Play(prompt="?", retry={"initial_interval_seconds": 10})
    play.fails("w0", 0, 3, FailureKind.RATE_LIMITED, 30.0)
    play.look()
    told = {"work_item_ids": ["w1"]}
    hurrier = play.act("retry_now", 1, 4, Reply.ACCEPTED, value=told)
    again = replace(play.acts[0], actor="operator-2")
    play.acts.append(again)
    play.call("w1", 5, 9.5, Given("stall", "timed_out", endless=True), hurrier)
    play.act("cancel_work_item", 3, 6, Reply.REFUSED, "w0")
    failer = play.act("fail_work_item", 4, 8, Reply.ACCEPTED, "w1")
    failure = Failure.of(FailureKind.OPERATOR, f"failed by {failer}")
    play.state.fail("w1", failure, now=at(9), actor=failer, reason=f"because {failer} says so")
    play.completes("w2", 29, 32)
    play.act("retry_now", 5, 35, Reply.GONE)
    play.act(CANCEL_TASK, 6, 36, Reply.ACCEPTED)
    return play.story("completed", 33)


def exhausted() -> Story:
    """Two tries that fail, and no third."""
    play = Play(prompt="?", max_retries=1, attempt_timeout_seconds=5)
    play.fails("w0", 0, 3, FailureKind.PROVIDER_ERROR)
    play.call("w1", 4, 10, Given("stall", "timed_out", endless=True))
    play.state.fail("w1", Failure.of(FailureKind.TIMED_OUT, "no answer"), now=at(10))
    return play.story("failed", 11)


def too_late() -> Story:
    """The wait would end after the deadline."""
    play = Play(prompt="?", deadline_seconds=20, retry={"initial_interval_seconds": 18})
    play.fails("w0", 1, 4, FailureKind.UNREACHABLE)
    return play.story("failed", 5)


def canceled() -> Story:
    """A task that is canceled in its call."""
    play = Play(prompt="?")
    play.call("w0", 0, 5, Given("stall", "timed_out", endless=True))
    play.act(CANCEL_TASK, 1, 3, Reply.ACCEPTED)
    play.state.close(now=at(5), reason="the task was canceled")
    return play.story("canceled", 6, cancel_at=at(4))


def given_up() -> Story:
    """Somebody cancels the work item, which fails the task."""
    play = Play(prompt="?")
    play.call("w0", 0, 5, Given("stall", "timed_out", endless=True))
    who = play.act("cancel_work_item", 1, 3, Reply.ACCEPTED, "w0")
    play.state.cancel("w0", now=at(4), actor=who, reason=f"canceled by {who}: because {who} says so")
    return play.story("failed", 6)


def expired() -> Story:
    """The retry could have started in time, but nobody was there."""
    play = Play(prompt="?", deadline_seconds=20, retry={"initial_interval_seconds": 5})
    play.fails("w0", 0, 3, FailureKind.UNREACHABLE)
    play.state.expire("w1", now=at(21))
    return play.story("failed", 22)


def impatient() -> Story:
    """A policy that does not wait for the retry."""
    play = Play(prompts=["1?", "2?"], policy="fail_fast")
    play.fails("w0", 0, 3, FailureKind.UNREACHABLE)
    return play.story("failed", 4)


def hurried_in_vain() -> Story:
    """One at once: the retry whose wait is ended gets no turn before the task ends."""
    policy = {"name": "require_successes", "successes": 1}
    play = Play(prompts=["1?", "2?"], concurrency=1, policy=policy)
    play.fails("w0", 0, 3, FailureKind.UNREACHABLE)
    play.act("retry_now", 1, 4, Reply.ACCEPTED, value={"work_item_ids": ["w2"]}, recorded=frozenset())
    play.completes("w1", 3, 6)
    return play.story("completed", 7)


def decided_again() -> Story:
    """The last workflow task came to nothing and was done again: the ledger keeps what it has."""
    story = exhausted()
    later = at(11).isoformat().replace("+00:00", "Z")
    told = [*story.listed[:-1], {**story.listed[-1], "ended_at": later}]
    return replace(story, listed=told, lost_at=frozenset({at(10)}))


def forgotten() -> Story:
    """A workflow task put a retry into the ledger and came to nothing; then the task was canceled."""
    play = Play(prompt="?", retry={"initial_interval_seconds": 10})
    play.fails("w0", 0, 3, FailureKind.PROVIDER_ERROR)
    play.state.close(now=at(5), reason="the task was canceled")
    story = play.story("canceled", 6, cancel_at=at(4))
    ended_at = at(5).isoformat().replace("+00:00", "Z")
    return replace(story, listed=[{**story.listed[0], "ended_at": ended_at}], lost_at=frozenset({at(3)}))


def fan_out(policy: Any = None) -> Story:
    """Three prompts, two at once: the second is refused, the others are answered."""
    policy = policy or {"name": "absorb_failures", "limit": 1}
    play = Play(prompts=["1?", "2?", "3?"], concurrency=2, policy=policy)
    play.completes("w0", 0, 3)
    play.fails("w1", 0, 4, FailureKind.REFUSED)
    play.completes("w2", 3, 6)
    return play.story("completed", 7)


def fan_out_failed(policy: Any = "until_exhausted") -> Story:
    """Three prompts, two at once: the second is refused, and the others end with the task."""
    play = Play(prompts=["1?", "2?", "3?"], concurrency=2, policy=policy)
    play.call("w0", 0, 5, Given("stall", "timed_out", endless=True))
    play.fails("w1", 0, 4, FailureKind.REFUSED)
    return play.story("failed", 6)
