"""What every benchmark of this folder has in common: options, facts, figures, tables and their JSON."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import tempfile
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from math import ceil
from pathlib import Path
from statistics import median
from typing import Any

__all__ = [
    "add_options",
    "fsync_seconds",
    "known",
    "markdown",
    "milliseconds",
    "p50_p99",
    "percentile",
    "positive",
    "print_facts",
    "save",
    "spread",
]


def add_options(parser: argparse.ArgumentParser, *, rounds: int = 5, quick: str) -> None:
    """The options that each benchmark has."""
    parser.add_argument(
        "--rounds", type=positive, default=rounds, help=f"rounds of each side (default: {rounds})"
    )
    parser.add_argument("--quick", action="store_true", help=f"{quick}: does it run at all?")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write everything measured to this file, too"
    )


def positive(text: str) -> int:
    """A whole number from 1, from the command line."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


def known(server_version: str | None = None, **more: str) -> dict[str, str]:
    """Return the machine, the versions, and other facts about a run."""
    told = _facts(server_version or "")
    if server_version is None:
        del told["temporal server"]
    return told | {name.replace("_", " "): value for name, value in more.items()}


def _facts(server_version: str) -> dict[str, str]:
    """The machine and the versions."""
    load = f", load average {os.getloadavg()[0]:.1f} at the start" if hasattr(os, "getloadavg") else ""
    return {
        "machine": f"{os.cpu_count()} × {_cpu_model()}, {platform.system()} {platform.machine()}{load}",
        "python": platform.python_version(),
        "tasquencer": version("tasquencer"),
        "temporalio": version("temporalio"),
        "temporal server": f"{server_version}, dev server in memory",
        "openai": version("openai"),
        "sqlite": sqlite3.sqlite_version,
    }


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or "unknown processor"


def print_facts(told: Mapping[str, str]) -> None:
    for name, value in told.items():
        print(f"{name + ':':<17}{value}")
    print(flush=True)


def fsync_seconds(tries: int = 50) -> float:
    """What a durable write of 4 kB costs at the median where temporary files are."""
    with tempfile.TemporaryFile() as file:
        took = []
        for _ in range(tries):
            file.write(os.urandom(4096))
            file.flush()
            begin = time.perf_counter()
            os.fsync(file.fileno())
            took.append(time.perf_counter() - begin)
    return median(took)


def percentile(values: Iterable[float], percent: float) -> float:
    """Return the percentile: the smallest value that this percentage of the values does not exceed."""
    ordered = sorted(values)
    return ordered[max(0, ceil(percent / 100 * len(ordered)) - 1)]


def milliseconds(seconds: float) -> str:
    value = seconds * 1000
    if value >= 1000:
        return f"{seconds:.2f} s"
    return f"{value:.0f} ms" if value >= 100 else f"{value:.1f} ms" if value >= 10 else f"{value:.2f} ms"


def p50_p99(seconds: Sequence[float]) -> list[str]:
    return [milliseconds(percentile(seconds, 50)), milliseconds(percentile(seconds, 99))]


def spread(values: Sequence[float], digits: int = 2) -> str:
    """From the lowest to the highest."""
    return f"{min(values):,.{digits}f}–{max(values):,.{digits}f}"


def markdown(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table; the first column is text, the others are figures."""
    lines = [list(header), *map(list, rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    shown = [
        "| "
        + " | ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(line, widths, strict=True))
        )
        + " |"
        for line in lines
    ]
    dashes = [
        "-" * max(width, 3) if not column else "-" * max(width - 1, 2) + ":"
        for column, width in enumerate(widths)
    ]
    shown.insert(1, "| " + " | ".join(dashes) + " |")
    return "\n".join(shown)


def save(
    file: Path | None, told: Mapping[str, str], tables: Mapping[str, str], measured: Mapping[str, Any]
) -> None:
    """Write everything measured, with the tables as the documentation shows them."""
    if file is not None:
        file.parent.mkdir(parents=True, exist_ok=True)
        content = {"facts": dict(told), "tables": dict(tables), "measured": dict(measured)}
        file.write_text(json.dumps(content, indent=2) + "\n")
