"""The table in `docs/concepts/semantics.md` and the tests of its rows belong together."""

from __future__ import annotations

import re
from pathlib import Path

HERE = Path(__file__).parent
DOCUMENT = HERE.parents[1] / "docs/concepts/semantics.md"


def rows() -> list[list[str]]:
    """The cells of each row, without the head."""
    lines = [line for line in DOCUMENT.read_text().splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def file_of(row: list[str]) -> Path:
    """The file that the row's first cell links to."""
    link = re.fullmatch(r"\[[^]]+\]\(([^)]+)\)", row[0])
    assert link is not None, f"{row[0]!r} links to no tests"
    return (DOCUMENT.parent / link[1]).resolve()


def test_every_row_says_all_there_is_to_say() -> None:
    assert len(rows()) >= 8
    assert [row for row in rows() if len(row) != 4 or not all(row)] == []


def test_every_row_links_to_its_tests() -> None:
    without = [
        row[0]
        for row in rows()
        if not re.search(r"^(async )?def test_", file_of(row).read_text(), re.MULTILINE)
    ]
    assert without == []


def test_every_file_of_tests_here_is_that_of_one_row() -> None:
    linked = [path for path in map(file_of, rows()) if path.parent == HERE]
    assert sorted(linked) == sorted(set(HERE.glob("test_*.py")) - {Path(__file__)})
