"""Temporal goes away under a worker that runs: it waits, reconnects by itself, and says so once."""

from __future__ import annotations

import asyncio
import os
import signal
from pathlib import Path

import pytest

from tasquencer.devkit.processes import ChildProcess, free_port
from tasquencer.devkit.temporal_server import embedded_temporal
from tests.end_to_end.stage import Stage
from tests.support.answers import Hold, ok, stall
from tests.support.provider import ScriptedProvider
from tests.support.tasks import eventually

TASKS = 10


async def says(worker: ChildProcess, text: str) -> None:
    async def said() -> bool:
        return text in worker.output()

    await eventually(said, f"the worker says {text!r}", seconds=60)


@pytest.mark.timeout(300)
async def test_a_server_that_is_killed_and_comes_back_costs_no_attempt_and_few_lines_of_log(
    tmp_path: Path,
) -> None:
    database, port, hold = tmp_path / "temporal.db", free_port(), Hold()
    async with ScriptedProvider(lambda _: stall(hold, ok())) as provider:
        async with embedded_temporal(ui=False, database_file=database, port=port) as server:
            stage = await Stage.on(server, provider, tmp_path / "stage")
            process = stage.worker()
            worker = await process.__aenter__()
            try:
                tasks = [
                    await stage.start(str(number), heartbeat_timeout_seconds=120) for number in range(TASKS)
                ]
                await provider.wait_for_requests(TASKS, timeout_seconds=60)
            except BaseException:
                worker.kill()
                raise
            os.kill(server.pid, signal.SIGKILL)
        try:
            await says(worker, f"Temporal at 127.0.0.1:{port} does not answer; the worker waits for it")
            async with embedded_temporal(ui=False, database_file=database, port=port):
                await says(worker, "Temporal answers again")
                hold.release()
                async with asyncio.timeout(90):
                    results = await asyncio.gather(*(task.result() for task in tasks))
                lines = worker.output().splitlines()
        finally:
            worker.kill()
    assert {result["attempts"] for result in results} == {1}
    assert len(provider.requests) == TASKS
    assert len(lines) <= 5, lines
