"""A worker that dies right after a chosen write, before Temporal hears of it.

`python -m tests.support.dying_worker ADDRESS BASE_URL LEDGER TASK_QUEUE ORDERS`
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from pydantic import TypeAdapter
from pydantic_core import to_json

from tasquencer.core.entries import LedgerEntry
from tasquencer.core.work_item import WorkItemState
from tasquencer.sql import SqlLedger
from tasquencer.temporal import bookkeeping, timers
from tests.activities.calling import activities_for
from tests.support.held_ledgers import Wanted, leading_to
from tests.support.late_task import LateTask
from tests.support.patience import PATIENCE_SECONDS
from tests.support.stalls import allow_stalls
from tests.support.tasks import tasks_on
from workflows.ai_agent import AiAgentTask
from workflows.ai_fan_out import AiFanOutTask

__all__ = ["DEAD", "Orders", "dying_worker"]

DEAD = 77
"""Exit status of a worker that died as ordered."""

_WORKS = b"works\n"


class DeadlyLedger(SqlLedger):
    """Ends its process, without any farewell, once it has written the wanted batch.

    A batch that completes something returns only when the file `hold` is there: what comes meanwhile comes
    together.
    """

    def __init__(self, database: str, wanted: Wanted, hold: Path | None) -> None:
        super().__init__(database)
        self._wanted = wanted
        self._hold = hold

    async def record(self, entries: Sequence[LedgerEntry]) -> None:
        """See the base class."""
        await super().record(entries)
        await self._committed(entries)

    async def record_and_find_open(
        self, entries: Sequence[LedgerEntry], task_id: str, run_id: str
    ) -> frozenset[str]:
        """See the base class."""
        found = await super().record_and_find_open(entries, task_id, run_id)
        await self._committed(entries)
        return found

    async def _committed(self, entries: Sequence[LedgerEntry]) -> None:
        if await self._wanted(entries):
            os._exit(DEAD)
        completes = any(one.transition.next_state is WorkItemState.COMPLETED for one in entries)
        while completes and self._hold is not None and not self._hold.exists():
            await asyncio.sleep(0.01)


@dataclass(frozen=True)
class Orders:
    """The moment to die: when this number of work items of this attempt reach this state together.

    Attributes:
        hold: A write that completes a work item returns only when this file exists.
        news_seconds: How long an action waits for new events before it is carried out.
    """

    state: WorkItemState
    attempt: int = 0
    together: int = 1
    hold: str | None = None
    news_seconds: float | None = None


async def dying_worker(
    address: str, base_url: str, database: str, queue: str, orders: Orders
) -> asyncio.subprocess.Process:
    """Start it, and return once it works."""
    arguments = [address, base_url, database, queue, to_json(orders).decode()]
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "tests.support.dying_worker", *arguments, stdout=asyncio.subprocess.PIPE
    )
    assert process.stdout is not None
    async with asyncio.timeout(PATIENCE_SECONDS):
        assert await process.stdout.readline() == _WORKS
    return process


async def _work_until_death(address: str, base_url: str, database: str, queue: str, told: str) -> None:
    orders = TypeAdapter(Orders).validate_json(told)
    hold = None if orders.hold is None else Path(orders.hold)
    ledger = DeadlyLedger(database, leading_to(orders.state, orders.attempt, orders.together), hold)
    if hold is not None:  # a write that is held is not to count as slow
        bookkeeping._SLOW_SECONDS = math.inf
    if orders.news_seconds is not None:
        timers._NEWS = timedelta(seconds=orders.news_seconds)
    async with (
        activities_for(base_url) as activities,
        tasks_on(
            address,
            [AiAgentTask, AiFanOutTask, LateTask],
            [activities.generate],
            ledger=ledger,
            task_queue=queue,
        ),
    ):
        os.write(1, _WORKS)
        await asyncio.Event().wait()


if __name__ == "__main__":
    allow_stalls()
    asyncio.run(_work_until_death(*sys.argv[1:]))
