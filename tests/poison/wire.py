"""Answers made of bytes: what no HTTP library would send."""

from __future__ import annotations

import asyncio
import gzip
import zlib
from collections.abc import AsyncIterator, Callable
from functools import cache
from typing import Any

from tasquencer.devkit.http_server import Exchange
from tests.support.answers import Answer

GOOD = b'{"choices": [{"message": {"content": "Hi"}, "finish_reason": "stop"}]}'


def head(status: str = "200 OK", *lines: bytes) -> bytes:
    """A status line and headers."""
    fields = b"".join(line + b"\r\n" for line in lines)
    return f"HTTP/1.1 {status}\r\n".encode() + b"content-type: application/json\r\n" + fields + b"\r\n"


def sending(*parts: bytes, stays: bool = False) -> Answer:
    """These bytes on the wire, as they are; then the end of the connection, unless it stays."""

    async def give(exchange: Exchange, body: Any) -> None:
        for part in parts:
            exchange._writer.write(part)
        await exchange._writer.drain()
        if stays:
            await asyncio.Event().wait()
        exchange.close()

    return Answer("bytes", give)


def endless(first: bytes, part: bytes, pause_seconds: float = 0.0) -> Answer:
    """The first bytes, and then the part again and again until the client leaves."""

    async def give(exchange: Exchange, body: Any) -> None:
        exchange._writer.write(first)
        while True:
            exchange._writer.write(part)
            await exchange._writer.drain()
            await asyncio.sleep(pause_seconds)

    return Answer("endless", give)


def streaming(status: int, parts: Callable[[], AsyncIterator[bytes]], **headers: str) -> Answer:
    """A body in parts, which are made while it is sent."""

    async def give(exchange: Exchange, body: Any) -> None:
        fields = [(name.replace("_", "-"), value) for name, value in headers.items()]
        await exchange.start(status, [("content-type", "application/json"), *fields])
        async for part in parts():
            await exchange.send(part)
        await exchange.finish()

    return Answer(f"{status} in parts", give)


@cache
def bomb(layers: int = 1, mebibytes: int = 64) -> bytes:
    """Blanks, compressed so often; one layer makes a thousandth of it."""
    packing = zlib.compressobj(1, zlib.DEFLATED, zlib.MAX_WBITS | 16)
    blanks = b" " * 2**20
    data = b"".join(packing.compress(blanks) for _ in range(mebibytes)) + packing.flush()
    for _ in range(layers - 1):
        data = gzip.compress(data)
    return data


@cache
def nested(layers: int, empty_blocks: int) -> bytes:
    """Gzip in gzip …, around stored blocks without any content."""
    data = b"\x1f\x8b\x08" + bytes(7) + b"\x00\x00\x00\xff\xff" * empty_blocks
    data += b"\x01\x00\x00\xff\xff" + bytes(8)
    for _ in range(layers - 1):
        data = gzip.compress(data, 9)
    return data
