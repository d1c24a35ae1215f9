"""The request and the result of a fan-out."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest

from tasquencer.ai.fan_out import MAXIMUM_FAN_OUT_BYTES, AiFanOutResult, parse_fan_out
from tasquencer.core.errors import InvalidRequest
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.named_policy import NamedPolicy
from tasquencer.core.policy import fail_fast, until_exhausted
from tasquencer.core.work_item import DelayReason, WorkItem, WorkItemState

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (None, 'the input must be one JSON object such as {"prompts": ["…", "…"]}, not nothing'),
        ({}, "prompts: Field required"),
        ({"prompts": []}, "prompts: List should have at least 1 item"),
        ({"prompts": ["a", ""]}, "prompts.1: must not be empty"),
        ({"prompts": ["a"] * 501}, "prompts: List should have at most 500 items"),
        ({"prompts": ["a"] * 500, "max_retries": 4}, "could make 2,500 work items, the limit is 2,000"),
        ({"prompts": ["a"], "concurrency": 0}, "concurrency: Input should be greater than or equal to 1"),
        ({"prompts": ["a"], "policy": "hope"}, "policy.name: Input should be 'absorb_failures'"),
        ({"prompts": ["a"], "policy": "require_successes"}, "policy: successes must be given"),
        (
            {"prompts": ["a"], "policy": {"name": "fail_fast", "limit": 1}},
            "policy: limit and fraction belong to absorb_failures",
        ),
        (
            {"prompts": ["a"], "policy": {"name": "require_successes", "successes": 2}},
            "policy.successes: 2 are required of only 1 prompt",
        ),
        ({"prompts": ["a"], "promts": 1}, "promts: unknown field (did you mean 'prompts'?)"),
        ({"prompts": ["x" * MAXIMUM_FAN_OUT_BYTES]}, "prompts: the request has "),
    ],
)
def test_a_wrong_request_is_refused_by_the_name_of_the_field(raw: object, expected: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_fan_out(raw)
    assert expected in str(refused.value)


def test_a_policy_may_be_told_by_its_name_alone() -> None:
    assert parse_fan_out({"prompts": ["a"], "policy": "fail_fast"}).policy.decide() is fail_fast
    assert parse_fan_out({"prompts": ["a"]}).policy == NamedPolicy(name="absorb_failures")
    assert NamedPolicy(name="until_exhausted").decide() is until_exhausted


def test_each_prompt_is_a_job_with_the_options_of_all() -> None:
    first, second = parse_fan_out({"prompts": ["a", "b"], "system": "Be brief.", "model": "m"}).jobs()
    assert (first.prompt, second.prompt) == ("a", "b")
    assert {message.role for message in second.messages} == {"system", "user"}
    assert (first.model, second.model) == ("m", "m")


def item(number: int, attempt: int, state: WorkItemState, **facts: object) -> WorkItem:
    return WorkItem.model_validate(
        {
            "id": f"w{number}-{attempt}",
            "task_id": "t",
            "run_id": "r",
            "task_type": "AiFanOutTask",
            "lineage": f"prompt-{number}",
            "attempt": attempt,
            "state": state,
            "payload": None,
            "delay_seconds": 0,
            "delay_reason": DelayReason.FIRST_TRY,
            "not_before": NOON,
            "created_at": NOON,
            **facts,
        }
    )


def test_the_results_are_in_the_order_of_the_prompts_each_with_its_attempts() -> None:
    gone = Failure.of(FailureKind.UNREACHABLE, "connection refused")
    result = AiFanOutResult.of(
        [
            item(2, 0, WorkItemState.FAILED, failure=gone),
            item(1, 0, WorkItemState.FAILED, failure=gone),
            item(3, 0, WorkItemState.CANCELED),
            item(1, 1, WorkItemState.COMPLETED, result={"text": "one", "input_tokens": 3}),
        ],
        3,
    )
    one, two, three = result.results
    assert (one.text, one.attempts, one.work_item_id, one.input_tokens) == ("one", 2, "w1-1", 3)
    assert two.failure is not None
    assert (two.text, two.attempts, two.failure.kind) == (None, 1, "unreachable")
    assert (three.text, three.failure) == (None, None)
    assert (result.completed, result.failed, result.canceled) == (1, 1, 1)


def test_answers_that_do_not_fit_one_result_are_omitted_and_it_says_so() -> None:
    large = [item(n, 0, WorkItemState.COMPLETED, result={"text": "x" * 900_000}) for n in (1, 2, 3)]
    lost = item(4, 0, WorkItemState.COMPLETED, result=None)
    result = AiFanOutResult.of([*large, lost], 4)
    assert [found.omitted for found in result.results] == [False, False, True, True]
    assert len(result.model_dump_json().encode()) < 2 * 1024 * 1024
