"""Reads the body of an answer with limits for the bytes in, the bytes out, and the number of parts.

The HTTP library decodes any number of nested encodings, and does not return while they produce no bytes. So
the client asks only for gzip, and this module decodes it.
"""

from __future__ import annotations

import asyncio
import zlib

import httpx2

from tasquencer.ai.provider.reply import ReplyEnd

__all__ = ["ACCEPTED_ENCODING", "read_body"]

ACCEPTED_ENCODING = "gzip"
"""The encoding that requests accept. An answer may also come without one."""

_GZIP_NAMES = frozenset({"gzip", "x-gzip"})
_GZIP_MAGIC = b"\x1f\x8b"
_GZIP_WINDOW = zlib.MAX_WBITS | 16

_MOST_PARTS = 200_000
"""Maximum parts of a body. A long answer streamed token by token has about ten thousand. A million parts of
one byte would keep the worker busy for minutes."""

_PARTS_IN_A_ROW = 64
"""Parts to read before other calls, timeouts and heartbeats get their turn, because parts that have already
arrived are read without a pause."""


async def read_body(response: httpx2.Response, most: int) -> tuple[bytes, ReplyEnd]:
    """Return the received part of the decoded body, at most `most` bytes, and how it ended.

    Raises:
        httpx2.TimeoutException: a read took too long.
    """
    encodings = _encodings(response)
    if encodings and (len(encodings) > 1 or encodings[0] not in _GZIP_NAMES):
        return b"", ReplyEnd.ENCODED
    decoding = _Decoding(most)
    parts = 0
    try:
        async for part in response.aiter_raw():
            parts += 1
            if not decoding.take(part):
                return decoding.body, ReplyEnd.OVERSIZED
            if parts > _MOST_PARTS:
                return decoding.body, ReplyEnd.SHREDDED
            if parts % _PARTS_IN_A_ROW == 0:
                await asyncio.sleep(0)
    except httpx2.TimeoutException:
        raise
    except (httpx2.RequestError, zlib.error):
        return decoding.body, ReplyEnd.INTERRUPTED
    return decoding.body, ReplyEnd.COMPLETE if decoding.is_complete else ReplyEnd.INTERRUPTED


def _encodings(response: httpx2.Response) -> list[str]:
    named = response.headers.get("content-encoding", "").lower().split(",")
    return [name.strip() for name in named if name.strip() not in ("", "identity")]


class _Decoding:
    """A body that is being read.

    Its first two bytes decide whether it is gzip, not the header. Some gateways decode an answer but keep the
    header, and others forget the header.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        self._taken = 0
        self._decoded = bytearray()
        self._head: bytes | None = b""
        self._gzip: zlib._Decompress | None = None

    @property
    def body(self) -> bytes:
        """The decoded bytes so far, at most `most`."""
        return bytes((self._decoded + (self._head or b""))[: self._most])

    @property
    def is_complete(self) -> bool:
        """True unless compressed data stopped before its end."""
        return self._gzip is None or self._gzip.eof

    def take(self, part: bytes) -> bool:
        """Decode one more part. Return whether the budget still holds."""
        self._taken += len(part)
        if self._head is not None:
            part = self._head + part
            if len(part) < len(_GZIP_MAGIC):
                self._head = part
                return True
            self._head = None
            if part.startswith(_GZIP_MAGIC):
                self._gzip = zlib.decompressobj(_GZIP_WINDOW)
        if self._gzip is None:
            self._decoded += part
        elif not self._gzip.eof:  # data after the first member is ignored
            self._decoded += self._gzip.decompress(part, self._most + 1 - len(self._decoded))
        return self._taken <= self._most and len(self._decoded) <= self._most
