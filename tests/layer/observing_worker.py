"""A worker of somebody else's application, observed, as a process that a test can kill.

`python -m tests.layer.observing_worker ADDRESS QUEUE DATABASE [hangs]`
"""

from __future__ import annotations

import asyncio
import os
import sys
from datetime import timedelta

from temporalio import activity
from temporalio.client import Client
from temporalio.worker import Worker

from tasquencer.sql import SqlLedger
from tasquencer.temporal import TasquencerPlugin, observed_ends, observed_writing
from tests.layer.observed import Works
from tests.support.patience import PATIENCE_SECONDS
from tests.support.stalls import allow_stalls

_WORKS = b"works\n"


class Hanging:
    """Its activity hangs, or returns at once."""

    def __init__(self, *, hangs: bool) -> None:
        self._hangs = hangs

    @activity.defn
    async def work(self, value: int) -> int:
        while self._hangs:
            activity.heartbeat()
            await asyncio.sleep(0.05)
        return value + 1


async def observing_worker(
    address: str, queue: str, database: str, *, hangs: bool = False
) -> asyncio.subprocess.Process:
    """Start it, and return once it works."""
    arguments = [address, queue, database, *(["hangs"] if hangs else [])]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.layer.observing_worker", *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await process.stdout.readline() == _WORKS
    return process


async def _work(address: str, queue: str, database: str, hangs: str = "") -> None:
    # As tests/layer/conftest.py has it for the process of the tests.
    observed_writing._PATIENCE = timedelta(seconds=PATIENCE_SECONDS)
    observed_ends._LOOK_SECONDS = PATIENCE_SECONDS
    plugin = TasquencerPlugin(SqlLedger(database), observe_activities=["*"])
    client = await Client.connect(address, plugins=[plugin])
    async with Worker(
        client,
        task_queue=queue,
        workflows=[Works],
        activities=[Hanging(hangs=bool(hangs)).work],
        max_heartbeat_throttle_interval=timedelta(milliseconds=50),
    ):
        os.write(1, _WORKS)
        await asyncio.Event().wait()


if __name__ == "__main__":
    allow_stalls()
    asyncio.run(_work(*sys.argv[1:]))
