"""`python -m tests.chaos`: run tasks while their parts are killed, and see whether every promise is kept."""

from __future__ import annotations

import argparse
import asyncio
import sys
import tempfile
from pathlib import Path

from tests.chaos.plan import Options
from tests.chaos.report import found_in, missed_aims, slowest_stories, smallest_story, table
from tests.chaos.run import run


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.chaos", description=__doc__)
    parser.add_argument("--seed", type=int, default=1, help="decides about tasks, faults and answers (1)")
    parser.add_argument("--tasks", type=int, default=2000, help="how many tasks (2000)")
    parser.add_argument("--faults", type=int, default=300, help="how many faults (300)")
    parser.add_argument("--rows", type=int, default=0, help="of a batch beside the tasks (none)")
    parser.add_argument("--ledger", choices=["postgresql", "sqlite"], default="postgresql")
    parser.add_argument("--gap", type=float, default=1.6, help="mean seconds from a fault to the next (1.6)")
    parser.add_argument("--keep", type=Path, metavar="FOLDER", help="keep all logs and databases there")
    chosen = parser.parse_args()
    is_postgres = chosen.ledger == "postgresql"
    options = Options(
        seed=chosen.seed,
        tasks=chosen.tasks,
        faults=chosen.faults,
        rows=chosen.rows,
        ledger=chosen.ledger,
        workers=2 if is_postgres else 1,
        witness=is_postgres,
        gap_seconds=chosen.gap,
    )
    if chosen.keep is not None:
        chosen.keep.mkdir(parents=True)
        return asyncio.run(_run(options, chosen.keep.absolute()))
    with tempfile.TemporaryDirectory(prefix="tasquencer-chaos-") as folder:
        return asyncio.run(_run(options, Path(folder)))


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
