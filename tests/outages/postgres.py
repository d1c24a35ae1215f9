"""A PostgreSQL server that a test takes down and brings back, and a way to it that can be cut. Linux only."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg

from tasquencer.devkit.processes import ChildProcess
from tasquencer.sql import upgrade
from tests.outages.tls import server
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.ports import KeptPort
from tests.support.postgres import embedded_postgres

__all__ = ["FallingPostgres", "Way", "falling_postgres", "way_to"]


class FallingPostgres:
    """A server with a ledger's database in it."""

    def __init__(self, port: int, pid: int, url: str) -> None:
        self.port = port
        self.url = url
        self._pid = pid
        self._command = Path(f"/proc/{pid}/cmdline").read_text().rstrip("\0").split("\0")
        self.data = Path(self._command[self._command.index("-D") + 1])
        status = Path(f"/proc/{pid}").stat()
        self._user = (status.st_uid, status.st_gid) if status.st_uid != os.geteuid() else None
        self._paused: list[int] = []
        self._restarted: ChildProcess | None = None
        self._kept_port: KeptPort | None = None

    def pause(self) -> None:
        """Stop all its processes where they are: connections stay open, nobody answers."""
        self._paused = [self._pid, *self._children()]
        for pid in self._paused:
            os.kill(pid, signal.SIGSTOP)

    def resume(self) -> None:
        """Let the processes continue."""
        for pid in self._paused:
            os.kill(pid, signal.SIGCONT)
        self._paused = []

    def kill(self) -> None:
        """End it without a farewell, and its sessions with it: they would continue until they notice."""
        os.kill(self._pid, signal.SIGSTOP)  # it begins no further session
        sessions = self._children()
        os.kill(self._pid, signal.SIGKILL)
        os.waitpid(self._pid, 0)  # as a zombie it would keep its successor from starting
        for pid in sessions:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._kept_port = KeptPort(self.port)

    def _children(self) -> list[int]:
        return [*map(int, Path(f"/proc/{self._pid}/task/{self._pid}/children").read_text().split())]

    async def start_again(self) -> None:
        """The same command on the same data; returns once it takes connections."""

        async def runs() -> bool:
            if self._restarted is None or self._restarted.exit_status is not None:
                # What the old server has left behind takes a moment to end; the new one refuses until then.
                self._restarted = ChildProcess("PostgreSQL again", self._command, user=self._user)
            try:
                await self.run("SELECT 1")
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                return False
            return True

        await eventually(runs, "PostgreSQL runs again")
        assert self._restarted is not None
        self._pid = self._restarted.pid

    async def run(self, statement: str) -> None:
        """Run a statement as the superuser, who may write."""
        writing = {"default_transaction_read_only": "off"}
        connection = await asyncpg.connect(
            self.url.replace("+asyncpg", ""), timeout=PATIENCE_SECONDS, server_settings=writing
        )
        try:
            await connection.execute(statement)
        finally:
            await connection.close()

    async def cut_connections(self) -> None:
        """End all sessions."""
        with contextlib.suppress(asyncpg.PostgresError, OSError):
            await self.run("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'ledger'")

    async def stop(self) -> None:
        """End what `start_again` has started."""
        self.resume()
        if self._restarted is not None:
            await self._restarted.stop(first=signal.SIGQUIT)
        if self._kept_port is not None:
            self._kept_port.release()

    @asynccontextmanager
    async def standby(self) -> AsyncIterator[int]:
        """A second server that follows this one; its port. `SELECT pg_promote()` makes it the primary."""
        data, kept_port = self.data.with_name("standby"), KeptPort()
        port = kept_port.number
        data.mkdir(mode=0o700)
        if self._user is not None:
            os.chown(data, *self._user)
        address = ["--host", "127.0.0.1", "--port", str(self.port), "--username", "postgres"]
        options = ["--pgdata", str(data), "--write-recovery-conf", "--checkpoint=fast", "--no-sync"]
        program = Path(self._command[0]).with_name("pg_basebackup")
        copying = ChildProcess("pg_basebackup", [program, *address, *options], user=self._user)
        status = await copying.wait(timeout_seconds=PATIENCE_SECONDS)
        assert status == 0, copying.output()
        own = {"-D": str(data), "-p": str(port)}
        command = [
            own.get(before, word) for before, word in zip(["", *self._command], self._command, strict=False)
        ]
        following = ChildProcess("the standby", command, user=self._user)
        try:
            await eventually(lambda: _answers(port), "the standby takes connections")
            yield port
        finally:
            await following.stop(first=signal.SIGQUIT)
            kept_port.release()


async def _answers(port: int) -> bool:
    try:
        connection = await asyncpg.connect(f"postgresql://postgres@127.0.0.1:{port}/postgres", timeout=5)
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        return False
    await connection.close()
    return True


@asynccontextmanager
async def falling_postgres() -> AsyncIterator[FallingPostgres]:
    """A server of one's own, with an empty ledger."""
    async with embedded_postgres() as running:
        url = await running.create_database("ledger")
        await upgrade(url)
        postgres = FallingPostgres(running.port, running.pid, url)
        # Without it, what was committed dies with the server, and a task waits for ever for its work item.
        await postgres.run("ALTER DATABASE ledger SET synchronous_commit = on")
        try:
            yield postgres
        finally:
            await postgres.stop()


class Way:
    """A TCP proxy. Broken connections are reset, or fall silent: then nobody ever answers on them."""

    def __init__(self, port: int) -> None:
        self.port = 0
        self._to = port
        self._closed = False
        self._open: list[tuple[asyncio.StreamWriter, asyncio.StreamWriter]] = []
        self._silent: set[asyncio.StreamWriter] = set()

    def cut(self) -> None:
        """Reset all connections, and every new one, until `repair` is called."""
        self._closed = True
        for writer, _ in self._open:
            writer.transport.abort()

    def lead_to(self, port: int) -> None:
        """Reset all connections, and carry new ones to this port."""
        self.cut()
        self._to = port
        self.repair()

    def repair(self) -> None:
        """Let new connections through."""
        self._closed = False

    def silence(self) -> None:
        """Carry nothing further on the connections that are open now."""
        self._silent.update(writer for pair in self._open for writer in pair)

    async def carry(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Serve one connection."""
        if self._closed:
            writer.transport.abort()
            return
        their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._to)
        self._open.append((writer, their_writer))

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with contextlib.suppress(OSError):
                while data := await source.read(65536):
                    if target not in self._silent:
                        target.write(data)
                        await target.drain()
            target.close()

        await asyncio.gather(pump(reader, their_writer), pump(their_reader, writer))


@asynccontextmanager
async def way_to(port: int) -> AsyncIterator[Way]:
    """A proxy before this port."""
    way = Way(port)
    async with server(way.carry) as way.port:
        yield way
