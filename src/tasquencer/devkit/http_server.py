"""A small HTTP/1.1 server on the loopback interface whose handlers may misbehave deliberately.

Ordinary servers do not let a handler reset the connection, stop in the middle of a body or send nothing. Here
a handler gets an `Exchange` that can do this. `h11` implements the protocol. The handler is cancelled as soon
as the client disconnects.
"""

from __future__ import annotations

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from types import TracebackType

import h11

__all__ = ["Exchange", "Handler", "Headers", "HttpRequest", "HttpServer"]

Headers = Sequence[tuple[str, str]]
"""Header fields in order; names may repeat."""

_READ_BYTES = 65536


@dataclass(frozen=True)
class HttpRequest:
    """One request, read to its end."""

    method: str
    target: str
    """Path and query as sent."""
    headers: Headers
    """Names in lower case."""
    body: bytes

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]

    def header(self, name: str) -> str | None:
        """Return the first header of this name, in upper or lower case, or None."""
        return next((value for key, value in self.headers if key == name.lower()), None)


class Exchange:
    """A request, and the methods to answer it or to break the connection."""

    def __init__(self, request: HttpRequest, protocol: h11.Connection, writer: asyncio.StreamWriter) -> None:
        self.request = request
        self._protocol = protocol
        self._writer = writer
        self.status: int | None = None
        """The status that was sent. None before that."""

    @property
    def complete(self) -> bool:
        """True if the whole answer was sent."""
        return self._protocol.our_state in (h11.DONE, h11.MUST_CLOSE)

    async def start(self, status: int, headers: Headers = ()) -> None:
        """Send the status line and headers. Without a content-length the body is chunked."""
        self.status = status
        await self._send(h11.Response(status_code=status, headers=list(headers)))

    async def send(self, data: bytes) -> None:
        """Send a part of the body."""
        await self._send(h11.Data(data=data))

    async def finish(self) -> None:
        """End the body."""
        await self._send(h11.EndOfMessage())

    async def respond(self, status: int, headers: Headers = (), body: bytes = b"") -> None:
        """Send a whole answer."""
        await self.start(status, [*headers, ("content-length", str(len(body)))])
        await self.send(body)
        await self.finish()

    def close(self) -> None:
        """End the connection normally (FIN), even if a part of the answer is missing."""
        self._writer.close()

    def reset(self) -> None:
        """Break the connection now (RST): the client sees "connection reset by peer"."""
        raw: socket.socket | None = self._writer.get_extra_info("socket")
        if raw is not None:
            raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self._writer.transport.abort()

    async def _send(self, event: h11.Event) -> None:
        data = self._protocol.send(event)
        if data:
            self._writer.write(data)
            await self._writer.drain()


Handler = Callable[[Exchange], Awaitable[None]]
"""Answers one exchange. If it returns with an unfinished answer, the connection is closed."""


class HttpServer:
    """Serves a handler on a free loopback port while the `async with` block runs."""

    def __init__(self, handler: Handler) -> None:
        self._handler = handler
        self._server: asyncio.Server | None = None
        self._port: int | None = None
        self._connections: set[asyncio.Task[None]] = set()

    @property
    def port(self) -> int:
        """The port, also after the block has ended."""
        if self._port is None:
            raise RuntimeError("the HTTP server has a port only after its `async with` block has begun")
        return self._port

    @property
    def origin(self) -> str:
        """Scheme, host and port, without a final slash."""
        return f"http://127.0.0.1:{self.port}"

    async def __aenter__(self) -> HttpServer:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0, backlog=512)
        self._port = self._server.sockets[0].getsockname()[1]
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._server is None:
            return
        self._server.close()
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = asyncio.current_task()
        assert connection is not None
        self._connections.add(connection)
        try:
            await self._serve(reader, writer)
        except (ConnectionError, h11.RemoteProtocolError):
            pass  # the client left or does not speak HTTP
        except asyncio.CancelledError:
            # Only our own __aexit__ cancels. asyncio would report a cancelled connection as an error.
            writer.transport.abort()
        finally:
            self._connections.discard(connection)
            writer.close()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        protocol = h11.Connection(h11.SERVER, max_incomplete_event_size=1 << 20)
        while (request := await _next_request(protocol, reader, writer)) is not None:
            exchange = Exchange(request, protocol, writer)
            handling = asyncio.ensure_future(self._handler(exchange))
            watching = asyncio.ensure_future(_client_leaves(protocol, reader))
            try:
                await asyncio.wait({handling, watching}, return_when=asyncio.FIRST_COMPLETED)
            finally:
                for part in (watching, handling):
                    part.cancel()  # no effect on a part that is done
                # Gathered, because with single awaits our own cancellation would look like theirs.
                await asyncio.gather(watching, handling, return_exceptions=True)
            for part in (watching, handling):
                problem = None if part.cancelled() else part.exception()
                if problem is not None and not isinstance(problem, ConnectionError):
                    raise problem
            if protocol.our_state is not h11.DONE or protocol.their_state is not h11.DONE:
                return
            protocol.start_next_cycle()


async def _next_request(
    protocol: h11.Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
) -> HttpRequest | None:
    """Return the next request, or None if the client sends no other."""
    head: h11.Request | None = None
    body = bytearray()
    while True:
        event = protocol.next_event()
        if event is h11.NEED_DATA:
            if protocol.they_are_waiting_for_100_continue:
                writer.write(protocol.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
            protocol.receive_data(await reader.read(_READ_BYTES))
        elif isinstance(event, h11.Request):
            head = event
        elif isinstance(event, h11.Data):
            body += event.data
        elif isinstance(event, h11.EndOfMessage) and head is not None:
            return HttpRequest(
                method=head.method.decode("ascii"),
                target=head.target.decode("ascii"),
                headers=tuple(
                    (key.decode("latin-1"), value.decode("latin-1")) for key, value in head.headers
                ),
                body=bytes(body),
            )
        else:  # ConnectionClosed, PAUSED
            return None


async def _client_leaves(protocol: h11.Connection, reader: asyncio.StreamReader) -> None:
    """Return when the client ends the connection. Keep early data for the next request."""
    while data := await reader.read(_READ_BYTES):
        protocol.receive_data(data)
