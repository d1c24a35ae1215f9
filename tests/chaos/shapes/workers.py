"""The workers of a campaign: processes that die and come back."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from tasquencer.devkit.errors import ProcessFailed
from tasquencer.devkit.processes import ChildProcess
from tests.chaos.events import Events
from tests.chaos.shapes.worker import MOMENTS, READY
from tests.chaos.wills import Wills
from tests.support.patience import PATIENCE_SECONDS

__all__ = ["SHAPES", "Reaper", "ShapeWorker"]

SHAPES = "tests.chaos.shapes.worker"
"""The program that works on shapes."""

_BACK_SECONDS = 0.3

_WILL_SECONDS = 2.5
"""How long a worker has for meeting the moment of its will; it is killed then wherever it is."""


class ShapeWorker:
    """One of the workers; another process takes its place whenever it has died.

    Args:
        module: The program.
    """

    def __init__(
        self, name: str, folder: Path, environment: Mapping[str, str], events: Events, module: str = SHAPES
    ) -> None:
        self.name = name
        self._module = module
        self.wills = Wills(folder / f"{name}.wills")
        self._folder = folder
        self._environment = {**os.environ, **environment}
        self._events = events
        self._process: ChildProcess | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.deaths = 0

    async def start(self) -> None:
        """Return once it polls."""
        await self._spawn()
        self._keeper = asyncio.create_task(self._keep())

    async def end(self) -> None:
        """Kill it for good."""
        if self._keeper is not None:
            self._keeper.cancel()
            with suppress(asyncio.CancelledError):
                await self._keeper
        if self._process is not None:
            self._process.kill()

    @property
    def is_up(self) -> bool:
        """Whether it polls."""
        return (
            self._process is not None
            and self._process.exit_status is None
            and READY in self._process.output()
        )

    def kill(self) -> None:
        """SIGKILL."""
        if self._process is not None:
            self._process.send(signal.SIGKILL)

    async def _spawn(self) -> None:
        self._process = ChildProcess(
            self.name,
            [sys.executable, "-m", self._module, str(self._folder), self.name],
            environment=self._environment,
            output_file=self._folder / f"{self.name}.log",
        )

        async def ready() -> bool:
            return self.is_up

        await self._process.wait_ready(ready, timeout_seconds=PATIENCE_SECONDS)

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            assert self._process is not None
            if self._process.exit_status is None:
                continue
            by_signal = self._process.exit_status == -signal.SIGKILL
            kind = "kill worker" if by_signal else "worker ended by itself"
            note = "" if by_signal else self._process.last_line()
            event = self._events.begin(kind, worker=self.name, pid=self._process.pid, note=note)
            self.deaths += by_signal
            self._process.kill()
            await asyncio.sleep(_BACK_SECONDS)
            with suppress(ProcessFailed):  # killed again before anybody saw that it was ready
                await self._spawn()
            self._events.end(event)


class Reaper:
    """Kills workers: right after a record, in the middle of a call, or at any moment."""

    def __init__(self, workers: list[ShapeWorker], dice: random.Random, gap_seconds: float) -> None:
        self._workers = workers
        self._dice = dice
        self._gap = gap_seconds
        self.done = 0

    async def work(self, deaths: int) -> None:
        """So many deaths, one after the other."""
        while self.done < deaths:
            await asyncio.sleep(self._dice.expovariate(1 / self._gap))
            worker = self._dice.choice(self._workers)
            while not worker.is_up:
                await asyncio.sleep(0.05)
            before = worker.deaths
            moment = self._dice.choice([*MOMENTS, None])
            if moment is not None:
                will = worker.wills.write("die", moment, 0)
                for _ in range(round(_WILL_SECONDS / 0.05)):
                    await asyncio.sleep(0.05)
                    if worker.deaths > before:
                        break
                worker.wills.withdraw(will)
            if worker.deaths == before:
                worker.kill()
            while worker.deaths == before:
                await asyncio.sleep(0.02)
            self.done += 1
