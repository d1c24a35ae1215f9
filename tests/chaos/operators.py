"""Operators' actions under faults: each is sent again, under the same update id, until somebody answers."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from temporalio.client import RPCTimeoutOrCancelledError, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from tasquencer.sql.databases import Database
from tests.chaos.ledger_rows import items_of
from tests.chaos.plan import TERMINATE, OperatorPlan
from tests.stories.story import CANCEL_TASK, Act, Reply

__all__ = ["Handle", "Operators"]

Handle = WorkflowHandle[Any, Any]

_AGAIN_SECONDS = 0.3


@dataclass
class Operators:
    """Act on one task.

    Attributes:
        acts: What they did.
        terminated_because: The reason somebody gave who terminated the task, or tried to.
        uncertain: Actors whose action may have been taken though its answer was lost: the update was sent
            more than once, and the last answer says that the task has ended, or would not have it again.
    """

    handle: Handle
    ledger: Database
    acts: list[Act] = field(default_factory=list)
    uncertain: set[str] = field(default_factory=set)
    terminated_because: str | None = None

    async def act(self, plan: OperatorPlan, number: int) -> None:
        """Do what is planned."""
        await asyncio.sleep(plan.after_seconds)
        actor = f"operator-{number}-of-{self.handle.id}"
        if plan.name == TERMINATE:
            await self._terminate(f"because {actor} says so")
            return
        payload: dict[str, Any] = {"actor": actor, "reason": f"because {actor} says so"}
        target = None
        if plan.name not in ("retry_now", CANCEL_TASK):
            target = await self._pick(plan.pick)
            payload["work_item_id"] = target
        if plan.name == "complete_work_item":
            payload["result"] = {"text": f"from {actor}"}
        sent_at = datetime.now(UTC)
        reply, says, value = await self._until_answered(plan.name, payload, actor)
        act = Act(plan.name, actor, f"update-{actor}", target, sent_at, datetime.now(UTC), reply, says, value)
        self.acts.append(act)

    async def _terminate(self, reason: str) -> None:
        self.terminated_because = reason
        while True:
            try:
                await self.handle.terminate(reason=reason)
                return
            except RPCError as error:
                if error.status is RPCStatusCode.NOT_FOUND:  # it has ended
                    return
                await asyncio.sleep(_AGAIN_SECONDS)

    async def _pick(self, part: float) -> str:
        while True:
            try:
                items = await items_of(self.ledger, self.handle.id)
            except self.ledger.outages:
                items = []
            some = [item for item in items if not item.state.is_terminal] or items
            if some:
                return some[int(part * len(some))].id
            await asyncio.sleep(_AGAIN_SECONDS)

    async def _until_answered(
        self, name: str, payload: Mapping[str, Any], actor: str
    ) -> tuple[Reply, str, Mapping[str, Any]]:
        tries = 0
        while True:
            tries += 1
            try:
                if name == CANCEL_TASK:
                    await self.handle.cancel()
                    return Reply.ACCEPTED, "", {}
                done = await self.handle.execute_update(name, payload, id=f"update-{actor}")
                return Reply.ACCEPTED, "", done
            except WorkflowUpdateFailedError as error:
                cause = error.cause
                kinds = ("ActionRefused", "InvalidRequest")
                refused = isinstance(cause, ApplicationError) and cause.type in kinds
                if tries > 1:
                    self.uncertain.add(actor)
                return Reply.REFUSED if refused else Reply.LOST, str(cause), {}
            except RPCTimeoutOrCancelledError as error:
                # The SDK turns the cancellation of this task into it, too.
                task = asyncio.current_task()
                if task is not None and task.cancelling():
                    raise asyncio.CancelledError from error
            except RPCError as error:
                if error.status is RPCStatusCode.NOT_FOUND:
                    if tries > 1:
                        self.uncertain.add(actor)
                    return Reply.GONE, error.message, {}
                await asyncio.sleep(_AGAIN_SECONDS)
