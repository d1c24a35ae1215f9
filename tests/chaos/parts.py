"""The servers of a run, each a process of its own that can be killed and comes back on the same port."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any

import asyncpg

from tasquencer.devkit.errors import ProcessFailed
from tasquencer.devkit.processes import ChildProcess
from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tasquencer.sql.databases import database_at
from tasquencer.sql.migrate import upgrade_database
from tests.support import postgres as support
from tests.support.patience import PATIENCE_SECONDS
from tests.support.ports import KeptPort

__all__ = ["Postgres", "Provider", "Temporal"]

_SERVER_SETTINGS = {"limit.historyCount.suggestContinueAsNew": 45}
"""So small that tasks with some retries continue as new."""

_POSTGRES_OPTIONS = ("-h", "127.0.0.1", "-k", "", "-c", "fsync=off", "-c", "synchronous_commit=on")

_COMES_BACK_SECONDS = PATIENCE_SECONDS


class Temporal:
    """Temporal's dev server, its state in a file.

    Args:
        folder: Where the file is.
        settings: Of its dynamic configuration.
    """

    def __init__(self, folder: Path, settings: Mapping[str, Any] = _SERVER_SETTINGS) -> None:
        self._settings = settings
        self._file = folder / "temporal.db"
        self._running = AsyncExitStack()
        self._server: EmbeddedTemporal | None = None
        self._kept_port = KeptPort()
        self.port = self._kept_port.number

    @property
    def address(self) -> str:
        """Of its frontend."""
        return f"127.0.0.1:{self.port}"

    async def start(self) -> None:
        """Return once it answers."""
        self._server = await self._running.enter_async_context(
            embedded_temporal(
                ui=False,
                port=self.port,
                database_file=self._file,
                dynamic_config=self._settings,
                timeout_seconds=_COMES_BACK_SECONDS,
            )
        )

    async def kill(self) -> None:
        """SIGKILL."""
        if self._server is not None:
            os.kill(self._server.pid, signal.SIGKILL)
        await self._running.aclose()
        self._server = None

    async def stop(self) -> None:
        """End it in order."""
        await self._running.aclose()
        self._kept_port.release()


class Postgres:
    """A PostgreSQL server that recovers after it was killed: what it has committed is there again.

    It does without fsync, which only matters when the machine itself fails; it waits for each commit.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "postgres"
        self._user = support.other_user() if os.geteuid() == 0 else None
        self._program = Path()
        self._process: ChildProcess | None = None
        self._kept_port = KeptPort()
        self.port = self._kept_port.number

    def url(self, port: int | None = None) -> str:
        """URL of the ledger's database, through another port if wished."""
        return f"postgresql://postgres@127.0.0.1:{port or self.port}/postgres"

    async def create(self) -> None:
        """Make the cluster, start it, and create the ledger's schema."""
        self._folder.mkdir(mode=0o755)
        for parent in (self._folder.parent, self._folder):
            parent.chmod(0o755)  # its user must be able to enter
        self._program = support._usable_program(self._folder, self._user)
        data = self._folder / "data"
        data.mkdir(mode=0o700)
        if self._user is not None:
            os.chown(data, *self._user)
        init: list[str | Path] = [self._program / "bin/initdb", "--pgdata", data, *support._CLUSTER_OPTIONS]
        await support._run("initdb", init, self._user)
        await self.start()
        database = database_at(self.url())
        await upgrade_database(database)
        await database.close()

    async def start(self) -> None:
        """Return once it takes connections."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + _COMES_BACK_SECONDS
        while True:
            program, data = self._program / "bin/postgres", self._folder / "data"
            self._process = ChildProcess(
                "PostgreSQL",
                [program, "-D", data, "-p", str(self.port), *_POSTGRES_OPTIONS],
                user=self._user,
                environment=support._ENVIRONMENT,
                output_file=self._folder / "server.log",
                death_signal=signal.SIGQUIT,
            )
            try:
                await self._process.wait_ready(self._answers, timeout_seconds=_COMES_BACK_SECONDS)
                return
            except ProcessFailed:
                # The processes of the one before may still be there, with its shared memory.
                self._process.kill()
                if loop.time() > deadline:
                    raise
                await asyncio.sleep(0.1)

    async def kill(self) -> None:
        """SIGKILL to the server; its children notice that, and end."""
        if self._process is not None:
            os.kill(self._process.pid, signal.SIGKILL)
            self._process.kill()

    async def refuse_writes(self, seconds: float) -> None:
        """Only read for so long, as managed servers do whose disk is full."""
        for read_only in ("on", "off"):
            connection = await asyncpg.connect(self.url(), timeout=10)
            try:
                await connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {read_only}")
            except asyncpg.ReadOnlySQLTransactionError:
                await connection.execute("SET SESSION CHARACTERISTICS AS TRANSACTION READ WRITE")
                await connection.execute(f"ALTER SYSTEM SET default_transaction_read_only = {read_only}")
            finally:
                with contextlib.suppress(asyncpg.PostgresError, OSError):
                    await connection.execute("SELECT pg_reload_conf()")
                await connection.close()
            if read_only == "on":
                await asyncio.sleep(seconds)

    async def stop(self) -> None:
        """End it and its children at once."""
        if self._process is not None:
            await self._process.stop(first=signal.SIGQUIT)
            self._process = None
        self._kept_port.release()

    async def _answers(self) -> bool:
        try:
            connection = await asyncpg.connect(self.url(), timeout=5)
        except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
            return False
        await connection.close()
        return True


class Provider:
    """The scripted provider."""

    def __init__(self, port: int, log: Path) -> None:
        self.port = port
        self.log = log

    @classmethod
    @asynccontextmanager
    async def running(cls, seed: int, folder: Path, ledger: str) -> AsyncIterator[Provider]:
        """Run it for the length of the block."""
        log = folder / "provider.jsonl"
        options = ["--seed", str(seed), "--log", str(log), "--ledger", ledger]
        process = ChildProcess("the provider", [sys.executable, "-m", "tests.chaos.provider", *options])

        async def speaks() -> bool:
            return process.output().endswith("\n")

        try:
            await process.wait_ready(speaks, timeout_seconds=PATIENCE_SECONDS)
            yield cls(int(process.last_line()), log)
        finally:
            process.kill()
