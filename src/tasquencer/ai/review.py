"""Drafts that a person reviews: the request, the decisions and the result.

A draft is an AI work item (`draft-1`, `draft-2` …). A review is a work item that waits for a person
(`review-1`, `review-2` …). Its result is a `Decision`, given through `complete_work_item`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from datetime import datetime, timedelta
from typing import Annotated, ClassVar, Final, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)

from tasquencer.ai.answer import AiAgentResult, parse_answer
from tasquencer.ai.job import MAXIMUM_CONVERSATION_BYTES, AiJob, ChatMessage
from tasquencer.ai.record import ai_job_record
from tasquencer.ai.request import MOST_REQUEST_VALUES, AiAgentRequest, limit_attempts
from tasquencer.core.entries import DomainRecord
from tasquencer.core.errors import InvalidRequest
from tasquencer.core.retry import MOST_RETRIES, RetryRecipe
from tasquencer.core.validation import FilledText, RequestModel, Seconds, Whole, limit_size, validated
from tasquencer.core.wording import one_line
from tasquencer.core.work_item import WorkItem

__all__ = [
    "MAXIMUM_DRAFT_REQUEST_BYTES",
    "MOST_CALLS",
    "MOST_REVISIONS",
    "REVIEW_KIND",
    "Decision",
    "Reminder",
    "Review",
    "ReviewedDraftRequest",
    "ReviewedDraftResult",
    "after_rejection",
    "draft_lineage",
    "drafts_begun",
    "first_line",
    "is_review",
    "parse_decision",
    "parse_reviewed_draft",
    "record_of",
    "result_of",
    "review_in",
    "review_lineage",
]

REVIEW_KIND: Final = "review"
"""The `kind` in the payload of a work item that waits for a person's decision."""

MOST_REVISIONS = 20
"""Maximum rejections that may lead to a new draft."""

MOST_CALLS = MOST_RETRIES + 1
"""Maximum AI calls of one task, which carries all its work items along when it continues as new."""

MAXIMUM_DRAFT_REQUEST_BYTES = 512 * 1024
"""Maximum bytes of a request as JSON. The conversation about the drafts needs the rest."""

_DRAFT, _REVIEW = "draft-", "review-"

_DECISIONS = '{"decision": "approve"} or {"decision": "reject", "comments": "…"}'

_MOST_COMMENTS = 20_000
_FIRST_LINE = 120
_SHOWN_COMMENTS = 200
"""Characters of comments, of a first line, and of comments in an error's message."""

_MOST_NAME = 200
"""Characters of a name that Temporal certainly accepts."""


def _at_most(characters: int) -> Callable[[str], str]:
    def check(text: str) -> str:
        if len(text) > characters:
            raise ValueError(f"must have at most {characters:,} characters")
        return text

    return check


_Name = Annotated[FilledText, AfterValidator(_at_most(_MOST_NAME))]
_Comments = Annotated[FilledText, AfterValidator(_at_most(_MOST_COMMENTS))]


class ReviewedDraftRequest(AiAgentRequest):
    """The input of a reviewed draft: the prompt, and the options of its review.

    The options of an AI agent task (see `tasquencer.ai.AiAgentRequest`) apply to each draft. The deadline
    applies to the whole task, its reviews included.

    Attributes:
        max_revisions: Rejections that lead to a new draft, 0 to 20. The next one fails the task.
            `max_revisions` + 1 times `max_retries` + 1 must not exceed 1,001.
        review_timeout_seconds: How long each review may wait for a decision. None: no limit.
        reminder_seconds: How long a review waits before its only reminder. None: no reminder.
        reminder_activity: The activity that sends the reminder. It gets a `Reminder`. None: the reminder
        is only shown.
        reminder_task_queue: The task queue of that activity. None means the task's.
    """

    max_revisions: Annotated[Whole, Field(ge=0, le=MOST_REVISIONS)] = 3
    review_timeout_seconds: Seconds | None = 604_800.0
    reminder_seconds: Seconds | None = None
    reminder_activity: _Name | None = None
    reminder_task_queue: _Name | None = None

    @model_validator(mode="after")
    def _has_no_tools(self) -> Self:
        if self.tools is not None:
            raise ValueError("tools: a reviewed draft uses none")
        return self

    @model_validator(mode="after")
    def _stays_within_a_task(self) -> Self:
        if (most := (self.max_revisions + 1) * (self.max_retries + 1)) > MOST_CALLS:
            raise ValueError(
                f"max_revisions, max_retries: could make {most:,} AI calls, the limit is {MOST_CALLS:,}"
            )
        return self

    @model_validator(mode="after")
    def _reminds_in_time(self) -> Self:
        limit, reminder = self.review_timeout_seconds, self.reminder_seconds
        if reminder is not None and limit is not None and reminder >= limit:
            raise ValueError("reminder_seconds: must be less than review_timeout_seconds")
        if self.reminder_activity is not None and reminder is None:
            raise ValueError("reminder_seconds: required with reminder_activity")
        if self.reminder_task_queue is not None and self.reminder_activity is None:
            raise ValueError("reminder_activity: required with reminder_task_queue")
        return self

    def review_of(self, job: AiJob, draft: str, number: int, left: timedelta | None) -> Review:
        """Return the payload for the review of a draft.

        Args:
            job: The input of the draft.
            number: The number of the draft, from 1.
            left: The time until the task's deadline, if it has one.
        """
        limits = [self.review_timeout_seconds, None if left is None else max(1.0, left.total_seconds())]
        comments = job.messages[-1].content if number > 1 else None
        return Review(
            kind=REVIEW_KIND,
            draft=draft,
            number=number,
            comments=comments if isinstance(comments, str) else None,
            timeout_seconds=min((limit for limit in limits if limit is not None), default=None),
            reminder_seconds=self.reminder_seconds,
        )


class Review(BaseModel):
    """The payload of a review's work item.

    Your own tasks may have reviews, too. `kind` and `draft` are enough for `tasq review`.

    Attributes:
        kind: `review`.
        draft: The text to review.
        number: The number of the draft, from 1.
        comments: The comments on the previous, rejected draft.
        timeout_seconds: How long it may wait for a decision, counted from its start. None: no limit.
        reminder_seconds: How long it waits before its reminder. None: no reminder.
    """

    leaves_out_defaults: ClassVar[bool] = True

    model_config = ConfigDict(frozen=True)

    kind: Literal["review"]
    draft: str
    number: int | None = None
    comments: str | None = None
    timeout_seconds: float | None = None
    reminder_seconds: float | None = None

    def due_at(self, started_at: datetime) -> datetime | None:
        """Return when it times out, given the time of its start."""
        return None if self.timeout_seconds is None else started_at + timedelta(seconds=self.timeout_seconds)

    def reminds_at(self, started_at: datetime) -> datetime | None:
        """Return when its reminder is due, given the time of its start."""
        return (
            None if self.reminder_seconds is None else started_at + timedelta(seconds=self.reminder_seconds)
        )


class Reminder(BaseModel):
    """The argument of the activity that sends a reminder of a review.

    Attributes:
        number: The number of the draft to review, from 1.
        first_line: The first line of the draft, shortened. The payload of the work item has the whole draft.
        since: When the review began to wait.
        due_at: When it times out. None: never.
    """

    model_config = ConfigDict(frozen=True)

    task_id: str
    work_item_id: str
    number: int
    first_line: str
    since: AwareDatetime
    due_at: AwareDatetime | None


class Decision(RequestModel):
    """A person's decision about a draft: the result of a review.

    Attributes:
        comments: What must change. Required with a rejection, and only allowed with one.
    """

    decision: Literal["approve", "reject"]
    comments: _Comments | None = None

    @model_validator(mode="after")
    def _says_what_must_change(self) -> Self:
        if self.decision == "approve" and self.comments is not None:
            raise ValueError("comments: only with a rejection (an approval may have a reason)")
        if self.decision == "reject" and not (self.comments or "").strip():
            raise ValueError("comments: required with a rejection: what must change")
        return self


class ReviewedDraftResult(AiAgentResult):
    """The result of a reviewed draft: the approved draft.

    Attributes:
        work_item_id: The AI work item that wrote it.
        attempts: The number of AI work items of the task, over all drafts.
        input_tokens, output_tokens, cost_usd: Those of that work item.
        total: Those of all attempts at all drafts.
        reviews: The number of reviews.
        approved_by: The actor who approved it.
    """

    reviews: int
    approved_by: str

    @classmethod
    def approved(
        cls, drafted: WorkItem, work_items: Iterable[WorkItem], *, reviews: int, approved_by: str
    ) -> ReviewedDraftResult:
        """Make the result from the approved draft and all work items of the task."""
        attempts = [item for item in work_items if not is_review(item)]
        answer = AiAgentResult.of(drafted, attempts).model_dump()
        return cls(**answer, reviews=reviews, approved_by=approved_by)


def draft_lineage(number: int) -> str:
    """Return the lineage of the draft with this number, from 1."""
    return f"{_DRAFT}{number}"


def review_lineage(number: int) -> str:
    """Return the lineage of the review of the draft with this number, from 1."""
    return f"{_REVIEW}{number}"


def is_review(work_item: WorkItem) -> bool:
    """Return whether a work item of a reviewed draft is a review. Otherwise it is an AI work item."""
    return work_item.lineage.startswith(_REVIEW)


def drafts_begun(work_items: Iterable[WorkItem]) -> int:
    """Return the number of drafts that a reviewed draft has begun."""
    return len({item.lineage for item in work_items if not is_review(item)})


def review_in(work_item: WorkItem) -> Review | None:
    """Return the review in a work item of any task, or None if it is not a review."""
    try:
        return Review.model_validate(work_item.payload)
    except ValidationError:
        return None


def first_line(text: str) -> str:
    """Return the first line of a text that is not blank, shortened."""
    return one_line(next((line for line in text.splitlines() if line.strip()), ""), _FIRST_LINE)


def record_of(work_item: WorkItem, recipe: RetryRecipe) -> DomainRecord | None:
    """Return the row of `ai_jobs` for an AI work item. A review has none."""
    return None if is_review(work_item) else ai_job_record(work_item, recipe)


def result_of(work_item: WorkItem, result: JsonValue) -> JsonValue:
    """Read a person's result: the decision of a review or the answer of a draft. Raises `InvalidRequest`."""
    return parse_decision(result) if is_review(work_item) else parse_answer(result)


def parse_decision(raw: JsonValue) -> JsonValue:
    """Read the result of a review: `{"decision": "approve"}`, `{"decision": "reject", "comments": "…"}`.

    Raises:
        InvalidRequest: names each wrong field.
    """
    if not isinstance(raw, dict) or "decision" not in raw:
        place = "result.decision: required" if isinstance(raw, dict) else "result: must be an object"
        raise InvalidRequest([f"{place}; the work item is a review, so its result is {_DECISIONS}"])
    try:
        decision = validated(Decision, raw, example=_DECISIONS)
    except InvalidRequest as invalid:
        raise InvalidRequest([f"result.{problem}" for problem in invalid.problems]) from None
    kept: JsonValue = decision.model_dump(mode="json", exclude_none=True)
    return kept


def after_rejection(
    job: AiJob, draft: str, comments: str, *, number: int, max_revisions: int, actor: str
) -> AiJob | str:
    """Return what follows the rejection of a draft: the next draft's input, or why there is none, in one
    line.

    The conversation continues with the rejected draft and the comments.

    Args:
        job: The input of the draft.
        number: The number of the draft, from 1.
        actor: The person who rejected it.
    """
    rejected = f"{review_lineage(number)}: rejected by {actor} ({one_line(comments, _SHOWN_COMMENTS)})"
    if number > max_revisions:
        spent = (
            "the only revision is spent" if max_revisions == 1 else f"all {max_revisions} revisions are spent"
        )
        return f"{rejected}; {spent if max_revisions else 'no revisions are allowed'}"
    messages = [ChatMessage(role="assistant", content=draft), ChatMessage(role="user", content=comments)]
    revised = job.model_copy(update={"messages": [*job.messages, *messages]})
    size = len(revised.model_dump_json(exclude_defaults=True).encode())
    if size > MAXIMUM_CONVERSATION_BYTES:
        limit = f"the limit is {MAXIMUM_CONVERSATION_BYTES:,}"
        return f"{rejected}; the conversation about the drafts is too long: {size:,} bytes, {limit}"
    return revised


def parse_reviewed_draft(raw: object) -> ReviewedDraftRequest:
    """Read the request from the raw input of a reviewed draft.

    Raises:
        InvalidRequest: names each wrong field, and the size and its limit if it is too large.
    """
    request = validated(ReviewedDraftRequest, raw, '{"prompt": "…"}', MOST_REQUEST_VALUES)
    limit_size(request, "messages" if request.prompt is None else "prompt", MAXIMUM_DRAFT_REQUEST_BYTES)
    limit_attempts(request, request.max_revisions + 1)
    return request
