"""Which tasks are paused. The ledger does not know, so the commands that read it ask Temporal."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Self

from tasquencer.cli.output import say
from tasquencer.core.errors import TasquencerError

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Collection, Iterable, Mapping, Sequence

    from pydantic import JsonValue
    from temporalio.client import Client

    from tasquencer.core.carried import TaskPause
    from tasquencer.temporal.visibility import Pauses

__all__ = ["KnownPauses"]

_SECONDS = 2.0
"""How long Temporal may take to answer. The ledger's part of a list does not depend on it."""


@dataclass(frozen=True)
class KnownPauses:
    """The pauses of some open tasks, as far as Temporal has said in time.

    Attributes:
        pauses: By the ids of the paused tasks.
        unknown: The ids of tasks that may be paused or not.
        problem: Why some are unknown. "" if none is.
    """

    pauses: Mapping[str, TaskPause] = field(default_factory=dict)
    unknown: Collection[str] = ()
    problem: str = ""

    @classmethod
    async def among(cls, task_ids: Iterable[str]) -> Self:
        """Ask Temporal about these tasks. One request is enough for a page of them."""
        ids = list(dict.fromkeys(task_ids))
        if not ids:
            return cls()
        from tasquencer.temporal.visibility import pauses_among

        return await cls._told(ids, lambda client: pauses_among(client, ids))

    @classmethod
    async def of(cls, task_id: str) -> Self:
        """Ask Temporal about one task. Unlike a list, the answer is never late."""
        from tasquencer.temporal.visibility import pause_of

        return await cls._told([task_id], lambda client: pause_of(client, task_id))

    @classmethod
    async def _told(cls, ids: Sequence[str], ask: Callable[[Client], Awaitable[Pauses]]) -> Self:
        from temporalio.service import RPCError

        from tasquencer.cli.connections import connect_temporal

        try:
            async with asyncio.timeout(_SECONDS):
                found = await ask(await connect_temporal())
        except TimeoutError:
            return cls(unknown=ids, problem=f"Temporal did not answer within {_SECONDS:g} s")
        except TasquencerError as error:
            return cls(unknown=ids, problem=str(error))
        except RPCError as error:
            return cls(unknown=ids, problem=f"Temporal: {error.message}")
        return cls(found.by_task, found.unreadable.keys(), next(iter(found.unreadable.values()), ""))

    def as_json(self, task_id: str) -> JsonValue:
        """Return the pause of a task, False if it is not paused, or None if that is unknown."""
        if task_id in self.unknown:
            return None
        pause = self.pauses.get(task_id)
        return False if pause is None else pause.model_dump(mode="json")

    def labels(self) -> dict[str, str]:
        """By task id: `paused by ana: too expensive`."""
        return {
            task_id: f"paused by {pause.actor}" + (f": {pause.reason}" if pause.reason else "")
            for task_id, pause in self.pauses.items()
        }

    def say_unknown(self) -> None:
        """Write on standard error why pauses are unknown, if some are."""
        if self.unknown:
            say(f"pauses are unknown: {self.problem}")
