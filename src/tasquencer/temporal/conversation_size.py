"""How large a conversation may become, and all open conversations of a task together."""

from __future__ import annotations

import asyncio
from typing import Final

from tasquencer.ai.job import MAXIMUM_CONVERSATION_BYTES, AiJob
from tasquencer.core.failure import Failure, FailureKind

__all__ = ["ConversationSize", "too_many"]

_MOST_WORK_ITEMS: Final = 2_000
"""Maximum work items of one task, which carries all of them along when it continues as new."""

_SIZES: Final = "__tasquencer_conversations__"
"""Of the run's event loop: the bytes of its open conversations by name. See `TaskScope`."""


class ConversationSize:
    """The size of one conversation.

    Args:
        name: That of a conversation that is one of several in its task.
        job: Its first request.
        carries: Whether the task carries its open conversations along when it continues as new.
    """

    def __init__(self, name: str | None, job: AiJob, *, carries: bool) -> None:
        self._name = name
        self._sizes: dict[str, int] = {}
        if name is not None and carries:
            self._sizes = vars(asyncio.get_running_loop()).setdefault(_SIZES, {})
        if name is not None:
            self._sizes[name] = _bytes(job)

    def forget(self) -> None:
        """Stop counting the conversation, because it has ended."""
        self._sizes.pop(self._name or "", None)

    def problem(self, job: AiJob, turns: int) -> Failure | None:
        """Why this request is too large to be sent. None if it is not.

        Args:
            job: The next request of the conversation.
            turns: How many turns it has had.
        """
        size = self._sizes[self._name or ""] = _bytes(job)
        most, together = MAXIMUM_CONVERSATION_BYTES, sum(self._sizes.values())
        if together <= most:
            return None
        if size > most:
            found = f"the conversation has {size:,} bytes after {turns} turns"
        else:
            found = f"the conversations of the task have {together:,} bytes together"
        return Failure.of(FailureKind.TOO_LARGE, f"{found}, the limit is {most:,}; nothing more was sent")


def too_many(work_items: int) -> Failure | None:
    """Return the failure of a conversation whose task would have too many work items."""
    if work_items <= _MOST_WORK_ITEMS:
        return None
    return Failure.of(FailureKind.TOO_LARGE, f"the task has more than {_MOST_WORK_ITEMS:,} work items")


def _bytes(job: AiJob) -> int:
    return len(job.model_dump_json(exclude_defaults=True).encode())
