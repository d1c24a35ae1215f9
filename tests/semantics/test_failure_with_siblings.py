"""A task that fails takes its siblings along: in flight and waiting."""

from __future__ import annotations

from temporalio.client import WorkflowExecutionStatus

from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tests.semantics.side_by_side import SideBySide, Work, has_begun, hours_canceled, lines, until
from tests.support.patience import eventually
from tests.support.tasks import comes_to, failure_of_task, history, tasks_on

NAMES = ["answers", "fails", "hangs", "refuses"]


async def test_the_failure_cancels_what_is_in_flight_and_what_waits_and_keeps_what_has_ended(
    dev_server: EmbeddedTemporal,
) -> None:
    work = Work()
    async with tasks_on(dev_server.address, [SideBySide], [work.work]) as tasks:
        handle = await tasks.start("SideBySide", NAMES)
        await until(
            tasks,
            handle,
            {
                "answers": ["completed"],
                "fails": ["failed", "initialized"],
                "hangs": ["started"],
                "refuses": ["started"],
            },
        )
        await comes_to(handle, "timer_started_event_attributes")
        await eventually(lambda: has_begun(work, "hangs"), "the call that hangs to begin")
        asked = await handle.query(SideBySide.asked)
        work.may_refuse.set()

        error = await failure_of_task(handle)

        assert (await handle.describe()).status is WorkflowExecutionStatus.FAILED
        found = await lines(tasks, handle)
        items = {(item.lineage, item.attempt): item for items in found.values() for item in items}
        ends = {key: (await tasks.ledger.transitions(item.id))[-1] for key, item in items.items()}
        asked_since = (await handle.query(SideBySide.asked))[len(asked) :]
        events = await history(handle)
    assert error.type == "NotRetryable"
    assert error.message.startswith("refuses: first try failed with told_so")
    assert {key: (end.next_state, end.reason) for key, end in ends.items()} == {
        ("answers", 0): ("completed", None),
        ("fails", 0): ("failed", None),
        ("fails", 1): ("canceled", "the task failed"),
        ("hangs", 0): ("canceled", "the task failed"),
        ("refuses", 0): ("failed", None),
    }
    assert work.stopped == ["hangs"]
    assert hours_canceled(events) == [1]
    refusing = items["refuses", 0].id
    assert [tuple(one) for one in asked_since] == [
        ("hook", refusing, "failed"),
        ("policy", refusing, "failed"),
    ]


async def test_where_the_policy_absorbs_the_failure_the_siblings_go_on(dev_server: EmbeddedTemporal) -> None:
    work = Work()
    work.may_refuse.set()
    async with tasks_on(dev_server.address, [SideBySide], [work.work]) as tasks:
        handle = await tasks.start("SideBySide", ["hangs", "refuses"], True)
        found = await until(tasks, handle, {"hangs": ["started"], "refuses": ["failed"]})
        (hanging,) = found["hangs"]

        assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING
        await handle.execute_update(
            "complete_work_item", {"work_item_id": hanging.id, "actor": "anna", "result": "from a person"}
        )
        assert await handle.result() == ["hangs"]
