"""A proxy in front of an OpenAI-compatible server that fails the first requests as scripted.

The first paid requests fail, one fault each. All later requests pass through unchanged, including streamed
bodies and all headers.
"""

from __future__ import annotations

import asyncio
import ipaddress
import json
from collections import deque
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime

import httpx2

from tasquencer.devkit.http_server import Exchange, HttpServer

__all__ = [
    "Delay",
    "DroppedConnection",
    "Fault",
    "FaultProxy",
    "ProxiedRequest",
    "ServerError",
    "TooManyRequests",
    "fault_proxy",
]


@dataclass(frozen=True)
class TooManyRequests:
    """Status 429, like a provider's when the rate limit is reached."""

    retry_after_seconds: float | None = None
    """Sent as the Retry-After header; None sends none."""


@dataclass(frozen=True)
class DroppedConnection:
    """The request is read, then the connection is reset without an answer."""


@dataclass(frozen=True)
class ServerError:
    """A status of a provider that has an internal problem."""

    status: int = 503


@dataclass(frozen=True)
class Delay:
    """The request passes through after a delay."""

    seconds: float


Fault = TooManyRequests | DroppedConnection | ServerError | Delay


@dataclass
class ProxiedRequest:
    """What the proxy did with one request. Contains no credentials and no content."""

    at: datetime
    """When it arrived, UTC."""
    method: str
    path: str
    idempotency_key: str | None
    fault: Fault | None
    """The fault that it got. None if it passed through."""
    status: int | None = None
    """The status that the client got. None while it waits, or if it got none."""


@dataclass(frozen=True)
class FaultProxy:
    """A running proxy."""

    base_url: str
    """The base URL to use instead of the upstream's. It ends with the same path."""
    requests: list[ProxiedRequest] = field(default_factory=list)
    """Every request so far, oldest first."""


@asynccontextmanager
async def fault_proxy(upstream_base_url: str, *, faults: Sequence[Fault] = ()) -> AsyncIterator[FaultProxy]:
    """Serve the upstream on a loopback port, with one of the `faults` for each of the first POST requests.

    GET requests (health checks, the list of models) cost nothing at a provider and get no fault. If the
    upstream cannot be reached, the answer is 502. If the upstream breaks in the middle of its answer, the
    connection is reset.
    """
    upstream = httpx2.URL(upstream_base_url)
    script = deque(faults)
    client = httpx2.AsyncClient(
        timeout=httpx2.Timeout(None, connect=10.0),  # a model may think for minutes
        limits=httpx2.Limits(max_connections=None),
        trust_env=not _is_loopback(upstream.host),  # loopback must not use a proxy of the environment
    )

    async def handle(exchange: Exchange) -> None:
        request = exchange.request
        fault = script.popleft() if script and request.method == "POST" else None
        record = ProxiedRequest(
            at=datetime.now(UTC),
            method=request.method,
            path=request.path,
            idempotency_key=request.header("idempotency-key"),
            fault=fault,
        )
        proxy.requests.append(record)
        match fault:
            case TooManyRequests(retry_after_seconds=seconds):
                record.status = 429
                headers = [] if seconds is None else [("retry-after", f"{seconds:g}")]
                await _respond_error(exchange, 429, "Rate limit reached", "rate_limit_exceeded", headers)
            case ServerError(status=status):
                record.status = status
                await _respond_error(exchange, status, "The server is overloaded", "server_error")
            case DroppedConnection():
                exchange.reset()
            case Delay() | None:
                if fault is not None:
                    await asyncio.sleep(fault.seconds)
                await _pass_through(exchange, client, upstream, record)

    async with client, HttpServer(handle) as server:
        proxy = FaultProxy(base_url=server.origin + upstream.path.rstrip("/"))
        yield proxy


_HOP_BY_HOP = frozenset(
    # RFC 9110, section 7.6.1: these headers are about one connection, and this is two.
    {
        "connection",
        "keep-alive",
        "proxy-authenticate",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


async def _pass_through(
    exchange: Exchange, client: httpx2.AsyncClient, upstream: httpx2.URL, record: ProxiedRequest
) -> None:
    incoming = exchange.request
    outgoing = httpx2.Request(  # not client.build_request, which adds headers
        incoming.method,
        upstream.copy_with(raw_path=incoming.target.encode("ascii")),
        headers=[
            (name, value) for name, value in incoming.headers if name not in _HOP_BY_HOP and name != "host"
        ],
        content=incoming.body,
    )
    try:
        answer = await client.send(outgoing, stream=True)
    except httpx2.TransportError as error:
        record.status = 502
        problem = f"the fault proxy cannot reach {upstream.host}: {type(error).__name__}"
        await _respond_error(exchange, 502, problem, "upstream_unreachable")
        return
    try:
        record.status = answer.status_code
        headers = [(name, value) for name, value in answer.headers.multi_items() if name not in _HOP_BY_HOP]
        await exchange.start(answer.status_code, headers)
        async for part in answer.aiter_raw():
            await exchange.send(part)
        await exchange.finish()
    except httpx2.TransportError:
        exchange.reset()
    finally:
        await answer.aclose()


async def _respond_error(
    exchange: Exchange, status: int, message: str, code: str, headers: Sequence[tuple[str, str]] = ()
) -> None:
    """Return an error body in OpenAI's shape that names the fault proxy as its origin."""
    body = {
        "error": {"message": f"{message} (from the fault proxy)", "type": code, "param": None, "code": code}
    }
    content = json.dumps(body).encode()
    await exchange.respond(status, [("content-type", "application/json"), *headers], content)


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
