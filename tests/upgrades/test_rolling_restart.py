"""Workers that are replaced one after the other while tasks keep coming: nobody notices."""

from __future__ import annotations

import asyncio
import itertools
import signal
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
from temporalio.client import WorkflowHandle

from tasquencer.core.work_item import WorkItemState
from tasquencer.devkit.processes import ChildProcess
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.sql import SqlLedger, upgrade
from tests.end_to_end.stage import Stage
from tests.support.answers import Answer, ok
from tests.support.patience import PATIENCE_SECONDS
from tests.support.postgres import EmbeddedPostgres
from tests.support.provider import ProviderRequest, ScriptedProvider

ROUNDS = 2
FEWEST_TASKS = 60
PAUSE_SECONDS = 0.2
"""Between one task and the next: with calls of 0.3 s there is nearly always one under way."""


async def after_a_while(request: ProviderRequest) -> Answer:
    await asyncio.sleep(0.3)
    return ok(request.prompt)


class Stream:
    """Starts one task after the other until it is stopped."""

    def __init__(self, stage: Stage) -> None:
        self._stage = stage
        self._stopping = False
        self.tasks: list[WorkflowHandle[Any, Any]] = []

    async def flow(self) -> None:
        for number in itertools.count():
            if self._stopping and number >= FEWEST_TASKS:
                return
            self.tasks.append(await self._stage.start(f"question {number}"))
            await asyncio.sleep(PAUSE_SECONDS)

    def stop(self) -> None:
        self._stopping = True


@pytest.mark.postgresql
@pytest.mark.timeout(300)  # a busy machine takes long to start six workers
async def test_workers_are_replaced_one_by_one_under_load_and_no_attempt_fails(
    dev_server: EmbeddedTemporal, postgres: EmbeddedPostgres, tmp_path: Path
) -> None:
    settings = {"TASQ_DATABASE_URL": await postgres.create_database("rolling")}
    await upgrade(settings["TASQ_DATABASE_URL"])
    async with ScriptedProvider(after_a_while) as provider, AsyncExitStack() as workers:
        stage = await Stage.on(dev_server, provider, tmp_path)

        async def new_worker() -> ChildProcess:
            return await workers.enter_async_context(stage.worker(settings=settings))

        live = list(await asyncio.gather(new_worker(), new_worker()))
        stream = Stream(stage)
        flowing = asyncio.create_task(stream.flow())
        for place in [0, 1] * ROUNDS:
            before = len(provider.requests)
            await provider.wait_for_requests(before + 2)
            live[place].send(signal.SIGTERM)
            assert await live[place].wait(timeout_seconds=PATIENCE_SECONDS) == 0
            live[place] = await new_worker()
        stream.stop()
        await flowing
        results = await asyncio.gather(*(task.result() for task in stream.tasks))
    async with SqlLedger(settings["TASQ_DATABASE_URL"]) as ledger:
        items = await ledger.work_items(WorkItemFilter(limit=2000))
    assert [result["text"] for result in results] == [f"question {n}" for n in range(len(results))]
    assert {result["attempts"] for result in results} == {1}
    assert {item.state for item in items} == {WorkItemState.COMPLETED}
    assert sorted(item.task_id for item in items) == sorted(task.id for task in stream.tasks)
    assert sorted(item.id for item in items) == sorted(str(r.idempotency_key) for r in provider.requests)
    assert len({item.worker for item in items}) > 2
