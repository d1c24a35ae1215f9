"""Cancellation goes down and never up."""

from __future__ import annotations

import pytest
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError
from temporalio.exceptions import CancelledError

from tasquencer.core.policy import Counts, Verdict
from tasquencer.core.work_item import Transition
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tests.semantics.side_by_side import SideBySide, Work, has_begun, hours_canceled, lines, states, until
from tests.support.patience import eventually
from tests.support.tasks import failure_of_task, history, tasks_on
from tests.unit.driving import NOON, after, task

NOT_WANTED = {"actor": "anna", "reason": "not wanted"}


def test_the_policy_is_asked_about_a_canceled_work_item_and_its_verdict_counts() -> None:
    asked: list[str] = []

    def goes_on(transition: Transition, counts: Counts) -> Verdict:
        asked.append(transition.next_state)
        return Verdict.CONTINUE

    state = task(policy=goes_on)
    state.begin("job", now=NOON, lineage="a")
    state.begin("job", now=NOON, lineage="b")
    asked.clear()

    assert state.cancel("w0", now=after(1), reason="not wanted") is Verdict.CONTINUE

    assert asked == ["canceled"]
    assert [item.state for item in state.work_items()] == ["canceled", "initialized"]


async def test_a_task_goes_on_without_a_canceled_work_item_where_its_policy_says_so(
    dev_server: EmbeddedTemporal,
) -> None:
    work = Work()
    async with tasks_on(dev_server.address, [SideBySide], [work.work]) as tasks:
        handle = await tasks.start("SideBySide", ["hangs 1", "hangs 2"], True)
        found = await until(tasks, handle, {"hangs 1": ["started"], "hangs 2": ["started"]})
        first, second = found["hangs 1"][0], found["hangs 2"][0]

        await handle.execute_update("cancel_work_item", {"work_item_id": first.id, **NOT_WANTED})

        await until(tasks, handle, {"hangs 1": ["canceled"], "hangs 2": ["started"]})
        assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING
        await handle.execute_update(
            "complete_work_item", {"work_item_id": second.id, "actor": "anna", "result": "from a person"}
        )
        assert await handle.result() == ["hangs 2"]


async def test_by_default_the_task_of_a_canceled_work_item_fails_and_is_not_canceled(
    dev_server: EmbeddedTemporal,
) -> None:
    async with tasks_on(dev_server.address, [SideBySide], [Work().work]) as tasks:
        handle = await tasks.start("SideBySide", ["hangs 1", "hangs 2"])
        found = await until(tasks, handle, {"hangs 1": ["started"], "hangs 2": ["started"]})
        first, second = found["hangs 1"][0], found["hangs 2"][0]

        await handle.execute_update("cancel_work_item", {"work_item_id": first.id, **NOT_WANTED})

        error = await failure_of_task(handle)
        assert (await handle.describe()).status is WorkflowExecutionStatus.FAILED
        reasons = [(await tasks.ledger.transitions(item.id))[-1].reason for item in (first, second)]
    assert (error.type, error.message) == (
        "TaskFailed",
        "hangs 1: first try was canceled: canceled by anna: not wanted",
    )
    assert reasons == ["canceled by anna: not wanted", "the task failed"]


async def test_a_canceled_task_cancels_every_open_work_item_of_every_lineage(
    dev_server: EmbeddedTemporal,
) -> None:
    """One that waits for its retry, two that are under way, one that waits for its turn."""
    work = Work()
    async with tasks_on(dev_server.address, [SideBySide], [work.work]) as tasks:
        names = ["answers", "fails", "hangs 1", "hangs 2", "hangs 3"]
        handle = await tasks.start("SideBySide", names, False, 2)
        await until(
            tasks,
            handle,
            {
                "answers": ["completed"],
                "fails": ["failed", "initialized"],
                "hangs 1": ["started"],
                "hangs 2": ["started"],
                "hangs 3": ["initialized"],
            },
        )
        await eventually(lambda: has_begun(work, "hangs 1", "hangs 2"), "both calls to be under way")
        asked = await handle.query(SideBySide.asked)

        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as caught:
            await handle.result()

        assert isinstance(caught.value.cause, CancelledError)
        assert await handle.query(SideBySide.asked) == asked
        found = await lines(tasks, handle)
        canceled = [item for items in found.values() for item in items if item.state == "canceled"]
        reasons = {(await tasks.ledger.transitions(item.id))[-1].reason for item in canceled}
        events = await history(handle)
    assert states(found) == {
        "answers": ["completed"],
        "fails": ["failed", "canceled"],
        "hangs 1": ["canceled"],
        "hangs 2": ["canceled"],
        "hangs 3": ["canceled"],
    }
    assert reasons == {"the task was canceled"}
    assert sorted(work.stopped) == ["hangs 1", "hangs 2"]
    assert hours_canceled(events) == [1]
