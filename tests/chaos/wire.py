"""A TCP proxy between two parts that can cut the connections, refuse new ones, or stall."""

from __future__ import annotations

import asyncio
import contextlib
from types import TracebackType

__all__ = ["Wire"]

_CHUNK_BYTES = 65536


class Wire:
    """Passes connections through to a port on this machine while the `async with` block runs.

    Args:
        upstream_port: Where the connections lead.
    """

    def __init__(self, upstream_port: int) -> None:
        self._upstream_port = upstream_port
        self._server: asyncio.Server | None = None
        self._port = 0
        self._pipes: set[asyncio.Task[None]] = set()
        self._writers: set[asyncio.StreamWriter] = set()
        self._refusing = 0
        self._flowing = asyncio.Event()
        self._flowing.set()
        self._stalls = 0

    @property
    def port(self) -> int:
        """Where it listens; the same for as long as it lives."""
        return self._port

    async def __aenter__(self) -> Wire:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=256)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is not None:
            self._server.close()
        self.cut()
        pipes = list(self._pipes)
        for pipe in pipes:
            pipe.cancel()
        await asyncio.gather(*pipes, return_exceptions=True)

    def cut(self) -> None:
        """Break all connections, in both directions, without farewell."""
        for writer in list(self._writers):
            writer.transport.abort()

    async def refuse(self, seconds: float) -> None:
        """Break all connections, and each new one for so long."""
        self._refusing += 1
        self.cut()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._refusing -= 1

    async def stall(self, seconds: float) -> None:
        """Let nothing pass for so long, with all connections open; then everything that was sent arrives."""
        self._stalls += 1
        self._flowing.clear()
        try:
            await asyncio.sleep(seconds)
        finally:
            self._stalls -= 1
            if not self._stalls:
                self._flowing.set()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        if self._refusing:
            writer.transport.abort()
            return
        self._writers.add(writer)
        try:
            upstream_reader, upstream_writer = await asyncio.open_connection("127.0.0.1", self._upstream_port)
        except OSError:
            writer.transport.abort()
            self._writers.discard(writer)
            return
        self._writers.add(upstream_writer)
        pipes = [
            asyncio.create_task(self._pipe(reader, upstream_writer)),
            asyncio.create_task(self._pipe(upstream_reader, writer)),
        ]
        self._pipes.update(pipes)
        try:
            await asyncio.wait(pipes)
        finally:
            self._pipes.difference_update(pipes)
            for end in (writer, upstream_writer):
                self._writers.discard(end)
                end.close()

    async def _pipe(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        try:
            while data := await source.read(_CHUNK_BYTES):
                await self._flowing.wait()
                sink.write(data)
                await sink.drain()
            await self._flowing.wait()
            with contextlib.suppress(OSError, RuntimeError):
                sink.write_eof()
        except OSError:
            sink.transport.abort()
