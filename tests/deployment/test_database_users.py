"""The users that the deployment creates on PostgreSQL: what the workers' one can do, and what it cannot."""

from __future__ import annotations

import asyncio
import os
import shutil
import stat
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

import asyncpg
import pytest
import pytest_asyncio

from tasquencer.batch.rows import BatchRow, RowOutcome, RowState
from tasquencer.batch.store import Batch, BatchState
from tasquencer.core.errors import LedgerUnavailable, WrongSetting
from tasquencer.core.work_item import WorkItemState
from tasquencer.ledger.contract import Settlement, WorkItemFilter
from tasquencer.sql import SCHEMA_VERSION, SqlLedger, schema_version, upgrade
from tasquencer.sql.pruning import old_tasks, prune
from tests.ledger.stories import START, Life, after, ai_job
from tests.support.patience import PATIENCE_SECONDS
from tests.support.postgres import EmbeddedPostgres, embedded_postgres, skipping_without_postgres

pytestmark = pytest.mark.postgresql

SCRIPT = Path(__file__).parents[2] / "deploy" / "postgres" / "create-databases.sh"
PASSWORDS = {
    "TEMPORAL_DB_PASSWORD": "for-temporal",
    "TASQ_DB_PASSWORD": "it's-the-owner's",
    "TASQ_DB_WORKER_PASSWORD": "for-workers",
}
WATCHED = """#!/bin/sh
tr '\\0' ' ' < /proc/$$/cmdline >> {log}
exec {psql} "$@"
"""


@dataclass(frozen=True)
class Deployed:
    """The server after the deployment's script and its upgrade."""

    owner: str
    worker: str
    arguments: str
    """Of all programs that the script has run."""


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def deployed(tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Deployed]:
    """A server of its own: roles belong to the whole server."""
    psql = shutil.which("psql")
    if psql is None:
        missing = "these tests need psql; on Debian and Ubuntu: apt-get install postgresql-client"
        (pytest.fail if os.environ.get("CI") else pytest.skip)(missing)
    folder = tmp_path_factory.mktemp("bin")
    log = folder / "log"
    (folder / "psql").write_text(WATCHED.format(log=log, psql=psql))
    (folder / "psql").chmod(0o755)
    with skipping_without_postgres():
        async with embedded_postgres() as server:
            await _run_script(server, folder)
            at = f"127.0.0.1:{server.port}/tasquencer"
            owner, worker = f"postgresql://tasquencer@{at}", f"postgresql://tasquencer_worker@{at}"
            await upgrade(owner, worker_role="tasquencer_worker")
            yield Deployed(owner, worker, log.read_text())


async def _run_script(server: EmbeddedPostgres, folder: Path) -> None:
    path = f"{folder}:{os.environ['PATH']}"
    environment = {"PATH": path, "PGHOST": "127.0.0.1", "PGPORT": str(server.port), **PASSWORDS}
    script = await asyncio.create_subprocess_exec(
        *("bash", SCRIPT),
        env={**environment, "POSTGRES_USER": "postgres"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    output, _ = await asyncio.wait_for(script.communicate(), PATIENCE_SECONDS)
    assert (script.returncode, output.decode()) == (0, "")


async def execute(url: str, *statements: str) -> None:
    connection = await asyncpg.connect(url)
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


async def test_no_password_is_in_the_arguments_of_a_process(deployed: Deployed) -> None:
    assert deployed.arguments.count("psql") >= 6
    assert [word for word in PASSWORDS.values() if word in deployed.arguments] == []


async def test_each_user_has_its_password(deployed: Deployed) -> None:
    connection = await asyncpg.connect(deployed.owner.replace("tasquencer@", "postgres@"))
    try:
        stored = dict(await connection.fetch("SELECT rolname, rolpassword FROM pg_authid"))
    finally:
        await connection.close()
    for user in ("temporal", "tasquencer", "tasquencer_worker"):
        assert stored[user].startswith("SCRAM-SHA-256$")


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def filled(deployed: Deployed) -> Deployed:
    """The workers' user has done all that a worker does."""
    async with SqlLedger(deployed.worker) as ledger:
        for number, state in enumerate(WorkItemState):
            for entry in Life(id=state.value, attempt=number).until(state):
                with_job = entry.model_copy(update={"record": ai_job(str(entry.work_item.state))})
                if entry.work_item.state is WorkItemState.INITIALIZED:
                    with_job = entry.model_copy(update={"record": ai_job("pending")})
                await ledger.record([with_job])
                await ledger.record([with_job])  # delivered twice
        left = Life(id="left", run_id="left")
        await ledger.record([left.initialized(ai_job("pending"))])
        settlement = Settlement(task_id="task", run_id="left", at=after(9), actor="reconciler", reason="r")
        assert await ledger.settle(settlement) == ["left"]
        assert len(await ledger.work_items(WorkItemFilter())) == 6
        assert len(await ledger.transitions("completed")) == 3
        assert len(await ledger.domain_records("ai_jobs", ["completed"])) == 1
        assert len(await ledger.open_work_items(created_before=after(99))) == 2
        batch = Batch(id="b", digest="d", rows=2, defaults={}, state=BatchState.STARTED, created_at=START)
        batches = ledger.batches
        await batches.create(batch)
        await batches.fill("b", [BatchRow(position=n, row_id=str(n), request={}) for n in range(2)])
        await batches.filled("b")
        await batches.begin("b")
        await batches.save("b", [_outcome(0)])
        await batches.end("b", BatchState.COMPLETED)
        assert (await batches.counts("b")).completed == 1
    return deployed


def _outcome(position: int) -> RowOutcome:
    return RowOutcome(
        position=position,
        row_id=str(position),
        state=RowState.COMPLETED,
        number=1,
        ended_at=after(5),
        work_item_id="completed",
        attempts=1,
    )


DENIED = [
    "ALTER TABLE work_items DISABLE TRIGGER work_items_immutable",
    "ALTER TABLE work_items DISABLE TRIGGER ALL",
    "DROP TRIGGER work_items_immutable ON work_items",
    "CREATE TRIGGER mine BEFORE UPDATE ON ai_jobs EXECUTE FUNCTION suppress_redundant_updates_trigger()",
    "CREATE RULE mine AS ON UPDATE TO work_items DO INSTEAD NOTHING",
    "CREATE OR REPLACE FUNCTION refuse_change_of_ai_jobs() RETURNS trigger LANGUAGE sql AS 'SELECT 1'",
    "DROP FUNCTION refuse_transition_after_end() CASCADE",
    "SET session_replication_role = replica",
    "SET ROLE tasquencer",
    "TRUNCATE work_items CASCADE",
    "TRUNCATE work_item_transitions",
    "DROP TABLE ai_jobs",
    "DROP SCHEMA public CASCADE",
    "CREATE TABLE mine (a int)",
    "CREATE TEMPORARY TABLE work_item_transitions (a int)",
    "ALTER TABLE work_items ADD COLUMN mine int",
    "DELETE FROM work_items WHERE id = 'initialized'",
    "DELETE FROM ai_jobs",
    "DELETE FROM batches",
    "UPDATE work_item_transitions SET actor = 'me'",
    "UPDATE tasquencer_schema_version SET version_num = '0001'",
    "INSERT INTO tasquencer_schema_compatibility VALUES ('9999', '0001')",
]


@pytest.mark.parametrize("statement", DENIED)
async def test_the_workers_user_may_not(filled: Deployed, statement: str) -> None:
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await execute(filled.worker, statement)


async def test_the_workers_user_cannot_delete_transitions(filled: Deployed) -> None:
    """It has the right, for what a supersession replaces; the triggers refuse anything else."""
    with pytest.raises(asyncpg.RestrictViolationError, match="transitions are immutable"):
        await execute(filled.worker, "DELETE FROM work_item_transitions")


@pytest.mark.parametrize("state", ["completed", "failed", "canceled"])
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE work_items SET worker = 'me' WHERE id = '{}'",
        "UPDATE ai_jobs SET result = 'mine' WHERE work_item_id = '{}'",
        "INSERT INTO work_item_transitions VALUES ('{}', 3, 'started', 'completed', now(), 'me')",
    ],
)
async def test_the_workers_user_cannot_change_what_has_ended(
    filled: Deployed, statement: str, state: str
) -> None:
    with pytest.raises(asyncpg.RestrictViolationError, match="has ended is immutable"):
        await execute(filled.worker, statement.format(state))


async def test_only_the_owner_upgrades_and_prunes(filled: Deployed) -> None:
    assert await upgrade(filled.worker) == (SCHEMA_VERSION, SCHEMA_VERSION)  # there is nothing to do
    assert await schema_version(filled.worker) == SCHEMA_VERSION
    late = datetime.now(UTC)
    with pytest.raises(LedgerUnavailable, match=r"permission denied|must be owner"):
        await prune(filled.worker, late)
    async with SqlLedger(filled.worker) as ledger:
        ended = Life(id="old", task_id="old", run_id="old")
        await ledger.record(ended.until(WorkItemState.COMPLETED))
    assert (await old_tasks(filled.owner, late)).tasks == 1
    assert (await prune(filled.owner, late + timedelta(seconds=1))).tasks == 1


async def test_an_upgrade_again_takes_what_was_given_beyond_the_rights_of_a_worker(
    deployed: Deployed,
) -> None:
    await execute(deployed.owner, "GRANT DELETE, TRUNCATE ON batches TO tasquencer_worker")
    await upgrade(deployed.owner, worker_role="tasquencer_worker")
    with pytest.raises(asyncpg.InsufficientPrivilegeError):
        await execute(deployed.worker, "TRUNCATE batches CASCADE")


@pytest.mark.parametrize(
    ("role", "problem"),
    [
        ("nobody", "there is no role 'nobody'"),
        ("tasquencer", "role 'tasquencer' may act as tasquencer, who owns the tables"),
        ("postgres", "role 'postgres' may act as tasquencer, who owns the tables"),
    ],
)
async def test_a_role_that_is_no_workers_is_refused(deployed: Deployed, role: str, problem: str) -> None:
    with pytest.raises(WrongSetting, match=f"TASQ_DB_WORKER_ROLE: {problem}"):
        await upgrade(deployed.owner, worker_role=role)


async def test_sqlite_has_no_roles(tmp_path: Path) -> None:
    with pytest.raises(WrongSetting, match="SQLite has no roles"):
        await upgrade(f"sqlite:///{tmp_path}/ledger.db", worker_role="worker")


async def test_the_command_takes_the_role_from_its_setting(deployed: Deployed) -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-c", "from tasquencer.cli.main import main; main()", "db", "upgrade"),
        env={**os.environ, "TASQ_DATABASE_URL": deployed.owner, "TASQ_DB_WORKER_ROLE": "nobody"},
        stderr=asyncio.subprocess.PIPE,
    )
    _, errors = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
    assert process.returncode != 0
    assert errors.decode().startswith("error: TASQ_DB_WORKER_ROLE: there is no role 'nobody'")


def test_the_script_can_be_executed() -> None:
    assert SCRIPT.stat().st_mode & stat.S_IXUSR
