"""A worker that dies right after a chosen write, before Temporal hears of it.

`python -m tests.support.dying_worker ADDRESS BASE_URL LEDGER TASK_QUEUE STATE ATTEMPT [TOGETHER HOLD]`
"""

from __future__ import annotations

import asyncio
import math
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tasquencer.entries import LedgerEntry
from tasquencer.sql import SqlLedger
from tasquencer.temporal import bookkeeping
from tasquencer.work_item import WorkItemState
from tests.activities.calling import activities_for
from tests.support.held_ledgers import Wanted, leading_to
from tests.support.tasks import tasks_on
from workflows.ai_agent import AiAgentTask
from workflows.ai_fan_out import AiFanOutTask

__all__ = ["DEAD", "dying_worker"]

DEAD = 77
"""Exit status of a worker that died as it was told to."""


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
        if await self._wanted(entries):
            os._exit(DEAD)
        completes = any(one.transition.next_state is WorkItemState.COMPLETED for one in entries)
        while completes and self._hold is not None and not self._hold.exists():
            await asyncio.sleep(0.01)


async def dying_worker(
    address: str,
    base_url: str,
    database: str,
    queue: str,
    state: WorkItemState,
    attempt: int,
    together: int = 1,
    hold: Path | None = None,
) -> asyncio.subprocess.Process:
    """Start it: it dies once so many work items of this attempt have come together to this state."""
    options = [address, base_url, database, queue, state.value, str(attempt)]
    if hold is not None:
        options += [str(together), str(hold)]
    return await asyncio.create_subprocess_exec(sys.executable, "-m", "tests.support.dying_worker", *options)


async def _work_until_death(
    address: str,
    base_url: str,
    database: str,
    queue: str,
    state: str,
    attempt: str,
    together: str = "1",
    hold: str | None = None,
) -> None:
    wanted = leading_to(WorkItemState(state), int(attempt), int(together))
    ledger = DeadlyLedger(database, wanted, None if hold is None else Path(hold))
    if hold is not None:  # a write that is held is not to count as slow
        bookkeeping._SLOW_SECONDS = math.inf
    async with (
        activities_for(base_url) as activities,
        tasks_on(
            address, [AiAgentTask, AiFanOutTask], [activities.generate], ledger=ledger, task_queue=queue
        ),
    ):
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_work_until_death(*sys.argv[1:]))
