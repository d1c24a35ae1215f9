"""Local activities under way, which a query has to wait for.

A query lets a workflow task end before its local activities (temporalio 1.32 to 1.35). Each such workflow
task costs three events more, and what follows comes in another order than on replay: see `guard`. So the
guard answers a query only when the local activities under way have ended, or after half a second.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from temporalio import activity
from temporalio.bridge.proto.workflow_activation import WorkflowActivationJob
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion
from temporalio.worker import (
    ActivityInboundInterceptor,
    ExecuteActivityInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
)

__all__ = ["LocalActivities", "LocalActivitiesOfRun"]

_FUNCTION = "tasquencer.local_activities"
"""Name of the function by which the guard of a workflow instance finds those of its worker."""

_SECONDS = 0.5
"""The longest wait. The SDK takes a workflow that says nothing for two seconds for deadlocked."""

_UNTIL_KNOWN_SECONDS = 0.01
"""How long the SDK may take to pass on the end of a local activity."""


class LocalActivities(Interceptor):
    """Knows the local activities of a worker's tasks that have not ended."""

    def __init__(self) -> None:
        self._under_way: set[tuple[str, str]] = set()
        self._changed = threading.Condition()

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002 - the SDK's name
    ) -> type[WorkflowInboundInterceptor] | None:
        """See the base class."""
        input.unsafe_extern_functions[_FUNCTION] = lambda: self
        return None

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """See the base class."""
        return _Ending(next, self)

    def begin(self, run_id: str, activity_id: str) -> None:
        """Note a local activity that a run has scheduled."""
        with self._changed:
            self._under_way.add((run_id, activity_id))

    def end(self, run_id: str, activity_id: str) -> None:
        """Note the end of a local activity, or that nobody waits for it."""
        with self._changed:
            self._under_way.discard((run_id, activity_id))
            self._changed.notify_all()

    def wait(self, run_id: str, activity_ids: Sequence[str]) -> bool:
        """Wait for their ends. Return whether they have ended within the time."""
        mine = {(run_id, activity_id) for activity_id in activity_ids}
        with self._changed:
            return self._changed.wait_for(lambda: mine.isdisjoint(self._under_way), _SECONDS)


class _Ending(ActivityInboundInterceptor):
    def __init__(self, following: ActivityInboundInterceptor, known: LocalActivities) -> None:
        super().__init__(following)
        self._known = known

    async def execute_activity(self, input: ExecuteActivityInput) -> Any:  # noqa: A002
        info = activity.info()
        try:
            return await super().execute_activity(input)
        finally:
            if info.is_local:
                self._known.end(info.workflow_run_id or "", info.activity_id)


class LocalActivitiesOfRun:
    """Knows the local activities that one run has scheduled and whose results it has not got.

    Args:
        functions: The extern functions of the run's worker. A replayer has none of ours.
    """

    def __init__(self, functions: Mapping[str, Callable[..., Any]], run_id: str) -> None:
        find = functions.get(_FUNCTION)
        self._known: LocalActivities | None = None if find is None else find()
        self._run_id = run_id
        self._scheduled: dict[int, str] = {}

    def note(self, jobs: Sequence[WorkflowActivationJob], completion: WorkflowActivationCompletion) -> None:
        """Note what has ended with these jobs, and what has begun with their completion."""
        if self._known is None:
            return
        for job in jobs:
            if job.HasField("resolve_activity") and job.resolve_activity.is_local:
                self._forget(job.resolve_activity.seq)
        for command in completion.successful.commands:
            if command.HasField("schedule_local_activity"):
                begun = command.schedule_local_activity
                self._scheduled[begun.seq] = begun.activity_id
                self._known.begin(self._run_id, begun.activity_id)

    def wait(self) -> None:
        """Wait until they have ended and the SDK knows it, for a moment."""
        if self._known is None or not self._scheduled or _is_in_event_loop():
            return
        if self._known.wait(self._run_id, list(self._scheduled.values())):
            time.sleep(_UNTIL_KNOWN_SECONDS)

    def forget(self) -> None:
        """Forget all, because the run leaves the cache."""
        for number in list(self._scheduled):
            self._forget(number)

    def _forget(self, number: int) -> None:
        activity_id = self._scheduled.pop(number, None)
        if activity_id is not None and self._known is not None:
            self._known.end(self._run_id, activity_id)


def _is_in_event_loop() -> bool:
    """Return whether the SDK's debug mode runs the workflow in the worker's own thread, which cannot wait."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True
