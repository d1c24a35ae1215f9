"""What an AI call cost, from the price list that comes with `genai-prices` (no network)."""

from __future__ import annotations

from collections.abc import Callable

__all__ = ["Price", "price_list"]

Price = Callable[[str, int, int], float | None]
"""From model, input tokens and output tokens to US dollars; None where the price is unknown."""


def price_list(base_url: str) -> Price:
    """Prices of the provider behind the URL, or, where the list does not know it, of the model's maker.

    Importing the list takes some 0.4 s, which belongs into the worker's start and not into its first call:
    it happens here and not when this module is imported.
    """
    from genai_prices import Usage, calc_price

    def price(model: str, input_tokens: int, output_tokens: int) -> float | None:
        usage = Usage(input_tokens=input_tokens, output_tokens=output_tokens)
        try:
            return float(calc_price(usage, model, provider_api_url=base_url).total_price)
        except LookupError:
            pass
        try:
            return float(calc_price(usage, model).total_price)
        except LookupError:
            return None

    return price
