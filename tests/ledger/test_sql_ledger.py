"""What only an SQL ledger does: URLs, outages, races, domain tables of one's own, indexes."""

from __future__ import annotations

import asyncio
import os
import sqlite3
import stat
import traceback
from collections.abc import Iterator
from contextlib import closing
from datetime import datetime
from pathlib import Path

import asyncpg
import pytest
import sqlalchemy as sa
from pydantic import JsonValue
from sqlalchemy.dialects import sqlite

from tasquencer.core.entries import DomainRecord
from tasquencer.core.errors import LedgerConflict, LedgerUnavailable, SchemaMismatch
from tasquencer.core.work_item import WorkItemState
from tasquencer.ledger.contract import Place, WorkItemFilter
from tasquencer.sql import SqlLedger, schema_version, upgrade
from tasquencer.sql.databases import database_at
from tasquencer.sql.pruning import old_tasks
from tasquencer.sql.reading import open_work_items_query, work_items_query
from tasquencer.sql.schema import UtcTime
from tests.ledger.stories import START, Life, after, ai_job
from tests.ledger.test_immutability import run
from tests.support.postgres import EmbeddedPostgres

# Files


async def test_the_folder_of_a_sqlite_file_is_created(tmp_path: Path) -> None:
    async with SqlLedger(f"sqlite:///{tmp_path}/new/folder/ledger.db"):
        assert (tmp_path / "new/folder/ledger.db").exists()


@pytest.fixture
def usual_mask() -> Iterator[None]:
    before = os.umask(0o022)
    yield
    os.umask(before)


def modes(folder: Path) -> dict[str, str]:
    return {path.name: f"{stat.S_IMODE(path.stat().st_mode):o}" for path in folder.iterdir()}


@pytest.mark.usefixtures("usual_mask")
@pytest.mark.parametrize("url", ["sqlite:///{}/ledger.db", "sqlite:///file:{}/ledger.db?uri=true"])
async def test_only_its_owner_may_read_what_a_ledger_creates(tmp_path: Path, url: str) -> None:
    folder = tmp_path / "new" / "folder"
    if "uri" in url:
        folder.mkdir(mode=0o700, parents=True)
        (tmp_path / "new").chmod(0o700)
    async with SqlLedger(url.format(folder)) as ledger:
        await ledger.record([Life().initialized()])
        files = ("ledger.db", "ledger.db-wal", "ledger.db-shm")
        assert modes(folder) == dict.fromkeys(files, "600")
    assert modes(tmp_path) == {"new": "700"}
    assert modes(tmp_path / "new") == {"folder": "700"}


@pytest.mark.usefixtures("usual_mask")
async def test_looking_at_a_ledger_that_does_not_exist_leaves_no_file_for_others(tmp_path: Path) -> None:
    with pytest.raises(SchemaMismatch):
        await old_tasks(f"sqlite:///{tmp_path}/ledger.db", START)
    assert modes(tmp_path) == {"ledger.db": "600"}


@pytest.mark.usefixtures("usual_mask")
async def test_what_exists_keeps_its_rights(tmp_path: Path) -> None:
    folder = tmp_path / "shared"
    folder.mkdir(mode=0o755)
    (folder / "ledger.db").touch(mode=0o644)
    async with SqlLedger(f"sqlite:///{folder}/ledger.db") as ledger:
        await ledger.record([Life().initialized()])
        assert set(modes(folder).values()) == {"644"}
    assert modes(tmp_path) == {"shared": "755"}


async def test_a_sqlite_file_keeps_what_was_recorded(tmp_path: Path) -> None:
    for _ in range(2):
        async with SqlLedger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
            await ledger.record([Life().initialized()])
            assert len(await ledger.work_items(WorkItemFilter())) == 1


async def test_a_refused_write_leaves_no_lock_behind(tmp_path: Path) -> None:
    async with SqlLedger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        await ledger.record([Life().initialized()])
        with pytest.raises(LedgerConflict):
            await ledger.record([Life(id="b").initialized(), Life(id="c").initialized()])
        with closing(sqlite3.connect(tmp_path / "ledger.db", timeout=0, isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            other.execute("ROLLBACK")
        await ledger.record([Life(id="b", attempt=1).initialized()])


# Outages


@pytest.mark.postgresql
async def test_a_refused_connection_is_an_outage_in_one_line_without_the_password() -> None:
    url = "postgresql://me:geheim@127.0.0.1:1/db"
    for call in (
        SqlLedger(url).open,
        SqlLedger(url).record,
        lambda: upgrade(url),
        lambda: schema_version(url),
    ):
        with pytest.raises(LedgerUnavailable, match="the ledger at postgresql://me:") as outage:
            await (call([Life().initialized()]) if call.__name__ == "record" else call())  # type: ignore[call-arg]
        assert "\n" not in str(outage.value)
        assert "geheim" not in "".join(traceback.format_exception(outage.value))


@pytest.mark.postgresql
async def test_an_unknown_host_and_a_missing_database_are_outages(postgres: EmbeddedPostgres) -> None:
    with pytest.raises(LedgerUnavailable):
        await SqlLedger("postgresql://me:geheim@host.invalid/db").open()
    with pytest.raises(LedgerUnavailable, match='database "nowhere" does not exist'):
        await SqlLedger(postgres.url_of("nowhere")).open()


async def test_a_file_that_is_no_database_is_an_outage(tmp_path: Path) -> None:
    (tmp_path / "text.db").write_text("Dear diary, " * 100)
    for call in (
        SqlLedger(f"sqlite:///{tmp_path}/text.db").open,
        lambda: upgrade(f"sqlite:///{tmp_path}/text.db"),
    ):
        with pytest.raises(LedgerUnavailable, match="file is not a database"):
            await call()


async def test_a_folder_that_cannot_be_made_is_an_outage(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(LedgerUnavailable, match=r"Not a directory|File exists"):
        await SqlLedger(f"sqlite:///{tmp_path}/file/ledger.db").open()


async def test_a_read_only_file_can_be_read_and_not_written(tmp_path: Path) -> None:
    async with SqlLedger(f"sqlite:///{tmp_path}/ledger.db") as ledger:
        await ledger.record([Life().initialized()])
    async with SqlLedger(f"sqlite:///file:{tmp_path}/ledger.db?mode=ro&uri=true") as ledger:
        assert len(await ledger.work_items(WorkItemFilter())) == 1
        with pytest.raises(LedgerUnavailable, match="attempt to write a readonly database"):
            await ledger.record([Life(id="b", attempt=1).initialized()])


async def test_a_table_that_is_gone_is_an_outage(database: str, sql_ledger: SqlLedger) -> None:
    await run(database, "ALTER TABLE work_items RENAME TO elsewhere")
    try:
        with pytest.raises(LedgerUnavailable):
            await sql_ledger.record([Life().initialized()])
        with pytest.raises(LedgerUnavailable):
            await sql_ledger.work_items(WorkItemFilter())
    finally:
        await run(database, "ALTER TABLE elsewhere RENAME TO work_items")
    await sql_ledger.record([Life().initialized()])


@pytest.mark.postgresql
@pytest.mark.parametrize(("setting", "warnings"), [("off", 1), ("on", 0), ("local", 0)])
async def test_a_database_that_may_forget_what_it_has_committed_is_warned_of_in_one_line(
    postgres: EmbeddedPostgres, caplog: pytest.LogCaptureFixture, setting: str, warnings: int
) -> None:
    url = await postgres.create_database(f"commits_{setting}")
    await upgrade(url)
    await run(url, f"ALTER DATABASE commits_{setting} SET synchronous_commit = {setting}")
    async with SqlLedger(url) as ledger:
        await ledger.work_items(WorkItemFilter())
    said = [record.getMessage() for record in caplog.records if record.name.startswith("tasquencer")]
    assert len(said) == warnings
    assert all(line.startswith(f"ledger {ledger.database}: synchronous_commit is off") for line in said)
    assert all("\n" not in line for line in said)


@pytest.mark.postgresql
async def test_a_cut_connection_is_replaced_without_an_error(postgres: EmbeddedPostgres) -> None:
    url = await postgres.create_database("cut")
    await upgrade(url)
    administrator = await asyncpg.connect(postgres.url.replace("+asyncpg", ""))
    cut = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE datname = 'cut'"
    try:
        async with SqlLedger(url) as ledger:
            await asyncio.gather(*(ledger.transitions("a") for _ in range(5)))
            await administrator.fetch(cut)
            await ledger.record([Life().initialized()])
            await administrator.fetch(cut)
            assert len(await ledger.transitions("a")) == 1
    finally:
        await administrator.close()


# Times


@pytest.mark.parametrize("at", [START, START.replace(year=999, microsecond=0)], ids=str)
def test_sqlite_keeps_a_time_as_sqlalchemy_writes_it(at: datetime) -> None:
    dialect = sqlite.dialect()
    ours = UtcTime().bind_processor(dialect)
    theirs = sa.DateTime().dialect_impl(dialect).bind_processor(dialect)
    assert ours is not None and theirs is not None
    assert ours(at) == theirs(at.replace(tzinfo=None))


# Two processes


@pytest.mark.parametrize("rounds", [10])
async def test_the_same_entries_from_two_workers_at_the_same_time_end_as_one_set(
    database: str, rounds: int
) -> None:
    async with SqlLedger(database) as one, SqlLedger(database) as two:
        for number in range(rounds):
            lives = [Life(id=f"w{number}-{n}", run_id=f"r{number}-{n}") for n in range(5)]
            for step in ("initialized", "started", "failed"):
                entries = [getattr(life, step)(record=ai_job("started")) for life in lives]
                await asyncio.gather(
                    one.record(entries), two.record(entries), one.record(entries), two.record(entries[::-1])
                )
            for life in lives:
                assert [step.sequence for step in await two.transitions(life.id)] == [0, 1, 2]


async def test_of_two_contradicting_ends_one_stands_and_the_other_is_refused(database: str) -> None:
    async with SqlLedger(database) as one, SqlLedger(database) as two:
        for number in range(10):
            life, twin = Life(id=f"w{number}", attempt=number), Life(id=f"w{number}", attempt=number)
            await one.record(life.until(WorkItemState.STARTED))
            twin.until(WorkItemState.STARTED)
            outcomes = await asyncio.gather(
                one.record([life.completed()]), two.record([twin.canceled()]), return_exceptions=True
            )
            [conflict] = [outcome for outcome in outcomes if outcome is not None]
            assert isinstance(conflict, LedgerConflict)
            assert len(await one.transitions(f"w{number}")) == 3


async def test_of_two_work_items_for_one_attempt_one_is_refused_precisely(database: str) -> None:
    async with SqlLedger(database) as one, SqlLedger(database) as two:
        outcomes = await asyncio.gather(
            one.record([Life(id="a").initialized()]),
            two.record([Life(id="b").initialized()]),
            return_exceptions=True,
        )
        [conflict] = [outcome for outcome in outcomes if outcome is not None]
        assert isinstance(conflict, LedgerConflict)
        assert "attempt 0 of lineage 'main' in run 'run' is already work item" in conflict.problem


# Domain records


async def test_an_unknown_domain_table_or_column_is_refused(sql_ledger: SqlLedger) -> None:
    with pytest.raises(KeyError):
        await sql_ledger.domain_records("nothing", ["a"])
    with pytest.raises(LedgerConflict, match="the ledger has no domain table 'nothing'"):
        await sql_ledger.record([Life().initialized(DomainRecord(table="nothing", values={}))])
    with pytest.raises(LedgerConflict, match="domain table 'ai_jobs' takes no 'mood'"):
        await sql_ledger.record([Life().initialized(ai_job("pending", mood="good"))])
    assert await sql_ledger.work_items(WorkItemFilter()) == []


@pytest.mark.parametrize(
    "values",
    [
        {"status": "paused"},
        {"prompt": None},
        {"input_tokens": 2**70},
        {"prompt": {"a": 1}},
        {"attempt": 4},
        {"cost_usd": "much"},
        {"cost_usd": [1]},
    ],
    ids=str,
)
async def test_a_domain_record_that_does_not_fit_is_refused_as_such(
    sql_ledger: SqlLedger, values: dict[str, JsonValue]
) -> None:
    with pytest.raises(LedgerConflict) as refusal:
        await sql_ledger.record([Life().initialized(ai_job("pending", **values))])
    assert refusal.value.work_item_id == "a"
    assert "\n" not in str(refusal.value)
    assert await sql_ledger.work_items(WorkItemFilter()) == []


async def test_a_domain_table_of_ones_own(database: str) -> None:
    invoices = sa.Table(
        "invoices",
        sa.MetaData(),
        sa.Column("number", sa.Integer, primary_key=True),
        sa.Column("work_item_id", sa.Text, unique=True, nullable=False),
        sa.Column("lines", sa.JSON(none_as_null=True)),
        sa.Column("note", sa.Text),
    )
    owner = database_at(database)
    await owner.write(invoices.metadata.create_all)
    try:
        async with SqlLedger(database, domain_tables={"invoices": invoices}) as ledger:
            life = Life()
            first = DomainRecord(table="invoices", values={"lines": [1, {"a": 2}], "note": "first"})
            await ledger.record([life.initialized(first)])
            await ledger.record([life.started(DomainRecord(table="invoices", values={"lines": [3]}))])
            found = await ledger.domain_records("invoices", ["a"])
            assert found == {"a": {"number": 1, "lines": [3], "note": None}}
    finally:
        await owner.write(invoices.metadata.drop_all)
        await owner.close()


# Indexes

EXPLAINED = {
    "the attempts of a task": (WorkItemFilter(task_id="task-7"), "work_items_of_task"),
    "failed in this way": (
        WorkItemFilter(failure_kind="rate_limited", created_since=after(-3)),
        "work_items_failed_so",
    ),
    "failed": (WorkItemFilter(states=frozenset({WorkItemState.FAILED})), "work_items_failed"),
    "canceled": (WorkItemFilter(states=frozenset({WorkItemState.CANCELED})), "work_items_canceled"),
    "what is running": (
        WorkItemFilter(states=frozenset({WorkItemState.INITIALIZED, WorkItemState.STARTED})),
        "work_items_open",
    ),
    "what waits for a person": (
        WorkItemFilter(
            states=frozenset({WorkItemState.STARTED}), payload_kind="review", limit=50, oldest_first=True
        ),
        "work_items_open",
    ),
    "the newest": (WorkItemFilter(), "work_items_newest"),
    "one work item": (WorkItemFilter(work_item_id="w7"), "sqlite_autoindex_work_items_1|work_items_pkey"),
}


@pytest.mark.parametrize("query", EXPLAINED)
async def test_an_index_serves_each_common_query(database: str, sql_ledger: SqlLedger, query: str) -> None:
    for state in WorkItemState:
        lives = [Life(id=f"{state}{n}", task_id=f"task-{n % 50}", run_id=f"{state}{n}") for n in range(100)]
        await sql_ledger.record([entry for life in lives for entry in life.until(state)])
    wanted, index = EXPLAINED[query]

    text = await explained(database, work_items_query(wanted))
    assert any(name in text for name in index.split("|")), text
    assert "SCAN work_items\n" not in text


async def test_an_index_serves_each_page_of_what_is_open(database: str, sql_ledger: SqlLedger) -> None:
    for state in WorkItemState:
        lives = [Life(id=f"{state}{n}", run_id=f"{state}{n}") for n in range(100)]
        await sql_ledger.record([entry for life in lives for entry in life.until(state)])
    place = Place(created_at=START, attempt=0, id="started7")
    text = await explained(database, open_work_items_query(after(9), place, 10))
    assert "work_items_open" in text
    assert "created_at,attempt,id)>" in text.replace(" ", "").replace("ROW", "")  # it begins at the place
    assert "SORT" not in text.upper() and "TEMP B-TREE" not in text


async def explained(database: str, query: sa.Select[tuple[object, ...]]) -> str:
    """How the database carries the query out."""

    def plan(connection: sa.Connection) -> str:
        if connection.dialect.name == "postgresql":
            connection.exec_driver_sql("ANALYZE")
            connection.exec_driver_sql("SET LOCAL enable_seqscan = off")
            connection.exec_driver_sql("SET LOCAL enable_bitmapscan = off")
            explain = "EXPLAIN "
        else:
            explain = "EXPLAIN QUERY PLAN "
        literal = query.compile(connection, compile_kwargs={"literal_binds": True})
        return "\n".join(str(row) for row in connection.exec_driver_sql(explain + str(literal)))

    explaining = database_at(database)
    try:
        return await explaining.write(plan)
    finally:
        await explaining.close()
