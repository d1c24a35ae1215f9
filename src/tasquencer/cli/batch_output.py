"""The files of a batch: results and failures. Each file appears complete or not at all."""

from __future__ import annotations

import contextlib
import os
import stat
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from typing import IO, TYPE_CHECKING
from uuid import uuid4

from tasquencer.ai.usage import Usage
from tasquencer.batch.openai_output import error_line, result_line
from tasquencer.cli.errors import CommandFailed, ExitCode
from tasquencer.core.display_text import json_text

if TYPE_CHECKING:
    from pydantic import JsonValue

    from tasquencer.batch.store import BatchStore, RowAnswer

__all__ = ["Answers", "BatchFiles", "Format", "replacing", "write_unanswered"]

_PAGE_ROWS = 500
_PAGE_BYTES = 4 * 1024 * 1024


class Format(StrEnum):
    """The format of the lines of results and failures."""

    TASQ = "tasq"
    OPENAI = "openai"
    """As in the output file and the error file of OpenAI's Batch API."""


@dataclass(frozen=True)
class BatchFiles:
    """The files for the results.

    Attributes:
        out: The file for answers. None: standard output.
        failures: The file for failures. None: they are not written.
        format: The format of both files.
    """

    out: Path | None
    failures: Path | None
    format: Format = Format.TASQ

    @classmethod
    def of(
        cls,
        out: Path | None,
        failures: Path | None,
        format: Format = Format.TASQ,  # noqa: A002 (the option's name)
        *,
        source: Path | None = None,
        aside: Path | None = None,
    ) -> BatchFiles:
        """Return the files that the options name. Raises `CommandFailed` if one cannot be written.

        Args:
            out: `-` and None are standard output.
            failures: None: `NAME.failed.jsonl` in the folder of `out`.
            format: The format of both files.
            source: The input, which must not be overwritten.
            aside: The file for wrong lines. It is only checked here.
        """
        if out is not None and str(out) == "-":
            out = None
        if failures is None and out is not None:
            failures = out.with_name(f"{out.stem}.failed.jsonl")
        taken = {} if source is None else {source.resolve(): "the input"}
        for option, file in (("--skip-invalid", aside), ("--out", out), ("--failures", failures)):
            if file is None:
                continue
            is_other = file.exists() and not file.is_file()
            if is_other or not os.access(file.resolve().parent, os.W_OK):
                why = "it is not a regular file" if is_other else "its folder cannot be written"
                raise CommandFailed(f"{option}: cannot write {str(file)!r}: {why}", ExitCode.USAGE)
            if (other := taken.get(file.resolve())) is not None:
                raise CommandFailed(f"{option}: {str(file)!r} is {other}, too", ExitCode.USAGE)
            taken[file.resolve()] = option
        return cls(out, failures, format)


@contextmanager
def replacing(file: Path | None) -> Iterator[IO[bytes]]:
    """Open a file that replaces this one at the end of the block, unless the block raises.

    The new content is written to a second file in the same folder, which gets the mode of the file that it
    replaces. Only the owner can read a new file. None: standard output.
    """
    if file is None:
        yield sys.stdout.buffer
        sys.stdout.buffer.flush()
        return
    file = file.resolve()  # write to the target of a link, not over the link
    beside = file.with_name(f".{file.name}.{uuid4().hex[:8]}.tmp")
    try:
        with open(beside, "xb", opener=_for_the_owner) as opened:
            with contextlib.suppress(FileNotFoundError):
                os.fchmod(opened.fileno(), stat.S_IMODE(file.stat().st_mode))
            yield opened
            opened.flush()
            os.fsync(opened.fileno())
        beside.replace(file)
    except OSError as error:
        raise CommandFailed(f"cannot write {str(file)!r}: {error.strerror}") from None
    finally:
        with contextlib.suppress(OSError):  # it has been renamed
            beside.unlink()


def _for_the_owner(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


class Answers:
    """Writes the answers of a batch, in the order of its rows or (`unordered`) of their ends.

    Attributes:
        gone: How many it has written without their text, because the ledger no longer has it.
    """

    def __init__(
        self,
        batches: BatchStore,
        batch_id: str,
        to: IO[bytes],
        *,
        unordered: bool,
        format: Format = Format.TASQ,  # noqa: A002 (the option's name)
    ) -> None:
        self._format = format
        self._batches = batches
        self._batch_id = batch_id
        self._to = to
        self._unordered = unordered
        self._after = 0 if unordered else -1
        self.gone = 0

    def _told(self, answer: RowAnswer) -> JsonValue:
        if self._format is Format.OPENAI:
            return result_line(answer)
        facts = answer.model_dump(exclude={"position", "number", "row_id", "ended_at"})
        used = {name: facts.pop(name) for name in (*Usage.model_fields, "total")}
        return {"id": answer.row_id, **facts, **used}

    async def write_new(self) -> None:
        """Write the new answers since the last call, as far as the order allows before the end."""
        if self._unordered:
            await self.write_all()

    async def write_all(self) -> None:
        """Write the remaining answers."""
        while True:
            page = await self._batches.answers(
                self._batch_id,
                order="number" if self._unordered else "position",
                after=self._after,
                limit=_PAGE_ROWS,
                most_bytes=_PAGE_BYTES,
            )
            if not page:
                self._to.flush()
                return
            for answer in page:
                self._to.write(_line(self._told(answer)))
            self._after = page[-1].number if self._unordered else page[-1].position
            self.gone += sum(answer.text is None for answer in page)


async def write_unanswered(
    batches: BatchStore,
    batch_id: str,
    to: IO[bytes],
    format: Format = Format.TASQ,  # noqa: A002 (the option's name)
) -> None:
    """Write the rows without an answer: the lines of the input, with the failure."""
    after = -1
    while page := await batches.unanswered(batch_id, after=after, limit=_PAGE_ROWS, most_bytes=_PAGE_BYTES):
        for row in page:
            if format is Format.OPENAI:
                to.write(_line(error_line(row)))
                continue
            failure: JsonValue = {"type": "Canceled", "kind": None, "message": "the batch ended before it"}
            if row.failure is not None:
                failure = row.failure.model_dump()
            to.write(_line({"id": row.row_id, **row.request, "failure": failure}))
        after = page[-1].position


def _line(value: JsonValue) -> bytes:
    return json_text(value).encode() + b"\n"
