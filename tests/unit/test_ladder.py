"""The ladder: from retry to feedback to another model, as a pure decision."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given, strategies as st

from tasquencer.ai.job import AiJob, ChatMessage
from tasquencer.ai.ladder import FALLBACK_ON, MOST_OUTPUT, climb, kept_output, provider_of
from tasquencer.ai.request import parse_request
from tasquencer.core.errors import InvalidRequest
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.json_values import as_json
from tasquencer.core.retry import RetryOn, RetryRecipe
from tasquencer.core.task_state import TaskState
from tasquencer.core.work_item import DelayReason, WorkItem, WorkItemState
from tests.unit.driving import after, failed, rate_limited, refused, task

ANTHROPIC = ["anthropic:large", "anthropic:small"]


def asked(recipe: RetryRecipe | None = None, **fields: Any) -> TaskState:
    state = task(recipe=recipe or RetryRecipe(), on_work_item_state_changed=climb)
    job = AiJob(messages=[ChatMessage(role="user", content="Why?")], **fields)
    state.begin(as_json(job, "the job"), now=after(0))
    return state


def follow(state: TaskState, *failures: Failure) -> WorkItem:
    """The last work item, after these failures one after the other."""
    for failure in failures:
        failed(state, state.latest().id, failure)
    return state.latest()


def invalid(output: str | None = "no json", problem: str = "it is no JSON") -> Failure:
    return Failure.of(FailureKind.INVALID_OUTPUT, problem, output=output)


def payload(item: WorkItem) -> dict[str, Any]:
    assert isinstance(item.payload, dict)
    return item.payload


def test_an_invalid_output_comes_back_to_the_model_with_what_is_wrong() -> None:
    item = follow(asked(), invalid())

    assert payload(item)["messages"] == [
        {"role": "user", "content": "Why?"},
        {"role": "assistant", "content": "no json"},
        {"role": "user", "content": "This answer cannot be used: it is no JSON. Answer again."},
    ]
    assert item.delay_reason is DelayReason.BACKOFF
    AiJob.model_validate(item.payload)


def test_only_the_last_invalid_output_comes_back() -> None:
    item = follow(asked(), invalid(), invalid("{}", "urgent: required"))

    assert [message["content"] for message in payload(item)["messages"]][1] == "{}"
    assert len(payload(item)["messages"]) == 3
    again = follow(asked(), invalid(), rate_limited())
    assert payload(again) == {"messages": [{"role": "user", "content": "Why?"}]}


def test_feedback_can_be_switched_off_and_needs_an_output() -> None:
    assert len(payload(follow(asked(feedback=False), invalid()))["messages"]) == 1
    assert len(payload(follow(asked(), invalid(None)))["messages"]) == 1


def test_another_provider_is_asked_without_a_wait() -> None:
    item = follow(asked(model="openai:big", fallback_models=ANTHROPIC), rate_limited(600))

    assert payload(item)["model"] == "anthropic:large"
    assert payload(item)["fallback_models"] == ["anthropic:small"]
    assert (item.delay_seconds, item.delay_reason) == (0, DelayReason.FALLBACK)


def test_another_model_of_the_same_provider_waits_as_asked() -> None:
    item = follow(asked(model="openai:big", fallback_models=ANTHROPIC), rate_limited(), rate_limited(600))

    assert payload(item)["model"] == "anthropic:small"
    assert "fallback_models" not in payload(item)
    assert (item.delay_seconds, item.delay_reason) == (600, DelayReason.RETRY_AFTER)


@pytest.mark.parametrize(("following", "waits"), [("default", True), ("openai", False)])
def test_what_the_call_says_of_the_providers_counts(following: str, waits: bool) -> None:
    known = {"provider": "default", "next_provider": following}
    failure = rate_limited(600).model_copy(update={"details": known})
    item = follow(asked(model="llama3:8b", fallback_models=["openai:big"]), failure)

    assert (item.delay_seconds == 600) is waits


def test_after_the_last_model_the_recipe_goes_on_with_it() -> None:
    state = asked(model="a:1", fallback_models=["b:1"])
    item = follow(state, rate_limited(), rate_limited())

    assert payload(item)["model"] == "b:1"
    assert (item.delay_seconds, item.delay_reason) == (2, DelayReason.BACKOFF)


def test_a_failure_that_is_not_retried_still_moves_on() -> None:
    state = asked(model="a:1", fallback_models=["b:1"])

    assert payload(follow(state, refused()))["model"] == "b:1"
    follow(state, refused())
    assert state.latest().state is WorkItemState.FAILED
    assert state.failure().type == "NotRetryable"


def test_only_the_kinds_that_are_named_move_on() -> None:
    state = asked(model="a:1", fallback_models=["b:1"], fallback_on=["refused"])
    assert payload(follow(state, rate_limited()))["model"] == "a:1"
    assert payload(follow(state, refused()))["model"] == "b:1"


def test_a_request_says_all_of_it() -> None:
    request = parse_request(
        {"prompt": "Why?", "fallback_models": ["b:1"], "fallback_on": ["refused"], "feedback": False}
    )
    job = request.job()
    assert (job.fallback_models, job.fallback_on, job.feedback) == (["b:1"], ["refused"], False)
    for wrong, name in (
        ({"fallback_on": ["refused"]}, "fallback_on: only with fallback_models"),
        ({"fallback_models": []}, "fallback_models"),
        ({"fallback_models": ["b"], "fallback_on": ["bad luck"]}, "fallback_on.0"),
    ):
        with pytest.raises(InvalidRequest, match=name):
            parse_request({"prompt": "Why?", **wrong})


def test_a_model_names_its_provider() -> None:
    assert provider_of("openai:gpt-5") == "openai"
    assert provider_of("gpt-5") is provider_of(None) is None


def test_a_failure_keeps_the_beginning_of_a_long_output() -> None:
    assert kept_output("x" * MOST_OUTPUT) == "x" * MOST_OUTPUT
    assert len(kept_output("x" * 1_000_000)) == MOST_OUTPUT


KINDS = st.sampled_from([kind for kind in FailureKind if kind is not FailureKind.OPERATOR])
FAILURES = st.lists(
    st.builds(
        lambda kind, wait, output: Failure.of(kind, "…", retry_after_seconds=wait, output=output),
        KINDS,
        st.none() | st.integers(0, 1000),
        st.none() | st.text(min_size=1, max_size=5),
    ),
    min_size=1,
    max_size=12,
)
MODELS = st.lists(st.sampled_from(["a:1", "a:2", "b:1", "c"]), max_size=4)


@given(FAILURES, MODELS, st.integers(0, 6), st.sampled_from(RetryOn))
def test_any_failures_stay_within_the_bounds(
    failures: list[Failure], models: list[str], max_retries: int, retry_on: RetryOn
) -> None:
    recipe = RetryRecipe(max_retries=max_retries, retry_on=retry_on)
    state = asked(recipe, model="a:1", fallback_models=models or None)
    for failure in failures:
        item = state.latest()
        if item.state.is_terminal:
            break
        failed(state, item.id, failure)

    items = state.work_items()
    assert len(items) <= max_retries + 1
    assert [payload(item)["model"] for item in items] == list(_climbed(models, items))
    for before, item in pairwise(items):
        ended = before.failure
        assert ended is not None
        if item.delay_reason is DelayReason.FALLBACK:
            assert provider_of(payload(before)["model"]) != provider_of(payload(item)["model"])
            assert ended.kind in FALLBACK_ON
        else:
            assert item.delay_seconds >= max(ended.retry_after_seconds or 0, 2.0**before.attempt)
        said = [message["role"] for message in payload(item)["messages"]]
        assert said in (["user"], ["user", "assistant", "user"])
        AiJob.model_validate(item.payload)


def _climbed(models: list[str], items: list[WorkItem]) -> Iterator[str]:
    """The models that these attempts should have asked."""
    left = ["a:1", *models]
    for item in items:
        yield left[0]
        if item.failure is not None and item.failure.kind in FALLBACK_ON and len(left) > 1:
            left = left[1:]
