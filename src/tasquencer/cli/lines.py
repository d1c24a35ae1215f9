"""Reads the lines of a file of any size, with the line ends of every system."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import IO

__all__ = ["Line", "lines_in"]

_CHUNK = 64 * 1024
_END = re.compile(rb"\r\n|\n|\r(?!\n)")


@dataclass(frozen=True)
class Line:
    """A line, or a part of one that is too long.

    Attributes:
        number: From 1.
        content: The bytes without the line's end.
        end: The bytes that end the line. Empty at the end of the file, and for a part that is not the last.
        is_first, is_last: Whether the part is the first or last one of its line. A whole line is both.
    """

    number: int
    content: bytes
    end: bytes
    is_first: bool = True
    is_last: bool = True


def lines_in(file: IO[bytes], longest: int) -> Iterator[Line]:
    r"""Return a file's lines, which end with `\n`, `\r\n` or `\r`, in parts of at most `longest` bytes."""
    number, is_first = 1, True
    rest = b""
    read = getattr(file, "read1", file.read)  # typed input arrives line by line
    while True:
        chunk = read(_CHUNK)
        held = rest + chunk
        start = 0
        for found in _END.finditer(held, max(0, len(rest) - 1)):
            if found.end() == len(held) and found.group() == b"\r" and chunk:
                break  # a line feed may follow
            content = held[start : found.start()]
            yield from _parts(number, content, found.group(), longest, is_first=is_first)
            number, is_first, start = number + 1, True, found.end()
        rest = held[start:]
        if len(rest) > longest:
            yield Line(number, rest[:longest], b"", is_first, is_last=False)
            rest, is_first = rest[longest:], False
        if not chunk:
            if rest or not is_first:
                yield Line(number, rest, b"", is_first)
            return


def _parts(number: int, content: bytes, end: bytes, longest: int, *, is_first: bool) -> Iterator[Line]:
    while len(content) > longest:
        yield Line(number, content[:longest], b"", is_first, is_last=False)
        content, is_first = content[longest:], False
    yield Line(number, content, end, is_first)
