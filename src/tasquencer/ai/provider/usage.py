"""Tokens and cost of an answer, from the provider's report."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tasquencer.ai.provider.prices import Price, PriceList
from tasquencer.ai.provider.reply import token_count

__all__ = ["ReportedUsage", "usage_in"]

_HIGHEST_COST = 1_000_000.0
"""US dollars. A higher reported cost of one answer is ignored."""


@dataclass(frozen=True)
class ReportedUsage:
    """The usage of an answer. A field is None if the provider does not report it.

    Attributes:
        input_tokens: All input tokens, cached ones included.
        output_tokens: All output tokens, reasoning included.
        cached_tokens: Input tokens from the provider's cache.
        cache_write_tokens: Input tokens that were written to the cache at a separate price.
        reasoning_tokens: Output tokens for reasoning.
        reported_cost: The cost that the provider reports, in US dollars.
    """

    input_tokens: int | None = None
    output_tokens: int | None = None
    cached_tokens: int | None = None
    cache_write_tokens: int | None = None
    reasoning_tokens: int | None = None
    reported_cost: float | None = None

    def cost(self, price: Price, models: Iterable[str]) -> float | None:
        """Return the reported US dollars, else the price by the first of these models that has one."""
        if self.reported_cost is not None:
            return self.reported_cost
        if self.input_tokens is None or self.output_tokens is None:
            return None
        for model in models:
            try:
                if isinstance(price, PriceList):
                    cost = price.of_usage(
                        model,
                        self.input_tokens,
                        self.output_tokens,
                        cached_tokens=self.cached_tokens or 0,
                        cache_write_tokens=self.cache_write_tokens or 0,
                    )
                else:
                    cost = price(model, self.input_tokens, self.output_tokens)
            except Exception:  # noqa: BLE001 - a paid answer is worth more than its price
                cost = None
            if cost is not None and math.isfinite(cost) and cost >= 0:
                return cost
        return None


def usage_in(completion: Mapping[str, Any], headers: Mapping[str, str]) -> ReportedUsage:
    """Return the usage that a completion reports.

    Some providers do not count reasoning tokens in `completion_tokens`, but in the total.
    """
    usage = _object(completion.get("usage"))
    read = _first(usage, "prompt_tokens", "input_tokens")
    written = _first(usage, "completion_tokens", "output_tokens")
    total = _first(usage, "total_tokens")
    into = _object(usage.get("prompt_tokens_details")) or _object(usage.get("input_tokens_details"))
    out = _object(usage.get("completion_tokens_details")) or _object(usage.get("output_tokens_details"))
    reasoning = _first(out, "reasoning_tokens")
    if reasoning is None:
        reasoning = _first(usage, "reasoning_tokens")
    if total is not None and read is not None and total - read > (written or 0):
        if reasoning is None and written is not None:
            reasoning = total - read - written
        written = total - read
    elif total is not None and read is None and written is not None and total >= written:
        read = total - written
    cached = _first(into, "cached_tokens", "cache_read_tokens")
    if cached is None:
        cached = _first(usage, "prompt_cache_hit_tokens", "cached_tokens", "cache_read_input_tokens")
    stored = _first(into, "cache_write_tokens", "cache_creation_tokens")
    if stored is None:
        stored = _first(usage, "cache_creation_input_tokens")
    return ReportedUsage(
        input_tokens=read,
        output_tokens=written,
        cached_tokens=_within(cached, read),
        cache_write_tokens=_within(stored, None if read is None else read - (_within(cached, read) or 0)),
        reasoning_tokens=_within(reasoning, written),
        reported_cost=_reported_cost(completion, usage, headers),
    )


def _reported_cost(
    completion: Mapping[str, Any], usage: Mapping[str, Any], headers: Mapping[str, str]
) -> float | None:
    cost = usage.get("cost")
    if isinstance(cost, Mapping):  # Perplexity
        cost = cost.get("total_cost")
    upstream = _dollars(_object(usage.get("cost_details")).get("upstream_inference_cost"))
    fee = _dollars(cost)
    if fee is not None and upstream is not None and (usage.get("is_byok") is True or fee == 0):
        return fee + upstream  # OpenRouter with your own key: its fee, and the upstream price
    for reported in (cost, usage.get("total_cost"), usage.get("estimated_cost")):
        if (dollars := _dollars(reported)) is not None:
            return dollars
    return _dollars(headers.get("x-litellm-response-cost"))


def _dollars(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    if isinstance(value, str) and (not value.isascii() or "_" in value):
        return None
    try:
        dollars = float(value)
    except (ValueError, OverflowError):
        return None
    return dollars if 0 <= dollars <= _HIGHEST_COST else None


def _object(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _first(values: Mapping[str, Any], *names: str) -> int | None:
    found = (token_count(values.get(name)) for name in names)
    return next((count for count in found if count is not None), None)


def _within(part: int | None, whole: int | None) -> int | None:
    """Return the part if it is at most the whole, else None, because it is not plausible."""
    return part if part is not None and whole is not None and part <= whole else None
