"""A policy by its name, so that an input can choose one from `tasquencer.core.policy`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasquencer.core.policy import TaskPolicy, absorb_failures, fail_fast, require_successes, until_exhausted
from tasquencer.core.validation import RequestModel, Whole
from tasquencer.core.wording import counted

__all__ = ["NamedPolicy", "policy_by_name"]


class NamedPolicy(RequestModel):
    """A policy by its name, with its limits. See `tasquencer.core.policy`. An input may be the name alone.

    Attributes:
        limit: For `absorb_failures`: how many prompts may end without an answer. None: any number.
        fraction: For `absorb_failures`: the part of all prompts that may end without one. None: any part.
        successes: For `require_successes`, which needs it: how many prompts must be answered.
    """

    name: Literal["absorb_failures", "require_successes", "until_exhausted", "fail_fast"] = "absorb_failures"
    limit: Annotated[Whole, Field(ge=0)] | None = None
    fraction: Annotated[float, Field(ge=0, le=1)] | None = None
    successes: Annotated[Whole, Field(ge=1)] | None = None

    @model_validator(mode="after")
    def _has_limits_of_its_own_only(self) -> Self:
        if self.name != "absorb_failures" and (self.limit is not None or self.fraction is not None):
            raise ValueError("limit and fraction belong to absorb_failures")
        if (self.name == "require_successes") != (self.successes is not None):
            raise ValueError("successes must be given with require_successes, and only with it")
        return self

    def problem_with(self, prompts: int) -> str | None:
        """Return why this number of prompts cannot satisfy the policy, or None if it can."""
        if self.successes is None or self.successes <= prompts:
            return None
        return f"{self.successes} are required of only {counted(prompts, 'prompt')}"

    def is_reached_by(self, answers: int) -> bool:
        """Return whether this number of answers satisfies the policy."""
        return self.successes is not None and answers >= self.successes

    def decide(self) -> TaskPolicy:
        """The policy itself."""
        if self.successes is not None:
            return require_successes(self.successes)
        if self.name == "absorb_failures":
            return absorb_failures(self.limit, self.fraction)
        return fail_fast if self.name == "fail_fast" else until_exhausted


def policy_by_name(value: object) -> object:
    """Turn a bare name into the object that `NamedPolicy` reads."""
    return {"name": value} if isinstance(value, str) else value
