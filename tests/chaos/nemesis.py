"""Carries out the planned faults, and writes down what it did."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

from tests.chaos.events import Event, Events
from tests.chaos.parts import Postgres, Temporal
from tests.chaos.plan import FAULTS, RECOVERY_SECONDS, Fault
from tests.chaos.wills import Deed, Will
from tests.chaos.workers import WorkerPart

__all__ = ["Nemesis"]

_WILL_SECONDS = 10.0
"""A worker that has not reached the moment of its will after this time continues without it."""

_LAG_SECONDS = 12.0
"""The longest time from the moment of a will to the deed. The worker may be paused in between, or die."""


@dataclass
class Nemesis:
    """Applies faults to the parts.

    Args:
        disk_full: While this file exists, SQLite ledgers cannot grow.
    """

    temporal: Temporal
    workers: Sequence[WorkerPart]
    events: Events
    disk_full: Path
    postgres: Postgres | None = None
    _under_way: set[asyncio.Task[None]] = field(default_factory=set)
    _busy: set[str] = field(default_factory=set)
    _failed: list[BaseException] = field(default_factory=list)

    @property
    def done(self) -> int:
        """The number of faults so far."""
        return len(self.events.of_kinds(list(FAULTS)))

    async def work(self, faults: Iterable[Fault], wanted: int) -> None:
        """Apply one after the other, each after its gap, until the wanted number is reached. Then wait until
        all parts are back."""
        for fault in faults:
            if self.done >= wanted or self._failed:
                break
            await asyncio.sleep(fault.gap_seconds)
            if fault.quiet:
                await self._settled()
                await asyncio.sleep(1)
            task = asyncio.create_task(self._do(fault), name=fault.kind)
            self._under_way.add(task)
            task.add_done_callback(self._forget)
            if fault.quiet:  # longer than it may take, or a recovery that takes too long would be disturbed
                await asyncio.sleep(1.5 * RECOVERY_SECONDS)
        await self._settled()
        if self._failed:
            raise self._failed[0]

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._under_way.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            self._failed.append(error)

    async def _settled(self) -> None:
        while self._under_way:
            await asyncio.wait(list(self._under_way))
        for worker in self.workers:
            while not worker.is_back:
                await asyncio.sleep(0.05)

    async def _do(self, fault: Fault) -> None:
        worker = self.workers[fault.target]
        match fault.kind:
            case "kill worker":
                worker.kill(self._begin(fault, worker), fault.seconds)
            case "stop worker":
                worker.stop(self._begin(fault, worker), fault.seconds)
            case "die at":
                await self._bequeath(fault, worker, "die")
            case "pause at":
                await self._pause_at(fault, worker)
            case "pause worker":
                event = self._begin(fault, worker, pid=worker.pid)
                await worker.pause(fault.seconds)
                self.events.end(event)
            case "cut" | "refuse" | "stall":
                await self._disturb(fault, worker)
            case "kill temporal":
                await self._restart(fault, "temporal", self.temporal)
            case "kill postgres" if self.postgres is not None:
                await self._restart(fault, "postgres", self.postgres)
            case "ledger full":
                await self._fill_ledger(fault)
            case _:
                raise ValueError(f"there is no fault {fault.kind!r}")

    def _begin(self, fault: Fault, worker: WorkerPart | None = None, **facts: object) -> Event:
        name = worker.name if worker is not None else ""
        return self.events.begin(fault.kind, worker=name, peer=fault.peer, quiet=fault.quiet, **facts)

    async def _pause_at(self, fault: Fault, worker: WorkerPart) -> None:
        will, deed = await self._bequeath(fault, worker, "pause")
        if deed is not None:
            event = self._begin(fault, worker, pid=deed.pid, note=fault.moment)
            event.at = datetime.fromtimestamp(deed.at, UTC)
            await worker.let_pause(deed, will, fault.seconds)
            self.events.end(event)

    async def _bequeath(self, fault: Fault, worker: WorkerPart, what: str) -> tuple[Will, Deed | None]:
        will = worker.wills.write(what, fault.moment, fault.later_seconds)
        deed = await _deed_of(will, worker, _WILL_SECONDS)
        if deed is None and not worker.wills.withdraw(will):
            deed = await _deed_of(will, worker, fault.later_seconds + _LAG_SECONDS)
        if deed is None:
            event = self.events.begin(f"{fault.kind}, not reached", worker=worker.name, note=fault.moment)
            self.events.end(event)
        return will, deed

    async def _disturb(self, fault: Fault, worker: WorkerPart) -> None:
        event = self._begin(fault, worker)
        wire = worker.wires[fault.peer]
        if fault.kind == "cut":
            wire.cut()
        elif fault.kind == "refuse":
            await wire.refuse(fault.seconds)
        else:
            await wire.stall(fault.seconds)
        self.events.end(event)

    async def _restart(self, fault: Fault, name: str, part: Temporal | Postgres) -> None:
        if name in self._busy:  # it is away already: it stays away longer
            return
        self._busy.add(name)
        event = self._begin(fault)
        await part.kill()
        await asyncio.sleep(fault.seconds)
        await part.start()
        self.events.end(event)
        self._busy.discard(name)

    async def _fill_ledger(self, fault: Fault) -> None:
        if "ledger" in self._busy or "postgres" in self._busy:
            return
        self._busy.update({"ledger", "postgres"})
        event = self._begin(fault)
        if self.postgres is not None:
            await self.postgres.refuse_writes(fault.seconds)
        else:
            self.disk_full.touch()
            await asyncio.sleep(fault.seconds)
            self.disk_full.unlink()
        self.events.end(event)
        self._busy.difference_update({"ledger", "postgres"})


async def _deed_of(will: Will, worker: WorkerPart, timeout_seconds: float) -> Deed | None:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_seconds
    while (deed := worker.deeds.of_will(will, will.what)) is None and loop.time() < deadline:
        await asyncio.sleep(0.05)
    return deed
