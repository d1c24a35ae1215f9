"""The pauses that Temporal's visibility knows."""

from __future__ import annotations

from uuid import uuid4

from temporalio.client import Client

from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal.pausing import PAUSED
from tasquencer.temporal.visibility import Pauses, pause_of, pauses_among
from tests.support.patience import eventually

BY_ANA = {"actor": "ana", "reason": None, "at": "2026-11-23T12:00:00Z"}


async def test_only_the_wanted_running_tasks_with_a_pause_are_found(dev_server: EmbeddedTemporal) -> None:
    client = await Client.connect(dev_server.address)
    prefix = uuid4().hex
    memos = {"it's": BY_ANA, 'a"b\\': BY_ANA, "running": None, "ended": BY_ANA, "odd": ["odd"]}
    ids = {name: f"{prefix}-{name}" for name in memos}
    for name, memo in memos.items():
        memo_or_none = None if memo is None else {PAUSED: memo}
        await client.start_workflow("Nobody", id=ids[name], task_queue=prefix, memo=memo_or_none)
    await client.get_workflow_handle(ids["ended"]).terminate()
    paused = [ids["it's"], ids['a"b\\']]
    others = [f"{prefix}-{number}" for number in range(500)]  # more than fit into one query

    async def found() -> Pauses | None:
        pauses = await pauses_among(client, [*paused, *others, ids["running"], ids["ended"], ids["odd"]])
        is_listed = pauses.unreadable and pauses.by_task.keys() == set(paused)
        return pauses if is_listed else None

    pauses = await eventually(found, "the started workflows in the server's list")
    assert {task_id: pause.actor for task_id, pause in pauses.by_task.items()} == dict.fromkeys(paused, "ana")
    assert pauses.unreadable == {
        ids["odd"]: f"the memo 'tasquencer_paused' of task {ids['odd']!r} is not a pause"
    }
    assert [len((await pause_of(client, task_id)).by_task) for task_id in paused] == [1, 1]
    for task_id in (ids["running"], ids["ended"], others[0]):
        assert await pause_of(client, task_id) == Pauses()
