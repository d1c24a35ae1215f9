"""A worker with tools, on a real server, and a real HTTP server as the provider of its model."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from uuid import uuid4

from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Replayer, Worker

from tasquencer.ai import AiCalls
from tasquencer.ai.provider.client import make_client
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal import TasquencerPlugin
from tasquencer.testing import InMemoryLedger
from tests.support.answers import Answer
from tests.support.patience import eventually
from tests.support.provider import Choose, ScriptedProvider
from tests.support.tasks import Tasks

__all__ = ["Desk", "Handle", "Story", "desk"]

Handle = WorkflowHandle[Any, Any]

Story = list[tuple[str, int, str, str | None]]
"""Lineage, attempt, state and kind of failure of each work item, in the order of the lineages."""


@dataclass(frozen=True)
class Desk:
    """A worker with tools, and the provider that its model is."""

    tasks: Tasks
    provider: ScriptedProvider
    workflows: Sequence[type]

    async def story(self, handle: Handle) -> Story:
        """What the ledger says about a task."""
        items = await self.tasks.work_items(handle)
        return [
            (item.lineage, item.attempt, item.state.value, item.failure.kind if item.failure else None)
            for item in sorted(items, key=lambda one: (one.lineage, one.attempt))
        ]

    def heard(self, request: int) -> list[Any]:
        """What the tools said, as the provider read it in this request."""
        messages = self.provider.requests[request].body["messages"]
        return [message["content"] for message in messages if message["role"] == "tool"]

    async def started(self, handle: Handle, lineage: str) -> WorkItem:
        """The work item of this lineage, as soon as it is started."""
        return await self._comes_to(handle, lineage, lambda state: state is WorkItemState.STARTED)

    async def ended(self, handle: Handle, lineage: str) -> WorkItem:
        """The work item of this lineage that ends first, as soon as it has ended."""
        return await self._comes_to(handle, lineage, lambda state: state.is_terminal)

    async def _comes_to(
        self, handle: Handle, lineage: str, is_there: Callable[[WorkItemState], bool]
    ) -> WorkItem:
        async def probe() -> WorkItem | None:
            for item in await self.tasks.work_items(handle):
                if item.lineage == lineage and is_there(item.state):
                    return item
            return None

        return await eventually(probe, f"{lineage} to come to a state")

    async def replays(self, handle: Handle) -> None:
        """Replay the task's last run on a worker that has never seen it."""
        replayer = Replayer(workflows=self.workflows, plugins=[TasquencerPlugin(InMemoryLedger())])
        await replayer.replay_workflow(await handle.fetch_history())


@asynccontextmanager
async def desk(
    server: EmbeddedTemporal,
    workflows: Sequence[type],
    script: Sequence[Answer] | Choose,
    tools: Sequence[Callable[..., Any]],
) -> AsyncIterator[Desk]:
    """Run a worker with these workflows and tools, whose model says what the script says."""
    ledger, queue = InMemoryLedger(), f"queue-{uuid4()}"
    async with (
        ScriptedProvider(script) as provider,
        make_client(api_key="key-of-the-tests", base_url=provider.base_url) as model,
    ):
        plugin = TasquencerPlugin(ledger, calls=AiCalls(model, "tiny-1", tools=tools))
        client = await Client.connect(server.address, plugins=[plugin])
        async with Worker(
            client,
            task_queue=queue,
            workflows=workflows,
            max_heartbeat_throttle_interval=timedelta(milliseconds=50),
        ):
            yield Desk(Tasks(client, queue, ledger), provider, workflows)
