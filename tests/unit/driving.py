"""Builders for the tests of the decisions: a task whose ids, times and random numbers the test supplies."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.task_state import TaskState

__all__ = ["NOON", "after", "failed", "rate_limited", "refused", "task"]

NOON = datetime(2026, 11, 23, 12, tzinfo=UTC)


def after(seconds: float) -> datetime:
    """So many seconds after noon."""
    return NOON + timedelta(seconds=seconds)


def task(
    *,
    recipe: RetryRecipe | None = None,
    random: Callable[[], float] = lambda: 0.0,
    prefix: str = "w",
    **options: Any,
) -> TaskState:
    """A task without jitter whose work items are called w0, w1, w2 …"""
    numbers = count()
    return TaskState(
        task_id="task-1",
        run_id="run-1",
        task_type="Test",
        recipe=recipe or RetryRecipe(),
        new_id=lambda *_: f"{prefix}{next(numbers)}",
        random=lambda _: random(),
        **options,
    )


def rate_limited(retry_after_seconds: float | None = None) -> Failure:
    """A failure for which another try may help."""
    return Failure.of(FailureKind.RATE_LIMITED, "slow down", retry_after_seconds=retry_after_seconds)


def refused() -> Failure:
    """A failure for which another try does not help."""
    return Failure.of(FailureKind.REFUSED, "no")


def failed(state: TaskState, work_item_id: str, failure: Failure | None = None, *, at: float = 0) -> None:
    """Start the work item and fail it at once."""
    state.start(work_item_id, now=after(at))
    state.fail(work_item_id, failure or rate_limited(), now=after(at))
