"""Tokens and cost of an answer, of an attempt, and of many attempts together."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Self

from pydantic import BaseModel, ConfigDict, JsonValue, ValidationError

from tasquencer.core.work_item import WorkItem

__all__ = ["Usage", "UsageSum", "facts_of", "total_usage"]


class Usage(BaseModel):
    """Tokens and cost. Models inherit from it, so that their JSON has the three fields at the top level.

    Attributes:
        input_tokens, output_tokens: None if the provider did not report them.
        cost_usd: None if the price of the model or the tokens are unknown.
    """

    model_config = ConfigDict(frozen=True)

    input_tokens: int | None = None
    output_tokens: int | None = None
    cost_usd: float | None = None

    @property
    def usage(self) -> Usage:
        """Return only these three fields."""
        return Usage(input_tokens=self.input_tokens, output_tokens=self.output_tokens, cost_usd=self.cost_usd)

    @classmethod
    def sum_of(cls, parts: Iterable[Usage]) -> Self:
        """Add up the parts, each field over the parts that have it. Otherwise it keeps its default."""
        sums: dict[str, float] = {}
        for part in parts:
            for name in Usage.model_fields:
                if (value := getattr(part, name)) is not None:
                    sums[name] = sums.get(name, 0) + value
        return cls.model_validate(sums)


class UsageSum(Usage):
    """Tokens and cost of many rows. Tokens that no row reports count as 0."""

    input_tokens: int = 0
    output_tokens: int = 0


def facts_of(work_item: WorkItem) -> Mapping[str, JsonValue]:
    """Model, tokens and cost that an AI work item reports about its call, also if it failed."""
    if isinstance(work_item.result, dict):
        return work_item.result
    return work_item.failure.details if work_item.failure is not None else {}


def total_usage(work_items: Iterable[WorkItem]) -> Usage:
    """Return tokens and cost of all these attempts, failed ones included."""
    return Usage.sum_of(_usage(work_item) for work_item in work_items)


def _usage(work_item: WorkItem) -> Usage:
    facts = facts_of(work_item)
    try:
        return Usage.model_validate({name: facts.get(name) for name in Usage.model_fields})
    except ValidationError:  # the details of a failure may have any content
        return Usage()
