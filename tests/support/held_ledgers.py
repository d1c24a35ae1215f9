"""Ledgers that hold a write, or are down, from a chosen write on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from tasquencer.core.entries import LedgerEntry
from tasquencer.core.errors import LedgerUnavailable
from tasquencer.core.work_item import WorkItemState
from tasquencer.testing import InMemoryLedger
from tests.support.patience import PATIENCE_SECONDS


class Gate:
    """A gate where code waits until the test opens it. The test can wait until code has reached it."""

    def __init__(self) -> None:
        self.reached = asyncio.Event()
        self._open = asyncio.Event()

    async def pass_through(self) -> None:
        self.reached.set()
        await self._open.wait()

    def open(self) -> None:
        self._open.set()

    async def wait_until_reached(self) -> None:
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.reached.wait()


Wanted = Callable[[Sequence[LedgerEntry]], Awaitable[bool]]


def leading_to(state: WorkItemState, attempt: int = 0, together: int = 1) -> Wanted:
    """Select the write in which this attempt, of this number of lineages, reaches this state."""

    async def is_it(entries: Sequence[LedgerEntry]) -> bool:
        steps = [(one.work_item.attempt, one.transition.next_state) for one in entries]
        return steps.count((attempt, state)) >= together

    return is_it


class HeldLedger(InMemoryLedger):
    """Holds one write at its gate, before the commit or, with `committed`, after it."""

    def __init__(self, wanted: Wanted, *, committed: bool) -> None:
        super().__init__()
        self.gate = Gate()
        self._wanted = wanted
        self._committed = committed

    async def record(self, entries: Sequence[LedgerEntry]) -> None:
        held = await self._wanted(entries)
        if held and not self._committed:
            await self.gate.pass_through()
        await super().record(entries)
        if held and self._committed:
            await self.gate.pass_through()


class FallingLedger(InMemoryLedger):
    """Is down from the wanted write on, until `repair` is called."""

    def __init__(self, wanted: Wanted) -> None:
        super().__init__()
        self.refused = 0
        self._wanted = wanted
        self._repaired = False

    def repair(self) -> None:
        self._repaired = True

    async def record(self, entries: Sequence[LedgerEntry]) -> None:
        if not self._repaired and (self.refused or await self._wanted(entries)):
            self.refused += 1
            raise LedgerUnavailable("a database", "connection refused")
        await super().record(entries)
