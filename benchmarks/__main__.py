"""`python -m benchmarks`: tasks per second beside plain Temporal, measured in one run.

The sides of a comparison take turns, round by round, and each round begins with another side, so that what
else the machine does hits all of them. A ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import time
from statistics import median

from benchmarks.figures import add_options, known, positive, print_facts
from benchmarks.measure import COMPARISONS, Bench, Comparison, Round, running
from benchmarks.report import Rounds, added_latency, as_json, comparison_table, ratios


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    add_options(parser, quick="2 rounds of 40 tasks")
    parser.add_argument(
        "--tasks",
        type=positive,
        default=160,
        help="tasks of a round; a quarter of it where each takes long (160)",
    )
    parser.add_argument("--concurrency", type=positive, default=20, help="tasks under way at once (20)")
    parser.add_argument(
        "--only",
        metavar="NAMES",
        help=f"comparisons to run (default: {','.join(c.name for c in COMPARISONS)})",
    )
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.tasks = 2, 40
    names = [comparison.name for comparison in COMPARISONS]
    options.only = options.only.upper().split(",") if options.only else names
    if unknown := set(options.only) - set(names):
        parser.error(f"--only: no comparison {min(unknown)!r}; there are {', '.join(names)}")
    asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> None:
    begin = time.monotonic()
    told: dict[str, str] = {}
    results: dict[str, tuple[Comparison, Rounds]] = {}
    for comparison in COMPARISONS:
        if comparison.name not in options.only:
            continue
        tasks = comparison.tasks(options.tasks)
        async with running(comparison.server_settings) as bench:
            if not told:
                load = f"{options.rounds} rounds, {options.concurrency} tasks at once unless said otherwise"
                told = known(await bench.server_version(), load=load)
                print_facts(told)
            print(f"\n{comparison.name}. {comparison.title} ({tasks} tasks a round)")
            for key, value in comparison.server_settings.items():
                print(f"   for both sides: {key}={value}")
            print(flush=True)
            at_once = comparison.at_once or options.concurrency
            rounds = await _compare(bench, comparison, options.rounds, tasks, at_once)
        results[comparison.name] = comparison, rounds
        print(comparison_table(comparison, rounds))
        yardstick, ours = (side.name for side in comparison.sides[:2])
        ratio = median(ratios(comparison, rounds, ours))
        verdict = ""
        if comparison.aim is not None:
            verdict = f" (aim: {comparison.aim:.2f}, {'reached' if ratio >= comparison.aim else 'missed'})"
        print(f"\n{ours} / {yardstick}: {ratio:.2f}{verdict}", flush=True)
        if (aim := comparison.latency_aim) is not None:
            added = added_latency(comparison, rounds)
            verdict = f"aim: {1000 * aim:g} ms, {'reached' if added <= aim else 'missed'}"
            print(f"a task takes {1000 * added:.1f} ms longer ({verdict})", flush=True)
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
        options.json.write_text(json.dumps(as_json(told, results), indent=2) + "\n")


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
