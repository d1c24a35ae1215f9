"""Every client of Temporal may act on a work item. The actor is recorded as given."""

from __future__ import annotations

from temporalio.client import Client

from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tests.semantics.side_by_side import SideBySide, Work, until
from tests.support.tasks import failure_of_task, tasks_on


async def test_any_client_may_act_under_any_name(dev_server: EmbeddedTemporal) -> None:
    async with tasks_on(dev_server.address, [SideBySide], [Work().work]) as tasks:
        handle = await tasks.start("SideBySide", ["hangs"])
        found = await until(tasks, handle, {"hangs": ["started"]})
        stranger = await Client.connect(dev_server.address)

        await stranger.get_workflow_handle(handle.id).execute_update(
            "cancel_work_item", {"work_item_id": found["hangs"][0].id, "actor": "the board"}
        )

        await failure_of_task(handle)
        *_, last = await tasks.ledger.transitions(found["hangs"][0].id)
    assert (last.next_state, last.actor) == ("canceled", "the board")
