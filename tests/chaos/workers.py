"""The worker processes of a run: each is started again when it ends, as a service manager would."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic

import httpx2

from tasquencer.devkit.processes import ChildProcess
from tests.chaos.events import Event, Events
from tests.chaos.wills import Deed, Deeds, Will, Wills
from tests.chaos.wire import Wire
from tests.support.patience import PATIENCE_SECONDS

__all__ = ["GRACE_SECONDS", "WorkerPart"]

GRACE_SECONDS = 1.0
"""How long calls have to end after SIGTERM: less than many take."""

_UNREACHABLE = 3
"""Exit status of a worker that finds its ledger or Temporal gone when it starts."""

_ENDING_SECONDS = 30.0
"""A worker that was stopped, or has printed its last error, has ended after this time."""


class WorkerPart:
    """A worker, its connections, and the supervisor that starts it again.

    Args:
        name: `worker 0`, or `witness`.
        wires: Its connections, by the other end's name: `temporal`, `provider`, `postgres`.
        environment: Further variables that it needs in addition to its addresses.
    """

    def __init__(
        self,
        name: str,
        folder: Path,
        wires: Mapping[str, Wire],
        environment: Mapping[str, str],
        events: Events,
    ) -> None:
        self.name = name
        self.wires = wires
        wills, deeds = folder / f"{name.replace(' ', '-')}.wills", folder / "deeds.jsonl"
        self.wills, self.deeds = Wills(wills), Deeds(deeds)
        self.rss: list[tuple[datetime, int, float]] = []
        self.cached: list[int] = []
        self._log = folder / f"{name.replace(' ', '-')}.log"
        self._environment = {**os.environ, **environment, **self._addresses()}
        self._environment |= {"CHAOS_WILLS": str(wills), "CHAOS_DEEDS": str(deeds)}
        self._events = events
        self._process: ChildProcess | None = None
        self._gone: list[Event] = []
        self._expected = 0
        self._back_after = 0.0
        self._ended_by: float | None = None
        self._keeper: asyncio.Task[None] | None = None
        self.paused = False

    def _addresses(self) -> dict[str, str]:
        return {
            "TEMPORAL_ADDRESS": f"127.0.0.1:{self.wires['temporal'].port}",
            "OPENAI_BASE_URL": f"http://127.0.0.1:{self.wires['provider'].port}/v1",
            "OPENAI_API_KEY": "not-needed",
        }

    @property
    def pid(self) -> int:
        """Of the process that runs, or ran last."""
        return self._process.pid if self._process is not None else 0

    @property
    def is_running(self) -> bool:
        """Whether its process lives."""
        return self._process is not None and self._process.exit_status is None

    @property
    def is_back(self) -> bool:
        """Whether it polls, and none of what made it leave is still felt."""
        return self.is_running and not self._gone

    async def start(self) -> None:
        """Start it, and restart it until `end`. Return when it polls."""
        self._spawn()
        assert self._process is not None
        await self._process.wait_ready(self._is_ready, timeout_seconds=PATIENCE_SECONDS)
        self._keeper = asyncio.create_task(self._keep(), name=f"keeper of {self.name}")

    async def end(self) -> None:
        """Kill it for good."""
        if self._keeper is not None:
            self._keeper.cancel()
        if self._process is not None:
            self._process.kill()

    def kill(self, event: Event, back_after: float) -> None:
        """Send SIGKILL. Another process replaces it after this number of seconds."""
        self._leave(event, back_after)
        if self._process is not None:
            self._process.send(signal.SIGKILL)

    def stop(self, event: Event, back_after: float) -> None:
        """SIGTERM."""
        self._leave(event, back_after)
        self._ended_by = monotonic() + _ENDING_SECONDS
        if self._process is not None:
            self._process.send(signal.SIGTERM)

    async def pause(self, seconds: float) -> None:
        """Send SIGSTOP, and SIGCONT after this number of seconds."""
        process = self._process
        if process is None:
            return
        self.paused = True
        process.send(signal.SIGSTOP)
        try:
            await asyncio.sleep(seconds)
        finally:
            process.send(signal.SIGCONT)
            self.paused = False

    async def let_pause(self, deed: Deed, will: Will, seconds: float) -> None:
        """Send SIGCONT after this number of seconds to a process that has stopped by its will."""
        self.paused = True
        try:
            await asyncio.sleep(seconds)
        finally:
            while self.is_running and self.pid == deed.pid and self.deeds.of_will(will, "continue") is None:
                assert self._process is not None
                self._process.send(signal.SIGCONT)
                await asyncio.sleep(0.02)
            self.paused = False

    async def sample(self) -> None:
        """Note how much memory it takes, and how many workflows it keeps there."""
        if self.is_running:
            try:
                status = Path(f"/proc/{self.pid}/status").read_text()
            except OSError:
                return
            for line in status.splitlines():
                if line.startswith("VmRSS:"):
                    self.rss.append((datetime.now(UTC), self.pid, int(line.split()[1]) / 1024))
            metrics = self._environment.get("TASQ_METRICS_ADDRESS")
            if metrics is not None and not self.paused:
                with contextlib.suppress(httpx2.HTTPError):
                    async with httpx2.AsyncClient(trust_env=False, timeout=1) as client:
                        told = (await client.get(f"http://{metrics}/metrics")).text
                    sizes = re.findall(r"^temporal_sticky_cache_size\{.*\} (\d+)", told, re.MULTILINE)
                    self.cached.append(sum(int(size) for size in sizes))

    def _leave(self, event: Event, back_after: float) -> None:
        event.pid = self._expected = self.pid
        self._gone.append(event)
        self._back_after = back_after

    def _spawn(self) -> None:
        self._ended_by = None
        options = ["--grace-period", str(GRACE_SECONDS), "--log-level", "WARNING"]
        self._process = ChildProcess(
            self.name,
            [sys.executable, "-m", "tests.chaos.mortal_worker", *options],
            environment=self._environment,
            output_file=self._log,
        )

    async def _is_ready(self) -> bool:
        return self._process is not None and "tasq worker ready" in self._process.output()

    async def _keep(self) -> None:
        while True:
            await asyncio.sleep(0.02)
            assert self._process is not None
            status = self._process.exit_status
            if status is None:
                if self._hangs():
                    self._gone.append(
                        self._events.begin("worker does not end", worker=self.name, pid=self.pid)
                    )
                    self._expected = self.pid
                    self._process.kill()
                elif (
                    self._gone
                    and self.pid not in {event.pid for event in self._gone}
                    and await self._is_ready()
                ):
                    for event in self._gone:
                        self._events.end(event)
                    self._gone.clear()
                continue
            if self._expected != self.pid:
                self._gone.append(self._end_of(status))
            await asyncio.sleep(self._back_after)
            self._process.kill()
            self._spawn()

    def _hangs(self) -> bool:
        """Whether it should have ended a good while ago and is still there."""
        assert self._process is not None
        if self._ended_by is None and self._process.last_line().startswith("error:"):
            self._ended_by = monotonic() + _ENDING_SECONDS
        return self._ended_by is not None and monotonic() > self._ended_by

    def _end_of(self, status: int) -> Event:
        """It ended, and nobody here has done that: by its will, or by itself."""
        self._back_after = 0.3
        for deed in self.deeds:
            if (deed.pid, deed.what, status) == (self.pid, "die", -signal.SIGKILL):
                event = self._events.begin("die at", worker=self.name, pid=self.pid, note=deed.moment)
                event.at = datetime.fromtimestamp(deed.at, UTC)
                return event
        kind = "cannot start" if status == _UNREACHABLE else "worker ended by itself"
        return self._events.begin(kind, worker=self.name, pid=self.pid, note=f"status {status}")
