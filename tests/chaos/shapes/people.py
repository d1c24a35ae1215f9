"""What is done to a program's task from outside: signals, operators' updates, cancels, resets, and looks."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import uuid4

from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import (
    Client,
    WorkflowHandle,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError

from tasquencer.core.actions import TRY_AGAIN
from tests.chaos.shapes.program import Act, Program

__all__ = ["People"]

_LOOK_SECONDS = 0.1
_LOOKERS = 3
_ANSWER = timedelta(seconds=15)
_LOOK = timedelta(seconds=5)
_RPC = timedelta(seconds=10)

_TARGET_SECONDS = 8.0
"""How long an operator looks for a work item to act on."""

_LONGEST_PAUSE_SECONDS = 2.0
_RESUMED_SECONDS = 60.0

_REFUSALS = (WorkflowUpdateFailedError, WorkflowUpdateRPCTimeoutOrCancelledError, RPCError, TimeoutError)


@dataclass
class People:
    """Everybody outside who has to do with one task.

    Attributes:
        replies: What each act was answered, beside its name.
        made_runs: Ids of the runs that resets have made.
        looks: How many queries were answered.
    """

    client: Client
    program: Program
    handle: WorkflowHandle[Any, Any]
    replies: list[tuple[str, str]] = field(default_factory=list)
    made_runs: list[str] = field(default_factory=list)
    looks: int = 0

    async def act(self, act: Act) -> None:
        """Do one thing in its time."""
        await asyncio.sleep(act.at)
        try:
            reply = await self._do(act)
        except _REFUSALS as error:
            reply = f"refused: {error.cause if isinstance(error, WorkflowUpdateFailedError) else error}"
        self.replies.append((act.name, reply))

    async def look(self) -> None:
        """Ask ten times a second, whether or not earlier questions are answered, until stopped."""
        async with asyncio.TaskGroup() as asked:
            for _ in range(_LOOKERS):
                asked.create_task(self._look())

    async def _look(self) -> None:
        while True:
            with suppress(RPCError, WorkflowQueryFailedError, WorkflowQueryRejectedError):
                await self.handle.query("work_items", rpc_timeout=_LOOK)
                self.looks += 1
            await asyncio.sleep(_LOOK_SECONDS * _LOOKERS)

    async def _do(self, act: Act) -> str:
        match act.name:
            case "signal":
                await self.handle.signal("change_mind", rpc_timeout=_RPC)
            case "cancel":
                await self.handle.cancel(rpc_timeout=_RPC)
            case "reset":
                return await self._reset(act)
            case "retry_now":
                if not await self._found(lambda one: one["state"] == "initialized" and one["attempt"] > 0):
                    return "nothing waits"
                await self._update("retry_now", {})
            case "pause":
                return await self._pause(act)
            case visit if visit.startswith("visit"):
                return await self._visit(visit)
            case _:
                return await self._end_work_item(act)
        return "done"

    async def _end_work_item(self, act: Act) -> str:
        # An operator completes what is under way, and ends anything that is open.
        states = ("started",) if act.name == "complete" else ("initialized", "started")
        if not (still := await self._found(lambda one: one["state"] in states)):
            return "nothing is open"
        chosen = still[int(act.choice * len(still))]["id"]
        update = {"complete": "complete_work_item", "fail": "fail_work_item"}.get(
            act.name, "cancel_work_item"
        )
        given = {"result": {"by": "operator"}} if act.name == "complete" else {}
        await self._update(update, {"work_item_id": chosen, **given})
        return f"done: {chosen}"

    async def _found(self, is_wanted: Callable[[Mapping[str, Any]], bool]) -> list[Mapping[str, Any]]:
        """The work items that can be acted on, after a while if there are none yet."""
        deadline = time.monotonic() + _TARGET_SECONDS
        while True:
            with suppress(RPCError, WorkflowQueryFailedError):
                items = await self.handle.query("work_items", rpc_timeout=_LOOK)
                if found := [one for one in items if is_wanted(one)]:
                    return found
            if time.monotonic() > deadline:
                return []
            await asyncio.sleep(_LOOK_SECONDS * _LOOKERS)

    async def _pause(self, act: Act) -> str:
        """Pause the task, and resume it in any case: a paused task does not end."""
        try:
            await self._update("pause_task", {})
            return "done"
        finally:
            await asyncio.sleep(act.choice * _LONGEST_PAUSE_SECONDS)
            deadline = time.monotonic() + _RESUMED_SECONDS
            while time.monotonic() < deadline and not await self._resumed():
                await asyncio.sleep(_LOOK_SECONDS)

    async def _resumed(self) -> bool:
        try:
            await self._update("resume_task", {})
        except WorkflowUpdateFailedError as error:
            return "not paused" in str(error.cause)
        except _REFUSALS:
            with suppress(RPCError):
                return (await self.handle.describe(rpc_timeout=_RPC)).close_time is not None
            return False
        return True

    async def _update(self, name: str, given: Mapping[str, Any]) -> None:
        async with asyncio.timeout(_ANSWER.total_seconds()):
            await self.handle.execute_update(name, {"actor": "ada", **given}, id=str(uuid4()))

    async def _visit(self, lineage: str) -> str:
        deadline = time.monotonic() + _TARGET_SECONDS
        while True:
            try:
                async with asyncio.timeout(_ANSWER.total_seconds()):
                    answer: str = await self.handle.execute_update("visit", lineage, id=str(uuid4()))
            except WorkflowUpdateFailedError as error:
                refused_early = isinstance(error.cause, ApplicationError) and error.cause.type == TRY_AGAIN
                if not refused_early or time.monotonic() > deadline:
                    raise
                await asyncio.sleep(_LOOK_SECONDS)
            else:
                return f"done: {answer}"

    async def _reset(self, act: Act) -> str:
        described = await self.handle.describe(rpc_timeout=_RPC)
        history = await self.client.get_workflow_handle(
            self.handle.id, run_id=described.run_id
        ).fetch_history()
        points = [
            e.event_id for e in history.events if e.HasField("workflow_task_completed_event_attributes")
        ]
        if not points or described.close_time is not None:
            return "nothing to reset"
        answer = await self.client.workflow_service.reset_workflow_execution(
            ResetWorkflowExecutionRequest(
                namespace=self.client.namespace,
                workflow_execution=WorkflowExecution(workflow_id=self.handle.id, run_id=described.run_id),
                workflow_task_finish_event_id=points[int(act.choice * len(points))],
                request_id=str(uuid4()),
                reason="as planned",
            ),
            timeout=_RPC,
        )
        self.made_runs.append(answer.run_id)
        return f"done: {answer.run_id}"
