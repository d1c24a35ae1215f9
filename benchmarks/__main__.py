"""`python -m benchmarks`: tasks per second beside plain Temporal, measured in one run.

The sides of a comparison take turns, round by round, and each round begins with another side, so that what
else the machine does hits all of them. A ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from pathlib import Path
from statistics import median

from benchmarks.measure import COMPARISONS, Bench, Comparison, Round, running
from benchmarks.report import Rounds, as_json, comparison_table, facts, ratios


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--rounds", type=_positive, default=5, help="rounds of each side (default: 5)")
    parser.add_argument(
        "--tasks", type=_positive, default=160, help="tasks of a round; a quarter of it with failures (160)"
    )
    parser.add_argument("--concurrency", type=_positive, default=20, help="tasks under way at once (20)")
    parser.add_argument(
        "--only",
        metavar="NAMES",
        help=f"comparisons to run (default: {','.join(c.name for c in COMPARISONS)})",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all rounds to this file, too")
    parser.add_argument("--quick", action="store_true", help="2 rounds of 40 tasks: does it run at all?")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.tasks = 2, 40
    names = [comparison.name for comparison in COMPARISONS]
    options.only = options.only.upper().split(",") if options.only else names
    if unknown := set(options.only) - set(names):
        parser.error(f"--only: no comparison {min(unknown)!r}; there are {', '.join(names)}")
    asyncio.run(_run(options))


def _positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


async def _run(options: argparse.Namespace) -> None:
    begin = time.monotonic()
    known: dict[str, object] = {}
    results: dict[str, tuple[Comparison, Rounds]] = {}
    for comparison in COMPARISONS:
        if comparison.name not in options.only:
            continue
        tasks = comparison.tasks(options.tasks)
        async with running(comparison.server_settings) as bench:
            if not known:
                known |= facts(await bench.server_version())
                known["load"] = f"{options.rounds} rounds, {options.concurrency} tasks at once"
                for name, value in known.items():
                    print(f"{name + ':':<17}{value}")
            print(f"\n{comparison.name}. {comparison.title} ({tasks} tasks a round)")
            for key, value in comparison.server_settings.items():
                print(f"   for both sides: {key}={value}")
            print(flush=True)
            rounds = await _compare(bench, comparison, options.rounds, tasks, options.concurrency)
        results[comparison.name] = comparison, rounds
        print(comparison_table(comparison, rounds))
        yardstick, ours = (side.name for side in comparison.sides[:2])
        ratio = median(ratios(comparison, rounds, ours))
        verdict = ""
        if comparison.aim is not None:
            verdict = f" (aim: {comparison.aim:.2f}, {'reached' if ratio >= comparison.aim else 'missed'})"
        print(f"\n{ours} / {yardstick}: {ratio:.2f}{verdict}", flush=True)
        for side in comparison.sides:
            if side.aim is not None:
                ratio = median(
                    one.tasks_per_second / other.tasks_per_second
                    for one, other in zip(rounds[ours], rounds[side.name], strict=True)
                )
                verdict = "reached" if ratio >= side.aim else "missed"
                print(f"{ours} / {side.name}: {ratio:.2f} (aim: {side.aim:.2f}, {verdict})", flush=True)
    print(f"\nTook {time.monotonic() - begin:.0f} s. Each figure is the median of its rounds.")
    if options.json is not None:
        options.json.write_text(json.dumps(as_json(known, results), indent=2) + "\n")


async def _compare(
    bench: Bench, comparison: Comparison, number: int, tasks: int, concurrency: int
) -> dict[str, list[Round]]:
    rounds: dict[str, list[Round]] = {side.name: [] for side in comparison.sides}
    for side in comparison.sides:  # what is made once and kept (connections, statements) is not counted
        warm_up = tasks if comparison.prompts > 1 else max(2 * concurrency, tasks // 4)
        await bench.round(side, comparison, warm_up, concurrency)
    for turn in range(number):
        first = turn % len(comparison.sides)
        for side in comparison.sides[first:] + comparison.sides[:first]:
            rounds[side.name].append(await bench.round(side, comparison, tasks, concurrency))
    return rounds


if __name__ == "__main__":
    main()
