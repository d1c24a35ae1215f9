"""`python -m benchmarks.plots`, with the Python of `.venv-peers`: plots for docs/reference/performance.md.

Draws the results of `benchmarks.suite`, in the environment of the peers, where matplotlib is. A plot without
a result is left as it is.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import matplotlib as mpl

mpl.use("svg")
import matplotlib.pyplot as plt

__all__ = ["PLOTS", "draw"]

IMAGES = Path("docs/images")
OURS, OTHERS = "#1f6feb", "#8c959f"
COLORS = (OURS, "#bf3989", "#8c959f", "#1a7f37", "#9a6700", "#57606a")

mpl.rcParams.update(
    {
        "svg.fonttype": "none",  # text stays text: small, and in the reader's font
        "svg.hashsalt": "tasquencer",  # the same results give the same file
        "font.family": "sans-serif",
        "font.size": 10,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.axisbelow": True,
        "axes.grid": True,
        "grid.color": "#d0d7de",
        "grid.linewidth": 0.6,
        "legend.frameon": False,
    }
)

Results = dict[str, Any]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.plots", description=__doc__)
    parser.add_argument("--results", type=Path, default=Path("benchmarks/results"), metavar="FOLDER")
    parser.add_argument("--images", type=Path, default=IMAGES, metavar="FOLDER")
    options = parser.parse_args()
    for name in PLOTS:
        file = options.results / f"{name}.json"
        if file.exists():
            draw(name, json.loads(file.read_text()), options.images / f"performance-{name}.svg")
            print(options.images / f"performance-{name}.svg")


def draw(name: str, results: Results, file: Path) -> None:
    """Draw the plot of that name."""
    plt.close("all")
    PLOTS[name](results)
    plt.savefig(file, bbox_inches="tight", transparent=False, facecolor="white", metadata={"Date": None})
    lines = [line.rstrip() for line in file.read_text().splitlines()]
    # A browser may do without the half of the file that describes the file.
    text = re.sub(r"<metadata>.*?</metadata>\n", "", "\n".join(lines) + "\n", flags=re.DOTALL)
    file.write_text(text)


def _bars(labels: Sequence[str], rounds: Sequence[Sequence[float]], unit: str, ours: str) -> None:
    """The median of each side, a line from its lowest round to its highest."""
    _, axes = plt.subplots(figsize=(7.5, 0.45 * len(labels) + 0.8))
    middles = [median(values) for values in rounds]
    ranges = [
        [middle - min(values) for middle, values in zip(middles, rounds, strict=True)],
        [max(values) - middle for middle, values in zip(middles, rounds, strict=True)],
    ]
    colors = [OURS if ours in label else OTHERS for label in labels]
    axes.barh(labels, middles, color=colors, height=0.65, xerr=ranges, error_kw={"elinewidth": 1})
    for place, (middle, values) in enumerate(zip(middles, rounds, strict=True)):
        axes.annotate(
            f"{middle:,.0f}" if middle >= 100 else f"{middle:.1f}",
            (max(values), place),
            xytext=(4, 0),
            textcoords="offset points",
            va="center",
        )
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel(unit)
    axes.margins(x=0.12)


def _comparisons(results: Results) -> None:
    sides = results["comparisons"]["A"]["sides"]
    speeds = [[one["tasks"] / one["seconds"] for one in side["rounds"]] for side in sides.values()]
    _bars(list(sides), speeds, "tasks a second, no failures", "AiAgentTask")


def _peers(results: Results) -> None:
    sides = results["measured"]["sides"]
    speeds = [[one["tasks"] / one["seconds"] for one in side["rounds"]] for side in sides]
    _bars(
        [side["side"] for side in sides], speeds, "tasks a second, each with two failed calls", "AiAgentTask"
    )


def _sleepers(results: Results) -> None:
    sizes: dict[str, list[float]] = {}
    for one in results["measured"]["results"]:
        if one["cached"] > one["tasks"]:
            size = (one["all_bytes"] - one["few_bytes"]) / one["tasks"] / 1024
            sizes.setdefault(one["side"], []).append(size)
    _bars(list(sizes), list(sizes.values()), "KiB of the worker's memory for a sleeping task", "AiAgentTask")


def _batch(results: Results) -> None:
    _, axes = plt.subplots(figsize=(7.5, 3.2))
    whole = max(results["measured"]["wholes"], key=lambda one: one["lines"])
    minutes = [one["after_seconds"] / 60 for one in whole["memory"]]
    for process, color in (("worker", OURS), ("client", "#bf3989"), ("server", "#8c959f")):
        label = {"worker": "the worker", "client": "tasq batch", "server": "Temporal's dev server"}[process]
        axes.plot(minutes, [one[process] / 2**20 for one in whole["memory"]], color=color, label=label)
    axes.set_xlabel(f"minutes of a batch of {whole['lines']:,} lines")
    axes.set_ylabel("MiB")
    axes.set_ylim(bottom=0)
    axes.set_xlim(left=0)
    axes.legend(loc="upper left")


def _ledger(results: Results) -> None:
    _, axes = plt.subplots(figsize=(7.5, 3.2))
    lines: dict[str, list[tuple[int, float]]] = {}
    for side in results["measured"]["sides"]:
        name = f"{side['database']}, {side['commit']}"
        lines.setdefault(name, []).append((side["at_once"], median(side["transitions_per_second"])))
    for (name, points), color in zip(lines.items(), (OURS, OURS, "#bf3989", "#bf3989"), strict=False):
        together = "group" in name
        axes.plot(*zip(*points, strict=True), "o-" if together else "o--", color=color, label=name)
    axes.set_xscale("log")
    ticks = sorted({side["at_once"] for side in results["measured"]["sides"]})
    axes.set_xticks(ticks, [str(tick) for tick in ticks])
    axes.minorticks_off()
    axes.set_ylim(bottom=0)
    axes.set_xlabel("tasks at once")
    axes.set_ylabel("transitions a second")
    axes.legend(loc="upper left")


def _lateness(results: Results) -> None:
    _, axes = plt.subplots(figsize=(7.5, 3.2))
    for side, color in zip(results["measured"]["sides"], COLORS, strict=False):
        late = sorted(side["seconds"])
        heights = [(place + 1) / len(late) for place in range(len(late))]
        style = "--" if side["timers"] == "exact timers" else "-"
        label = f"{side['side']}, {side['timers']}, from {side['planned']}"
        axes.step(late, heights, style, where="post", color=color, label=label)
    axes.set_xlabel("seconds from the planned start to the request")
    axes.set_ylabel("part of the retries")
    axes.set_xlim(left=0)
    axes.set_ylim(0, 1)
    axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.18), fontsize=9)


def _queries(results: Results) -> None:
    times: dict[str, dict[str, float]] = {}
    for one in results["measured"]["questions"]:
        times.setdefault(one["question"], {})[one["database"]] = 1000 * median(one["query_seconds"])
    _, axes = plt.subplots(figsize=(7.5, 0.36 * len(times) + 0.8))
    databases = list(next(iter(times.values())))
    for number, (database, color) in enumerate(zip(databases, (OURS, "#bf3989"), strict=False)):
        places = [place + 0.36 * (number - 0.5) for place in range(len(times))]
        values = [by_database[database] for by_database in times.values()]
        axes.barh(places, values, height=0.34, color=color, label=database)
    axes.axvline(100, color="black", linewidth=0.8, linestyle=":")
    axes.set_yticks(range(len(times)), list(times), fontsize=9)
    axes.set_xscale("log")
    axes.set_xticks([1, 10, 100, 1000], ["1", "10", "100", "1,000"])
    axes.minorticks_off()
    axes.invert_yaxis()
    axes.grid(axis="y", visible=False)
    axes.set_xlabel("milliseconds, the query alone (aim: less than 100)")
    axes.legend(loc="lower right")


PLOTS: dict[str, Callable[[Results], None]] = {
    "batch": _batch,
    "comparisons": _comparisons,
    "ledger": _ledger,
    "lateness": _lateness,
    "peers": _peers,
    "queries": _queries,
    "sleepers": _sleepers,
}


if __name__ == "__main__":
    main()
