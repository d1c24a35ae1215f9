"""Checks outputs against JSON Schemas. Neither is trusted.

A pattern, nested references or `uniqueItems` over thousands of objects can keep a validator busy for hours,
and Python cannot interrupt it. So a separate process checks them. The kernel limits its processor time and
memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import sys
from types import TracebackType
from typing import Self

from pydantic import JsonValue

from tasquencer.ai.provider import schema_process

__all__ = ["Schema", "SchemaChecks"]

Schema = dict[str, JsonValue]

_CPU_SECONDS = 3
_MEMORY_BYTES = 1024 * 2**20
_MOST_SECONDS = 30.0
"""The time limit of a check on a busy machine, including the wait for a process."""

_MOST_PROCESSES = 2
"""Checks that run at the same time. Further ones wait."""

_KNOWN_SCHEMAS = 64
"""How many valid schemas are remembered."""


class SchemaChecks:
    """Checks schemas and outputs. Processes start when they are needed and end with the block."""

    def __init__(self) -> None:
        self._idle: list[asyncio.subprocess.Process] = []
        self._places = asyncio.Semaphore(_MOST_PROCESSES)
        self._good: dict[str, None] = {}

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        while self._idle:
            await _end(self._idle.pop())

    async def problem_of_schema(self, schema: Schema) -> str | None:
        """Return why this is not a JSON Schema or cannot be checked within the limits, or None."""
        written = json.dumps(schema)
        if written in self._good:
            return None
        problem = await self._problem(written, None)
        if problem is None:
            self._good[written] = None
            if len(self._good) > _KNOWN_SCHEMAS:
                del self._good[next(iter(self._good))]
        return problem

    async def problem_of_output(
        self, output: str, schema: Schema, within_seconds: float = _MOST_SECONDS
    ) -> str | None:
        """Return why the output's text does not fit or cannot be checked within the limits, or None."""
        return await self._problem(json.dumps(schema), output, within_seconds)

    async def _problem(
        self, schema: str, output: str | None, within_seconds: float = _MOST_SECONDS
    ) -> str | None:
        seconds = min(within_seconds, _MOST_SECONDS)
        try:
            async with asyncio.timeout(seconds), self._places:
                return await self._checked(schema, output)
        except TimeoutError:
            return f"checking it takes more than {seconds:.3g} s"

    async def _checked(self, schema: str, output: str | None) -> str | None:
        request = json.dumps({"schema": schema, "output": output}).encode() + b"\n"
        process = self._idle.pop() if self._idle else await _start()
        answer = b""
        try:
            answer = await _ask(process, request)
        finally:
            if answer:
                self._idle.append(process)
            else:
                await asyncio.shield(_end(process))
        if not answer:
            return f"checking it takes more than {_CPU_SECONDS} s of processor time, or too much memory"
        problem: str | None = json.loads(answer)["problem"]
        return problem


async def _start() -> asyncio.subprocess.Process:
    # Not `-m`, which would look for modules in the current folder first. The worker's variables are not
    # passed.
    paths = os.pathsep.join(path for path in sys.path if path)
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-P",
        str(schema_process.__file__),
        str(_CPU_SECONDS),
        str(_MEMORY_BYTES),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.DEVNULL,
        env={"PYTHONPATH": paths},
        start_new_session=True,
    )


async def _ask(process: asyncio.subprocess.Process, request: bytes) -> bytes:
    """Return one line of answer, or nothing if the process ended."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        process.stdin.write(request)
        await process.stdin.drain()
    except ConnectionError:
        return b""
    line = await process.stdout.readline()
    return line if line.endswith(b"\n") else b""


async def _end(process: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        process.kill()
    await process.wait()
    if process.stdin is not None:
        process.stdin.close()
