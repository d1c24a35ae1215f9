"""The ladder: what the next attempt at an AI call asks, and which model it asks.

One recipe decides about every failed attempt. After an answer that does not fit, the next attempt also tells
the model what was wrong with it. After a failure for which the request names further models, the next attempt
asks the next of them.
"""

from __future__ import annotations

from datetime import timedelta
from typing import cast

from pydantic import JsonValue

from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.hooks import NextAttempt, StateChange, retry_by_recipe
from tasquencer.core.retry import Delay
from tasquencer.core.work_item import DelayReason, WorkItemState

__all__ = ["FALLBACK_ON", "MOST_OUTPUT", "climb", "kept_output", "provider_of"]

FALLBACK_ON = (
    FailureKind.RATE_LIMITED,
    FailureKind.QUOTA_EXCEEDED,
    FailureKind.PROVIDER_ERROR,
    FailureKind.TIMED_OUT,
    FailureKind.UNREACHABLE,
    FailureKind.UNAUTHORIZED,
    FailureKind.REFUSED,
    FailureKind.INVALID_OUTPUT,
)
"""The kinds of failure after which the next model is asked, where the request names none."""

MOST_OUTPUT = 8_000
"""Characters of an invalid output that its failure keeps."""

_FEEDBACK = 2
"""Messages of one feedback."""


def kept_output(text: str) -> str:
    """An invalid output as its failure keeps it, in `details["output"]`."""
    return text if len(text) <= MOST_OUTPUT else text[: MOST_OUTPUT - 1] + "…"


def provider_of(model: str | None) -> str | None:
    """The provider that a model's name begins with: `anthropic` in `anthropic:claude-…`."""
    prefix, colon, _ = (model or "").partition(":")
    return prefix if colon else None


def climb(change: StateChange) -> NextAttempt | None:
    """The hook of AI calls: the recipe decides, with feedback and with the next model.

    A move to another provider does not wait: the delay that the first one asked for is not the second one's.
    The recipe's `max_retries` bounds all attempts together. The recipe retries attempts that are not AI
    calls.
    """
    item = change.work_item
    job, failure, recipe = item.payload, item.failure, change.recipe
    if change.transition.next_state is not WorkItemState.FAILED or failure is None:
        return None
    if not isinstance(job, dict) or "messages" not in job:
        return retry_by_recipe(change)
    moved = _moved(job, failure)
    if moved is None or item.attempt >= recipe.max_retries:
        decision = recipe.after_failure(item.attempt, failure, change.jitter)
        if not isinstance(decision, Delay):
            return None
        delay = decision
    elif _is_another_provider(job, failure, moved):
        delay = Delay(timedelta(0), DelayReason.FALLBACK)
    else:
        delay = recipe.delay(item.attempt, failure, change.jitter)
    return NextAttempt(_told(job if moved is None else moved, failure), delay)


def _moved(job: dict[str, JsonValue], failure: Failure) -> dict[str, JsonValue] | None:
    """The job with the next model; None if there is none, or if the failure is no reason to move."""
    left = job.get("fallback_models")
    if not isinstance(left, list) or not left or failure.kind not in _reasons(job):
        return None
    moved = {name: value for name, value in job.items() if name != "fallback_models"}
    moved["model"] = left[0]
    return moved if len(left) == 1 else {**moved, "fallback_models": left[1:]}


def _reasons(job: dict[str, JsonValue]) -> list[JsonValue]:
    given = job.get("fallback_on")
    return given if isinstance(given, list) else [*FALLBACK_ON]


def _is_another_provider(job: dict[str, JsonValue], failure: Failure, moved: dict[str, JsonValue]) -> bool:
    """Return whether the next model is another provider's; the call knows best, if it was made."""
    asked, following = failure.details.get("provider"), failure.details.get("next_provider")
    if isinstance(asked, str) and isinstance(following, str):
        return asked != following
    return provider_of(cast("str | None", job.get("model"))) != provider_of(cast("str", moved["model"]))


def _told(job: dict[str, JsonValue], failure: Failure) -> dict[str, JsonValue]:
    """The job with feedback on an invalid output of the attempt before, without that on earlier ones."""
    messages = cast("list[JsonValue]", job["messages"])
    told = job.get("feedback_messages", 0)
    if isinstance(told, int) and told:
        messages = messages[:-told]
    job = {name: value for name, value in job.items() if name != "feedback_messages"}
    output = failure.details.get("output")
    if failure.kind == FailureKind.INVALID_OUTPUT and isinstance(output, str) and job.get("feedback", True):
        feedback: list[JsonValue] = [
            {"role": "assistant", "content": output},
            {"role": "user", "content": f"This answer cannot be used: {failure.message}. Answer again."},
        ]
        return {**job, "messages": [*messages, *feedback], "feedback_messages": _FEEDBACK}
    return {**job, "messages": messages}
