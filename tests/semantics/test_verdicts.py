"""The verdict `fail` is final, `complete` holds until more begins; the task ends when its code does."""

from __future__ import annotations

from datetime import timedelta

import pytest
from temporalio import workflow
from temporalio.client import WorkflowExecutionStatus

from tasquencer.core.errors import TaskMisused
from tasquencer.core.policy import Counts, Verdict
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.work_item import Transition
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal import Task
from tests.semantics.side_by_side import Handle, Work, until
from tests.support.patience import eventually
from tests.support.tasks import history, tasks_on
from tests.unit.driving import NOON, after, failed, refused, task


def test_a_task_whose_verdict_is_complete_may_begin_another_lineage() -> None:
    state = task()
    state.begin("a", now=NOON, lineage="a")
    state.start("w0", now=NOON)
    assert state.complete("w0", "done", now=NOON) is Verdict.COMPLETE

    state.begin("b", now=after(1), lineage="b")

    after_beginning = state.verdict
    failed(state, "w1", refused(), at=1)
    assert (after_beginning, state.verdict) == (Verdict.CONTINUE, Verdict.FAIL)


def test_a_task_whose_verdict_is_fail_begins_nothing_more() -> None:
    state = task()
    state.begin("a", now=NOON, lineage="a")
    failed(state, "w0", refused())

    with pytest.raises(TaskMisused, match="lineage 'b' cannot begin: the task has failed"):
        state.begin("b", now=after(1), lineage="b")

    assert state.verdict is Verdict.FAIL


def undecided(transition: Transition, counts: Counts) -> Verdict:
    return Verdict.CONTINUE


@workflow.defn
class Undecided:
    """Its policy never decides; its code asks for the result, or does not."""

    def __init__(self) -> None:
        self._task = Task(recipe=RetryRecipe(max_retries=0), policy=undecided)

    @workflow.run
    async def run(self, first: str, second: str, asks: bool) -> str:
        for name in (first, second):
            async for work_item in self._task.attempts(name, lineage=name):
                async with work_item:
                    answer = await work_item.execute_activity(
                        "work", name, start_to_close_timeout=timedelta(minutes=1)
                    )
                    work_item.complete(answer)
        return str(self._task.result(first)) if asks else "nobody asked"


async def test_where_the_policy_only_continues_the_task_ends_as_its_code_does(
    dev_server: EmbeddedTemporal,
) -> None:
    async with tasks_on(dev_server.address, [Undecided], [Work().work]) as tasks:
        result, handle = await tasks.run("Undecided", "fails", "answers", False)
        assert (await handle.describe()).status is WorkflowExecutionStatus.COMPLETED
        await until(tasks, handle, {"fails": ["failed"], "answers": ["completed"]})
    assert result == "nobody asked"


async def test_to_ask_for_a_result_that_is_not_there_is_a_bug_that_pauses_the_task(
    dev_server: EmbeddedTemporal,
) -> None:
    async with tasks_on(dev_server.address, [Undecided], [Work().work]) as tasks:
        handle = await tasks.start("Undecided", "fails", "answers", True)
        message = await eventually(lambda: last_error(handle), "a workflow task that fails")
        assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING
        await handle.terminate()
    assert message == "lineage 'fails' has no result: its last work item is failed"


async def last_error(handle: Handle) -> str | None:
    """What made a workflow task fail."""
    for event in reversed(await history(handle)):
        if event.HasField("workflow_task_failed_event_attributes"):
            return event.workflow_task_failed_event_attributes.failure.message
    return None
