"""`python -m benchmarks.suite`: all benchmarks, one after the other, each with its results in a file.

Then `make bench-docs` writes the tables and plots of docs/reference/performance.md from these files. A
benchmark that takes more than a quarter of an hour runs only if `--only` names it, or with `--all`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

__all__ = ["PARTS", "RESULTS", "Part"]

RESULTS = Path("benchmarks/results")
PEERS = Path(".venv-peers")


@dataclass(frozen=True)
class Part:
    """One of the benchmarks: what it measures, and how many minutes it takes on two quiet cores."""

    name: str
    module: str
    what: str
    minutes: int
    options: tuple[str, ...] = ()

    @property
    def is_long(self) -> bool:
        return self.minutes > 15


PARTS = (
    Part("comparisons", "benchmarks", "tasks a second beside plain Temporal", 8, ("--only", "A,B,C,D")),
    Part("latency", "benchmarks", "one task at a time beside plain Temporal", 3, ("--only", "L")),
    Part("ledger", "benchmarks.ledger", "transitions a second, SQLite and PostgreSQL", 3),
    Part("lateness", "benchmarks.lateness", "how late a retry leaves", 6),
    Part("control", "benchmarks.control", "how fast a running task obeys", 5),
    Part("attempt-costs", "benchmarks.attempts", "what an attempt costs", 4),
    Part("start", "benchmarks.start", "how long one waits at the start", 3),
    Part("peers", "benchmarks.peers", "tasks a second beside DBOS and Restate", 10),
    Part(
        "peers-on-disk",
        "benchmarks.peers",
        "the same with Temporal's histories on disk",
        10,
        ("--temporal-on-disk",),
    ),
    Part("queries", "benchmarks.queries", "tasq list and tasq show with 1,000,000 work items", 15),
    Part("batch", "benchmarks.batch", "a batch beside a client loop, files of 1,000 and 10,000 lines", 15),
    Part("sleepers", "benchmarks.sleepers", "10,000 tasks asleep, beside bare workflows", 45),
    Part(
        "sleepers-ours",
        "benchmarks.sleepers",
        "50,000 tasks asleep, which takes 11 GiB of memory",
        80,
        ("--ours", "--tasks", "50000"),
    ),
)


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.suite",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="\n".join(f"{part.name:<14} {part.minutes:>2} min  {part.what}" for part in PARTS),
    )
    names = [part.name for part in PARTS]
    parser.add_argument("--only", metavar="NAMES", help="some of them, with commas in between")
    parser.add_argument("--all", action="store_true", help="the long ones, too")
    parser.add_argument("--quick", action="store_true", help="the quick form of each: does it run at all?")
    parser.add_argument(
        "--results", type=Path, default=RESULTS, metavar="FOLDER", help=f"where the files go ({RESULTS})"
    )
    options = parser.parse_args()
    wanted = set(options.only.split(",")) if options.only else set(names)
    if unknown := wanted - set(names):
        parser.error(f"--only: no benchmark {min(unknown)!r}; there are {', '.join(names)}")
    options.results.mkdir(parents=True, exist_ok=True)
    failed = []
    for part in PARTS:
        if part.name not in wanted or (part.is_long and not (options.all or options.quick or options.only)):
            continue
        print(f"\n== {part.name}: {part.what}", flush=True)
        if part.module == "benchmarks.peers" and not options.only and not PEERS.exists():
            print("left out: `make peers` installs what it needs")
            continue
        command = [sys.executable, "-m", part.module, "--json", options.results / f"{part.name}.json"]
        command += [*part.options, *(["--quick"] if options.quick else [])]
        begin = time.monotonic()
        if subprocess.run(command, check=False).returncode:
            failed.append(part.name)
        print(f"== {part.name} took {(time.monotonic() - begin) / 60:.1f} min", flush=True)
    if failed:
        sys.exit(f"failed: {', '.join(failed)}")


if __name__ == "__main__":
    main()
