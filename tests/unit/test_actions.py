"""Actions on work items: every action in every state, decided without Temporal."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from tasquencer.core.actions import (
    CancelWorkItem,
    CompleteWorkItem,
    FailWorkItem,
    RetryNow,
    check_transition,
    operator_failure,
    parse_action,
    waiting,
)
from tasquencer.core.errors import ActionRefused, InvalidRequest
from tasquencer.core.policy import Verdict
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.task_state import TaskState
from tasquencer.core.work_item import WorkItemState
from tests.unit.driving import NOON, after, failed, rate_limited, task

STATES = list(WorkItemState)
LEADS_TO = {
    "complete_work_item": WorkItemState.COMPLETED,
    "fail_work_item": WorkItemState.FAILED,
    "cancel_work_item": WorkItemState.CANCELED,
}
ALLOWED = {
    (WorkItemState.INITIALIZED, "cancel_work_item"),
    (WorkItemState.STARTED, "complete_work_item"),
    (WorkItemState.STARTED, "fail_work_item"),
    (WorkItemState.STARTED, "cancel_work_item"),
}


def a_task_whose_work_item_is(state: WorkItemState) -> TaskState:
    """A task of two lineages, so that the end of one does not end it; `w0` is in this state."""
    tried = task(recipe=RetryRecipe(max_retries=0), policy=lambda *_: Verdict.CONTINUE)
    tried.begin("job", now=NOON, lineage="a")
    tried.begin("job", now=NOON, lineage="b")
    if state is not WorkItemState.INITIALIZED:
        tried.start("w0", now=NOON)
    ends: dict[WorkItemState, Callable[[], object]] = {
        WorkItemState.COMPLETED: lambda: tried.complete("w0", "done", now=after(1)),
        WorkItemState.FAILED: lambda: tried.fail("w0", rate_limited(), now=after(1)),
        WorkItemState.CANCELED: lambda: tried.cancel("w0", now=after(1), reason="enough"),
    }
    if state in ends:
        ends[state]()
    tried.take_entries()
    return tried


def act(on: TaskState, action: str) -> None:
    check_transition(on, "w0", LEADS_TO[action])
    if action == "complete_work_item":
        on.complete("w0", "from a person", now=after(2), actor="anna")
    elif action == "fail_work_item":
        failure = operator_failure(FailWorkItem(actor="anna", work_item_id="w0"))
        on.fail("w0", failure, now=after(2), actor="anna")
    else:
        on.cancel("w0", now=after(2), reason="by anna", actor="anna")


@pytest.mark.parametrize("action", LEADS_TO)
@pytest.mark.parametrize("state", STATES)
def test_an_action_leads_to_its_state_or_is_refused_and_changes_nothing(
    state: WorkItemState, action: str
) -> None:
    tried = a_task_whose_work_item_is(state)
    before = tried.work_items()
    if (state, action) in ALLOWED:
        act(tried, action)
        assert tried.work_item("w0").state is LEADS_TO[action]
        assert [entry.transition.actor for entry in tried.take_entries()] == ["anna"]
        return
    with pytest.raises(ActionRefused) as refused:
        act(tried, action)
    assert f"cannot become {LEADS_TO[action]}: first try is {state}" in str(refused.value)
    assert ("since 2026-11-23 12:00:01 UTC" in str(refused.value)) is state.is_terminal
    assert tried.work_items() == before
    assert not tried.has_entries


@pytest.mark.parametrize("state", STATES)
def test_a_first_try_never_waits_for_retry_now(state: WorkItemState) -> None:
    with pytest.raises(ActionRefused, match="nothing waits"):
        waiting(a_task_whose_work_item_is(state))


def test_retry_now_finds_each_work_item_that_is_in_its_backoff() -> None:
    tried = task()
    for name in ("a", "b", "c"):
        tried.begin("job", now=NOON, lineage=name)
    failed(tried, "w0")
    failed(tried, "w2")
    assert [(item.lineage, item.attempt) for item in waiting(tried)] == [("a", 1), ("c", 1)]


def test_an_unknown_work_item_is_refused() -> None:
    with pytest.raises(ActionRefused, match="task 'task-1' has no work item 'nobody'"):
        check_transition(task(), "nobody", WorkItemState.CANCELED)


@pytest.mark.parametrize(
    ("kind", "raw", "problem"),
    [
        (RetryNow, None, "the argument: "),
        (RetryNow, {}, "actor: "),
        (RetryNow, {"actor": "a\x00"}, "actor: "),
        (FailWorkItem, {"actor": "anna"}, "work_item_id: "),
        (CompleteWorkItem, {"actor": "anna", "work_item_id": "w"}, "result: "),
        (CancelWorkItem, {"actor": "anna", "work_item_id": "w", "sudo": 1}, "sudo: "),
    ],
)
def test_a_wrong_payload_names_its_field(kind: type, raw: object, problem: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_action(kind, raw)
    assert str(refused.value).startswith(problem)
