"""What waited together for a worker is decided alike by the one that comes and in a replay."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.worker import Replayer

from tasquencer.core.work_item import WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal import TasquencerPlugin
from tasquencer.testing import InMemoryLedger
from tests.support import answers
from tests.support.dying_worker import Orders
from tests.support.tasks import comes_to, update_that_waits
from tests.workflows.cancel.scene import ASK, cancel, ends_canceled
from tests.workflows.test_lost_decisions import ACTIONS, _listed, stage
from workflows.ai_agent import AiAgentTask


@pytest.mark.parametrize("call_is_lost", [False, True], ids=["open", "lost"])
@pytest.mark.parametrize("cancel_first", [False, True], ids=["action first", "cancel first"])
@pytest.mark.parametrize("action", ["fail_work_item"])
async def test_a_cancel_and_an_action_that_waited_for_a_worker_replay_as_they_ran(
    dev_server: EmbeddedTemporal, tmp_path: Path, action: str, cancel_first: bool, call_is_lost: bool
) -> None:
    request = ASK | {"max_retries": 1, "heartbeat_timeout_seconds": 10 if call_is_lost else 15}
    never = Orders(WorkItemState.CANCELED, attempt=7)
    async with stage(dev_server, tmp_path, [answers.stall()], request, never) as scene:
        await scene.provider.wait_for_requests(1)
        (item,) = await _listed(scene.handle)
        scene.dying.kill()
        await scene.dying.wait()
        payload = {"actor": "anna", "work_item_id": item["id"], **ACTIONS[action][1]}
        if cancel_first:
            await cancel(scene.handle)
        acting = await update_that_waits(scene.handle, action, payload)
        if not cancel_first:
            await cancel(scene.handle)
        if call_is_lost:
            await comes_to(scene.handle, "activity_task_timed_out_event_attributes")
        async with scene.next_worker() as now:
            await ends_canceled(scene.handle)
            with contextlib.suppress(WorkflowUpdateFailedError):
                await acting
            items = await now.work_items(scene.handle)
        async with scene.next_worker():
            listed = await scene.handle.query("work_items")
        told = await scene.handle.fetch_history()
    await Replayer(workflows=[AiAgentTask], plugins=[TasquencerPlugin(InMemoryLedger())]).replay_workflow(
        told
    )
    assert [row["state"] for row in listed] == [item.state for item in items]
