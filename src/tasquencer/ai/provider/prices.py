"""The price of an AI call: from your own file (`TASQ_PRICES`), else from the list of `genai-prices`."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from tasquencer.core.errors import WrongSetting

__all__ = ["OwnPrice", "Price", "PriceList", "own_prices", "price_list"]

Price = Callable[[str, int, int], float | None]
"""Returns US dollars for a model, input tokens and output tokens, or None if the price is unknown."""

_SETTING = "TASQ_PRICES"
_MILLION = 1_000_000


@dataclass(frozen=True)
class OwnPrice:
    """The price of your own model, in US dollars per million tokens."""

    input: float
    output: float
    cached_input: float
    cache_write: float

    def of_usage(
        self, input_tokens: int, output_tokens: int, *, cached_tokens: int, cache_write_tokens: int
    ) -> float:
        """US dollars."""
        plain = input_tokens - cached_tokens - cache_write_tokens
        dollars = (
            plain * self.input + cached_tokens * self.cached_input + cache_write_tokens * self.cache_write
        )
        return (dollars + output_tokens * self.output) / _MILLION


class PriceList:
    """Uses your own prices first, then those of the provider at the URL, then the model maker's."""

    def __init__(self, base_url: str, own: Mapping[str, OwnPrice]) -> None:
        # The import of the list takes about 0.4 s, so it happens at the worker's start.
        from genai_prices import Usage, calc_price

        self._base_url = base_url
        self._own = own
        self._usage = Usage
        self._calculate = calc_price

    def __call__(self, model: str, input_tokens: int, output_tokens: int) -> float | None:
        """Return US dollars without any cached tokens."""
        return self.of_usage(model, input_tokens, output_tokens, cached_tokens=0, cache_write_tokens=0)

    def of_usage(
        self,
        model: str,
        input_tokens: int,
        output_tokens: int,
        *,
        cached_tokens: int,
        cache_write_tokens: int,
    ) -> float | None:
        """Return US dollars. `cached_tokens` and `cache_write_tokens` are part of the input tokens."""
        own = self._own_price(model)
        if own is not None:
            return own.of_usage(
                input_tokens,
                output_tokens,
                cached_tokens=cached_tokens,
                cache_write_tokens=cache_write_tokens,
            )
        cached = {"cache_read_tokens": cached_tokens, "cache_write_tokens": cache_write_tokens}
        usage = self._usage(
            input_tokens=input_tokens,
            output_tokens=output_tokens,
            **{name: count for name, count in cached.items() if count},
        )
        try:
            return float(self._calculate(usage, model, provider_api_url=self._base_url).total_price)
        except LookupError:
            pass
        try:
            return float(self._calculate(usage, model).total_price)
        except LookupError:
            return None

    def _own_price(self, model: str) -> OwnPrice | None:
        if model in self._own:
            return self._own[model]
        return next((price for name, price in self._own.items() if fnmatchcase(model, name)), None)


def price_list(base_url: str, own: Mapping[str, OwnPrice] | None = None) -> PriceList:
    """Return the prices for a client with this base URL. `own` takes precedence."""
    return PriceList(base_url, own or {})


def own_prices(environment: Mapping[str, str]) -> dict[str, OwnPrice]:
    """Return the prices in the file that `TASQ_PRICES` names, by model. Empty if it is not set.

        ["llama-3.3-70b"]      # a model, or a pattern such as "my-llama-*"
        input = 0.60           # US dollars for a million tokens
        output = 0.90
        cached_input = 0.30    # optional: input tokens from the provider's cache
        cache_write = 0.75     # optional: input tokens that are written to it

    Raises:
        WrongSetting: the file cannot be read, or has another content.
    """
    path = environment.get(_SETTING, "").strip()
    if not path:
        return {}
    try:
        read = tomllib.loads(Path(path).expanduser().read_text(encoding="utf-8"))
    except OSError as error:
        raise WrongSetting(_SETTING, f"{path} cannot be read: {error.strerror or error}") from error
    except ValueError as error:  # not TOML, or not UTF-8
        raise WrongSetting(_SETTING, f"{path} is not TOML: {error}") from error
    return {model: _own_price(path, model, table) for model, table in read.items()}


def _own_price(path: str, model: str, table: Any) -> OwnPrice:
    names = ("input", "output", "cached_input", "cache_write")
    if not isinstance(table, dict) or not {"input", "output"} <= table.keys() <= set(names):
        found = ", ".join(table) if isinstance(table, dict) else repr(table)
        expected = "a table with input and output, and optionally cached_input and cache_write"
        raise WrongSetting(_SETTING, f"{path}: [{model!r}] must be {expected}; found {found or 'nothing'}")
    for name, value in table.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not value >= 0 or not math.isfinite(value):
            expected = "US dollars for a million tokens, 0 or more"
            raise WrongSetting(_SETTING, f"{path}: [{model!r}] {name} must be {expected}, found {value!r}")
    price = float(table["input"])
    return OwnPrice(
        input=price,
        output=float(table["output"]),
        cached_input=float(table.get("cached_input", price)),
        cache_write=float(table.get("cache_write", price)),
    )
