"""Group commit: writes that arrive while a transaction runs share the next one.

A commit of fifty writes costs the same as a commit of one, so the cost per write falls as a worker runs more
tasks. No write waits for others: the first one begins a transaction immediately.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field

from tasquencer.core.entries import LedgerEntry
from tasquencer.core.errors import LedgerConflict

__all__ = ["GroupCommit", "Write"]

_LARGEST_GROUP = 64
"""Writes in one transaction. A conflict among many makes all of them wait, so the group must not be large."""


@dataclass(frozen=True)
class Write:
    """One caller's write.

    Attributes:
        entries: The entries to write.
        run: A task and a run of it whose open work items the caller wants to know. None: of none.
        found_open: The ids of those work items after the group's entries.
    """

    entries: Sequence[LedgerEntry]
    run: tuple[str, str] | None = None
    found_open: set[str] = field(default_factory=set)


@dataclass(frozen=True)
class _Waiting:
    write: Write
    written: asyncio.Future[None]


class GroupCommit:
    """Executes writes one group after the other, each group in one transaction.

    Args:
        write: Executes the writes in one transaction. If it raises, none of them was written.
    """

    def __init__(self, write: Callable[[Sequence[Write]], Awaitable[None]]) -> None:
        self._write = write
        self._waiting: deque[_Waiting] = deque()
        self._writer: asyncio.Task[None] | None = None

    async def add(self, write: Write) -> None:
        """Return after the write is committed, or raise the error that prevented it.

        A write that the ledger refuses does not affect the others of its group. A caller that is cancelled
        while it waits cannot know whether its entries were written.
        """
        waiting = _Waiting(write, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        if self._writer is None:
            self._writer = asyncio.create_task(self._write_waiting())
        await waiting.written

    async def finish(self) -> None:
        """Return when nothing is being written."""
        if self._writer is not None:
            await asyncio.wait([self._writer])

    async def _write_waiting(self) -> None:
        try:
            while self._waiting:
                group = [self._waiting.popleft() for _ in range(min(len(self._waiting), _LARGEST_GROUP))]
                # A cancelled caller writes again. While a database hangs, its old writes would pile up.
                awaited = [one for one in group if not one.written.cancelled()]
                if awaited:
                    await self._write_group(awaited)
        finally:
            self._writer = None

    async def _write_group(self, group: list[_Waiting]) -> None:
        try:
            await self._write([waiting.write for waiting in group])
        except LedgerConflict as conflict:
            if len(group) == 1:
                _end(group[0], conflict)
                return
            for waiting in group:  # written one by one, to find the refused one
                await self._write_group([waiting])
        except BaseException as error:
            for waiting in group:
                _end(waiting, error)
            if not isinstance(error, Exception):
                raise
        else:
            for waiting in group:
                _end(waiting, None)


def _end(waiting: _Waiting, error: BaseException | None) -> None:
    if waiting.written.done():
        return
    if error is None:
        waiting.written.set_result(None)
    elif isinstance(error, asyncio.CancelledError):
        waiting.written.cancel()
    else:
        waiting.written.set_exception(error)
