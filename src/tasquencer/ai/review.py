"""Drafts that a person reviews: what such a task is asked, what a review decides, and what comes of it.

A draft is an AI work item (`draft-1`, `draft-2` …), a review is a work item that waits for a person
(`review-1`, `review-2` …): its result is a `Decision`, given through `complete_work_item`.
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
from tasquencer.ai.request import MOST_REQUEST_VALUES, AiAgentRequest
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
"""Rejections that may lead to a new draft."""

MOST_CALLS = MOST_RETRIES + 1
"""AI calls of one task, over all its drafts: all its work items travel along when it continues as new."""

MAXIMUM_DRAFT_REQUEST_BYTES = 512 * 1024
"""Bytes of a request as JSON; the conversation about the drafts needs the rest."""

_DRAFT, _REVIEW = "draft-", "review-"

_DECISIONS = '{"decision": "approve"} or {"decision": "reject", "comments": "…"}'

_MOST_COMMENTS = 20_000
_FIRST_LINE = 120
_SHOWN_COMMENTS = 200
"""Characters of comments, of a first line, and of comments in an error's message."""

_MOST_NAME = 200
"""Characters of a name that Temporal takes for sure."""


def _at_most(characters: int) -> Callable[[str], str]:
    def check(text: str) -> str:
        if len(text) > characters:
            raise ValueError(f"must have at most {characters:,} characters")
        return text

    return check


_Name = Annotated[FilledText, AfterValidator(_at_most(_MOST_NAME))]
_Comments = Annotated[FilledText, AfterValidator(_at_most(_MOST_COMMENTS))]


class ReviewedDraftRequest(AiAgentRequest):
    """The input of a reviewed draft: what to write, and how it is reviewed.

    What an AI agent task takes (see `tasquencer.ai.AiAgentRequest`) holds for each draft, the deadline
    for the whole task, its reviews included.

    Attributes:
        max_revisions: Rejections that lead to a new draft, 0 to 20; the next one fails the task.
            `max_revisions` + 1 times `max_retries` + 1 must not exceed 1,001.
        review_timeout_seconds: How long each review may wait for a decision; None: any time.
        reminder_seconds: How long a review waits before it reminds, once; None: it does not.
        reminder_activity: The activity that is executed then, with a `Reminder`; None: the reminder is
            only shown.
        reminder_task_queue: Where that activity is; None takes the task's.
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
        """What the review of a draft has to decide.

        Args:
            job: What the draft was asked with.
            number: Which draft it is, from 1.
            left: What is left of the task's deadline, if it has one.
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
    """What a review has to decide: the payload of its work item.

    A task of your own may have reviews, too: `kind` and `draft` are enough for `tasq review`.

    Attributes:
        kind: `review`.
        draft: The text that is reviewed.
        number: Which draft of the task it is, from 1.
        comments: What the rejection of the draft before it asked for.
        timeout_seconds: How long it may wait for a decision, counted from its start; None: any time.
        reminder_seconds: How long it waits before it reminds; None: it does not.
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
        """When it times out, having started at this time."""
        return None if self.timeout_seconds is None else started_at + timedelta(seconds=self.timeout_seconds)

    def reminds_at(self, started_at: datetime) -> datetime | None:
        """When it reminds, having started at this time."""
        return (
            None if self.reminder_seconds is None else started_at + timedelta(seconds=self.reminder_seconds)
        )


class Reminder(BaseModel):
    """What the activity that reminds of a review is told.

    Attributes:
        number: Which draft of the task is to be reviewed, from 1.
        first_line: Of the draft, shortened; the whole draft is in the payload of the work item.
        since: When the review began to wait.
        due_at: When it times out; None: it does not.
    """

    model_config = ConfigDict(frozen=True)

    task_id: str
    work_item_id: str
    number: int
    first_line: str
    since: AwareDatetime
    due_at: AwareDatetime | None


class Decision(RequestModel):
    """What a person decides about a draft: the result of a review.

    Attributes:
        comments: What must change; with a rejection, and only with one.
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
        attempts: How many AI work items the task took, over all drafts.
        input_tokens, output_tokens, cost_usd: Of that work item.
        total: Of all attempts at all drafts.
        reviews: How many reviews it took.
        approved_by: The actor who approved it.
    """

    reviews: int
    approved_by: str

    @classmethod
    def approved(
        cls, drafted: WorkItem, work_items: Iterable[WorkItem], *, reviews: int, approved_by: str
    ) -> ReviewedDraftResult:
        """The result that the approval of this draft gives, with all work items of the task."""
        attempts = [item for item in work_items if not is_review(item)]
        answer = AiAgentResult.of(drafted, attempts).model_dump()
        return cls(**answer, reviews=reviews, approved_by=approved_by)


def draft_lineage(number: int) -> str:
    """The lineage of the draft with this number, from 1."""
    return f"{_DRAFT}{number}"


def review_lineage(number: int) -> str:
    """The lineage of the review of the draft with this number, from 1."""
    return f"{_REVIEW}{number}"


def is_review(work_item: WorkItem) -> bool:
    """Whether a work item of a reviewed draft is a review; else it is an AI work item."""
    return work_item.lineage.startswith(_REVIEW)


def drafts_begun(work_items: Iterable[WorkItem]) -> int:
    """How many drafts a reviewed draft has begun."""
    return len({item.lineage for item in work_items if not is_review(item)})


def review_in(work_item: WorkItem) -> Review | None:
    """The review that a work item of any task is; None if it is none."""
    try:
        return Review.model_validate(work_item.payload)
    except ValidationError:
        return None


def first_line(text: str) -> str:
    """The first line of a text that says something, shortened."""
    return one_line(next((line for line in text.splitlines() if line.strip()), ""), _FIRST_LINE)


def record_of(work_item: WorkItem, recipe: RetryRecipe) -> DomainRecord | None:
    """The row of `ai_jobs` for an AI work item; a review has none."""
    return None if is_review(work_item) else ai_job_record(work_item, recipe)


def result_of(work_item: WorkItem, result: JsonValue) -> JsonValue:
    """A result given by hand: of a review its decision, of a draft its answer. Raises `InvalidRequest`."""
    return parse_decision(result) if is_review(work_item) else parse_answer(result)


def parse_decision(raw: JsonValue) -> JsonValue:
    """The result of a review: `{"decision": "approve"}`, `{"decision": "reject", "comments": "…"}`.

    Raises:
        InvalidRequest: names each wrong field.
    """
    if not isinstance(raw, dict) or "decision" not in raw:
        place = "result.decision: required" if isinstance(raw, dict) else "result: must be an object"
        raise InvalidRequest([f"{place}; the work item is a review, it takes {_DECISIONS}"])
    try:
        decision = validated(Decision, raw, example=_DECISIONS)
    except InvalidRequest as invalid:
        raise InvalidRequest([f"result.{problem}" for problem in invalid.problems]) from None
    kept: JsonValue = decision.model_dump(mode="json", exclude_none=True)
    return kept


def after_rejection(
    job: AiJob, draft: str, comments: str, *, number: int, max_revisions: int, actor: str
) -> AiJob | str:
    """What follows the rejection of a draft: what the next one has to do, or why there is none, in one line.

    The conversation goes on with the rejected draft and the comments.

    Args:
        job: What the draft was asked with.
        number: Which draft it is, from 1.
        actor: Who rejected it.
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
        return f"{rejected}; the conversation about the drafts is too long to go on: {size:,} bytes, {limit}"
    return revised


def parse_reviewed_draft(raw: object) -> ReviewedDraftRequest:
    """The request in the raw input of a reviewed draft.

    Raises:
        InvalidRequest: names each wrong field, and the size and its limit where it is too large.
    """
    request = validated(ReviewedDraftRequest, raw, '{"prompt": "…"}', MOST_REQUEST_VALUES)
    limit_size(request, "messages" if request.prompt is None else "prompt", MAXIMUM_DRAFT_REQUEST_BYTES)
    return request
