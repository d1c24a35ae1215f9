"""A worker that makes real calls to a scripted provider, and what a canceled task must have led to."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from temporalio.client import WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import CancelledError

from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import Ledger
from tests.activities.calling import activities_for
from tests.support.answers import Answer
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.provider import ProviderRequest, ScriptedProvider
from tests.support.tasks import Tasks, tasks_on
from workflows.ai_agent import AiAgentTask

Handle = WorkflowHandle[Any, Any]

ASK = {"prompt": "?"}
NO_BACKOFF = ASK | {"max_retries": 50, "retry": {"initial_interval_seconds": 0}}
LONG_BACKOFF = ASK | {"retry": {"initial_interval_seconds": 3600}}
NO_RETRY = ASK | {"max_retries": 0}

SOON = timedelta(seconds=20)
"""By then a cancel has reached the provider, on a busy machine too. Whatever else ends such a call takes
longer."""

DRAINED = 1.0
"""Seconds in which a call that was wrongly begun would show: more than twice the time between two heartbeats.

Use it only to show that something does not happen.
"""


@dataclass
class Scene:
    """A worker that makes real calls to a scripted provider; it can be stopped before the block ends."""

    tasks: Tasks
    provider: ScriptedProvider

    @property
    def requests(self) -> list[ProviderRequest]:
        return self.provider.requests

    async def work_items(self, handle: Handle) -> list[WorkItem]:
        return await self.tasks.work_items(handle)

    async def reaches(self, handle: Handle, *states: WorkItemState) -> None:
        """Wait until the ledger has the task's work items in these states."""

        async def there() -> bool:
            return [item.state for item in await self.work_items(handle)] == list(states)

        await eventually(there, f"work items that are {states}")

    async def nothing_begins(self, requests: int, within: float = DRAINED) -> None:
        """Check that the provider has seen this number of requests, and sees no further one."""
        with pytest.raises(TimeoutError):
            await self.provider.wait_for_requests(requests + 1, timeout_seconds=within)
        assert len(self.requests) == requests


Script = Sequence[Answer] | Callable[[ProviderRequest], Awaitable[Answer]]


@asynccontextmanager
async def scene(
    server: EmbeddedTemporal, script: Script, ledger: Ledger | None = None, task_queue: str | None = None
) -> AsyncIterator[Scene]:
    async with (
        ScriptedProvider(script) as provider,
        activities_for(provider.base_url) as activities,
        tasks_on(
            server.address, [AiAgentTask], [activities.generate], ledger=ledger, task_queue=task_queue
        ) as tasks,
    ):
        yield Scene(tasks, provider)


async def cancel(handle: Handle) -> datetime:
    """Cancel the task; the time of the request."""
    at = datetime.now(UTC)
    await handle.cancel()
    return at


async def ends_canceled(handle: Handle) -> None:
    async with asyncio.timeout(PATIENCE_SECONDS):
        with pytest.raises(WorkflowFailureError) as caught:
            await handle.result()
    assert isinstance(caught.value.cause, CancelledError)
    status = (await handle.describe()).status
    assert status is WorkflowExecutionStatus.CANCELED


async def begins_at_most(now: Scene, requests: int, further: int, released: datetime) -> None:
    """Check that after these requests only this number of further ones came, each of them closed.

    Temporal tells a worker of a cancel between two workflow tasks, not within one. What the task under way
    decides in the same moment still happens: one call may begin, and is closed at once.
    """
    assert requests <= len(now.requests) <= requests + further
    await now.nothing_begins(len(now.requests))
    for request in now.requests[requests:]:
        await closed_in_time(now.provider, request.number, released)


async def closed_in_time(provider: ScriptedProvider, number: int, asked: datetime) -> timedelta:
    """Check that the client left before its answer was complete, soon after the cancel; how soon."""
    request = await provider.wait_for_end(number)
    assert request.ended_at is not None
    assert (request.client_left, request.complete) == (True, False)
    assert asked < request.ended_at < asked + SOON
    return request.ended_at - asked


def rejections(events: Sequence[Any]) -> int:
    return sum(event.HasField("workflow_task_failed_event_attributes") for event in events)
