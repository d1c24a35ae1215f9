"""What counts as a difference between the ledger and the histories, and what the ledger may know more."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from pydantic import JsonValue

from tasquencer.core.entries import DomainRecord
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.task_state import TaskState
from tasquencer.core.work_item import DelayReason, Transition, WorkItem, WorkItemState
from tasquencer.ledger.comparison import FullWorkItem, differences
from tasquencer.testing import InMemoryLedger
from tests.unit.driving import NOON, after, rate_limited, task

STARTED, COMPLETED, CANCELED = WorkItemState.STARTED, WorkItemState.COMPLETED, WorkItemState.CANCELED

Told = dict[str, FullWorkItem]


def job(item: WorkItem, recipe: RetryRecipe) -> DomainRecord:
    return DomainRecord(table="jobs", values={"status": item.state.value, "text": "hello"})


async def recorded(state: TaskState) -> Told:
    ledger = InMemoryLedger()
    await ledger.record(state.take_entries())
    found = {}
    for item in state.work_items():
        rows = await ledger.domain_records("jobs", [item.id])
        found[item.id] = FullWorkItem(item, await ledger.transitions(item.id), {"jobs": rows[item.id]})
    return found


async def a_story(until: WorkItemState = COMPLETED) -> Told:
    """`w0` failed, `w1` is in this state."""
    state = task(record_of=job)
    state.begin("job", now=NOON)
    state.start("w0", now=NOON)
    state.fail("w0", rate_limited(), now=after(1), worker="1@host")
    if until is not WorkItemState.INITIALIZED:
        state.start("w1", now=after(3))
    if until is COMPLETED:
        state.complete("w1", {"text": "hi"}, now=after(4))
    if until is CANCELED:
        state.cancel("w1", now=after(4), reason="enough")
    return await recorded(state)


def changed(told: Told, work_item_id: str = "w1", **update: Any) -> Told:
    one = told[work_item_id]
    return told | {work_item_id: replace(one, work_item=one.work_item.model_copy(update=update))}


def stepped(told: Told, sequence: int, **update: Any) -> Told:
    one = told["w1"]
    steps = [
        step.model_copy(update=update) if step.sequence == sequence else step for step in one.transitions
    ]
    return told | {"w1": replace(one, transitions=steps)}


def with_job(told: Told, values: Mapping[str, JsonValue] | None) -> Told:
    records = {} if values is None else {"jobs": values}
    return told | {"w1": replace(told["w1"], records=records)}


def without(told: Told, work_item_id: str) -> Told:
    return {key: one for key, one in told.items() if key != work_item_id}


def extra(told: Told, state: WorkItemState) -> Told:
    item = told["w1"].work_item.model_copy(update={"id": "w9", "state": state})
    return told | {"w9": FullWorkItem(item, [])}


def settled(told: Told) -> Told:
    """The last work item is also canceled."""
    one = told["w1"]
    last = one.transitions[-1]
    step = Transition(
        work_item_id="w1",
        sequence=last.sequence + 1,
        previous_state=last.next_state,
        next_state=CANCELED,
        at=after(90),
        actor="reconciler",
        reason="the task was terminated",
    )
    item = one.work_item.model_copy(update={"state": CANCELED, "ended_at": after(90)})
    jobs = {"jobs": {**one.records["jobs"], "status": "canceled"}}
    return told | {"w1": FullWorkItem(item, [*one.transitions, step], jobs)}


SECOND_3, SECOND_4 = "2026-11-23T12:00:03+00:00", "2026-11-23T12:00:04+00:00"

DIFFERENT: dict[str, tuple[Callable[[Told], Told], str]] = {
    "a row is missing": (lambda told: without(told, "w1"), "is missing in the ledger"),
    "a result": (
        lambda told: changed(told, result={"text": "ho"}),
        "result is {'text': 'ho'} in the ledger, {'text': 'hi'} in the history"),
    "a payload": (
        lambda told: changed(told, payload="another"),
        "payload is 'another' in the ledger, 'job' in the history"),
    "a lineage": (
        lambda told: changed(told, lineage="x"), "lineage is 'x' in the ledger, 'main' in the history"),
    "a delay": (
        lambda told: changed(told, delay_seconds=9.0),
        "delay_seconds is 9.0 in the ledger, 1.0 in the history"),
    "a later time": (
        lambda told: changed(told, started_at=after(4)),
        f"started_at is {SECOND_4} in the ledger, {SECOND_3} in the history"),
    "no end": (
        lambda told: changed(told, ended_at=None),
        f"ended_at is empty in the ledger, {SECOND_4} in the history"),
    "an actor": (
        lambda told: stepped(told, 2, actor="eve"),
        "actor of transition 2 (completed) is 'eve' in the ledger, 'task' in the history"),
    "a reason": (
        lambda told: stepped(told, 0, reason=None),
        "reason of transition 0 (initialized) is empty in the ledger, 'after rate_limited' in the history"),
    "a later transition": (
        lambda told: stepped(told, 1, at=after(4)),
        f"at of transition 1 (started) is {SECOND_4} in the ledger, {SECOND_3} in the history"),
    "another end": (
        lambda told: stepped(told, 2, next_state=WorkItemState.CANCELED),
        "went initialized → started → completed, in the ledger initialized → started → canceled"),
    "a transition is missing": (
        lambda told: told | {"w1": replace(told["w1"], transitions=told["w1"].transitions[:2])},
        "went initialized → started → completed, in the ledger initialized → started"),
    "a domain record": (
        lambda told: with_job(told, {"status": "completed", "text": "ho"}),
        "jobs.text is 'ho' in the ledger, 'hello' in the history"),
    "no domain record": (lambda told: with_job(told, None), "has no row in jobs"),
    "an open row too many": (
        lambda told: extra(told, STARTED), "is started in the ledger, the histories know nothing of it"),
    "a completed row too many": (
        lambda told: extra(told, COMPLETED), "is completed in the ledger, the histories know nothing of it"),
}  # fmt: skip


@pytest.mark.parametrize("case", DIFFERENT)
async def test_a_difference_is_told_in_one_line(case: str) -> None:
    change, problem = DIFFERENT[case]
    told = await a_story()
    found = differences(told, change(told), under_way=False)
    assert [one.problem for one in found] == [problem]
    assert found[0].task_id == "task-1"
    assert str(found[0]).startswith(f"task task-1, work item {found[0].work_item_id}: ")


async def test_the_worker_of_a_failure_is_compared() -> None:
    told = await a_story()
    (found,) = differences(told, changed(told, "w0", worker="2@host"), under_way=False)
    assert found.problem == "worker is '2@host' in the ledger, '1@host' in the history"


EARLIER = -timedelta(seconds=30)

ALIKE: dict[str, Callable[[Told], Told]] = {
    "the same": lambda told: told,
    "the worker, which no history knows": lambda told: changed(told, worker="1@host"),
    "an earlier time": lambda told: changed(
        told, created_at=after(1) + EARLIER, not_before=after(2) + EARLIER
    ),
    "an earlier transition": lambda told: stepped(told, 0, at=after(1) + EARLIER),
    "how long the wait was that an operator ended": lambda told: changed(
        told, delay_seconds=0.5, delay_reason=DelayReason.OPERATOR, not_before=after(1)
    ),
    "what a lost worker wrote, once it is settled": lambda told: extra(told, CANCELED),
}


@pytest.mark.parametrize("case", ALIKE)
async def test_what_the_ledger_may_know_more_is_no_difference(case: str) -> None:
    told = await a_story()
    assert differences(told, ALIKE[case](told), under_way=False) == []


LATER = {"cached_tokens": 0, "reasoning_tokens": 5}


async def test_facts_that_an_older_release_did_not_keep_are_no_difference() -> None:
    held = await a_story()
    job = held["w1"].records["jobs"]
    history = with_job(changed(held, result={"text": "hi", **LATER}), {**job, **LATER})
    assert differences(history, held, under_way=False) == []
    assert differences(history, with_job(held, {**job, **dict.fromkeys(LATER)}), under_way=False) == []


async def test_facts_that_are_kept_must_be_right() -> None:
    story = await a_story()
    job = story["w1"].records["jobs"]
    history = with_job(changed(story, result={"text": "hi", **LATER}), {**job, **LATER})
    held = with_job(changed(story, result={"text": "hi", "cached_tokens": 1}), {**job, "reasoning_tokens": 4})
    problems = [one.problem for one in differences(history, held, under_way=False)]
    assert [problem.partition(" is ")[0] for problem in problems] == ["result", "jobs.reasoning_tokens"]


@pytest.mark.parametrize("state", [WorkItemState.INITIALIZED, STARTED])
async def test_what_was_settled_after_the_end_is_no_difference(state: WorkItemState) -> None:
    told = await a_story(state)
    assert differences(told, settled(told), under_way=False) == []


async def test_a_start_that_only_a_lost_worker_knew_is_no_difference() -> None:
    without_start = task(record_of=job)
    without_start.begin("job", now=NOON)
    without_start.cancel("w0", now=after(4), reason="enough")
    with_start = task(record_of=job)
    with_start.begin("job", now=NOON)
    with_start.start("w0", now=after(1))
    with_start.cancel("w0", now=after(4), reason="enough")
    told, held = await recorded(without_start), await recorded(with_start)
    assert differences(told, held, under_way=False) == []
    assert differences(held, told, under_way=False) != []


@pytest.mark.parametrize("case", ["a later state", "another work item"])
async def test_of_a_task_under_way_the_ledger_may_know_more(case: str) -> None:
    told = await a_story(STARTED)
    held = await a_story(COMPLETED) if case == "a later state" else extra(told, STARTED)
    assert differences(told, held, under_way=True) == []
    assert differences(told, held, under_way=False) != []
    assert differences(held, told, under_way=True) != []
