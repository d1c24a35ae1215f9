"""Steps of agents among adopted activities: their names, kinds of failures and rows of `ai_jobs`.

A framework's modules are never imported here. What a workflow has of an activity is the arguments, the result
and what Temporal's failure converter keeps of an error.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from pydantic import JsonValue
from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue
from temporalio.converter import PayloadConverter
from temporalio.exceptions import ActivityError, ApplicationError, FailureError
from temporalio.worker import StartActivityInput

from tasquencer.ai.agents.failures import facts_of_failure, failure_of_agent
from tasquencer.ai.agents.reading import AgentStep
from tasquencer.ai.agents.steps import PriceOf, agent_job_record, answer_facts, step_of
from tasquencer.core.entries import DomainRecord
from tasquencer.core.failure import Failure
from tasquencer.core.work_item import WorkItem
from tasquencer.temporal.foreign import as_json, failure_of_exception

__all__ = ["AdoptedStep", "adopted_step", "with_asked_wait"]


class AdoptedStep:
    """A step of an agent, over all its attempts.

    Attributes:
        name: For people.
    """

    def __init__(self, step: AgentStep, price_of: PriceOf, *, keeps_texts: bool) -> None:
        self.name = step.name
        self._step = step
        self._price_of = price_of
        self._keeps_texts = keeps_texts
        self._facts: dict[str, dict[str, JsonValue]] = {}

    def completed(self, item: WorkItem, result: object, converter: PayloadConverter) -> None:
        """Note what the result of a model request reports."""
        if self._step.asked is not None:
            read = as_json(result, converter, sys.maxsize)
            self._note(item, answer_facts(self._step, read, self._price_of))

    def failed(self, item: WorkItem, error: ActivityError, failure: Failure) -> Failure:
        """The failure of a model request in the kinds of an AI call; that of another step as it is."""
        if self._step.asked is None:
            return failure
        cause = error.cause or error
        failure = failure_of_agent(cause, failure, now=workflow.now())
        self._note(item, facts_of_failure(cause, failure, self._step, self._price_of))
        return failure

    def _note(self, item: WorkItem, facts: dict[str, JsonValue]) -> None:
        began = item.started_at or item.created_at
        facts["latency_seconds"] = max(timedelta(0), workflow.now() - began).total_seconds()
        self._facts[item.id] = facts

    def record(self, item: WorkItem, max_retries: int) -> DomainRecord | None:
        """The row of `ai_jobs` for an attempt in its present state."""
        facts = self._facts.get(item.id, {})
        return agent_job_record(
            item, self._step, facts, max_retries=max_retries, keeps_texts=self._keeps_texts
        )


def adopted_step(
    given: StartActivityInput, payloads: Sequence[Payload], price_of: PriceOf, *, keeps_texts: bool
) -> AdoptedStep | None:
    """The step of an agent that the workflow's code starts, or None if it is none."""
    is_in_agent_run = _is_in_agent_run()
    if step_of(given.activity, None, is_in_agent_run=is_in_agent_run) is None:
        return None  # as most activities: without looking at what it was given
    first = None
    if payloads:
        first = as_json(RawValue(payloads[0]), workflow.payload_converter(), sys.maxsize)
    try:
        step = step_of(given.activity, first, is_in_agent_run=is_in_agent_run)
        if step is not None and step.asked is not None and given.summary:
            # The OpenAI Agents SDK gives the agent's name as the summary, and only there.
            step = step_of(given.activity, first, agent=given.summary)
    except Exception:  # noqa: BLE001 - a shape that nobody foresaw must not fail somebody's workflow
        workflow.logger.exception("activity %s could not be read as a step of an agent", given.activity)
        return None
    return None if step is None else AdoptedStep(step, price_of, keeps_texts=keeps_texts)


def _is_in_agent_run() -> bool:
    """Return whether the code that is running is an agent's of the OpenAI Agents SDK."""
    tracing = sys.modules.get("agents.tracing")
    trace = getattr(tracing, "get_current_trace", None)
    return trace is not None and trace() is not None


def with_asked_wait(error: Exception, activity_type: str) -> Exception:
    """The error of a model request, with the wait that the provider asks for where Temporal looks for it.

    An exception of the framework's own loses that wait on its way to the workflow. The workflow sees the same
    type, message and causes.
    """
    step = step_of(activity_type, None)
    if isinstance(error, FailureError) or step is None or step.asked is None:
        return error
    failure = failure_of_agent(error, failure_of_exception(error), now=datetime.now(UTC))
    if failure.retry_after_seconds is None:
        return error
    try:
        wait = timedelta(seconds=failure.retry_after_seconds)
    except OverflowError:
        return error
    told = ApplicationError(str(error), type=type(error).__name__, next_retry_delay=wait)
    told.__cause__ = error.__cause__
    return told.with_traceback(error.__traceback__)
