"""Real parts for poison: the dev server, the real AI call over HTTP, a ledger in a database."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest

from tasquencer.ai.provider.client import make_client
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.sql import SqlLedger, upgrade
from tasquencer.temporal.ai_calls import AiCalls
from tests.support.answers import Answer
from tests.support.postgres import EmbeddedPostgres
from tests.support.provider import Script, ScriptedProvider
from tests.support.tasks import Tasks, tasks_on
from workflows.ai_agent import AiAgentTask
from workflows.ai_batch import AiBatchTask
from workflows.ai_fan_out import AiFanOutTask
from workflows.reviewed_draft import ReviewedDraft

WORKFLOWS = [AiAgentTask, AiFanOutTask, AiBatchTask, ReviewedDraft]
KEY = "sk-poison-0123456789abcdef"


@dataclass(frozen=True)
class Ground:
    """Where tasks run: a worker of the test's own, and the provider that it asks."""

    tasks: Tasks
    provider: ScriptedProvider


@asynccontextmanager
async def ground_on(
    server: EmbeddedTemporal, database_url: str, script: Script = (), *, then: Answer | None = None
) -> AsyncIterator[Ground]:
    async with (
        ScriptedProvider(script, then=then) as provider,
        make_client(api_key=KEY, base_url=provider.base_url) as client,
    ):
        generate = AiCalls(client, "tiny-1", lambda *_: 0.001).generate
        ledger = SqlLedger(database_url)
        async with tasks_on(server.address, WORKFLOWS, [generate], ledger=ledger) as tasks:
            yield Ground(tasks, provider)


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
def new_database(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[], Awaitable[str]]:
    """Makes a database with the ledger's schema, on SQLite and on PostgreSQL, and returns its URL."""
    server: EmbeddedPostgres | None = None
    if request.param == "postgresql":
        server = request.getfixturevalue("postgres")

    async def new() -> str:
        url = f"sqlite:///{tmp_path / 'ledger.db'}"
        if server is not None:
            url = await server.create_database(f"poison_{uuid4().hex}")
        await upgrade(url)
        return url

    return new


@pytest.fixture(scope="module")
async def ground(
    dev_server: EmbeddedTemporal, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> AsyncIterator[Ground]:
    """A ground for the tests of one module, on SQLite; the module says in `script` how it is answered."""
    url = f"sqlite:///{tmp_path_factory.mktemp('ground') / 'ledger.db'}"
    await upgrade(url)
    async with ground_on(dev_server, url, request.module.script) as made:
        yield made
