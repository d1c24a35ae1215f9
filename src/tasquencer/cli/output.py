"""All output of `tasq`, made safe for terminals and for programs that read lines."""

from __future__ import annotations

import codecs
import io
import json
import os
import sys
from typing import Any, NoReturn, TextIO

from tasquencer.core.display_text import json_text, terminal_line, terminal_text

__all__ = [
    "end_for_closed_pipe",
    "print_answer",
    "print_json",
    "print_line",
    "print_text",
    "replace_what_cannot_be_shown",
    "say",
    "silence",
]


CLOSED_PIPE = 141
"""The exit status if the program that reads the output, such as `head`, has closed the pipe. It is that of
programs that SIGPIPE ends. Started tasks continue."""


def say(line: str) -> None:
    """Print one line on standard error."""
    _print(terminal_line(line), sys.stderr)


def print_line(line: str) -> None:
    """Print one line on standard output."""
    _print(terminal_line(line))


def print_text(text: str) -> None:
    """Print lines on standard output."""
    _print(terminal_text(text))


def print_answer(text: str) -> None:
    """Print a model's text: unchanged for a program or a file, made safe on a terminal."""
    _print(terminal_text(text) if sys.stdout.isatty() else text)


def print_json(value: Any, *, indent: int | None = None) -> None:
    """Print JSON on standard output."""
    text = json_text(value, indent=indent, default=str)
    if not _is_unicode(sys.stdout.encoding):
        text = json.dumps(value, indent=indent, default=str)
    _print(text)


def _print(text: str, stream: TextIO | None = None) -> None:
    try:
        print(text, file=stream, flush=True)
    except BrokenPipeError:
        end_for_closed_pipe()


def end_for_closed_pipe() -> NoReturn:
    """End the command quietly, because the reader has closed the pipe."""
    silence()
    raise SystemExit(CLOSED_PIPE)


def _is_unicode(encoding: str | None) -> bool:
    try:
        return codecs.lookup(encoding or "utf-8").name.startswith("utf")
    except LookupError:
        return False


def replace_what_cannot_be_shown() -> None:
    """Make the streams print `?` for characters that their encoding does not have."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def silence() -> None:
    """Drop output that cannot be printed because the reader has closed the pipe."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(nowhere, stream.fileno())
