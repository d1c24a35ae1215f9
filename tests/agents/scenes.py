"""An agent of somebody else on a worker with the plugin, and what the ledger then holds."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from pydantic import JsonValue
from temporalio.client import Client
from temporalio.worker import Worker

from tasquencer.core.work_item import WorkItem
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import Ledger
from tasquencer.temporal import TasquencerPlugin
from tasquencer.testing import InMemoryLedger
from tests.support.answers import Answer, ok, rate_limited, status, tool_call
from tests.support.patience import eventually

__all__ = ["FIVE_REQUESTS", "PLACES", "Scene", "agents_on"]

PLACES = ("first", "last")
"""Where our plugin stands among the plugins."""


def FIVE_REQUESTS(asks: str = "1") -> list[Answer]:  # noqa: N802 - it is what others read as a constant
    """Two failed and one good model turn that calls the tool, a failed and a good last turn.

    The first answer asks for a wait of `asks` seconds.
    """
    return [
        rate_limited(asks),
        status(503),
        tool_call("weather", {"city": "Oslo"}, usage=(100, 20), details=(40, 5)),
        status(500),
        ok("Sunny.", usage=(150, 10)),
    ]


@dataclass(frozen=True)
class Scene:
    client: Client
    queue: str
    ledger: Ledger

    async def run(self, workflow: str, prompt: str = "How is the weather?") -> tuple[Any, str]:
        """Its result, and its id."""
        name = f"agent-{uuid4()}"
        result = await self.client.execute_workflow(workflow, prompt, id=name, task_queue=self.queue)
        return result, name

    async def rows(self, task_id: str, number: int) -> list[WorkItem]:
        """Return the work items when there is this number of them and all have ended."""

        async def probe() -> bool:
            rows = await self.ledger.work_items_of(task_id)
            return len(rows) >= number and all(row.state.is_terminal for row in rows)

        await eventually(probe, f"{number} work items")
        return sorted(await self.ledger.work_items_of(task_id), key=lambda row: row.created_at)

    async def jobs(self, rows: Sequence[WorkItem]) -> list[dict[str, JsonValue] | None]:
        """Their rows of `ai_jobs`."""
        records = await self.ledger.domain_records("ai_jobs", [row.id for row in rows])
        return [records.get(row.id) for row in rows]


@asynccontextmanager
async def agents_on(
    server: EmbeddedTemporal,
    workflows: Sequence[type],
    plugins: Sequence[Any],
    activities: Sequence[Any] = (),
    *,
    place: str = "first",
    options: dict[str, Any] | None = None,
    client_options: dict[str, Any] | None = None,
    ledger: Ledger | None = None,
) -> AsyncIterator[Scene]:
    ledger = ledger or InMemoryLedger()
    ours = TasquencerPlugin(ledger, **(options or {"observe_activities": ["*"]}))
    chosen = [ours, *plugins] if place == "first" else [*plugins, ours]
    client = await Client.connect(server.address, plugins=chosen, **(client_options or {}))
    queue = f"agents-{uuid4()}"
    async with Worker(client, task_queue=queue, workflows=workflows, activities=activities):
        yield Scene(client, queue, ledger)
