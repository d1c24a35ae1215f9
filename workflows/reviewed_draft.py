"""The reviewed draft: a model writes, a person decides. Each draft and each review is a work item."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from temporalio import workflow

from tasquencer import NextAttempt, RetryRecipe, StateChange, WorkItem, WorkItemState
from tasquencer.ai.answer import AiAnswer
from tasquencer.ai.job import AiJob
from tasquencer.ai.ladder import climb
from tasquencer.ai.review import (
    Decision,
    ReviewedDraftRequest,
    ReviewedDraftResult,
    after_rejection,
    draft_lineage,
    drafts_begun,
    parse_reviewed_draft,
    record_of,
    result_of,
    review_lineage,
)
from tasquencer.temporal import Task, accept, answer
from tasquencer.temporal.failures import task_error
from tasquencer.temporal.reminders import decided

__all__ = ["ReviewedDraft"]

_ONCE = RetryRecipe(max_retries=0)
"""No retry: a review without a decision fails the task."""


@workflow.defn(name="ReviewedDraft", sandboxed=False)  # see AiAgentTask
class ReviewedDraft:
    """Input: the JSON object that `ReviewedDraftRequest` describes. Result: `ReviewedDraftResult`."""

    def __init__(self) -> None:
        self._actors: dict[str, str] = {}
        self._task = Task(record=record_of, result_of=result_of, on_work_item_state_changed=self._note_actor)

    @workflow.run
    async def run(self, raw: Any = None) -> ReviewedDraftResult:
        """Draft and review until a draft is approved, or no revision is left."""
        request = accept(parse_reviewed_draft, raw)
        deadline = self._task.deadline_after(request.deadline_seconds)
        job = request.job()
        # A task continues as new in the backoff of a draft, and then continues with that draft. The draft's
        # payload has the whole conversation, because the results of earlier drafts may be missing.
        number = max(1, drafts_begun(self._task.work_items))
        while True:
            job, drafted = await self._draft(number, job, request, deadline)
            text = AiAnswer.model_validate(drafted.result).text
            decision = await self._review(number, job, text, request, deadline)
            actor = self._actors[review_lineage(number)]
            if decision.comments is None:
                return ReviewedDraftResult.approved(
                    drafted, self._task.work_items, reviews=number, approved_by=actor
                )
            what_follows = after_rejection(
                job,
                text,
                decision.comments,
                number=number,
                max_revisions=request.max_revisions,
                actor=actor,
            )
            if isinstance(what_follows, str):
                raise task_error("TaskFailed", what_follows)
            job, number = what_follows, number + 1

    async def _draft(
        self, number: int, job: AiJob, request: ReviewedDraftRequest, deadline: datetime | None
    ) -> tuple[AiJob, WorkItem]:
        """Return the draft with this number, and its input."""
        lineage = draft_lineage(number)
        recipe = request.recipe()
        async for work_item in self._task.attempts(job, lineage=lineage, recipe=recipe, deadline=deadline):
            async with work_item:
                job = AiJob.model_validate(work_item.payload)
                work_item.complete(await answer(work_item, job, request, deadline))
        return job, self._task.completed(lineage)

    async def _review(
        self, number: int, job: AiJob, text: str, request: ReviewedDraftRequest, deadline: datetime | None
    ) -> Decision:
        """Wait for a person's decision about the draft."""
        lineage = review_lineage(number)
        left = None if deadline is None else deadline - workflow.now()
        review = request.review_of(job, text, number, left)
        async for work_item in self._task.attempts(review, lineage=lineage, recipe=_ONCE, deadline=deadline):
            async with work_item:
                decision = await decided(
                    work_item, lineage, review, request.reminder_activity, request.reminder_task_queue
                )
                work_item.complete(decision)
        return Decision.model_validate(self._task.completed(lineage).result)

    def _note_actor(self, change: StateChange) -> NextAttempt | None:
        """Remembers who decided a review, because a work item does not contain this."""
        if change.transition.next_state is WorkItemState.COMPLETED:
            self._actors[change.work_item.lineage] = change.transition.actor
        return climb(change)
