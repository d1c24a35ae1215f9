"""The ledger's database is down, slow or full while tasks run. They wait, use up no attempt, and continue."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import shutil
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import asyncpg
import pytest
import sqlalchemy as sa
from temporalio.client import WorkflowHandle

from tasquencer.ai.answer import AiAnswer
from tasquencer.core.entries import LedgerEntry
from tasquencer.core.errors import LedgerUnavailable
from tasquencer.core.work_item import WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import Ledger, WorkItemFilter
from tasquencer.sql import SqlLedger, postgresql, schema_version, sqlite, upgrade
from tasquencer.sql.databases import SqliteDatabase, database_at
from tests.end_to_end.stage import Stage
from tests.ledger.stories import Life
from tests.outages.log import lines_of, tells_of_starving
from tests.outages.postgres import FallingPostgres, falling_postgres, way_to
from tests.support.answers import Hold, ok, stall
from tests.support.calls import ANSWER, ScriptedCalls
from tests.support.held_ledgers import FallingLedger, leading_to
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.postgres import skipping_without_postgres
from tests.support.provider import ScriptedProvider
from tests.support.tasks import Tasks, history, tasks_on, tasks_on_skipped_time, timers
from workflows.ai_agent import AiAgentTask

DOWN = "the ledger cannot be written, tasks wait for it: "
BACK = "the ledger can be written again"
TASKS = 5
FIVE_DAYS = 5 * 24 * 3600


class Scene:
    """Tasks in the middle of their calls, whose ends will find the ledger down."""

    def __init__(self, tasks: Tasks, caplog: pytest.LogCaptureFixture) -> None:
        self._tasks = tasks
        self._caplog = caplog
        self._answer = asyncio.Event()
        self._handles: list[WorkflowHandle[Any, Any]] = []

    async def hold(self, _work_item_id: str) -> None:
        await self._answer.wait()

    async def begin(self, calls: ScriptedCalls) -> None:
        self._handles = [await self._tasks.start("AiAgentTask", {"prompt": "?"}) for _ in range(TASKS)]

        async def all_called() -> bool:
            return len(calls.calls) == TASKS

        await eventually(all_called, "all calls to begin")

    async def waits(self, because: str) -> None:
        """Let the calls end; returns once the log says that the ledger is down, and why."""
        self._answer.set()

        async def said() -> bool:
            return any(DOWN in line and because in line for line in self._caplog.messages)

        await eventually(said, f"the log says {because!r}, not only {self._caplog.messages}")

    async def completes(self) -> None:
        """Let the calls end; all tasks complete by themselves, with one attempt each."""
        self._answer.set()
        async with asyncio.timeout(PATIENCE_SECONDS):
            results = [await handle.result() for handle in self._handles]
        assert [result["attempts"] for result in results] == [1] * TASKS
        for handle in self._handles:
            (item,) = await self._tasks.work_items(handle)
            assert item.state is WorkItemState.COMPLETED

    async def goes_on(self) -> None:
        """As `completes`; the log has one line for each change."""
        await self.completes()
        said = [line for line in self._caplog.messages if DOWN in line or BACK in line]
        assert [DOWN in line for line in said] == [True, False]
        with_traceback = [record for record in self._caplog.records if record.exc_info]
        assert [record for record in with_traceback if not tells_of_starving(record)] == []


@pytest.fixture
def scene(dev_server: EmbeddedTemporal, caplog: pytest.LogCaptureFixture) -> Callable[..., Any]:
    caplog.set_level(logging.WARNING)

    @asynccontextmanager
    async def play(ledger: Ledger, *answers: AiAnswer) -> AsyncIterator[Scene]:
        held = Scene(None, caplog)  # type: ignore[arg-type]
        calls = ScriptedCalls(*answers, before=held.hold)
        async with tasks_on(dev_server.address, [AiAgentTask], [calls.generate], ledger=ledger) as tasks:
            held._tasks = tasks
            await held.begin(calls)
            yield held

    return play


# PostgreSQL


@pytest.mark.postgresql
async def test_connections_that_are_cut_and_refused(
    scene: Callable[..., Any], falling: FallingPostgres
) -> None:
    async with way_to(falling.port) as way:
        url = falling.url.replace(f":{falling.port}/", f":{way.port}/")
        async with scene(SqlLedger(url)) as now:
            way.cut()
            await now.waits("")
            way.repair()
            await now.goes_on()


@pytest.mark.postgresql
async def test_a_database_that_is_read_only_for_a_while(
    scene: Callable[..., Any], falling: FallingPostgres
) -> None:
    async with scene(SqlLedger(falling.url)) as now:
        await falling.run("ALTER DATABASE ledger SET default_transaction_read_only = on")
        await falling.cut_connections()
        try:
            await now.waits("cannot execute INSERT in a read-only transaction")
        finally:
            await falling.run("ALTER DATABASE ledger RESET default_transaction_read_only")
            await falling.cut_connections()
        await now.goes_on()


@asynccontextmanager
async def failed_over(server: FallingPostgres) -> AsyncIterator[None]:
    """What a failover leaves behind: the sessions that were open are read-only, new ones are writable."""
    await server.run("ALTER DATABASE ledger SET default_transaction_read_only = off")  # of new sessions
    await server.run("ALTER SYSTEM SET default_transaction_read_only = on")
    await server.run("SELECT pg_reload_conf()")
    await asyncio.sleep(0.5)  # until each session has read it; younger ones count as new ones
    try:
        yield
    finally:
        await server.run("ALTER SYSTEM RESET default_transaction_read_only")
        await server.run("SELECT pg_reload_conf()")
        await server.run("ALTER DATABASE ledger RESET default_transaction_read_only")


@pytest.mark.postgresql
async def test_sessions_that_a_failover_has_left_read_only_are_replaced(
    scene: Callable[..., Any], falling: FallingPostgres
) -> None:
    async with scene(SqlLedger(falling.url)) as now, failed_over(falling), asyncio.timeout(60):
        await now.completes()


@pytest.mark.postgresql
async def test_nobody_notices_a_failover_when_the_first_new_session_is_writable(
    falling: FallingPostgres,
) -> None:
    async with SqlLedger(falling.url) as ledger:
        lives = [Life(id=f"over-{number}", run_id="over", attempt=number) for number in range(2)]
        await ledger.record([lives[0].initialized()])
        await asyncio.sleep(1.1)  # a session younger than a second is not replaced
        async with failed_over(falling):
            await ledger.record([lives[1].initialized()])


@pytest.mark.postgresql
async def test_a_standby_that_is_promoted_takes_over() -> None:
    before = Life(id="before", run_id="promoted").initialized()
    later = Life(id="later", run_id="promoted", attempt=1).initialized()
    with skipping_without_postgres():
        async with falling_postgres() as primary, primary.standby() as port:
            hosts = f"127.0.0.1:{primary.port},127.0.0.1:{port}"
            url = f"postgresql://postgres@{hosts}/ledger?target_session_attrs=read-write"
            alone = f"postgresql://postgres@127.0.0.1:{port}/ledger"
            async with SqlLedger(url) as ledger, SqlLedger(alone) as follower:
                await ledger.record([before])

                async def followed() -> bool:
                    return bool(await follower.transitions("before"))

                await eventually(followed, "the standby has what was written")
                with pytest.raises(LedgerUnavailable, match="the database is read-only: a standby, or "):
                    await follower.record([later])
                primary.kill()
                with pytest.raises(LedgerUnavailable):
                    await ledger.record([later])
                connection = await asyncpg.connect(alone)
                await connection.execute("SELECT pg_promote()")
                await connection.close()

                async def written() -> bool:
                    with contextlib.suppress(LedgerUnavailable):
                        await ledger.record([later])
                        return True
                    return False

                async with asyncio.timeout(60):
                    await eventually(written, "the promoted server takes writes")
                assert len(await ledger.work_items(WorkItemFilter())) == 2


@pytest.mark.postgresql
async def test_a_database_that_is_read_only_is_explained(falling: FallingPostgres) -> None:
    url = falling.url.replace("/ledger", "/read_only")
    await falling.run("CREATE DATABASE read_only")
    await falling.run("ALTER DATABASE read_only SET default_transaction_read_only = on")
    with pytest.raises(
        LedgerUnavailable, match=r"CREATE TABLE in a read-only transaction \(the database is "
    ):
        await upgrade(url)


@pytest.mark.postgresql
@pytest.mark.parametrize("encoding", ["LATIN1", "SQL_ASCII"])
async def test_a_database_that_is_not_in_utf8_is_refused(falling: FallingPostgres, encoding: str) -> None:
    name = encoding.lower()
    await falling.run(f"CREATE DATABASE {name} ENCODING '{encoding}' LOCALE 'C' TEMPLATE template0")
    url = falling.url.replace("/ledger", f"/{name}")
    with pytest.raises(LedgerUnavailable, match=f"its encoding is {encoding}.* ENCODING 'UTF8'"):
        await upgrade(url)
    assert await schema_version(url) is None


@pytest.mark.postgresql
async def test_a_server_that_hangs(scene: Callable[..., Any], falling: FallingPostgres) -> None:
    async with scene(SqlLedger(falling.url)) as now:
        falling.pause()
        try:
            await now.waits("no answer within 5 s")
        finally:
            falling.resume()
        await now.goes_on()


@pytest.mark.postgresql
async def test_a_connection_that_falls_silent_is_given_up_and_replaced(
    falling: FallingPostgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with way_to(falling.port) as way:
        url = falling.url.replace(f":{falling.port}/", f":{way.port}/")
        monkeypatch.setattr(postgresql, "_FAREWELL_SECONDS", 0.1)
        ledger = SqlLedger(url)
        ledger._database = database_at(url, command_seconds=10)
        await ledger.open()
        await ledger.record([Life(id="a", run_id="silent").initialized()])
        way.silence()
        with pytest.raises(LedgerUnavailable, match="no answer in time"):
            await ledger.record([Life(id="b", run_id="silent", attempt=1).initialized()])
        await ledger.record([Life(id="b", run_id="silent", attempt=1).initialized()])
        way.silence()
        begin = time.monotonic()
        await ledger.close()
        assert time.monotonic() - begin < 9.5  # as a rule, as long as a statement may take


# SQLite


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    """A ledger's file."""
    await upgrade(f"sqlite:///{tmp_path}/ledger.db")
    return tmp_path / "ledger.db"


async def test_a_file_that_another_process_keeps_locked(
    scene: Callable[..., Any], file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sqlite, "_BUSY_SECONDS", 1.0)  # SQLite waits longer on a busy machine
    with closing(sqlite3.connect(file, isolation_level=None)) as other:
        async with scene(SqlLedger(f"sqlite:///{file}")) as now:
            other.execute("BEGIN IMMEDIATE")
            await now.waits("database is locked")
            other.execute("ROLLBACK")
            await now.goes_on()


async def test_a_disk_that_is_full(scene: Callable[..., Any], file: Path) -> None:
    ledger = SqlLedger(f"sqlite:///{file}")
    database = ledger._database
    assert isinstance(database, SqliteDatabase)
    room = 1_000_000

    def limit_pages(connection: sa.Connection) -> None:
        connection.exec_driver_sql(f"PRAGMA max_page_count = {room}")  # at least those that there are

    sa.event.listen(database._engine, "begin", limit_pages)
    long_answer = ANSWER.model_copy(update={"text": "x" * 50_000})
    async with scene(ledger, *[long_answer] * TASKS) as now:
        room = 1
        await now.waits("database or disk is full")
        room = 1_000_000
        await now.goes_on()


async def test_a_file_that_is_moved_away_is_not_written_where_nobody_can_read(
    scene: Callable[..., Any], file: Path
) -> None:
    async with scene(SqlLedger(f"sqlite:///{file}")) as now:
        elsewhere = file.with_name("elsewhere.db")
        file.rename(elsewhere)
        await now.waits("the file is gone: put the original back")
        assert not file.exists()
        elsewhere.rename(file)
        await now.goes_on()


async def test_a_file_in_the_place_of_the_ledger_is_left_alone(file: Path) -> None:
    """With the old one's log beside it, opening it would mix the two."""
    shutil.copyfile(file, file.with_name("copy"))
    async with SqlLedger(f"sqlite:///{file}") as ledger:
        await ledger.record([Life(id="a").initialized()])
        file.rename(file.with_name("elsewhere"))
        file.with_name("copy").rename(file)
        before = file.read_bytes()
        for _ in range(2):
            with pytest.raises(LedgerUnavailable, match="the file was replaced by another one"):
                await ledger.record([Life(id="b", attempt=1).initialized()])
            with pytest.raises(LedgerUnavailable, match="the file was replaced"):
                await ledger.work_items(WorkItemFilter())
        assert file.read_bytes() == before
        file.with_name("elsewhere").rename(file)
        await ledger.record([Life(id="b", attempt=1).initialized()])
        assert {item.id for item in await ledger.work_items(WorkItemFilter())} == {"a", "b"}


# However long it lasts


class DownFor(FallingLedger):
    """Is down for this number of tries."""

    def __init__(self, state: WorkItemState, tries: int) -> None:
        super().__init__(leading_to(state))
        self._tries = tries

    async def record(self, entries: Sequence[LedgerEntry]) -> None:
        if self.refused >= self._tries:
            self.repair()
        await super().record(entries)


@pytest.mark.parametrize("state", [WorkItemState.INITIALIZED, WorkItemState.COMPLETED])
async def test_an_outage_of_most_of_an_hour_burns_no_attempt_and_little_history(state: WorkItemState) -> None:
    calls = ScriptedCalls()
    async with tasks_on_skipped_time([AiAgentTask], [calls.generate], ledger=DownFor(state, 60)) as tasks:
        result, handle = await tasks.run("AiAgentTask", {"prompt": "?"})
        events = await history(handle)
    assert result["attempts"] == len(calls.calls) == 1
    waited = sum(timers(events))
    assert waited > 2_700
    # Temporal ends a history at 51,200 events: an outage of five days must fit.
    assert len(events) / waited * FIVE_DAYS < 51_200


# The worker process


@pytest.mark.timeout(300)
@pytest.mark.postgresql
async def test_a_server_that_is_killed_under_fifty_tasks_costs_two_lines_of_log(
    dev_server: EmbeddedTemporal, falling: FallingPostgres, tmp_path: Path
) -> None:
    hold = Hold()
    async with ScriptedProvider(lambda _: stall(hold, ok())) as provider:
        stage = await Stage.on(dev_server, provider, tmp_path)
        async with stage.worker(settings={"TASQ_DATABASE_URL": falling.url}) as worker:
            tasks = [await stage.start(str(number)) for number in range(50)]
            await provider.wait_for_requests(50)
            falling.kill()
            begin = time.monotonic()
            hold.release()

            async def outage_is_over() -> bool:
                return time.monotonic() - begin > 10 and DOWN in worker.output()

            await eventually(outage_is_over, "ten seconds to pass, and the log to tell")
            before = lines_of(worker)
            await falling.start_again()
            async with asyncio.timeout(PATIENCE_SECONDS):
                results = await asyncio.gather(*(task.result() for task in tasks))
            lines = lines_of(worker)
    assert {result["attempts"] for result in results} == {1}
    assert len(provider.requests) == 50
    assert sum(DOWN in line for line in lines) == 1
    assert sum(BACK in line for line in lines) == 1
    assert len(lines) - len(before) <= 2 and len(before) <= 5, lines
