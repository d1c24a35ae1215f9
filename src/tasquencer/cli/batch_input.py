"""Reads and checks the lines of a batch, and keeps them on disk until all are checked.

Nothing is sent before the last line is checked. Until then the rows are in a temporary SQLite database, so
memory does not grow with the file. The database also finds duplicate ids.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import sqlite3
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tasquencer.cli.errors import CommandFailed, ExitCode
from tasquencer.cli.lines import lines_in
from tasquencer.core.errors import InvalidRequest
from tasquencer.core.wording import counted

if TYPE_CHECKING:
    from pydantic import JsonValue

    from tasquencer.batch.rows import BatchRow

__all__ = ["MOST_PROBLEMS", "CheckedLines", "Problem", "StagedRows", "check_lines", "lines_of"]

MOST_PROBLEMS = 20
"""Wrong lines that are reported one by one."""

LONGEST_LINE = 12 * 1024 * 1024
"""Bytes. A request has at most an eighth of this, but its JSON may escape every character."""

_PAGE_ROWS = 500
_PAGE_BYTES = 4 * 1024 * 1024

_BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Problem:
    """A problem with a line. The first line has number 1."""

    line: int
    message: str

    def __str__(self) -> str:
        return f"line {self.line:,}: {self.message}"


@dataclass
class CheckedLines:
    """The outcome of checking the lines.

    Attributes:
        problems: The first problems.
        wrong: How many lines are wrong.
    """

    lines: int = 0
    wrong: int = 0
    problems: list[Problem] = field(default_factory=list)

    def refuse(self, problem: Problem) -> None:
        """Note a wrong line."""
        self.wrong += 1
        if len(self.problems) < MOST_PROBLEMS:
            self.problems.append(problem)


class StagedRows:
    """Rows on disk, in a database that is deleted when it is closed."""

    def __init__(self, defaults: Mapping[str, JsonValue]) -> None:
        self._database = sqlite3.connect("", isolation_level=None)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(
            "CREATE TABLE staged "
            "(position INTEGER PRIMARY KEY, row_id TEXT UNIQUE, line INTEGER, request TEXT)"
        )
        self._digest = hashlib.sha256(_canonical(defaults))
        self.count = 0

    @property
    def digest(self) -> str:
        """The digest of the defaults and all rows."""
        return self._digest.hexdigest()

    def add(self, row_id: str, line: int, request: Mapping[str, JsonValue]) -> int | None:
        """Add a row. Return the earlier line with the same id, if there is one."""
        told = json.dumps(request, ensure_ascii=False)
        try:
            self._database.execute("INSERT INTO staged VALUES (?, ?, ?, ?)", (self.count, row_id, line, told))
        except sqlite3.IntegrityError:
            query = "SELECT line FROM staged WHERE row_id = ?"
            (earlier,) = self._database.execute(query, (row_id,)).fetchone()
            return int(earlier)
        self._digest.update(_canonical([row_id, request]))
        self.count += 1
        return None

    def pages(self) -> Iterator[list[BatchRow]]:
        """Return all rows, some at a time."""
        from tasquencer.batch.rows import BatchRow

        page: list[BatchRow] = []
        size = 0
        query = "SELECT position, row_id, request FROM staged ORDER BY position"
        for position, row_id, told in self._database.execute(query):
            if page and (len(page) == _PAGE_ROWS or size + len(told) > _PAGE_BYTES):
                yield page
                page, size = [], 0
            page.append(BatchRow(position=position, row_id=row_id, request=json.loads(told)))
            size += len(told)
        if page:
            yield page

    def close(self) -> None:
        """Free the disk space."""
        self._database.close()


def _canonical(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":")).encode() + b"\n"


@contextmanager
def lines_of(file: Path) -> Iterator[IO[bytes]]:
    """Open the file, or with `-` standard input, to read it line by line. Raises `CommandFailed`."""
    try:
        with contextlib.ExitStack() as opened:
            yield sys.stdin.buffer if str(file) == "-" else opened.enter_context(file.open("rb"))
    except OSError as error:
        raise CommandFailed(f"FILE: cannot read {str(file)!r}: {error.strerror}", ExitCode.USAGE) from None


def check_lines(
    lines: IO[bytes],
    defaults: Mapping[str, JsonValue],
    rows: StagedRows,
    *,
    set_aside: IO[bytes] | None = None,
    said: Callable[[str], None] = lambda _: None,
) -> CheckedLines:
    """Check each line, and stage the rows of the valid ones. Blank lines are ignored.

    Args:
        lines: JSON, one object per line.
        defaults: Fields for lines that do not have them.
        rows: Receives the rows.
        set_aside: Receives the wrong lines unchanged.
        said: Called now and then with a line about the progress.
    """
    from tasquencer.batch.rows import check_row, parse_line

    checked = CheckedLines()
    for line in lines_in(lines, LONGEST_LINE):
        if not line.is_first:
            if set_aside is not None:
                set_aside.write(line.content + line.end)
            continue
        number = checked.lines = line.number
        content = line.content.removeprefix(_BYTE_ORDER_MARK) if number == 1 else line.content
        if line.is_last and not content.strip():
            continue
        try:
            if not line.is_last:
                raise InvalidRequest([f"is longer than {LONGEST_LINE:,} bytes"])
            row_id, request = parse_line(content, number)
            check_row(defaults, request)
            if (earlier := rows.add(row_id, number, request)) is not None:
                raise InvalidRequest([f"id: {row_id!r} is already on line {earlier:,}"])
        except InvalidRequest as invalid:
            checked.refuse(Problem(number, str(invalid)))
            if set_aside is not None:
                set_aside.write(content + (line.end or b"\n" if line.is_last else b""))
        if number % 1_000 == 0:
            said(f"checked {counted(number, 'line')}")
    return checked
