"""The step of an agent that an activity carries out, and the row of `ai_jobs` for a model request."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

from pydantic import JsonValue

from tasquencer.ai.agents import openai_agents, pydantic_ai
from tasquencer.ai.agents.reading import AgentStep
from tasquencer.ai.provider.prices import Price
from tasquencer.ai.record import ai_job_of
from tasquencer.core.entries import DomainRecord
from tasquencer.core.work_item import WorkItem

__all__ = ["PriceOf", "agent_job_record", "answer_facts", "step_of"]

PriceOf = Callable[[str | None], Price | None]
"""From a provider's base URL to its prices; None: prices are not known here."""

_NOT_RECORDED = "(not recorded)"
"""The prompt where arguments are not to be kept."""


def step_of(
    activity_type: str, argument: JsonValue, *, agent: str | None = None, is_in_agent_run: bool = False
) -> AgentStep | None:
    """The step that an activity carries out, or None if it belongs to no agent that is known here.

    Args:
        argument: The activity's first argument, as JSON.
        agent: The agent's name, if the caller knows it and the activity does not.
        is_in_agent_run: The OpenAI Agents SDK has started the activity in an agent's run.
    """
    return pydantic_ai.step_of(activity_type, argument) or openai_agents.step_of(
        activity_type, argument, agent=agent, is_in_agent_run=is_in_agent_run
    )


def answer_facts(step: AgentStep, result: JsonValue, price_of: PriceOf) -> dict[str, JsonValue]:
    """What an answer reports, in the names of `AiAnswer`; empty if the result cannot be read."""
    answered = step.read(result) if step.read is not None else None
    if answered is None or step.asked is None:
        return {}
    usage = answered.usage
    model = answered.model or step.asked.model
    price = price_of(answered.provider_url)
    known = (answered.model, step.asked.model)
    facts: dict[str, JsonValue] = {
        "text": answered.text,
        "model": model,
        "finish_reason": answered.finish_reason,
        "provider_request_id": answered.provider_request_id,
        "input_tokens": usage.input_tokens,
        "output_tokens": usage.output_tokens,
        "cached_tokens": usage.cached_tokens,
        "reasoning_tokens": usage.reasoning_tokens,
        "cost_usd": usage.cost(price or _unknown, [name for name in known if name]),
    }
    return {name: value for name, value in facts.items() if value is not None}


def _unknown(_model: str, _input_tokens: int, _output_tokens: int) -> float:
    return math.nan


def agent_job_record(
    work_item: WorkItem,
    step: AgentStep,
    facts: Mapping[str, JsonValue],
    *,
    max_retries: int,
    keeps_texts: bool = True,
) -> DomainRecord | None:
    """The row of `ai_jobs` for a work item in its present state; None if it is no model request.

    Args:
        facts: What is known of the attempt, in the names of `AiAnswer`.
        max_retries: How many retries the activity's policy allows.
        keeps_texts: Keep the prompt and the answer.
    """
    if step.asked is None:
        return None
    if not keeps_texts:
        facts = {name: value for name, value in facts.items() if name != "text"}
    return ai_job_of(
        work_item,
        prompt=step.asked.prompt if keeps_texts else _NOT_RECORDED,
        model=step.asked.model,
        max_retries=max(max_retries, work_item.attempt),
        facts=facts,
    )
