"""The request of a reviewed draft, the decisions about its drafts, and its result."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any
from uuid import UUID

import pytest
from pydantic import JsonValue

from tasquencer.ai.job import MAXIMUM_CONVERSATION_BYTES, AiJob
from tasquencer.ai.review import (
    MAXIMUM_DRAFT_REQUEST_BYTES,
    Review,
    ReviewedDraftRequest,
    ReviewedDraftResult,
    after_rejection,
    draft_lineage,
    drafts_begun,
    first_line,
    parse_decision,
    parse_reviewed_draft,
    record_of,
    result_of,
    review_in,
    review_lineage,
)
from tasquencer.core.errors import InvalidRequest
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.task_state import TaskState
from tasquencer.core.work_item import WorkItem, WorkItemState

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)
WEEK = 604_800


def item(lineage: str, payload: JsonValue = None, **facts: object) -> WorkItem:
    return WorkItem.model_validate(
        {
            "id": f"id of {lineage}",
            "task_id": "t",
            "run_id": "r",
            "task_type": "ReviewedDraft",
            "lineage": lineage,
            "attempt": 0,
            "state": WorkItemState.STARTED,
            "payload": payload,
            "not_before": NOON,
            "created_at": NOON,
            "started_at": NOON,
            **facts,
        }
    )


def request(**fields: Any) -> ReviewedDraftRequest:
    return parse_reviewed_draft({"prompt": "Write.", **fields})


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (None, 'the input must be one JSON object such as {"prompt": "…"}, not nothing'),
        ({}, "prompt: required (or messages)"),
        ({"prompt": "a", "max_revisions": -1}, "max_revisions: Input should be greater than or equal to 0"),
        ({"prompt": "a", "max_revisions": 21}, "max_revisions: Input should be less than or equal to 20"),
        ({"prompt": "a", "max_revisions": True}, "max_revisions: must be a number"),
        (
            {"prompt": "a", "max_revisions": 9, "max_retries": 100},  # 10 × 101
            "max_revisions, max_retries: could make 1,010 AI calls, the limit is 1,001",
        ),
        (
            {"prompt": "a", "review_timeout_seconds": 0},
            "review_timeout_seconds: Input should be greater than",
        ),
        (
            {"prompt": "a", "reminder_seconds": WEEK},
            "reminder_seconds: must be less than review_timeout_seconds",
        ),
        (
            {"prompt": "a", "reminder_activity": "remind"},
            "reminder_seconds: required with reminder_activity",
        ),
        (
            {"prompt": "a", "reminder_seconds": 1, "reminder_task_queue": "q"},
            "reminder_activity: required with reminder_task_queue",
        ),
        (
            {"prompt": "a", "reminder_seconds": 1, "reminder_activity": "x" * 201},
            "reminder_activity: must have at most 200 characters",
        ),
        ({"prompt": "a", "max_revision": 1}, "max_revision: unknown field (did you mean 'max_revisions'?)"),
        ({"prompt": "a", "temprature": 1}, "temprature: unknown field (did you mean 'temperature'?)"),
        ({"prompt": "x" * MAXIMUM_DRAFT_REQUEST_BYTES}, "prompt: the request has 524,3"),
    ],
)
def test_a_wrong_request_is_refused_by_the_name_of_the_field(raw: object, expected: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_reviewed_draft(raw)
    assert expected in str(refused.value)


def test_a_review_may_wait_a_week_unless_told_otherwise() -> None:
    assert request().review_timeout_seconds == WEEK
    assert request(review_timeout_seconds=None, reminder_seconds=2 * WEEK).review_timeout_seconds is None


@pytest.mark.parametrize(
    ("fields", "left", "expected"),
    [
        ({}, None, WEEK),
        ({}, 3600, 3600),  # the task's deadline comes first
        ({"review_timeout_seconds": 60}, 3600, 60),
        ({"review_timeout_seconds": None}, 3600, 3600),
        ({"review_timeout_seconds": None}, None, None),
        ({}, -5, 1),  # whoever may begin has a moment
    ],
)
def test_a_review_waits_as_long_as_the_request_and_the_deadline_allow(
    fields: dict[str, Any], left: float | None, expected: float | None
) -> None:
    asked = request(**fields)
    remaining = None if left is None else timedelta(seconds=left)
    assert asked.review_of(asked.job(), "a draft", 1, remaining).timeout_seconds == expected


def test_a_review_says_when_it_reminds_and_when_it_times_out() -> None:
    review = Review(kind="review", draft="a draft", timeout_seconds=60, reminder_seconds=20)
    assert review.reminds_at(NOON) == NOON + timedelta(seconds=20)
    assert review.due_at(NOON) == NOON + timedelta(seconds=60)
    patient = Review(kind="review", draft="a draft")
    assert (patient.reminds_at(NOON), patient.due_at(NOON)) == (None, None)


def rejected(
    job: AiJob, comments: str = "Shorter.", *, number: int = 1, draft: str = "A draft."
) -> AiJob | str:
    return after_rejection(job, draft, comments, number=number, max_revisions=2, actor="anna")


def test_a_rejection_goes_on_with_the_conversation() -> None:
    first = request(system="Be brief.", model="m").job()
    second = rejected(first)
    assert isinstance(second, AiJob)
    third = rejected(second, "No title.", number=2, draft="Draft.")
    assert isinstance(third, AiJob)
    assert [(message.role, message.content) for message in third.messages] == [
        ("system", "Be brief."),
        ("user", "Write."),
        ("assistant", "A draft."),
        ("user", "Shorter."),
        ("assistant", "Draft."),
        ("user", "No title."),
    ]
    assert third.model == "m"


def test_the_next_reviewer_is_told_what_the_one_before_asked_for() -> None:
    asked = request()
    second = rejected(asked.job())
    assert isinstance(second, AiJob)
    assert asked.review_of(asked.job(), "A draft.", 1, None).comments is None
    assert asked.review_of(second, "Draft.", 2, None).comments == "Shorter."


@pytest.mark.parametrize(
    ("number", "max_revisions", "expected"),
    [
        (1, 0, "review-1: rejected by anna (Too long, and dull.); no revisions are allowed"),
        (2, 1, "review-2: rejected by anna (Too long, and dull.); the only revision is spent"),
        (4, 3, "review-4: rejected by anna (Too long, and dull.); all 3 revisions are spent"),
    ],
)
def test_a_rejection_too_many_ends_the_task_in_one_line(
    number: int, max_revisions: int, expected: str
) -> None:
    ended = after_rejection(
        request().job(),
        "A draft.",
        "Too long,\nand dull.",
        number=number,
        max_revisions=max_revisions,
        actor="anna",
    )
    assert ended == expected


def test_a_conversation_that_no_payload_could_carry_ends_the_task() -> None:
    just_fits = rejected(request().job(), draft="x" * (MAXIMUM_CONVERSATION_BYTES - 200))
    assert isinstance(just_fits, AiJob)
    ended = rejected(request().job(), draft="x" * MAXIMUM_CONVERSATION_BYTES)
    assert isinstance(ended, str)
    assert "the conversation about the drafts is too long: 786," in ended
    assert ended.endswith("bytes, the limit is 786,432")


@pytest.mark.parametrize(
    "decision", [{"decision": "approve"}, {"decision": "reject", "comments": "Shorter.\nMuch."}]
)
def test_a_decision_is_kept_as_it_is(decision: dict[str, JsonValue]) -> None:
    assert parse_decision(decision) == decision


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (
            "approve",
            'result: must be an object; the work item is a review, so its result is {"decision": "approve"}',
        ),
        (None, "result: must be an object; the work item is a review"),
        (
            {"text": "a better one"},
            "result.decision: required; the work item is a review, so its result is {",
        ),
        ({"decision": "maybe"}, "result.decision: Input should be 'approve' or 'reject'"),
        ({"decision": "reject"}, "result.comments: required with a rejection: what must change"),
        ({"decision": "reject", "comments": " \n"}, "result.comments: required with a rejection"),
        ({"decision": "reject", "comments": ""}, "result.comments: must not be empty"),
        ({"decision": "reject", "comments": 3}, "result.comments: Input should be a valid string"),
        ({"decision": "reject", "comments": "\x00"}, "result.comments: must not contain NUL characters"),
        (
            {"decision": "reject", "comments": "x" * 20_001},
            "result.comments: must have at most 20,000 characters",
        ),
        ({"decision": "approve", "comments": "Fine."}, "result.comments: only with a rejection"),
        (
            {"decision": "reject", "comment": "Shorter."},
            "result.comment: unknown field (did you mean 'comments'?)",
        ),
    ],
)
def test_a_wrong_decision_is_refused_by_the_name_of_the_field(raw: JsonValue, expected: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_decision(raw)
    assert expected in str(refused.value)


def test_a_review_takes_a_decision_and_a_draft_takes_an_answer() -> None:
    assert result_of(item("review-1"), {"decision": "approve"}) == {"decision": "approve"}
    assert result_of(item("draft-1"), {"text": "from a person"}) == {"text": "from a person"}
    with pytest.raises(InvalidRequest):
        result_of(item("draft-1"), {"decision": "approve"})
    with pytest.raises(InvalidRequest):
        result_of(item("review-1"), {"text": "from a person"})


def test_only_ai_work_items_have_a_row_in_ai_jobs() -> None:
    job = request().job().model_dump(mode="json")
    record = record_of(item("draft-1", job), RetryRecipe())
    assert record is not None
    assert record.values["prompt"] == "Write."
    assert record_of(item("review-1", {"kind": "review", "draft": "x"}), RetryRecipe()) is None


def test_drafts_are_counted_by_their_lineages() -> None:
    assert drafts_begun([]) == 0
    lineages = ("draft-1", "draft-1", "review-1", "draft-2")
    assert drafts_begun([item(lineage) for lineage in lineages]) == 2


def test_a_review_is_known_by_its_payload_in_any_task() -> None:
    assert review_in(item("second-look", {"kind": "review", "draft": "x", "mine": 1})) == Review(
        kind="review", draft="x"
    )
    others: list[JsonValue] = [None, "review", {"kind": "review"}, {"kind": "visit", "draft": "x"}]
    for other in others:
        assert review_in(item("review-1", other)) is None


@pytest.mark.parametrize(
    ("text", "expected"),
    [("", ""), ("\n \n  Dear  Anna,\nhello", "Dear Anna,"), ("x" * 200, "x" * 119 + "…")],
)
def test_the_first_line_is_the_first_that_says_something(text: str, expected: str) -> None:
    assert first_line(text) == expected


def test_the_result_counts_ai_work_items_and_reviews_apart() -> None:
    answer = {"text": "A draft.", "model": "m", "input_tokens": 3, "output_tokens": 4, "cost_usd": 0.5}
    drafted = item("draft-2", state=WorkItemState.COMPLETED, ended_at=NOON, result=answer)
    rejected = item("draft-1", state=WorkItemState.COMPLETED, ended_at=NOON, result=answer)
    items = [item("draft-1"), rejected, item("review-1"), drafted, item("review-2")]
    result = ReviewedDraftResult.approved(drafted, items, reviews=2, approved_by="anna")
    assert result.model_dump() == {
        **answer,
        "finish_reason": None,
        "work_item_id": "id of draft-2",
        "attempts": 3,
        "reviews": 2,
        "approved_by": "anna",
        "total": {"input_tokens": 6, "output_tokens": 8, "cost_usd": 1.0},
    }


def test_the_longest_task_can_continue_as_new() -> None:
    asked = request(max_revisions=20, max_retries=46)  # 21 × 47 = 987 AI calls
    recipe = asked.recipe()
    ids = (str(UUID(int=number, version=4)) for number in count())
    state = TaskState(
        task_id="reviewed-draft-" + "x" * 50,
        run_id=next(ids),
        task_type="ReviewedDraft",
        recipe=recipe,
        new_id=lambda *_: next(ids),
        random=lambda *_: 0.1234567,
        record_of=record_of,
    )
    job = asked.job().model_copy(update={"metadata": {"large": "x" * (MAXIMUM_CONVERSATION_BYTES - 200)}})
    now = NOON + timedelta(microseconds=123_456)
    failure = Failure.of(FailureKind.PROVIDER_ERROR, "m" * 2_000, retry_after_seconds=1.5, status_code=503)
    for number in range(1, 22):
        item = state.begin(job.model_dump(mode="json"), now=now, lineage=draft_lineage(number))
        for _ in range(46):
            state.start(item.id, now=now)
            state.fail(item.id, failure, now=now, worker="1234567@a-host-with-a-name")
            item = state.latest(draft_lineage(number))
        if number == 21:
            break
        state.start(item.id, now=now)
        state.complete(item.id, {"text": "x" * 20_000}, now=now)
        review = state.begin({"kind": "review", "draft": "x"}, now=now, lineage=review_lineage(number))
        state.start(review.id, now=now)
        state.complete(review.id, {"decision": "reject", "comments": "x" * 20_000}, now=now)
    assert len(state.work_items()) == 1_007
    assert len(state.carry().model_dump_json().encode()) < 2 * 1024 * 1024
