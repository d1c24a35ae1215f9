"""Tasks described by their decisions: a ledger's entries, and the resulting work items."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from itertools import count

from pydantic import JsonValue

from tasquencer.ai.answer import AiAnswer
from tasquencer.ai.job import AiJob, ChatMessage
from tasquencer.ai.record import ai_job_record
from tasquencer.ai.review import Review, record_of
from tasquencer.core.entries import LedgerEntry
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.task_state import TASK_ACTOR, TaskState
from tasquencer.core.work_item import WorkItem

__all__ = ["NOON", "ReviewStory", "Story", "answered", "rate_limited"]

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def rate_limited(message: str = "slow down", retry_after_seconds: float | None = None) -> Failure:
    return Failure.of(FailureKind.RATE_LIMITED, message, retry_after_seconds=retry_after_seconds)


def answered(cost_usd: float | None = 0.0012) -> AiAnswer:
    return AiAnswer(
        text="Io, Europa, Ganymede.", model="small", input_tokens=12, output_tokens=34, cost_usd=cost_usd
    )


class Story:
    """An AI agent task as the test tells it; times are seconds after noon."""

    def __init__(self, task_id: str = "story", *, max_retries: int = 3, begin: float = 0.0) -> None:
        numbers = count()
        self.state = TaskState(
            task_id=task_id,
            run_id=f"{task_id}-run",
            task_type="AiAgentTask",
            recipe=RetryRecipe(max_retries=max_retries),
            new_id=lambda *_: f"{task_id}-{next(numbers)}",
            random=lambda *_: 0.0,
            record_of=ai_job_record,
        )
        job = AiJob(messages=[ChatMessage(role="user", content="Name three moons.")], model="small")
        self.state.begin(job.model_dump(mode="json"), now=_at(begin))

    def start(self, at: float) -> Story:
        self.state.start(self.state.latest().id, now=_at(at))
        return self

    def fail(self, at: float, failure: Failure | None = None) -> Story:
        self.state.fail(self.state.latest().id, failure or rate_limited(), now=_at(at), worker="1@host")
        return self

    def complete(self, at: float, answer: AiAnswer | None = None, actor: str = TASK_ACTOR) -> Story:
        result = (answer or answered()).model_dump(mode="json")
        self.state.complete(self.state.latest().id, result, now=_at(at), actor=actor)
        return self

    def cancel(self, at: float, *, actor: str, reason: str) -> Story:
        self.state.cancel(self.state.latest().id, now=_at(at), actor=actor, reason=reason)
        return self

    @property
    def items(self) -> list[WorkItem]:
        return self.state.work_items()

    def entries(self) -> Sequence[LedgerEntry]:
        return self.state.take_entries()


class ReviewStory(Story):
    """A reviewed draft whose first draft waits for its review, from the time `begin` on."""

    def __init__(
        self,
        task_id: str = "story",
        draft: str = "A draft.",
        *,
        begin: float = 0.0,
        timeout_seconds: float | None = 3600,
        reminder_seconds: float | None = None,
        comments: str | None = None,
        reviews: int = 1,
    ) -> None:
        numbers = count()
        self.state = TaskState(
            task_id=task_id,
            run_id=f"{task_id}-run",
            task_type="ReviewedDraft",
            recipe=RetryRecipe(max_retries=0),
            new_id=lambda *_: f"{task_id}-{next(numbers)}",
            random=lambda *_: 0.0,
            record_of=record_of,
        )
        job = AiJob(messages=[ChatMessage(role="user", content="Write.")], model="small")
        drafted = self.state.begin(job.model_dump(mode="json"), now=_at(begin - 2), lineage="draft-1")
        self.state.start(drafted.id, now=_at(begin - 2))
        answer = answered().model_copy(update={"text": draft}).model_dump(mode="json")
        self.state.complete(drafted.id, answer, now=_at(begin))
        review = Review(
            kind="review",
            draft=draft,
            number=1,
            comments=comments,
            timeout_seconds=timeout_seconds,
            reminder_seconds=reminder_seconds,
        ).model_dump(mode="json")
        for number in range(1, reviews + 1):
            item = self.state.begin(review, now=_at(begin), lineage=f"review-{number}")
            self.state.start(item.id, now=_at(begin))

    def decide(self, at: float, decision: dict[str, JsonValue], *, actor: str = "anna") -> ReviewStory:
        self.state.complete(self.state.latest("review-1").id, decision, now=_at(at), actor=actor)
        return self


def _at(seconds: float) -> datetime:
    return NOON + timedelta(seconds=seconds)
