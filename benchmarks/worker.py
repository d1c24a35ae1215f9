"""The worker process of the benchmark: both sides in one process, each with a task queue of its own.

Only one side works at a time; the other's pollers wait in the meantime. All have the options of `worker.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import gc
import logging
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from datetime import datetime, timedelta
from pathlib import Path

import openai
from pydantic import JsonValue
from temporalio import activity
from temporalio.client import Client, Plugin
from temporalio.worker import Worker

from benchmarks.bare import BareAsk, BareFanOut
from benchmarks.by_hand import AskBetweenActivities, AskInActivity, ByHand
from benchmarks.measure import BARE_QUEUE, TASK_QUEUE, UNRECORDED_QUEUE
from tasquencer.ai.provider.client import make_client
from tasquencer.core.entries import LedgerEntry
from tasquencer.core.work_item import Transition, WorkItem
from tasquencer.ledger.contract import Ledger, OpenWorkItem, Place, Settlement, WorkItemFilter
from tasquencer.sql import SqlLedger
from tasquencer.temporal import TasquencerPlugin
from tasquencer.temporal.ai_calls import HEARTBEAT_INTERVAL, AiCalls
from workflows.ai_agent import AiAgentTask
from workflows.ai_batch import AiBatchTask
from workflows.ai_fan_out import AiFanOutTask

MODEL = "instant"


class NoLedger(Ledger):
    """Takes everything and keeps nothing: what is left of a task's cost is not the database's."""

    async def open(self) -> None:
        pass

    async def close(self) -> None:
        pass

    async def record(self, entries: Sequence[LedgerEntry]) -> None:
        pass

    async def settle(self, settlement: Settlement) -> list[str]:
        return []

    async def work_items(self, wanted: WorkItemFilter) -> list[WorkItem]:
        return []

    async def open_work_items(
        self, *, created_before: datetime, after: Place | None = None, limit: int = 1000
    ) -> list[OpenWorkItem]:
        return []

    async def transitions_of(self, work_item_ids: Sequence[str]) -> dict[str, list[Transition]]:
        return {}

    async def domain_records(
        self, table: str, work_item_ids: Sequence[str]
    ) -> dict[str, dict[str, JsonValue]]:
        return {}


class BareActivities:
    """The AI call without anything of ours: the same client, the same heartbeats."""

    def __init__(self, client: openai.AsyncOpenAI) -> None:
        self._client = client

    @activity.defn(name="ask")
    async def ask(self, prompt: str) -> str:
        beating = asyncio.create_task(self._beat())
        try:
            completion = await self._client.chat.completions.create(
                model=MODEL, messages=[{"role": "user", "content": prompt}]
            )
        finally:
            beating.cancel()
        return completion.choices[0].message.content or ""

    @staticmethod
    async def _beat() -> None:
        while True:
            activity.heartbeat()
            await asyncio.sleep(HEARTBEAT_INTERVAL.total_seconds())


async def serve(address: str, base_url: str, ledger_url: str, folder: Path) -> None:
    """Run the three workers until the process is killed."""
    # Temporal logs each failed try of the bare activity with its trace; a side that logs less is no faster.
    logging.getLogger("temporalio").setLevel(logging.CRITICAL)
    async with make_client(api_key="not-needed", base_url=base_url) as provider, AsyncExitStack() as workers:
        ours: list[Callable[..., object]] = [AiCalls(provider, MODEL).generate]
        ask = BareActivities(provider).ask
        by_hand = ByHand(folder / "by-hand.db", ask)
        yardsticks = [BareAsk, BareFanOut, AskInActivity, AskBetweenActivities]
        theirs: list[Callable[..., object]] = [ask]
        theirs += [by_hand.ask_and_record, by_hand.record_start, by_hand.record_end]
        tasks = [AiAgentTask, AiFanOutTask, AiBatchTask]
        ledger = SqlLedger(ledger_url)
        for queue, workflows, calls, plugins in (
            (BARE_QUEUE, yardsticks, theirs, []),
            (TASK_QUEUE, tasks, ours, [TasquencerPlugin(ledger, ledger.batches)]),
            (UNRECORDED_QUEUE, tasks, ours, [TasquencerPlugin(NoLedger())]),
        ):
            worker = await _worker(address, queue, workflows, calls, plugins)
            await workers.enter_async_context(worker)
            while not worker.is_running:  # it opens its ledger first
                await asyncio.sleep(0.01)
        gc.collect()
        gc.freeze()
        print("ready", flush=True)
        await asyncio.Event().wait()


async def _worker(
    address: str,
    queue: str,
    workflows: Sequence[type],
    calls: Sequence[Callable[..., object]],
    plugins: Sequence[Plugin],
) -> Worker:
    return Worker(
        await Client.connect(address, plugins=plugins),
        task_queue=queue,
        workflows=workflows,
        activities=calls,
        max_concurrent_activities=100,
        sticky_queue_schedule_to_start_timeout=timedelta(seconds=2),
        max_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
        default_heartbeat_throttle_interval=HEARTBEAT_INTERVAL,
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    for option in ("--address", "--base-url", "--ledger"):
        parser.add_argument(option, required=True)
    parser.add_argument("--folder", type=Path, required=True, help="for its other files")
    options = parser.parse_args()
    asyncio.run(serve(options.address, options.base_url, options.ledger, options.folder))
