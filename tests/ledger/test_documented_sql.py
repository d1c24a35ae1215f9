"""The SQL in the documentation runs on PostgreSQL. tests/readme runs what SQLite understands, too."""

from __future__ import annotations

import asyncpg
import pytest

from tasquencer.sql import upgrade
from tests.readme.documents import DOCS, blocks, blocks_of
from tests.support.postgres import EmbeddedPostgres

pytestmark = pytest.mark.postgresql

SETTING_UP = "CREATE ROLE"


async def run(url: str, *statements: str) -> None:
    """Run the statements, each in a transaction of its own."""
    connection = await asyncpg.connect(url.replace("+asyncpg", ""))
    try:
        for statement in statements:
            await connection.execute(statement)
    finally:
        await connection.close()


def statements(sql: str) -> list[str]:
    return [part.strip() for part in sql.split(";") if part.strip()]


async def test_questions_and_deletions(postgres: EmbeddedPostgres) -> None:
    url = await postgres.create_database("documented_sql")
    await upgrade(url)
    documented = [block.code for block in blocks("sql") if SETTING_UP not in block.code]
    assert len(documented) >= 3
    await run(url, *(statement for sql in documented for statement in statements(sql)))


async def test_two_users_and_the_upgrade_for_them(postgres: EmbeddedPostgres) -> None:
    (block,) = [
        block
        for block in blocks_of(DOCS / "guides/operations.md")
        if block.language == "sql" and SETTING_UP in block.code
    ]
    names = {"tasquencer_worker": "documented_worker", "tasquencer": "documented_owner"}
    sql = "\n".join(line.partition("--")[0] for line in block.code.splitlines())
    for name, ours in names.items():  # other tests have roles of these names on the server
        sql = sql.replace(f"{name} ", f"{ours} ")
    try:
        await run(postgres.url, *statements(sql))
        owner = postgres.url_of("documented_owner").replace("postgres@", "documented_owner@")
        await upgrade(owner, worker_role="documented_worker")
        worker = owner.replace("documented_owner@", "documented_worker@")
        await run(worker, "SELECT count(*) FROM work_items")
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await run(worker, "DROP TABLE work_items")
    finally:
        await run(
            postgres.url,
            "DROP DATABASE IF EXISTS documented_owner",
            "DROP ROLE IF EXISTS documented_owner",
            "DROP ROLE IF EXISTS documented_worker",
        )
