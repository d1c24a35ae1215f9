"""A real pgbouncer in transaction mode, in front of a test's PostgreSQL."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import asyncpg
import pytest

from tasquencer.devkit.processes import ChildProcess
from tests.support.patience import PATIENCE_SECONDS
from tests.support.ports import KeptPort
from tests.support.postgres import EmbeddedPostgres, other_user

__all__ = ["pgbouncer_before"]

_SETTINGS = """
[databases]
* = host=127.0.0.1 port={server} user=postgres
[pgbouncer]
listen_addr = 127.0.0.1
listen_port = {port}
unix_socket_dir =
auth_type = any
pool_mode = transaction
default_pool_size = 4
"""


def _program() -> str:
    """The program. A machine without one skips, CI fails."""
    found = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin")
    if found is None:
        missing = "these tests need pgbouncer; on Debian and Ubuntu: apt-get install pgbouncer"
        if os.environ.get("CI"):
            pytest.fail(missing)
        pytest.skip(missing)
    return found


@asynccontextmanager
async def pgbouncer_before(server: EmbeddedPostgres) -> AsyncIterator[EmbeddedPostgres]:
    """The same server, reached through a pgbouncer with at most four sessions for each database."""
    program = _program()
    user = other_user() if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="tasquencer-pgbouncer-") as folder:
        Path(folder).chmod(0o755)
        kept_port = KeptPort()
        port = kept_port.number
        settings = Path(folder) / "pgbouncer.ini"
        settings.write_text(_SETTINGS.format(server=server.port, port=port))
        process = ChildProcess("pgbouncer", [program, str(settings)], user=user)

        async def ready() -> bool:
            try:
                connection = await asyncpg.connect(
                    host="127.0.0.1", port=port, user="postgres", database="postgres", timeout=5
                )
            except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                return False
            await connection.close()
            return True

        try:
            await process.wait_ready(ready, timeout_seconds=PATIENCE_SECONDS)
            yield EmbeddedPostgres(port=port, pid=process.pid, version=server.version)
        finally:
            await process.stop()
            kept_port.release()
