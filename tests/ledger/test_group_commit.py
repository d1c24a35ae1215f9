"""Writes that arrive together share a transaction, and nothing else."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from tasquencer.core.errors import LedgerConflict, LedgerUnavailable
from tasquencer.sql.group_commit import GroupCommit, Write
from tests.ledger.stories import Life


class Transactions:
    """Notes the ids in each transaction; refuses the work item `bad`; holds the first until released."""

    def __init__(self, *errors: Exception) -> None:
        self.ids: list[list[str]] = []
        self.errors = list(errors)
        self.release = asyncio.Event()

    async def write(self, writes: Sequence[Write]) -> None:
        entries = [entry for one in writes for entry in one.entries]
        self.ids.append([entry.work_item.id for entry in entries])
        await self.release.wait()
        if self.errors:
            raise self.errors.pop(0)
        if any(entry.work_item.id == "bad" for entry in entries):
            raise LedgerConflict("bad", "planted")


def write_of(work_item_id: str) -> Write:
    return Write([Life(work_item_id).initialized()])


async def added(transactions: Transactions, *ids: str) -> list[BaseException | None]:
    """What `add` gave for each write, all added together."""
    group = GroupCommit(transactions.write)
    adding = [asyncio.ensure_future(group.add(write_of(name))) for name in ids]
    while not transactions.ids:
        await asyncio.sleep(0)
    transactions.release.set()
    return await asyncio.gather(*adding, return_exceptions=True)


async def test_what_arrives_during_a_transaction_shares_the_next_one() -> None:
    transactions = Transactions()
    assert await added(transactions, "a", "b", "c", "d") == [None] * 4
    assert sum(len(ids) for ids in transactions.ids) == 4
    assert len(transactions.ids) <= 2


async def test_no_write_is_acknowledged_before_its_transaction_has_ended() -> None:
    transactions = Transactions()
    group = GroupCommit(transactions.write)
    adding = asyncio.ensure_future(group.add(write_of("a")))
    while not transactions.ids:
        await asyncio.sleep(0)
    assert not adding.done()
    transactions.release.set()
    await adding


async def test_a_refused_write_never_fails_its_neighbours() -> None:
    transactions = Transactions()
    a, bad, c = await added(transactions, "a", "bad", "c")
    assert (a, c) == (None, None)
    assert isinstance(bad, LedgerConflict)
    assert ["bad"] in transactions.ids


async def test_an_outage_fails_every_write_of_the_group_and_the_next_one_is_tried() -> None:
    transactions = Transactions(LedgerUnavailable("a database", "gone"))
    outcomes = await added(transactions, *"abc")
    assert any(isinstance(outcome, LedgerUnavailable) for outcome in outcomes)
    group = GroupCommit(transactions.write)
    await group.add(write_of("d"))


async def test_a_bug_in_the_write_leaves_nobody_waiting() -> None:
    transactions = Transactions(ZeroDivisionError())
    outcomes = await added(transactions, *"abc")
    assert any(isinstance(outcome, ZeroDivisionError) for outcome in outcomes)


async def test_finish_waits_for_what_is_being_written() -> None:
    transactions = Transactions()
    group = GroupCommit(transactions.write)
    adding = asyncio.ensure_future(group.add(write_of("a")))
    while not transactions.ids:
        await asyncio.sleep(0)
    finishing = asyncio.ensure_future(group.finish())
    await asyncio.sleep(0)
    assert not finishing.done()
    transactions.release.set()
    await asyncio.wait_for(finishing, timeout=5)
    await asyncio.wait_for(adding, timeout=5)


@pytest.mark.parametrize("canceled", [0, 1])
async def test_a_caller_that_is_canceled_does_not_stop_the_others(canceled: int) -> None:
    transactions = Transactions()
    group = GroupCommit(transactions.write)
    adding = [asyncio.ensure_future(group.add(write_of(name))) for name in "ab"]
    while not transactions.ids:
        await asyncio.sleep(0)
    adding[canceled].cancel()
    transactions.release.set()
    await asyncio.wait_for(adding[1 - canceled], timeout=5)
