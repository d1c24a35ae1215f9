"""`python -m benchmarks.page`: writes the results of `benchmarks.suite` into docs/reference/performance.md.

Between `<!-- table: NAME -->` and `<!-- end -->` stands the table of that name, as the benchmark printed it,
and where and how it was run; the rest of the page is written by hand. `--check` only tells whether it is up
to date.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path

from benchmarks.suite import RESULTS

__all__ = ["filled", "tables_in"]

PAGE = Path("docs/reference/performance.md")
_SLOT = re.compile(r"(<!-- table: (\S+) -->\n).*?(<!-- end -->)", re.DOTALL)
_TOLD = (
    "machine",
    "python",
    "temporalio",
    "temporal server",
    "postgresql",
    "sqlite",
    "peers",
    "fsync",
    "load",
)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.page", description=__doc__)
    parser.add_argument("--results", type=Path, default=RESULTS, metavar="FOLDER")
    parser.add_argument("--check", action="store_true", help="change nothing")
    options = parser.parse_args()
    before = PAGE.read_text()
    after = filled(before, tables_in(options.results))
    if options.check:
        sys.exit(f"{PAGE} is not up to date: run `make bench-docs`" if before != after else 0)
    PAGE.write_text(after)


def tables_in(folder: Path) -> dict[str, str]:
    """By name, each table with the conditions under which it was measured."""
    tables: dict[str, str] = {}
    for file in sorted(folder.glob("*.json")):
        content = json.loads(file.read_text())
        told = content["facts"]
        conditions = "; ".join(f"{name} {told[name]}" for name in _TOLD if name in told)
        for name, table in content["tables"].items():
            tables[name] = f"{table}\n\n<sub>{conditions}</sub>"
    return tables


def filled(page: str, tables: Mapping[str, str]) -> str:
    """The page with these tables in their places; those without a result stay as they are."""

    def fill(slot: re.Match[str]) -> str:
        table = tables.get(slot[2])
        return slot[0] if table is None else f"{slot[1]}\n{table}\n\n{slot[3]}"

    return _SLOT.sub(fill, page)


if __name__ == "__main__":
    main()
