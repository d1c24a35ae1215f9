"""`python -m tests.chaos`: run tasks while their parts are killed, and see whether every promise is kept."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import tempfile
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from tests.chaos.foreign import report as foreign
from tests.chaos.foreign.campaign import run_foreign
from tests.chaos.plan import Options
from tests.chaos.report import found_in, missed_aims, slowest_stories, smallest_story, table
from tests.chaos.run import run
from tests.chaos.shapes import report as shapes
from tests.chaos.shapes.campaign import ShapeOptions, run_shapes
from tests.chaos.shapes.program import CONSTRUCTS, Program, read_program, watched_program


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="decides about tasks, faults and answers (1)")
    parser.add_argument("--tasks", type=int, default=2000, help="how many tasks (2000)")
    parser.add_argument(
        "--shapes",
        help="run random tasks instead, made of `any` or of these constructs: a,b,c; or `foreign`: workflows "
        "with observed and adopted activities, and agents",
    )
    parser.add_argument("--program", type=Path, help="with --shapes: run this file's program, --tasks times")
    parser.add_argument(
        "--looks",
        action="store_true",
        help="with --shapes: run fan-outs and agents that are queried ten times a second, on one worker",
    )
    parser.add_argument("--deaths", type=int, default=200, help="with --shapes: how many workers die (200)")
    parser.add_argument("--caches", default="1000,2", help="with --shapes: workflows that each worker caches")
    parser.add_argument("--faults", type=int, default=300, help="how many faults (300)")
    parser.add_argument("--rows", type=int, default=0, help="of a batch beside the tasks (none)")
    parser.add_argument("--ledger", choices=["postgresql", "sqlite"], default="postgresql")
    parser.add_argument("--gap", type=float, default=1.6, help="mean seconds from a fault to the next (1.6)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep all logs and databases there")
    chosen = parser.parse_args()
    if chosen.shapes is not None:
        options = _shape_options(chosen)
        if chosen.shapes == "foreign":
            return _in_folder(chosen.keep, lambda folder: _run_foreign(options, folder))
        programs: list[Program] | None = None
        if chosen.program is not None:
            program = read_program(json.loads(chosen.program.read_text()))
            programs = [replace(program, name=f"{program.name}-{number}") for number in range(options.tasks)]
        elif chosen.looks:
            options = replace(options, caches=(1000,), constructs=())
            programs = [watched_program(options.seed + number) for number in range(options.tasks)]
        return _in_folder(chosen.keep, lambda folder: _run_shapes(options, folder, programs))
    is_postgres = chosen.ledger == "postgresql"
    faults = Options(
        seed=chosen.seed,
        tasks=chosen.tasks,
        faults=chosen.faults,
        rows=chosen.rows,
        ledger=chosen.ledger,
        workers=2 if is_postgres else 1,
        witness=is_postgres,
        gap_seconds=chosen.gap,
    )
    return _in_folder(chosen.keep, lambda folder: _run(faults, folder))


def _in_folder(keep: Path | None, work: Callable[[Path], Coroutine[Any, Any, int]]) -> int:
    if keep is not None:
        keep.mkdir(parents=True)
        return asyncio.run(work(keep.absolute()))
    with tempfile.TemporaryDirectory(prefix="tasquencer-chaos-") as folder:
        return asyncio.run(work(Path(folder)))


def _shape_options(chosen: argparse.Namespace) -> ShapeOptions:
    return ShapeOptions(
        seed=chosen.seed,
        tasks=chosen.tasks,
        deaths=chosen.deaths,
        constructs=CONSTRUCTS if chosen.shapes == "any" else tuple(chosen.shapes.split(",")),
        caches=tuple(int(cache) for cache in chosen.caches.split(",")),
        ledger=chosen.ledger,
    )


async def _run_shapes(options: ShapeOptions, folder: Path, programs: Sequence[Program] | None) -> int:
    campaign = await run_shapes(options, folder, programs)
    found = shapes.found_in(campaign)
    print(shapes.table(campaign))
    for account, wrong in found:
        print(f"\n{shapes.story(account, wrong)}")
    print(f"\n{len(found)} of {len(campaign.accounts)} tasks break a promise")
    return 1 if found else 0


async def _run_foreign(options: ShapeOptions, folder: Path) -> int:
    campaign = await run_foreign(options, folder)
    found = foreign.found_in(campaign)
    print(foreign.table(campaign))
    if found:
        print(f"\n{foreign.stories(found)}")
    print(f"\n{len(found)} of {len(campaign.accounts)} tasks break a promise")
    return 1 if found else 0


async def _run(options: Options, folder: Path) -> int:
    outcome = await run(options, folder)
    print(table(outcome))
    found, missed = found_in(outcome), missed_aims(outcome)
    for one in missed:
        print(f"! {one}")
    if missed:
        print(f"\nthe tasks that went on last after a kill:\n{slowest_stories(outcome)}\n")
    for account, wrong in found:
        for one in wrong:
            print(f"! {account.story.task_id}: {one}")
    if found:
        print(f"\nthe smallest story of {len(found)}:\n{smallest_story(found)}")
    return 1 if found or missed else 0


if __name__ == "__main__":
    sys.exit(main())
