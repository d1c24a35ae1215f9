"""`python -m benchmarks.reconcile`: how fast the reconciler settles what terminated tasks have left open.

Starts workflows that nobody carries out, terminates them, writes work items of theirs as started, and settles
them: as `tasq reconcile` does, or with `--workflow` as the worker does.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
import time
from collections.abc import Awaitable, Iterable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

from temporalio.client import Client
from temporalio.worker import Worker

from tasquencer.core.entries import LedgerEntry
from tasquencer.core.work_item import Transition, WorkItem, WorkItemState
from tasquencer.devkit.temporal_server import embedded_temporal
from tasquencer.sql import SqlLedger, upgrade
from tasquencer.temporal import TasquencerPlugin, data_converter
from tasquencer.temporal.reconciling import Reconciler, Reconciliation
from workflows.reconcile_ledger import ReconcileLedger

_AT_ONCE = 50
_QUEUE = "nobody"


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.reconcile", description=__doc__)
    parser.add_argument("--tasks", type=int, default=2_000, help="terminated tasks (2000)")
    parser.add_argument("--work-items", type=int, default=10_000, help="open work items in all (10000)")
    parser.add_argument("--workflow", action="store_true", help="in the worker, by ReconcileLedger")
    asyncio.run(_run(parser.parse_args()))


async def _run(options: argparse.Namespace) -> None:
    with tempfile.TemporaryDirectory() as folder:
        url = f"sqlite:///{Path(folder) / 'ledger.db'}"
        await upgrade(url)
        async with embedded_temporal(ui=False) as server:
            client = await Client.connect(server.address, data_converter=data_converter)
            print(f"preparing {options.tasks:,} terminated tasks …", flush=True)
            runs = await _limited(_terminated(client, number) for number in range(options.tasks))
            async with SqlLedger(url) as ledger:
                for first in range(0, options.work_items, 1_000):
                    last = min(first + 1_000, options.work_items)
                    entries = [_started(*runs[n % len(runs)], n) for n in range(first, last)]
                    await ledger.record([entry for pair in entries for entry in pair])
            begin = time.monotonic()
            if options.workflow:
                found = await _in_a_worker(server.address, url)
            else:
                async with SqlLedger(url) as ledger:
                    found = await _by_hand(client, ledger)
            took = time.monotonic() - begin
    print(f"{found}\n{sum(found.settled.values()):,} settled in {took:.1f} s")


async def _by_hand(client: Client, ledger: SqlLedger) -> Reconciliation:
    reconciler, found, after = Reconciler(client, ledger, grace=timedelta(0)), Reconciliation(), None
    while True:
        page, _ = await reconciler.page(after)
        found, after = found.plus(page.found), page.next
        if after is None:
            return found


async def _in_a_worker(address: str, url: str) -> Reconciliation:
    client = await Client.connect(address, plugins=[TasquencerPlugin(SqlLedger(url))])
    async with Worker(client, task_queue="reconcile", workflows=[ReconcileLedger]):
        return await client.execute_workflow(
            "ReconcileLedger",
            {"grace_seconds": 0},
            id="reconcile",
            task_queue="reconcile",
            result_type=Reconciliation,
        )


async def _terminated(client: Client, number: int) -> tuple[str, str]:
    handle = await client.start_workflow("AiAgentTask", id=f"task-{number}", task_queue=_QUEUE)
    await handle.terminate(reason="a benchmark")
    return handle.id, handle.result_run_id or ""


async def _limited(doing: Iterable[Awaitable[tuple[str, str]]]) -> list[tuple[str, str]]:
    slots = asyncio.Semaphore(_AT_ONCE)

    async def one(what: Awaitable[tuple[str, str]]) -> tuple[str, str]:
        async with slots:
            return await what

    return await asyncio.gather(*(one(what) for what in doing))


def _started(task_id: str, run_id: str, number: int) -> tuple[LedgerEntry, LedgerEntry]:
    at = datetime.now(UTC) - timedelta(hours=1)
    item = WorkItem(
        id=str(uuid4()),
        task_id=task_id,
        run_id=run_id,
        task_type="AiAgentTask",
        lineage=f"prompt-{number}",
        attempt=0,
        state=WorkItemState.INITIALIZED,
        payload={"prompt": "?"},
        not_before=at,
        created_at=at,
    )
    later = item.model_copy(update={"state": WorkItemState.STARTED, "started_at": at, "payload": None})
    steps = [
        Transition(
            work_item_id=item.id,
            sequence=sequence,
            previous_state=before,
            next_state=after.state,
            at=at,
            actor="task",
        )
        for sequence, before, after in ((0, None, item), (1, item.state, later))
    ]
    return LedgerEntry(transition=steps[0], work_item=item), LedgerEntry(transition=steps[1], work_item=later)


if __name__ == "__main__":
    main()
