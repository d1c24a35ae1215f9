"""`tasq` as people run it: a process of its own."""

from __future__ import annotations

import asyncio
import codecs
import contextlib
import os
import pty
import signal
import sys
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from tests.support.patience import PATIENCE_SECONDS

__all__ = ["Finished", "Running", "finish", "kill_what_still_runs", "on_a_terminal", "start", "until"]

TASQ = Path(sys.executable).parent / "tasq"


@dataclass(frozen=True)
class Finished:
    code: int
    stdout: str
    stderr: str


_started: list[asyncio.subprocess.Process] = []


def kill_what_still_runs() -> None:
    """For the end of a test, above all of one that failed; what the demo started dies with it."""
    while _started:
        process = _started.pop()
        if process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)


class Running:
    """A `tasq` under way; collects what it says."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        _started.append(process)
        self.stdout = self.stderr = ""
        assert process.stdout is not None and process.stderr is not None
        self._readers = [
            asyncio.create_task(self._read(process.stdout, "stdout")),
            asyncio.create_task(self._read(process.stderr, "stderr")),
        ]

    async def _read(self, stream: asyncio.StreamReader, name: str) -> None:
        decoder = codecs.getincrementaldecoder("utf-8")()  # a chunk may end within a character
        while chunk := await stream.read(65536):
            setattr(self, name, getattr(self, name) + decoder.decode(chunk))

    async def says(self, text: str) -> None:
        """Returns once the text stands on standard error."""
        await until(lambda: text in self.stderr, lambda: f"{text!r} not in {self.stderr!r}")

    def interrupt(self) -> None:
        self.process.send_signal(signal.SIGINT)

    async def finish(self) -> Finished:
        async with asyncio.timeout(PATIENCE_SECONDS):
            code = await self.process.wait()
            await asyncio.gather(*self._readers)
        return Finished(code, self.stdout, self.stderr)


async def start(*arguments: str, environment: Mapping[str, str], folder: Path | None = None) -> Running:
    return Running(
        await asyncio.create_subprocess_exec(
            TASQ,
            *arguments,
            env=dict(environment),
            cwd=folder,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
    )


async def finish(*arguments: str, environment: Mapping[str, str]) -> Finished:
    return await (await start(*arguments, environment=environment)).finish()


async def on_a_terminal(
    *arguments: str,
    environment: Mapping[str, str],
    types: str = "",
    meanwhile: Callable[[Callable[[], str]], Awaitable[None]] | None = None,
) -> tuple[int, str]:
    """The exit code and everything that the terminal got, escape sequences included.

    Args:
        types: What the person at the terminal types, ahead of every question.
        meanwhile: What happens elsewhere while the command runs. It gets a function for the terminal's text.
    """
    ours, theirs = pty.openpty()
    process = await asyncio.create_subprocess_exec(
        TASQ,
        *arguments,
        env={**environment, "TERM": "xterm-256color", "COLUMNS": "120", "LINES": "40"},
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    _started.append(process)
    os.close(theirs)
    os.write(ours, types.encode())
    seen = bytearray()

    def read() -> None:
        try:
            while chunk := os.read(ours, 65536):
                seen.extend(chunk)
        except OSError:  # Linux: the other side is closed
            pass

    async with asyncio.timeout(PATIENCE_SECONDS):
        reading = asyncio.create_task(asyncio.to_thread(read))
        if meanwhile is not None:
            await meanwhile(lambda: bytes(seen).decode(errors="replace"))
        await reading
        code = await process.wait()
    os.close(ours)
    return code, seen.decode()


async def until(is_so: Callable[[], bool], problem: Callable[[], str]) -> None:
    deadline = time.monotonic() + PATIENCE_SECONDS
    while not is_so():
        if time.monotonic() > deadline:
            raise AssertionError(problem())
        await asyncio.sleep(0.02)
