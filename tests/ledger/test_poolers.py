"""The ledger works behind pgbouncer in transaction mode, where every transaction may meet another session."""

from __future__ import annotations

import asyncio
import os
import sys
from collections.abc import AsyncIterator

import asyncpg
import pytest
import pytest_asyncio

from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.sql import SCHEMA_VERSION, SqlLedger, schema_version, upgrade
from tests.ledger.stories import Life, ai_job
from tests.outages.postgres import way_to
from tests.support.patience import PATIENCE_SECONDS
from tests.support.pgbouncer import pgbouncer_before
from tests.support.postgres import EmbeddedPostgres

pytestmark = pytest.mark.postgresql

TASQ = "from tasquencer.cli.main import main; main()"

WORKER = """
import asyncio, sys
from datetime import UTC, datetime
from tasquencer.batch.rows import BatchRow
from tasquencer.batch.store import Batch, BatchState
from tasquencer.core.work_item import WorkItemState
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.sql import SqlLedger
from tests.ledger.stories import Life, ai_job

async def main(url, name):
    async with SqlLedger(url) as ledger:
        async def one(number):
            life = Life(id=f"{name}-{number}", run_id=name, attempt=number)
            for entry in life.until(WorkItemState.COMPLETED):
                await ledger.record([entry.model_copy(update={"record": ai_job("started")})])
                assert await ledger.transitions(life.id)
        await asyncio.gather(*map(one, range(20)))
        batch = Batch(id=name, digest="d", rows=400, defaults={}, state=BatchState.STARTED,
                      created_at=datetime.now(UTC))
        await ledger.batches.create(batch)
        rows = [BatchRow(position=n, row_id=str(n), request={"prompt": "?"}) for n in range(400)]
        await asyncio.gather(*(ledger.batches.fill(name, rows[n:n + 50]) for n in range(0, 400, 50)))
        await ledger.batches.filled(name)
        assert (await ledger.batches.counts(name)).pending == 400
        assert len(await ledger.work_items(WorkItemFilter(task_id="task", limit=500))) >= 20

asyncio.run(main(*sys.argv[1:]))
"""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def pooler(postgres: EmbeddedPostgres) -> AsyncIterator[EmbeddedPostgres]:
    """The server, reached through pgbouncer."""
    async with pgbouncer_before(postgres) as pooler:
        yield pooler


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def url(postgres: EmbeddedPostgres, pooler: EmbeddedPostgres) -> str:
    """A ledger behind pgbouncer."""
    await postgres.create_database("pooled")
    await upgrade(pooler.url_of("pooled"))
    return pooler.url_of("pooled")


async def program(*command: str, **environment: str) -> tuple[int | None, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *command,
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
    return process.returncode, output.decode()


async def test_several_may_migrate_at_once(postgres: EmbeddedPostgres, pooler: EmbeddedPostgres) -> None:
    await postgres.create_database("migrated")
    url = pooler.url_of("migrated")
    results = await asyncio.gather(*(upgrade(url) for _ in range(2)))
    assert sorted(results, key=str) == [(SCHEMA_VERSION, SCHEMA_VERSION), (None, SCHEMA_VERSION)]
    assert await upgrade(postgres.url_of("migrated")) == (SCHEMA_VERSION, SCHEMA_VERSION)
    assert await schema_version(url) == SCHEMA_VERSION


async def test_several_workers_write_and_read(url: str) -> None:
    done = await asyncio.gather(*(program("-c", WORKER, url, f"w{number}") for number in range(3)))
    assert [status for status, _ in done] == [0] * 3, done
    async with SqlLedger(url) as ledger:
        found = await ledger.work_items(WorkItemFilter(task_id="task", limit=500))
    assert len(found) == 60


async def test_commands_one_after_the_other(url: str) -> None:
    for _ in range(3):
        listed = await program("-c", TASQ, "list", "--json", TASQ_DATABASE_URL=url)
        assert listed[0] == 0, listed[1]


async def test_nothing_stays_prepared_in_the_servers_sessions(url: str) -> None:
    async with SqlLedger(url) as ledger:
        life = Life(id="prepared", run_id="prepared")
        await ledger.record([life.initialized(ai_job("pending"))])
        await asyncio.gather(*(ledger.transitions("prepared") for _ in range(10)))
    for _ in range(4):
        connection = await asyncpg.connect(url.replace("+asyncpg", ""), statement_cache_size=0)
        left = await connection.fetch("SELECT name, statement FROM pg_prepared_statements WHERE name <> ''")
        await connection.close()
        assert left == []


async def test_a_pooler_that_comes_in_between_later_is_noticed(
    postgres: EmbeddedPostgres, pooler: EmbeddedPostgres, url: str
) -> None:
    async with way_to(postgres.port) as way:
        plain = f"postgresql://postgres@127.0.0.1:{way.port}/pooled"
        async with SqlLedger(plain) as ledger:
            await ledger.record([Life(id="before", run_id="later").initialized()])
            way.lead_to(pooler.port)
            await take_the_names_of_statements(url)
            await ledger.record([Life(id="after", run_id="later", attempt=1).initialized()])
            assert len(await ledger.transitions("after")) == 1


async def take_the_names_of_statements(url: str) -> None:
    """In all sessions of the server, as other clients that keep statements do."""
    plain = url.replace("+asyncpg", "")
    clients = [await asyncpg.connect(plain, statement_cache_size=0) for _ in range(4)]
    begun = int(clients[0]._get_unique_id("stmt").strip("_").rpartition("_")[2], 16)
    for client in clients:
        await client.execute("BEGIN")  # so each has a session of its own
    for client in clients:
        names = [f"__asyncpg_stmt_{number:x}__" for number in range(begun, begun + 300)]
        await client.execute("; ".join(f"PREPARE {name} AS SELECT 1" for name in names))
    for client in clients:
        await client.execute("COMMIT")
        await client.close()
