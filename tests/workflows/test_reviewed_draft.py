"""Drafts that people review, on the real dev server, with a scripted call."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import WorkflowFailureError, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.worker import Worker

from tasquencer.ai.answer import AiAnswer
from tasquencer.ai.record import AI_JOBS
from tasquencer.ai.review import REVIEW_KIND, Reminder
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tasquencer.testing import InMemoryLedger
from tests.support.calls import ANSWER, GONE, WRONG_KEY, Hang, ScriptedCalls
from tests.support.patience import eventually
from tests.support.tasks import (
    Tasks,
    details,
    failure_of_task,
    history,
    tasks_on,
    tasks_on_skipped_time,
    timer_summaries,
    timers,
)
from workflows.reviewed_draft import ReviewedDraft

Handle = WorkflowHandle[Any, Any]

REQUEST = {"prompt": "Write.", "retry": {"initial_interval_seconds": 0}}
APPROVE = {"decision": "approve"}
SHORTER = {"decision": "reject", "comments": "Shorter."}
NO_TITLE = {"decision": "reject", "comments": "No title."}
DRAFTS = [AiAnswer(text=text) for text in ("A long draft.", "A title: draft.", "A draft.")]


async def started(tasks: Tasks, handle: Handle, lineage: str) -> WorkItem:
    """The started work item of the lineage, once there is one."""

    async def probe() -> WorkItem | None:
        for item in await tasks.work_items(handle):
            if item.lineage == lineage and item.state is WorkItemState.STARTED:
                return item
        return None

    return await eventually(probe, f"a started work item of {lineage}")


async def reminds(handle: Handle, reviews: int) -> None:
    """Return when this number of reviews have a reminder and a time limit, which may follow a slow write."""

    async def probe() -> bool:
        return len(timers(await history(handle))) == 2 * reviews

    await eventually(probe, f"the timers of {reviews} reviews")


async def decide(
    tasks: Tasks, handle: Handle, lineage: str, decision: object, actor: str = "anna"
) -> WorkItem:
    """Decide the review once it waits; the work item as it waited."""
    item = await started(tasks, handle, lineage)
    await complete(handle, item, decision, actor)
    return item


async def complete(handle: Handle, item: WorkItem, result: object, actor: str = "anna") -> Any:
    action = {"work_item_id": item.id, "actor": actor, "result": result}
    return await handle.execute_update("complete_work_item", action)


async def refusal(doing: Awaitable[Any]) -> str:
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await doing
    assert isinstance(caught.value.cause, ApplicationError)
    return f"{caught.value.cause.type}: {caught.value.cause.message}"


def conversation(calls: ScriptedCalls, number: int) -> list[tuple[str, Any]]:
    """The roles and texts that the call with this number was made with."""
    return [(message.role, message.content) for message in calls.calls[number].job.messages]


async def states(tasks: Tasks, handle: Handle) -> list[tuple[str, str]]:
    return [(item.lineage, item.state.value) for item in await tasks.work_items(handle)]


async def test_a_draft_that_is_approved_at_once_is_the_result(dev_server: EmbeddedTemporal) -> None:
    calls = ScriptedCalls()
    async with tasks_on(dev_server.address, [ReviewedDraft], [calls.generate]) as tasks:
        handle = await tasks.start("ReviewedDraft", REQUEST)
        await decide(tasks, handle, "review-1", APPROVE)
        result = await handle.result()
        draft, review = await tasks.work_items(handle)
        log = await tasks.ledger.transitions(review.id)
        jobs = await tasks.ledger.domain_records(AI_JOBS, [draft.id, review.id])
    assert result == {
        "text": "42",
        "model": "tiny",
        "finish_reason": "stop",
        "work_item_id": draft.id,
        "attempts": 1,
        "input_tokens": 3,
        "output_tokens": 1,
        "cost_usd": 0.0004,
        "total": {"input_tokens": 3, "output_tokens": 1, "cost_usd": 0.0004},
        "reviews": 1,
        "approved_by": "anna",
    }
    assert (draft.lineage, review.lineage) == ("draft-1", "review-1")
    assert review.payload == {"kind": REVIEW_KIND, "draft": "42", "number": 1, "timeout_seconds": 604_800}
    assert review.result == APPROVE
    assert [(step.next_state, step.actor) for step in log] == [
        ("initialized", "task"),
        ("started", "task"),
        ("completed", "anna"),
    ]
    assert list(jobs) == [draft.id]


async def test_a_rejection_asks_again_with_the_draft_and_the_comments(dev_server: EmbeddedTemporal) -> None:
    calls = ScriptedCalls(*DRAFTS)
    async with tasks_on(dev_server.address, [ReviewedDraft], [calls.generate]) as tasks:
        request = {**REQUEST, "system": "Be brief.", "reminder_seconds": 3600}
        handle = await tasks.start("ReviewedDraft", request)
        await reminds(handle, 1)
        await decide(tasks, handle, "review-1", SHORTER, actor="anna")
        await reminds(handle, 2)
        second = await decide(tasks, handle, "review-2", NO_TITLE, actor="ben")
        await reminds(handle, 3)
        await decide(tasks, handle, "review-3", APPROVE, actor="carla")
        result = await handle.result()
        items = await tasks.work_items(handle)
        events = await history(handle)
    first = [("system", "Be brief."), ("user", "Write.")]
    after_anna = [*first, ("assistant", "A long draft."), ("user", "Shorter.")]
    after_ben = [*after_anna, ("assistant", "A title: draft."), ("user", "No title.")]
    assert [conversation(calls, number) for number in range(3)] == [first, after_anna, after_ben]
    assert (result["text"], result["attempts"], result["reviews"]) == ("A draft.", 3, 3)
    assert result["approved_by"] == "carla"
    assert [item.lineage for item in items] == [
        f"{kind}-{number}" for number in (1, 2, 3) for kind in ("draft", "review")
    ]
    assert {item.state for item in items} == {WorkItemState.COMPLETED}
    assert isinstance(second.payload, dict)
    assert (second.payload["number"], second.payload["comments"]) == (2, "Shorter.")
    stopped = [event for event in events if event.HasField("timer_canceled_event_attributes")]
    assert len(stopped) == 6  # of each review the reminder and the time limit


async def test_the_rejection_after_the_last_revision_fails_the_task(dev_server: EmbeddedTemporal) -> None:
    calls = ScriptedCalls(*DRAFTS)
    async with tasks_on(dev_server.address, [ReviewedDraft], [calls.generate]) as tasks:
        handle = await tasks.start("ReviewedDraft", {**REQUEST, "max_revisions": 1})
        await decide(tasks, handle, "review-1", SHORTER)
        await decide(tasks, handle, "review-2", NO_TITLE)
        error = await failure_of_task(handle)
        last = (await tasks.work_items(handle))[-1]
    assert (error.type, error.message) == (
        "TaskFailed",
        "review-2: rejected by anna (No title.); the only revision is spent",
    )
    assert len(calls.calls) == 2
    assert (last.lineage, last.state, last.result) == ("review-2", WorkItemState.COMPLETED, NO_TITLE)


async def test_a_draft_retries_as_any_ai_work_item_and_fails_the_task_in_the_end(
    dev_server: EmbeddedTemporal,
) -> None:
    calls = ScriptedCalls(GONE, DRAFTS[0], WRONG_KEY)
    async with tasks_on(dev_server.address, [ReviewedDraft], [calls.generate]) as tasks:
        handle = await tasks.start("ReviewedDraft", REQUEST)
        await decide(tasks, handle, "review-1", SHORTER)
        error = await failure_of_task(handle)
        assert await states(tasks, handle) == [
            ("draft-1", "failed"),
            ("draft-1", "completed"),
            ("review-1", "completed"),
            ("draft-2", "failed"),
        ]
    assert error.type == "NotRetryable"
    assert error.message.startswith("draft-2: first try failed with unauthorized: ")


async def test_a_draft_written_by_hand_is_reviewed_too(dev_server: EmbeddedTemporal) -> None:
    calls = ScriptedCalls(Hang())
    async with tasks_on(dev_server.address, [ReviewedDraft], [calls.generate]) as tasks:
        handle = await tasks.start("ReviewedDraft", REQUEST)
        draft = await started(tasks, handle, "draft-1")
        said = await refusal(complete(handle, draft, APPROVE))
        await complete(handle, draft, {"text": "from a person"})
        await decide(tasks, handle, "review-1", APPROVE)
        result = await handle.result()
    assert said == 'InvalidRequest: result: must be an object such as {"text": "…"}'
    assert result["text"] == "from a person"


async def test_a_review_that_nobody_decides_in_time_fails_the_task() -> None:
    async with tasks_on_skipped_time([ReviewedDraft], [ScriptedCalls().generate]) as tasks:
        request = {**REQUEST, "review_timeout_seconds": 7200, "reminder_seconds": 3600}
        error, handle = await tasks.failure("ReviewedDraft", request)
        review = (await tasks.work_items(handle))[-1]
        assert sorted(timers(await history(handle))) == [3600, 7200]
    assert error.type == "RetriesExhausted"
    assert error.message == (
        "review-1: first try failed with timed_out: no outcome from outside within 2 h; "
        "no retries are allowed"
    )
    assert review.failure is not None
    assert (review.state, review.failure.kind) == (WorkItemState.FAILED, "timed_out")
    assert isinstance(review.payload, dict)
    assert (review.payload["timeout_seconds"], review.payload["reminder_seconds"]) == (7200, 3600)


async def test_the_deadline_of_the_task_cuts_its_review_off() -> None:
    async with tasks_on_skipped_time([ReviewedDraft], [ScriptedCalls().generate]) as tasks:
        error, handle = await tasks.failure("ReviewedDraft", {**REQUEST, "deadline_seconds": 600})
        (waited,) = timers(await history(handle))
    assert 300 < waited <= 600
    assert error.message.startswith("review-1: first try failed with timed_out: ")


@pytest.mark.parametrize(
    ("result", "expected"),
    [
        (
            {"text": "a better draft"},
            "result.decision: required; the work item is a review, so its result is {",
        ),
        ({"decision": "maybe"}, "result.decision: Input should be 'approve' or 'reject'"),
        ({"decision": "reject"}, "result.comments: required with a rejection: what must change"),
    ],
)
async def test_a_wrong_decision_is_refused_and_changes_nothing(
    dev_server: EmbeddedTemporal, result: object, expected: str
) -> None:
    async with tasks_on(dev_server.address, [ReviewedDraft], [ScriptedCalls().generate]) as tasks:
        handle = await tasks.start("ReviewedDraft", REQUEST)
        item = await started(tasks, handle, "review-1")
        before = await tasks.work_items(handle)
        said = await refusal(complete(handle, item, result))
        assert await tasks.work_items(handle) == before
        await complete(handle, item, APPROVE)
        assert (await handle.result())["text"] == "42"
    assert said.startswith(f"InvalidRequest: {expected}")


async def test_a_cancel_of_the_task_cancels_the_review_that_waits(dev_server: EmbeddedTemporal) -> None:
    async with tasks_on(dev_server.address, [ReviewedDraft], [ScriptedCalls().generate]) as tasks:
        handle = await tasks.start("ReviewedDraft", {**REQUEST, "reminder_seconds": 3600})
        review = await started(tasks, handle, "review-1")
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as ended:
            await handle.result()
        assert await states(tasks, handle) == [("draft-1", "completed"), ("review-1", "canceled")]
        log = await tasks.ledger.transitions(review.id)
    assert isinstance(ended.value.cause, CancelledError)
    assert log[-1].reason == "the task was canceled"


@pytest.mark.parametrize(
    ("action", "kind", "message"),
    [
        (
            "fail_work_item",
            "RetriesExhausted",
            "review-1: first try failed with operator: failed by anna: gone",
        ),
        ("cancel_work_item", "TaskFailed", "review-1: first try was canceled: canceled by anna: gone"),
    ],
)
async def test_a_review_that_is_given_up_by_hand_fails_the_task(
    dev_server: EmbeddedTemporal, action: str, kind: str, message: str
) -> None:
    async with tasks_on(dev_server.address, [ReviewedDraft], [ScriptedCalls().generate]) as tasks:
        handle = await tasks.start("ReviewedDraft", REQUEST)
        item = await started(tasks, handle, "review-1")
        await handle.execute_update(action, {"work_item_id": item.id, "actor": "anna", "reason": "gone"})
        error = await failure_of_task(handle)
    assert (error.type, error.message.removesuffix("; no retries are allowed")) == (kind, message)


async def test_of_two_reviewers_the_first_one_counts_and_the_other_is_told(
    dev_server: EmbeddedTemporal,
) -> None:
    calls = ScriptedCalls(*DRAFTS)
    async with tasks_on(dev_server.address, [ReviewedDraft], [calls.generate]) as tasks:
        handle = await tasks.start("ReviewedDraft", REQUEST)
        item = await started(tasks, handle, "review-1")
        answers = await asyncio.gather(
            complete(handle, item, APPROVE, "anna"),
            complete(handle, item, SHORTER, "ben"),
            return_exceptions=True,
        )
        refused = [answer for answer in answers if isinstance(answer, WorkflowUpdateFailedError)]
        review = (await tasks.work_items(handle))[1]
        last = (await tasks.ledger.transitions(item.id))[-1]
        if review.result == SHORTER:
            await decide(tasks, handle, "review-2", APPROVE, "anna")
        result = await handle.result()
    assert len(refused) == 1
    assert isinstance(refused[0].cause, ApplicationError)
    assert refused[0].cause.type == "ActionRefused"
    assert "first try is completed since" in refused[0].cause.message
    assert (review.result, last.actor) in [(APPROVE, "anna"), (SHORTER, "ben")]
    assert (result["reviews"], result["approved_by"]) == (len(calls.calls), "anna")


async def test_it_survives_continuing_as_new_with_drafts_too_large_to_travel_along() -> None:
    huge = "A draft. " * 40_000  # 360,000 bytes; 300,000 of results travel along
    failures = 60  # so many that they outlast the action before, which keeps the task from a new run
    gone = [GONE] * failures
    calls = ScriptedCalls(AiAnswer(text=huge), *gone, AiAnswer(text="Short."), *gone, ANSWER)
    settings = {"limit.historyCount.suggestContinueAsNew": 60}
    request = {**REQUEST, "max_retries": failures}
    async with (
        embedded_temporal(ui=False, dynamic_config=settings) as server,
        tasks_on(server.address, [ReviewedDraft], [calls.generate]) as tasks,
    ):
        handle = await tasks.start("ReviewedDraft", request)
        await decide(tasks, handle, "review-1", SHORTER)
        second = await decide(tasks, handle, "review-2", NO_TITLE)
        await decide(tasks, handle, "review-3", APPROVE, "ben")
        result = await handle.result()
        items = await tasks.work_items(handle)
        named = [(item.lineage, item.attempt) for item in items]
    assert len({item.run_id for item in items}) > 2
    assert conversation(calls, -1) == [
        ("user", "Write."),
        ("assistant", huge),
        ("user", "Shorter."),
        ("assistant", "Short."),
        ("user", "No title."),
    ]
    assert isinstance(second.payload, dict)
    assert second.payload["comments"] == "Shorter."
    attempts = 3 + 2 * failures
    assert (result["text"], result["attempts"], result["reviews"]) == ("42", attempts, 3)
    assert result["approved_by"] == "ben"
    assert len(named) == len(set(named)) == attempts + 3
    assert {item.state for item in items if item.lineage.startswith("review")} == {WorkItemState.COMPLETED}


class Pager:
    """The activity that reminds. It follows the test's script and keeps its arguments."""

    def __init__(self, then: Callable[[], Awaitable[None]] | None = None) -> None:
        self.reminders: list[Reminder] = []
        self.tries = 0
        self._then = then

    @activity.defn(name="remind")
    async def remind(self, reminder: Reminder) -> None:
        self.tries += 1
        if self._then is not None:
            await self._then()
        self.reminders.append(reminder)


async def test_a_review_says_that_it_waits_and_that_it_has_reminded(dev_server: EmbeddedTemporal) -> None:
    async with tasks_on(dev_server.address, [ReviewedDraft], [ScriptedCalls().generate]) as tasks:
        handle = await tasks.start("ReviewedDraft", {**REQUEST, "reminder_seconds": 0.5})
        await started(tasks, handle, "review-1")

        async def shown(text: str) -> bool:
            return text in await details(handle)

        await eventually(lambda: shown("review-1 waits for a decision until "), "the review to be shown")
        await eventually(lambda: shown(", reminded at "), "the reminder to be shown")
        assert "started" in await details(handle)
        await decide(tasks, handle, "review-1", APPROVE)
        await handle.result()
        limit, reminder, *_ = timer_summaries(await history(handle))
        assert limit == "review-1 waits for a decision"
        assert reminder == "review-1 waits for a decision: reminder"
        shown_last = await details(handle)
        assert "waits for a decision" not in shown_last and "started" not in shown_last


async def test_the_reminder_reaches_an_activity_of_another_worker_and_is_repeated_until_it_does(
    dev_server: EmbeddedTemporal,
) -> None:
    async def fail_once() -> None:
        if pager.tries == 1:
            raise RuntimeError("the pager is out of order")

    pager = Pager(fail_once)
    async with tasks_on(dev_server.address, [ReviewedDraft], [ScriptedCalls().generate]) as tasks:
        queue = f"{tasks.task_queue}-pagers"
        hook = {"reminder_activity": "remind", "reminder_task_queue": queue}
        async with Worker(tasks.client, task_queue=queue, activities=[pager.remind]):
            handle = await tasks.start("ReviewedDraft", {**REQUEST, "reminder_seconds": 0.1, **hook})
            review = await started(tasks, handle, "review-1")

            async def reminded() -> list[Reminder]:
                return pager.reminders

            (reminder,) = await eventually(reminded, "the reminder")
            await decide(tasks, handle, "review-1", APPROVE)
            await handle.result()
    assert pager.tries == 2
    assert (reminder.task_id, reminder.work_item_id) == (handle.id, review.id)
    assert (reminder.number, reminder.first_line) == (1, "42")
    assert reminder.due_at is not None
    assert (reminder.due_at - reminder.since).total_seconds() == 604_800


async def test_a_reminder_that_fails_for_good_or_hangs_does_not_touch_the_review(
    dev_server: EmbeddedTemporal,
) -> None:
    async def give_up() -> None:
        if pager.tries == 1:
            raise ApplicationError("no such pager", non_retryable=True)
        await asyncio.Event().wait()

    pager = Pager(give_up)
    request = {**REQUEST, "reminder_seconds": 0.1, "reminder_activity": "remind"}
    async with tasks_on(
        dev_server.address, [ReviewedDraft], [ScriptedCalls().generate, pager.remind]
    ) as tasks:
        handle = await tasks.start("ReviewedDraft", request)

        async def in_vain() -> bool:
            return ", in vain: " in await details(handle)

        await started(tasks, handle, "review-1")
        await eventually(in_vain, "the failed reminder to be shown")
        await decide(tasks, handle, "review-1", SHORTER)

        async def tried_again() -> bool:
            return pager.tries == 2

        await eventually(tried_again, "the second review to remind")
        await decide(tasks, handle, "review-2", APPROVE)
        assert (await asyncio.wait_for(handle.result(), 20))["reviews"] == 2


async def test_a_wrong_request_fails_at_once() -> None:
    ledger = InMemoryLedger()
    async with tasks_on_skipped_time([ReviewedDraft], [ScriptedCalls().generate], ledger=ledger) as tasks:
        error, handle = await tasks.failure("ReviewedDraft", {"prompt": "Write.", "max_revision": 1})
        assert await tasks.work_items(handle) == []
    assert error.type == "InvalidRequest"
    assert error.message == "max_revision: unknown field (did you mean 'max_revisions'?)"
