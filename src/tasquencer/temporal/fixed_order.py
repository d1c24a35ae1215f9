"""A fixed order for the asyncio tasks of a workflow run.

`asyncio.TaskGroup` and `asyncio.wait` keep tasks in sets. Python orders a set of tasks by their addresses in
memory, which differ between processes. A group that aborts would cancel its tasks in another order on replay,
and the history would not replay.
"""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Coroutine, Generator
from typing import Any, TypeVar
from weakref import WeakKeyDictionary

__all__ = ["fix_order"]

T = TypeVar("T")

_SPREAD = 1_000_003


class _OrderedTask(asyncio.Task[T]):
    """A task whose place in a set follows from its number."""

    def __init__(self, *args: Any, number: int, **options: Any) -> None:
        self._number = number  # the base class puts the task into a set
        super().__init__(*args, **options)

    def __hash__(self) -> int:
        return self._number


def fix_order(loop: Any) -> None:
    """Let the workflow's loop create tasks whose order in sets is the same in every process.

    The number depends on the task that creates another one and on how many it has created before. A count per
    run would be wrong, because queries and refused updates create tasks, too, and no replay repeats those.
    """
    register = loop._register_task  # as the SDK's own `create_task` does; there is no public hook
    created: WeakKeyDictionary[asyncio.Task[Any], int] = WeakKeyDictionary()
    from_outside = 0

    def number() -> int:
        nonlocal from_outside
        parent = asyncio.current_task(loop)
        if parent is None:
            from_outside += 1
            return from_outside
        count = created[parent] = created.get(parent, 0) + 1
        base = parent._number if isinstance(parent, _OrderedTask) else 0
        return hash(base * _SPREAD + count)

    def create_task(
        coro: Coroutine[Any, Any, T] | Generator[Any, None, T],
        *,
        name: str | None = None,
        context: contextvars.Context | None = None,
    ) -> asyncio.Task[T]:
        task: _OrderedTask[T] = _OrderedTask(coro, number=number(), loop=loop, context=context)
        register(task, name=name)
        return task

    loop.create_task = create_task
