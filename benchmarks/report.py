"""What people and programs get to see of the measurements."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from statistics import median
from typing import Any

from benchmarks.figures import markdown, milliseconds, spread
from benchmarks.measure import Comparison, Round

__all__ = ["added_latency", "as_json", "comparison_table", "ratios"]

Rounds = Mapping[str, Sequence[Round]]
"""The rounds of each side of a comparison, by the side's name, in the order they were run."""


def ratios(comparison: Comparison, rounds: Rounds, side: str) -> list[float]:
    """A side's throughput divided by the yardstick's, round by round."""
    yardstick = rounds[comparison.sides[0].name]
    return [
        ours.tasks_per_second / theirs.tasks_per_second
        for ours, theirs in zip(rounds[side], yardstick, strict=True)
    ]


def added_latency(comparison: Comparison, rounds: Rounds) -> float:
    """Seconds that the second side takes longer than the yardstick: the median of the rounds' differences."""
    yardstick, ours = (rounds[side.name] for side in comparison.sides[:2])
    return median(
        one.latency_seconds - other.latency_seconds for one, other in zip(ours, yardstick, strict=True)
    )


def comparison_table(comparison: Comparison, rounds: Rounds) -> str:
    """A Markdown table of a comparison, one row a side: medians over the rounds."""
    header = ["", "tasks/s", "(range)", "ratio", "(range)", "latency", "worker CPU", "server CPU"]
    rows = []
    for side in comparison.sides:
        own = rounds[side.name]
        speeds, shares = [each.tasks_per_second for each in own], ratios(comparison, rounds, side.name)
        rows.append(
            [
                side.name,
                f"{median(speeds):.1f}",
                spread(speeds, 1),
                f"{median(shares):.2f}",
                spread(shares),
                milliseconds(median(each.latency_seconds for each in own)),
                milliseconds(median(each.worker_cpu_seconds / each.tasks for each in own)),
                milliseconds(median(each.server_cpu_seconds / each.tasks for each in own)),
            ]
        )
    return markdown(header, rows)


def as_json(told: Mapping[str, str], results: Mapping[str, tuple[Comparison, Rounds]]) -> dict[str, Any]:
    """Everything measured, round by round."""
    return {
        "facts": dict(told),
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
