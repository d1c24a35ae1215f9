"""Releases that do not exist yet: this one's package with migrations added, as a program of its own."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from dataclasses import dataclass
from pathlib import Path

import tasquencer
from tasquencer.sql.schema import SCHEMA_VERSIONS
from tests.support.patience import PATIENCE_SECONDS

__all__ = ["Release", "next_release"]

_TASQ = "from tasquencer.cli.main import main; main()"


@dataclass(frozen=True)
class Release:
    """A copy of the package."""

    folder: Path

    async def tasq(self, *command: str, database_url: str) -> tuple[int | None, str]:
        """Run `tasq` of this release; its exit status and what it prints."""
        process = await self.start_tasq(*command, database_url=database_url)
        output, _ = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
        return process.returncode, output.decode()

    async def start_tasq(self, *command: str, database_url: str) -> asyncio.subprocess.Process:
        """Start `tasq` of this release."""
        return await asyncio.create_subprocess_exec(
            sys.executable,
            *("-c", _TASQ, *command),
            env={**os.environ, "PYTHONPATH": str(self.folder), "TASQ_DATABASE_URL": database_url},
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )


def next_release(folder: Path, *migrations: str) -> Release:
    """A release with more migrations: the source of each, whose number comes from its place."""
    package = folder / "tasquencer"
    shutil.copytree(Path(tasquencer.__file__).parent, package, ignore=shutil.ignore_patterns("__pycache__"))
    versions = list(SCHEMA_VERSIONS)
    for migration in migrations:
        before, made = versions[-1], f"{int(versions[-1]) + 1:04}"
        source = f'revision = "{made}"\ndown_revision = "{before}"\n{migration}'
        (package / "sql" / "migrations" / "versions" / f"{made}_next.py").write_text(source)
        versions.append(made)
    schema = package / "sql" / "schema.py"
    declared, count = re.subn(
        r"^SCHEMA_VERSIONS = \(.*?\)",
        f"SCHEMA_VERSIONS = {tuple(versions)!r}",
        schema.read_text(),
        flags=re.MULTILINE,
    )
    assert count == 1, "schema.py declares its versions otherwise"
    schema.write_text(declared)
    return Release(folder)
