from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from tasquencer.cli.main import app
from tasquencer.sql import SqlLedger
from tests.cli.processes import kill_what_still_runs
from tests.cli.stories import Story

Tasq = Callable[..., Result]


@pytest.fixture(autouse=True)
def _nothing_is_left_running() -> Iterator[None]:
    yield
    kill_what_still_runs()


@pytest.fixture
def database_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """An empty ledger of one's own, named by the environment."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    monkeypatch.setenv("TASQ_DATABASE_URL", url)
    return url


@pytest.fixture
def tasq(monkeypatch: pytest.MonkeyPatch, database_url: str) -> Tasq:
    """Runs a command in this process; Temporal is nowhere, unless the test says otherwise."""
    for name in ("TEMPORAL_NAMESPACE", "TEMPORAL_PROFILE", "TEMPORAL_API_KEY", "TASQ_TASK_QUEUE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
    monkeypatch.setenv("TEMPORAL_CONFIG_FILE", "/dev/null")

    def run(*arguments: str, stdin: str | bytes = "") -> Result:
        return CliRunner().invoke(app, arguments, input=stdin)

    return run


@pytest.fixture
def tell(database_url: str) -> Callable[[Story], None]:
    """Writes a task into the ledger."""

    async def write(story: Story) -> None:
        async with SqlLedger(database_url) as ledger:
            await ledger.record(story.entries())

    return lambda story: asyncio.run(write(story))
