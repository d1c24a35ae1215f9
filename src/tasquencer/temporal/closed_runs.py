"""Whether a run has ended, for code that runs in a workflow's thread and cannot wait for an answer itself."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Mapping, MutableMapping
from datetime import timedelta
from typing import Any

from temporalio.client import Client, WorkflowExecutionStatus
from temporalio.service import RPCError

__all__ = ["ClosedRuns", "is_closed"]

_FUNCTION = "tasquencer.is_closed"
"""Name of the function by which the guard of a workflow instance reaches the client."""

_SECONDS = 1.0
"""How long an answer may take. The SDK takes a workflow that says nothing for two seconds for deadlocked."""


class ClosedRuns:
    """Asks Temporal whether runs have ended. One per worker."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = 0

    def run_here(self) -> None:
        """Let the client run in the running event loop: the worker's."""
        if self._loop is None or self._loop.is_closed():
            self._loop = asyncio.get_running_loop()
            self._thread = threading.get_ident()

    def offer(self, functions: MutableMapping[str, Callable[..., Any]]) -> None:
        """Offer the question to the guards of the worker's workflows."""
        functions[_FUNCTION] = self._is_closed

    def _is_closed(self, workflow_id: str, run_id: str) -> bool:
        if self._loop is None or self._thread == threading.get_ident():
            return False  # in the SDK's debug mode: the thread of the event loop cannot wait for it
        asking = asyncio.run_coroutine_threadsafe(self._ask(workflow_id, run_id), self._loop)
        try:
            return asking.result(_SECONDS)
        except (RPCError, TimeoutError):
            return False
        finally:
            asking.cancel()

    async def _ask(self, workflow_id: str, run_id: str) -> bool:
        run = self._client.get_workflow_handle(workflow_id, run_id=run_id)
        described = await run.describe(rpc_timeout=timedelta(seconds=_SECONDS))
        return described.status is not WorkflowExecutionStatus.RUNNING


def is_closed(functions: Mapping[str, Callable[..., Any]], workflow_id: str, run_id: str) -> bool:
    """Return whether the run has ended. False if nobody knows."""
    ask = functions.get(_FUNCTION)
    return ask is not None and bool(ask(workflow_id, run_id))
