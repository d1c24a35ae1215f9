"""The processes of a benchmark: started, awaited, their CPU time read."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from pathlib import Path

from tasquencer.devkit.processes import ChildProcess

__all__ = ["cpu_seconds", "memory_bytes", "module_running"]


@asynccontextmanager
async def module_running(
    name: str,
    module: str,
    *options: str,
    python: str | Path = sys.executable,
    environment: Mapping[str, str] | None = None,
) -> AsyncIterator[ChildProcess]:
    """Run a module as a program of its own; it is ready once it has said a line."""
    child = ChildProcess(
        name, [python, "-m", module, *options], environment=None if environment is None else dict(environment)
    )

    async def has_spoken() -> bool:
        said = child.output()
        return said.endswith("\n") and "Traceback" not in said

    try:
        await child.wait_ready(has_spoken, timeout_seconds=60)
        yield child
    finally:
        child.kill()


def cpu_seconds(pid: int) -> float:
    """User and system time so far of a process and its descendants that are alive; NaN without /proc."""
    times, parents = dict[int, float](), dict[int, int]()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        process = int(entry.parent.name)
        parents[process] = int(fields[1])
        times[process] = (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    if pid not in times:
        return float("nan")
    family, size = {pid}, 0
    while len(family) > size:
        size = len(family)
        family |= {process for process, parent in parents.items() if parent in family}
    return sum(times[process] for process in family)


def memory_bytes(pid: int, *, most: bool = False) -> int:
    """The process's resident memory (VmRSS), or the most that it has had (VmHWM)."""
    status = Path(f"/proc/{pid}/status").read_text()
    return int(status.partition("VmHWM:" if most else "VmRSS:")[2].split()[0]) * 1024
