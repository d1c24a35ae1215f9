"""The domain record of an AI work item: a row of the table `ai_jobs`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from pydantic import JsonValue

from tasquencer.ai.job import AiJob, conversation_text
from tasquencer.ai.usage import Usage, facts_of
from tasquencer.core.entries import DomainRecord
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.work_item import WorkItem, WorkItemState

__all__ = ["AI_JOBS", "ai_job_of", "ai_job_record"]

AI_JOBS = "ai_jobs"
"""The domain table of AI work items."""


def ai_job_record(work_item: WorkItem, recipe: RetryRecipe) -> DomainRecord:
    """Return the row of `ai_jobs` for an AI work item in its current state.

    `status` is `pending` while the work item is initialized, then the work item's state.
    """
    job = cast("dict[str, Any]", work_item.payload)
    if work_item.state is WorkItemState.INITIALIZED:  # a hook may have made it; from then on it stays
        AiJob.model_validate(job)
    return ai_job_of(
        work_item,
        prompt=conversation_text(job["messages"]),
        model=job.get("model"),
        max_retries=recipe.max_retries,
        facts=facts_of(work_item),
    )


def ai_job_of(
    work_item: WorkItem, *, prompt: str, model: JsonValue, max_retries: int, facts: Mapping[str, JsonValue]
) -> DomainRecord:
    """The row of `ai_jobs` for a work item in its present state.

    Args:
        model: The one that was asked, for a row whose facts name none.
        facts: What is known of the call, in the names of `AiAnswer`.
    """
    return DomainRecord(
        table=AI_JOBS,
        values={
            "prompt": prompt,
            "model": facts.get("model") or model,
            "max_retries": max_retries,
            "attempt": work_item.attempt,
            "status": "pending" if work_item.state is WorkItemState.INITIALIZED else work_item.state.value,
            "result": facts.get("text") if work_item.failure is None else None,
            "last_error": str(work_item.failure) if work_item.failure else None,
            "finish_reason": facts.get("finish_reason"),
            "provider_request_id": facts.get("provider_request_id"),
            **{name: facts.get(name) for name in Usage.model_fields},
            "latency_seconds": facts.get("latency_seconds"),
            "cached_tokens": facts.get("cached_tokens"),
            "reasoning_tokens": facts.get("reasoning_tokens"),
        },
    )
