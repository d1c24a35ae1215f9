"""Recognizes the activities of other frameworks' agents, on the activity side of a worker."""

from __future__ import annotations

import json
import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from functools import lru_cache
from importlib.util import find_spec
from typing import Any

from pydantic import JsonValue
from temporalio.api.common.v1 import Payload
from temporalio.converter import PayloadConverter

from tasquencer.ai.agents.failures import facts_of_failure, failure_of_agent
from tasquencer.ai.agents.openai_agents import RUN_HEADER
from tasquencer.ai.agents.reading import AgentStep
from tasquencer.ai.agents.steps import answer_facts, step_of
from tasquencer.ai.provider.prices import Price, own_prices, price_list
from tasquencer.core.failure import Failure
from tasquencer.temporal.foreign import as_json

__all__ = ["AgentSteps", "RetryWarnings", "client_retries", "prices_here"]

_FRAMEWORKS = ("pydantic_ai", "agents")

_log = logging.getLogger(__name__)


class AgentSteps:
    """Reads the steps of agents. One per worker.

    Args:
        converter: The client's payload converter.
    """

    def __init__(self, converter: PayloadConverter) -> None:
        self._converter = converter
        self._price_of = prices_here()
        self._retries = RetryWarnings()

    def step(
        self, activity_type: str, args: Sequence[Any], headers: Mapping[str, Payload], function: object
    ) -> AgentStep | None:
        """Return the agent's step in the activity, or None if it belongs to no known agent."""
        is_in_agent_run = _is_in_agent_run(headers)
        if step_of(activity_type, None, is_in_agent_run=is_in_agent_run) is None:
            return None  # as most activities: without looking at what it was given
        try:
            first = as_json(args[0], self._converter, sys.maxsize) if args else None
            step = step_of(activity_type, first, is_in_agent_run=is_in_agent_run)
        except Exception:  # noqa: BLE001 - a shape that nobody foresaw must not fail somebody's activity
            _log.exception("activity %s could not be read as a step of an agent", activity_type)
            return None
        self._retries.look(activity_type, function)
        return step

    def answer(self, step: AgentStep, result: object) -> dict[str, JsonValue]:
        """Return the facts in the result of a model request, in the names of `AiAnswer`."""
        return answer_facts(step, as_json(result, self._converter, sys.maxsize), self._price_of)

    def failure(self, error: BaseException, native: Failure) -> Failure:
        """Return the failure of a model request."""
        return failure_of_agent(error, native, now=datetime.now(UTC))

    def facts_of_failure(
        self, step: AgentStep, error: BaseException, failure: Failure
    ) -> dict[str, JsonValue]:
        """Return the facts about a failed model request, in the names of `AiAnswer`."""
        return facts_of_failure(error, failure, step, self._price_of)


def prices_here() -> Callable[[str | None], Price | None]:
    """Prices by the provider's base URL; of no provider if no framework is installed, or no price list.

    Raises:
        WrongSetting: `TASQ_PRICES` names no usable file.
    """
    if not any(find_spec(name) for name in _FRAMEWORKS) or not find_spec("genai_prices"):
        return lambda _url: None
    own = own_prices(os.environ)

    @lru_cache(maxsize=16)
    def price_of(url: str | None) -> Price | None:
        return price_list(url or "", own)

    price_of(None)  # the import of the list is slow, so do it at the worker's start
    return price_of


def _is_in_agent_run(headers: Mapping[str, Payload]) -> bool:
    """Return whether the OpenAI Agents SDK has started the activity in an agent's run."""
    header = headers.get(RUN_HEADER)
    if header is None:
        return False
    try:
        found = json.loads(header.data)
    except ValueError:
        return False
    return isinstance(found, dict) and bool(found.get("traceId"))


class RetryWarnings:
    """Warns once of each model activity whose client repeats requests by itself. One per worker."""

    def __init__(self) -> None:
        self._looked_at: set[str] = set()

    def look(self, activity_type: str, function: object) -> None:
        """Warn if this activity is a model request whose client is seen to repeat it.

        Args:
            function: The activity's.
        """
        if activity_type in self._looked_at:
            return
        self._looked_at.add(activity_type)
        step = step_of(activity_type, None)
        retries = client_retries(function) if step is not None and step.asked is not None else 0
        if retries:
            _log.warning(
                "activity %s: its model client repeats failed requests by itself (max_retries=%d). The "
                "ledger sees only the last request of each attempt. Give the client max_retries=0.",
                activity_type,
                retries,
            )


_MOST_LOOKED_AT = 400

_CLIENTS = ("openai", "anthropic", "groq")


def client_retries(function: object) -> int:
    """Return how often the client of a model activity repeats a request automatically, if that can be found.

    Looks for the client among the objects of the activity's function. 0 if there is none.
    """
    for one in _held_by(function):
        package = type(one).__module__.partition(".")[0]
        retries = getattr(one, "max_retries", None) if package in _CLIENTS else None
        if isinstance(retries, int) and not isinstance(retries, bool) and retries > 0:
            return retries
    return 0


def _held_by(function: object) -> Iterator[object]:
    pending, seen = [function], set[int]()
    while pending and len(seen) < _MOST_LOOKED_AT:
        one = pending.pop(0)
        if one is None or isinstance(one, str | bytes | int | float | type) or id(one) in seen:
            continue
        seen.add(id(one))
        yield one
        if callable(one):
            pending += [getattr(one, "__self__", None), getattr(one, "__wrapped__", None)]
            pending += [_content(cell) for cell in getattr(one, "__closure__", None) or ()]
        if isinstance(one, Mapping):
            pending += list(one.values())[:20]
        elif _is_of_framework(one):
            pending += list(getattr(one, "__dict__", {}).values())


def _is_of_framework(one: object) -> bool:
    package = type(one).__module__.partition(".")[0]
    return package in (*_FRAMEWORKS, "temporalio")


def _content(cell: Any) -> object:
    try:
        return cell.cell_contents
    except ValueError:
        return None
