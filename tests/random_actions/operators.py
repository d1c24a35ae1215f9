"""Random people who act on one task: on the right work item, on one that has ended, on one that never was,
with the same update id twice, two at once, and with Temporal's own cancel."""

from __future__ import annotations

import asyncio
import itertools
import random
from collections.abc import Awaitable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from typing import Any

from temporalio.client import (
    WorkflowHandle,
    WorkflowUpdateFailedError,
    WorkflowUpdateRPCTimeoutOrCancelledError,
)
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from tasquencer.core.actions import TRY_AGAIN
from tasquencer.core.work_item import WorkItem
from tasquencer.ledger.contract import Ledger, WorkItemFilter
from tests.stories.story import CANCEL_TASK, LEADS_TO, Act, Reply
from tests.support.patience import PATIENCE_SECONDS

__all__ = ["Handle", "Operators", "work_items_of"]

Handle = WorkflowHandle[Any, Any]

_CLOSING_ACTS = 12
"""So many more actions a task gets that does not end by itself, before it is canceled."""

_WEIGHTS = {"initialized": [12, 1, 1, 2, 1], "started": [1, 4, 12, 2, 1]}
"""Of retry_now, complete, fail, cancel, and the cancel of the task; by the state of the work item."""


async def work_items_of(ledger: Ledger, task_id: str) -> list[WorkItem]:
    """The task's work items in the ledger, oldest first."""
    return await ledger.work_items(WorkItemFilter(task_id=task_id, oldest_first=True, limit=2000))


class Operators:
    """Act on one task until it has ended, and in the end bring it to an end.

    Args:
        dice: Decides what they do, and when.
        handle: Of the task.
        ledger: Where they look what there is to be done.
        moment: Is set when something happens to the task.
    """

    def __init__(self, dice: random.Random, handle: Handle, ledger: Ledger, moment: asyncio.Event) -> None:
        self._dice = dice
        self._handle = handle
        self._ledger = ledger
        self._moment = moment
        self._names = itertools.count()
        self.acts: list[Act] = []
        self.sightings: list[WorkItem] = []

    async def work(self) -> bool:
        """Whether the task could be brought to an end."""
        for _ in range(self._dice.randrange(1, 9)):
            await self._wait_for_a_moment()
            if not await self._act(self._random_style()):
                break
        for _ in range(_CLOSING_ACTS):
            await asyncio.sleep(0.2)
            if await self._has_ended() or not await self._act("one"):
                break
        if await self._has_ended():
            return True
        self.acts.append(await self._send(CANCEL_TASK, None, self._new_update_id()))
        with suppress(TimeoutError):
            async with asyncio.timeout(PATIENCE_SECONDS):
                while not await self._has_ended():
                    await asyncio.sleep(0.1)
        return await self._has_ended()

    async def _has_ended(self) -> bool:
        return (await self._handle.describe()).close_time is not None

    async def _wait_for_a_moment(self) -> None:
        gap = self._dice.uniform(0, 0.5)
        if self._dice.random() < 0.6:
            self._moment.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._moment.wait(), gap)
            gap = self._dice.choice([0, 0, 0.003, 0.01, 0.03, 0.1])
        await asyncio.sleep(gap)

    def _random_style(self) -> str:
        styles = ["one", "again", "twice", "race"]
        return self._dice.choices(styles, [5, 1, 2, 3])[0]

    def _new_update_id(self) -> str:
        return f"update-{next(self._names)}"

    async def _act(self, style: str) -> bool:
        """Act once, in this style. Return False if the task has ended or no longer answers."""
        items = await self._look()
        name, target = self._random_action(items)
        update_id = self._new_update_id()
        if name == CANCEL_TASK and style != "race":
            style = "one"
        sends: list[Awaitable[Act]] = [self._send(name, target, update_id)]
        if style == "twice":
            sends += [self._send(name, target, update_id) for _ in range(self._dice.randrange(1, 3))]
        elif style == "race":
            for _ in range(self._dice.randrange(1, 3)):
                sends.append(self._send(*self._random_action(items), self._new_update_id()))
        acts = list(await asyncio.gather(*sends))
        if style == "again":
            acts.append(await self._send(name, target, update_id))
        self.acts += acts
        return any(act.reply in (Reply.ACCEPTED, Reply.REFUSED) for act in acts)

    async def _look(self) -> list[WorkItem]:
        items = await work_items_of(self._ledger, self._handle.id)
        self.sightings += items
        return items

    def _random_action(self, items: Sequence[WorkItem]) -> tuple[str, str | None]:
        seen = [item for item in items if not item.state.is_terminal] or items[-1:]
        one = self._dice.choice(seen) if seen else None
        weights = _WEIGHTS.get(one.state.value if one else "initialized", [1, 1, 1, 1, 1])
        (name,) = self._dice.choices([*LEADS_TO, CANCEL_TASK], weights)
        if name in ("retry_now", CANCEL_TASK):
            return name, None
        ids = [item.id for item in items] or ["too early"]
        likely = one.id if one else "too early"
        return name, self._dice.choices([likely, self._dice.choice(ids), "nobody"], [8, 1, 1])[0]

    async def _send(self, name: str, target: str | None, update_id: str) -> Act:
        actor = f"operator-{next(self._names)}"
        payload: dict[str, Any] = {"actor": actor, "reason": f"because {actor} says so"}
        if target is not None:
            payload["work_item_id"] = target
        if name == "complete_work_item":
            payload["result"] = {"text": f"from {actor}"}
        sent_at = datetime.now(UTC)
        reply, says, value = await self._reply(name, payload, update_id)
        answered_at = datetime.now(UTC)
        return Act(
            name=name,
            actor=actor,
            update_id=update_id,
            work_item_id=target,
            sent_at=sent_at,
            answered_at=answered_at,
            reply=reply,
            says=says,
            value=value,
            recorded=frozenset(
                [
                    step.actor
                    for item in await self._look()
                    for step in await self._ledger.transitions(item.id)
                ]
            ),
        )

    async def _reply(
        self, name: str, payload: Mapping[str, Any], update_id: str
    ) -> tuple[Reply, str, Mapping[str, Any]]:
        while True:
            try:
                if name == CANCEL_TASK:
                    await self._handle.cancel()
                    return Reply.ACCEPTED, "", {}
                async with asyncio.timeout(PATIENCE_SECONDS):
                    return Reply.ACCEPTED, "", await self._handle.execute_update(name, payload, id=update_id)
            except WorkflowUpdateRPCTimeoutOrCancelledError:  # the SDK's word for our timeout
                return Reply.LOST, f"nothing within {PATIENCE_SECONDS:g} s", {}
            except WorkflowUpdateFailedError as error:
                cause = error.cause
                if isinstance(cause, ApplicationError) and cause.type == TRY_AGAIN:
                    await asyncio.sleep(0.1)  # the task was writing
                    continue
                kinds = ("ActionRefused", "InvalidRequest")
                refused = isinstance(cause, ApplicationError) and cause.type in kinds
                return Reply.REFUSED if refused else Reply.LOST, str(cause), {}
            except RPCError as error:
                if error.status is RPCStatusCode.NOT_FOUND:
                    return Reply.GONE, error.message, {}
                # The workflow task with which the update came failed, because a cancel met the task's end.
                # The server gives up the update, and the sender repeats it.
                if error.status is not RPCStatusCode.FAILED_PRECONDITION:
                    raise
