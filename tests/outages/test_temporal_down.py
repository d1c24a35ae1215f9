"""Temporal goes away under a worker that runs: it waits, reconnects by itself, and says so once."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import AsyncIterator, Callable
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tasquencer.devkit.processes import ChildProcess
from tasquencer.devkit.temporal_server import embedded_temporal
from tests.end_to_end.stage import Stage
from tests.outages.log import lines_of
from tests.support.answers import Hold, ok, stall
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.ports import KeptPort
from tests.support.provider import ScriptedProvider

TASKS = 10

LONGER_THAN_THE_SDK_TRIES = 15.0
"""Seconds; it gives a request up after ten."""


async def says(worker: ChildProcess, text: str) -> None:
    async def said() -> bool:
        return text in worker.output()

    await eventually(said, f"the worker says {text!r}")


@asynccontextmanager
async def calls_whose_temporal_goes_away(
    folder: Path, hold: Hold, *options: str
) -> AsyncIterator[
    tuple[ChildProcess, ScriptedProvider, Callable[[], AbstractAsyncContextManager[Any]], list[Any]]
]:
    """A worker whose calls are under way while Temporal is not there; and what brings it back."""
    database, port = folder / "temporal.db", KeptPort()

    def back() -> AbstractAsyncContextManager[Any]:
        return embedded_temporal(ui=False, database_file=database, port=port.number)

    async with ScriptedProvider(lambda _: stall(hold, ok())) as provider, AsyncExitStack() as stack:
        stack.callback(port.release)
        async with back() as server:
            stage = await Stage.on(server, provider, folder / "stage")
            worker = await stack.enter_async_context(stage.worker(*options))
            tasks = [await stage.start(str(number), heartbeat_timeout_seconds=120) for number in range(TASKS)]
            await provider.wait_for_requests(TASKS)
            os.kill(server.pid, signal.SIGKILL)
        yield worker, provider, back, tasks


@pytest.mark.timeout(300)
async def test_a_server_that_is_killed_and_comes_back_costs_no_attempt_and_few_lines_of_log(
    tmp_path: Path,
) -> None:
    hold = Hold()
    async with calls_whose_temporal_goes_away(tmp_path, hold) as (worker, provider, back, tasks):
        await says(worker, "does not answer; the worker waits for it")
        async with back():
            await says(worker, "Temporal answers again")
            hold.release()
            async with asyncio.timeout(PATIENCE_SECONDS):
                results = await asyncio.gather(*(task.result() for task in tasks))
            lines = lines_of(worker)
    assert {result["attempts"] for result in results} == {1}
    assert len(provider.requests) == TASKS
    assert len(lines) <= 5, lines


@pytest.mark.timeout(300)
async def test_calls_that_end_while_temporal_is_away_keep_their_outcomes(tmp_path: Path) -> None:
    hold = Hold()
    async with calls_whose_temporal_goes_away(tmp_path, hold) as (worker, provider, back, tasks):
        hold.release()
        await asyncio.sleep(LONGER_THAN_THE_SDK_TRIES)
        async with back(), asyncio.timeout(PATIENCE_SECONDS):
            results = await asyncio.gather(*(task.result() for task in tasks))
        lines = lines_of(worker)
    assert {result["attempts"] for result in results} == {1}
    assert len(provider.requests) == TASKS
    assert len(lines) <= 5, lines


@pytest.mark.timeout(300)
async def test_a_worker_that_is_stopped_while_temporal_is_away_ends_with_its_outcomes_not_handed_in(
    tmp_path: Path,
) -> None:
    hold = Hold()
    options = ("--grace-period", "1")
    async with calls_whose_temporal_goes_away(tmp_path, hold, *options) as (worker, _, _, _):
        hold.release()
        await says(worker, "does not answer; the worker waits for it")
        worker.send(signal.SIGTERM)
        assert await worker.wait(timeout_seconds=PATIENCE_SECONDS) == 0, worker.output()
