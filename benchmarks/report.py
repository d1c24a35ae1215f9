"""What people and programs get to see of the measurements."""

from __future__ import annotations

import os
import platform
import sqlite3
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import Comparison, Round

__all__ = ["as_json", "comparison_table", "facts", "ratios"]

Rounds = Mapping[str, Sequence[Round]]
"""The rounds of each side of a comparison, by the side's name, in the order they were run."""


def facts(server_version: str) -> dict[str, str]:
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


def ratios(comparison: Comparison, rounds: Rounds, side: str) -> list[float]:
    """A side's throughput divided by the yardstick's, round by round."""
    yardstick = rounds[comparison.sides[0].name]
    return [
        ours.tasks_per_second / theirs.tasks_per_second
        for ours, theirs in zip(rounds[side], yardstick, strict=True)
    ]


def comparison_table(comparison: Comparison, rounds: Rounds) -> str:
    """A Markdown table of a comparison, one row a side: medians over the rounds."""
    header = ["", "tasks/s", "(range)", "ratio", "(range)", "latency", "worker CPU", "server CPU"]
    rows = [header]
    for side in comparison.sides:
        own = rounds[side.name]
        speeds, shares = [each.tasks_per_second for each in own], ratios(comparison, rounds, side.name)
        rows.append(
            [
                side.name,
                f"{median(speeds):.1f}",
                f"{min(speeds):.1f}–{max(speeds):.1f}",
                f"{median(shares):.2f}",
                f"{min(shares):.2f}–{max(shares):.2f}",
                f"{1000 * median(each.latency_seconds for each in own):.0f} ms",
                f"{1000 * median(each.worker_cpu_seconds / each.tasks for each in own):.2f} ms",
                f"{1000 * median(each.server_cpu_seconds / each.tasks for each in own):.2f} ms",
            ]
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(header))]
    lines = [
        "| "
        + " | ".join(
            cell.rjust(width) if column else cell.ljust(width)
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        + " |"
        for row in rows
    ]
    dashes = ["-" * width if not column else "-" * (width - 1) + ":" for column, width in enumerate(widths)]
    lines.insert(1, "| " + " | ".join(dashes) + " |")
    return "\n".join(lines)


def as_json(known: Mapping[str, object], results: Mapping[str, tuple[Comparison, Rounds]]) -> dict[str, Any]:
    """Everything measured, round by round."""
    return {
        "facts": dict(known),
        "tables": {name: comparison_table(*result) for name, result in results.items()},
        "comparisons": {
            name: {
                "title": comparison.title,
                "aim": comparison.aim,
                "server_settings": dict(comparison.server_settings),
                "sides": {
                    side.name: {
                        "ratio": median(ratios(comparison, rounds, side.name)),
                        "tasks_per_second": median(each.tasks_per_second for each in rounds[side.name]),
                        "rounds": [asdict(each) for each in rounds[side.name]],
                    }
                    for side in comparison.sides
                },
            }
            for name, (comparison, rounds) in results.items()
        },
    }
