"""A worker of programs, which dies at the moment that somebody has written down for it.

`python -m tests.chaos.shapes.worker FOLDER NAME` takes what else it needs from the environment. It follows
the wills of `tests.chaos.wills` at these moments: `after STATE`, right after the commit of a batch in which a
work item comes to that state, and `request`, in the middle of a call.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from collections.abc import Sequence
from datetime import timedelta
from pathlib import Path
from typing import Any

from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from tasquencer.core.entries import LedgerEntry
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.sql import SqlLedger
from tasquencer.temporal import TasquencerPlugin, as_application_error
from tests.chaos.provider import Glance, Log, glance_at
from tests.chaos.shapes.interpreter import AnyShape, ShapeChild
from tests.chaos.wills import Deeds, Wills
from tests.support.stalls import allow_stalls

__all__ = ["MOMENTS", "QUEUE", "READY", "Mortal", "MortalLedger"]

QUEUE = "shapes"
READY = "ready"

MOMENTS = (
    "after initialized",
    "after started",
    "after completed",
    "after failed",
    "after canceled",
    "request",
)
"""The moments at which a worker can die."""

_BEAT_SECONDS = 0.3


class _Effects:
    """What the programs' activities do, each request noted on arrival and at its end."""

    def __init__(self, mortal: Mortal, log: Log, glance: Glance) -> None:
        self._mortal = mortal
        self._log = log
        self._glance = glance

    @activity.defn
    async def work(self, told: dict[str, Any]) -> dict[str, Any]:
        """The work of one attempt."""
        info = activity.info()
        facts = {
            "key": info.activity_id,
            "task": info.workflow_id,
            "run": info.workflow_run_id,
            "try": info.attempt,
        }
        held = await self._glance.states(info.activity_id)
        self._log.write(**facts, **told, held=held, at=time.time(), pid=os.getpid())
        self._mortal.moment("request")
        how, wanted = str(told["how"]), int(told["ms"]) / 1000
        end = time.monotonic() + (3600 if how == "hang" else wanted)
        came = "the call was stopped"
        try:
            while (left := end - time.monotonic()) > 0:
                activity.heartbeat()
                try:
                    await asyncio.sleep(min(left, _BEAT_SECONDS))
                except asyncio.CancelledError:
                    if how != "deaf":
                        raise
            came = how
        finally:
            self._log.write(key=info.activity_id, ended_at=time.time(), came=came)
        if how in ("fail", "refuse"):
            kind = FailureKind.PROVIDER_ERROR if how == "fail" else FailureKind.REFUSED
            raise as_application_error(Failure.of(kind, "as planned"))
        return {"by": info.activity_id, **told}

    @activity.defn
    async def note(self, ms: int) -> int:
        """A short local activity of the user's own."""
        await asyncio.sleep(ms / 1000)
        if ms < 0:
            raise ApplicationError("never")
        return ms


class Mortal:
    """A process that dies at the moments of its wills."""

    def __init__(self, folder: Path, name: str) -> None:
        self._wills = Wills(folder / f"{name}.wills")
        self._deeds = Deeds(folder / "deeds.jsonl")

    def moment(self, name: str) -> None:
        """Die if a will says so."""
        will = self._wills.take(name)
        if will is not None:
            self._deeds.write(will, will.what)
            os.kill(os.getpid(), signal.SIGKILL)


class MortalLedger(SqlLedger):
    """Dies right after a commit."""

    def __init__(self, url: str, mortal: Mortal) -> None:
        super().__init__(url)
        self._mortal = mortal

    async def record(self, entries: Sequence[LedgerEntry]) -> None:
        await super().record(entries)
        self._committed(entries)

    async def record_and_find_open(
        self, entries: Sequence[LedgerEntry], task_id: str, run_id: str
    ) -> frozenset[str]:
        found = await super().record_and_find_open(entries, task_id, run_id)
        self._committed(entries)
        return found

    def _committed(self, entries: Sequence[LedgerEntry]) -> None:
        for state in sorted({entry.transition.next_state.value for entry in entries}):
            self._mortal.moment(f"after {state}")


async def _work(folder: Path, name: str) -> None:
    mortal, url = Mortal(folder, name), os.environ["SHAPES_LEDGER"]
    effects = _Effects(mortal, Log(folder / "requests.jsonl"), glance_at(os.environ["SHAPES_GLANCE"]))
    async with MortalLedger(url, mortal) as ledger:
        client = await Client.connect(os.environ["SHAPES_TEMPORAL"], plugins=[TasquencerPlugin(ledger)])
        async with Worker(
            client,
            task_queue=QUEUE,
            workflows=[AnyShape, ShapeChild],
            activities=[effects.work, effects.note],
            max_cached_workflows=int(os.environ["SHAPES_CACHE"]),
            max_concurrent_activities=100,
            max_heartbeat_throttle_interval=timedelta(milliseconds=50),
            sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),
        ):
            print(READY, flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    allow_stalls()
    asyncio.run(_work(Path(sys.argv[1]), sys.argv[2]))
