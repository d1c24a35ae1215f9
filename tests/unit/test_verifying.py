"""`verify` while a task continues to write: the ledger changes while it is read."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from pydantic import JsonValue

from tasquencer.core.work_item import Transition
from tasquencer.ledger.contract import Ledger
from tasquencer.temporal.histories import TaskHistory, Write
from tasquencer.temporal.projection import verify
from tasquencer.testing import InMemoryLedger
from tests.ledger.stories import Life, ai_job


class WritesBetweenReads(InMemoryLedger):
    """Writes the end of a work item just before one of its reads."""

    def __init__(self, life: Life, read: str) -> None:
        super().__init__()
        self._life = life
        self._read = read

    async def _before(self, read: str, asked: Sequence[str]) -> None:
        if read == self._read and asked:
            self._read = ""
            await self.record([self._life.failed(record=ai_job("failed"))])

    async def transitions_of(self, work_item_ids: Sequence[str]) -> dict[str, list[Transition]]:
        await self._before("transitions_of", work_item_ids)
        return await super().transitions_of(work_item_ids)

    async def domain_records(
        self, table: str, work_item_ids: Sequence[str]
    ) -> dict[str, dict[str, JsonValue]]:
        await self._before("domain_records", work_item_ids)
        return await super().domain_records(table, work_item_ids)


@pytest.mark.parametrize("read", ["transitions_of", "domain_records"])
async def test_a_write_between_two_reads_of_the_ledger_is_no_difference(read: str) -> None:
    life = Life()
    entries = [life.initialized(ai_job("pending")), life.started(ai_job("started"))]
    ledger: Ledger = WritesBetweenReads(life, read)
    await ledger.record(entries)
    told = TaskHistory("task", "AiAgentTask", [Write(entries, None, 3)], under_way=True)
    assert (await verify(told, ledger)).differences == []
    assert (await ledger.work_items_of("task"))[0].state == "failed"
