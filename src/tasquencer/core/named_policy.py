"""A policy by its name: how an input chooses one of those in `tasquencer.core.policy`."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tasquencer.core.policy import TaskPolicy, absorb_failures, fail_fast, require_successes, until_exhausted
from tasquencer.core.validation import RequestModel, Whole
from tasquencer.core.wording import counted

__all__ = ["NamedPolicy", "policy_by_name"]


class NamedPolicy(RequestModel):
    """A policy by its name, with its limits; see `tasquencer.core.policy`. Its name alone is enough.

    Attributes:
        limit: Of `absorb_failures`: so many prompts may end without an answer; None: any number.
        fraction: Of `absorb_failures`: this part of all prompts may; None: any part.
        successes: Of `require_successes`, where it must be given.
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
        """Why so many prompts cannot reach what the policy requires; None: they can."""
        if self.successes is None or self.successes <= prompts:
            return None
        return f"{self.successes} are required of only {counted(prompts, 'prompt')}"

    def is_reached_by(self, answers: int) -> bool:
        """Whether so many answers are all that the policy requires."""
        return self.successes is not None and answers >= self.successes

    def decide(self) -> TaskPolicy:
        """The policy itself."""
        if self.successes is not None:
            return require_successes(self.successes)
        if self.name == "absorb_failures":
            return absorb_failures(self.limit, self.fraction)
        return fail_fast if self.name == "fail_fast" else until_exhausted


def policy_by_name(value: object) -> object:
    """A policy's bare name as the object that `NamedPolicy` is."""
    return {"name": value} if isinstance(value, str) else value
