"""Ledgers that hold a write, or are down, from a chosen batch on."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from tasquencer.core.entries import LedgerEntry
from tasquencer.core.errors import LedgerUnavailable
from tasquencer.core.work_item import WorkItemState
from tasquencer.testing import InMemoryLedger
from tests.support.patience import PATIENCE_SECONDS


class Gate:
    """A place where something waits until the test lets it go on, and where it shows that it is there."""

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
    """The batch in which this attempt, of so many lineages, comes to this state."""

    async def is_it(entries: Sequence[LedgerEntry]) -> bool:
        steps = [(one.work_item.attempt, one.transition.next_state) for one in entries]
        return steps.count((attempt, state)) >= together

    return is_it


class HeldLedger(InMemoryLedger):
    """Holds one batch at its gate, before it writes it or, with `committed`, between that and its return."""

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
    """Is down from the wanted batch on, until `mend` is called."""

    def __init__(self, wanted: Wanted) -> None:
        super().__init__()
        self.refused = 0
        self._wanted = wanted
        self._mended = False

    def mend(self) -> None:
        self._mended = True

    async def record(self, entries: Sequence[LedgerEntry]) -> None:
        if not self._mended and (self.refused or await self._wanted(entries)):
            self.refused += 1
            raise LedgerUnavailable("a database", "connection refused")
        await super().record(entries)
