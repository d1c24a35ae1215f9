"""Violations of `call_checks`."""

from __future__ import annotations

from dataclasses import replace

from tasquencer.core.failure import Failure, FailureKind
from tests.stories.call_checks import each_end_has_its_cause, each_request_has_its_work_item
from tests.stories.good import canceled, exhausted, fan_out, retried_by_hand
from tests.stories.planting import Planted, both, call, ended, ending, item, job
from tests.stories.playing import at
from tests.stories.story import Given, Story

__all__ = ["IN_CALLS"]

WORKER_LOST = Failure.of(FailureKind.WORKER_LOST, "no heartbeat")


def _one_more_request(story: Story) -> Story:
    return replace(story, calls=[*story.calls, story.calls[0]])


def _a_stranger_s_request(story: Story) -> Story:
    return replace(story, calls=[*story.calls, replace(story.calls[0], key="w9")])


def _no_request(story: Story) -> Story:
    return replace(story, calls=story.calls[:2])


FAILS_FOR_A_LOST_WORKER = both(
    item(1, failure=WORKER_LOST),
    job(1, last_error=str(WORKER_LOST)),
    ending(message=f"retry 1 failed with {WORKER_LOST}"),
)
GIVES_UP_EARLY = both(ended(1, 8), ending(closed_at=at(11)))
GOES_ON = both(ended(0, 5), call(0, ended_at=at(10.5)))

IN_CALLS = [
    Planted(
        each_request_has_its_work_item, "I2: 2 requests of first try", retried_by_hand, _one_more_request
    ),
    Planted(
        each_request_has_its_work_item,
        "I1: request w9 belongs to no work item",
        retried_by_hand,
        _a_stranger_s_request,
    ),
    Planted(
        each_request_has_its_work_item,
        "I1: first try was initialized when its request arrived",
        retried_by_hand,
        call(0, held=("initialized",)),
    ),
    Planted(
        each_request_has_its_work_item,
        "I1: first try was unknown when its request arrived",
        retried_by_hand,
        call(0, held=()),
    ),
    Planted(
        each_request_has_its_work_item,
        "I1: the request of retry 2 arrived before its start",
        retried_by_hand,
        call(2, at=at(28)),
    ),
    Planted(
        each_request_has_its_work_item,
        "I1: the request of prompt-1: first try arrived after its end",
        fan_out,
        call(0, at=at(9)),
    ),
    Planted(
        each_end_has_its_cause,
        "completed with 'answer to w2', the provider's answer is Given(name='ok', kind=None, text='no'",
        retried_by_hand,
        call(2, given=Given("ok", text="no")),
    ),
    Planted(
        each_end_has_its_cause,
        "completed with 'answer to w2', the provider's answer is Given(name='closed'",
        retried_by_hand,
        call(2, given=Given("closed", "unreachable", text="answer to w2")),
    ),
    Planted(
        each_end_has_its_cause, "completed with 'answer to w2'", retried_by_hand, call(2, complete=False)
    ),
    Planted(each_end_has_its_cause, "the provider's answer is None", retried_by_hand, _no_request),
    Planted(each_end_has_its_cause, "went on after the work item had ended", canceled, GOES_ON),
    Planted(each_end_has_its_cause, "was not disconnected", canceled, call(0, client_left=False)),
    Planted(
        each_end_has_its_cause,
        "retry 1 failed with worker_lost, no worker died",
        exhausted,
        FAILS_FOR_A_LOST_WORKER,
    ),
    Planted(each_end_has_its_cause, "retry 1 timed out before its time", exhausted, GIVES_UP_EARLY),
    Planted(
        each_end_has_its_cause,
        "failed with rate_limited, the provider's answer is",
        retried_by_hand,
        call(0, given=Given("closed", "unreachable", retry_after=30.0)),
    ),
    Planted(
        each_end_has_its_cause,
        "failed with a Retry-After of 30.0 s, the provider asked for 40.0 s",
        retried_by_hand,
        call(0, given=Given("rate_limited", "rate_limited", retry_after=40.0)),
    ),
]
