"""A good account: a task whose first call ended with a kill, and whose retry was answered."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from tasquencer.ai.request import AiAgentRequest
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.work_item import DelayReason, Transition, WorkItem, WorkItemState
from tasquencer.temporal.reconciling import RECONCILER
from tests.chaos.accounts import Account
from tests.chaos.events import Event
from tests.chaos.histories import History
from tests.stories.story import Act, Call, Ending, Given, Reply, Story

__all__ = [
    "BEGIN",
    "at",
    "change_item",
    "change_story",
    "good_account",
    "operated",
    "terminated",
    "timed_out",
]

BEGIN = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)

_LOST = Failure.of(FailureKind.WORKER_LOST, "the worker no longer sends heartbeats", outcome_unknown=True)


def at(seconds: float) -> datetime:
    """So long after the task's start."""
    return BEGIN + timedelta(seconds=seconds)


def good_account() -> Account:
    """Nothing is wrong in it."""
    first = _item("first", 0, WorkItemState.FAILED, created=0, started=0, ended=5)
    first = first.model_copy(update={"failure": _LOST, "worker": "77@here"})
    second = _item("second", 1, WorkItemState.COMPLETED, created=5, started=6.1, ended=7)
    retry = {"delay_seconds": 1.0, "delay_reason": DelayReason.BACKOFF, "not_before": at(6)}
    second = second.model_copy(update={**retry, "result": {"text": "42"}, "worker": "78@here"})
    items = [first, second]
    result = {"text": "42", "work_item_id": "second", "attempts": 2}
    history = History(
        runs=["run"],
        started_at=at(0),
        closed_at=at(7.1),
        state="completed",
        result=result,
        scheduled=[("first", at(0.1)), ("second", at(6.2))],
        tries=1,
    )
    held = ["initialized", "started"]
    story = Story(
        task_id="task",
        request=AiAgentRequest(prompt="task 0", max_retries=2, heartbeat_timeout_seconds=3),
        ending=Ending("completed", at(0), at(7.1), result=result),
        items=items,
        transitions={item.id: _steps(item) for item in items},
        jobs={item.id: _job(item) for item in items},
        listed=[_listed(item) for item in items],
        calls=[
            Call("first", at(0.2), at(1), Given("stall", "timed_out", endless=True), False, True, held),
            Call("second", at(6.3), at(6.9), Given("ok", None, "42"), True, False, held),
        ],
        sightings=items,
    )
    return Account(
        story=story,
        history=history,
        outcome=("completed", result, "", ""),
        listed=story.listed,
        events=[Event("kill worker", at(1), at(3), worker="worker 0", pid=77)],
        last_fault_at=at(3),
    )


def operated() -> Account:
    """The same, but a person completed the retry."""
    account = good_account()
    second = account.story.items[1].model_copy(update={"result": {"text": "from a person"}})
    account = change_item(account, "second", result={"text": "from a person"})
    last = account.story.transitions["second"][-1].model_copy(
        update={"actor": "anna", "reason": "because anna says so"}
    )
    told = {"work_item_id": "second", "state": "completed"}
    act = Act(
        "complete_work_item", "anna", "update-anna", "second", at(6.5), at(7.05), Reply.ACCEPTED, "", told
    )
    result = {"text": "from a person", "work_item_id": "second", "attempts": 2}
    account = change_story(
        account,
        transitions={
            **account.story.transitions,
            "second": [*account.story.transitions["second"][:-1], last],
        },
        jobs={**account.story.jobs, "second": _job(second)},
        acts=[act],
        ending=replace(account.story.ending, result=result),
        sightings=[],
    )
    return replace(
        account, history=replace(account.history, result=result), outcome=("completed", result, "", "")
    )


def terminated() -> Account:
    """The same where somebody terminated the task in its second call, and the reconciler settled that."""
    return replace(
        _cut_off("terminated", "the task was terminated: because bert says so"),
        terminated_because="because bert says so",
    )


def timed_out() -> Account:
    """The same where a pause of the worker made the task run into its timeout."""
    account = change_story(
        _cut_off("timed out", "the task ran into Temporal's timeout"), run_timeout_seconds=12
    )
    history = replace(account.history, closed_at=at(12))
    return replace(account, history=history, events=[*account.events, Event("pause worker", at(6.5), at(14))])


def _cut_off(how: str, reason: str) -> Account:
    account = good_account()
    listed = [*account.story.listed[:1], _listed(account.story.items[1].model_copy(update=_STARTED))]
    account = change_item(account, "second", state=WorkItemState.CANCELED, result=None, ended_at=at(20))
    second = account.story.items[1]
    *steps, last = account.story.transitions["second"]
    settled = {"next_state": WorkItemState.CANCELED, "at": at(20), "actor": RECONCILER, "reason": reason}
    account = change_story(
        account,
        transitions={
            **account.story.transitions,
            "second": [*steps, last.model_copy(update=settled)],
        },
        jobs={**account.story.jobs, "second": _job(second)},
        ending=Ending(how, at(0), at(7.1)),
        sightings=[],
        listed=listed,
    )
    history = replace(account.history, state=how, result={}, run_started_at=at(0))
    return replace(account, history=history, outcome=(how, {}, "", ""), listed=listed)


_STARTED = {"state": WorkItemState.STARTED, "result": None, "ended_at": None}


def change_story(account: Account, **changes: Any) -> Account:
    """The account with another story."""
    return replace(account, story=replace(account.story, **changes))


def change_item(account: Account, work_item_id: str, **changes: Any) -> Account:
    """The account with another row in the ledger."""
    items = [
        item.model_copy(update=changes) if item.id == work_item_id else item for item in account.story.items
    ]
    return change_story(account, items=items)


def _item(
    name: str, attempt: int, state: WorkItemState, *, created: float, started: float, ended: float
) -> WorkItem:
    return WorkItem(
        id=name,
        task_id="task",
        run_id="run",
        task_type="AiAgentTask",
        lineage="main",
        attempt=attempt,
        state=state,
        not_before=at(created),
        created_at=at(created),
        started_at=at(started),
        ended_at=at(ended),
    )


def _steps(item: WorkItem) -> list[Transition]:
    path = [WorkItemState.INITIALIZED, WorkItemState.STARTED, item.state]
    return [
        Transition(
            work_item_id=item.id,
            sequence=number,
            previous_state=path[number - 1] if number else None,
            next_state=state,
            at=when,
            actor="task",
        )
        for number, (state, when) in enumerate(
            zip(path, [item.created_at, item.started_at, item.ended_at], strict=True)
        )
        if when is not None
    ]


def _job(item: WorkItem) -> dict[str, Any]:
    text = item.result.get("text") if isinstance(item.result, dict) else None
    error = str(item.failure) if item.failure else None
    return {
        "prompt": "task 0",
        "attempt": item.attempt,
        "status": item.state.value,
        "result": text,
        "last_error": error,
    }


def _listed(item: WorkItem) -> dict[str, Any]:
    row = item.model_dump(mode="json", exclude={"payload", "result", "worker"})
    return row | {"failure_kind": item.failure.kind if item.failure else None}
