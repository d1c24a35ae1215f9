"""Events that wait until a task's writes to the ledger have ended.

A write may outlast its workflow task, and the next workflow tasks then bring events before its result. A
replay delivers such events and the result together, in an order that cannot be told from that of a result
that came first. So events are handed over only when no write is under way, live and on replay.

An update cannot wait, because Temporal expects its acceptance in the workflow task that delivers it. So one
that comes while a write outlasts its workflow task is refused, which leaves nothing in the history. So is one
that comes with the result of any local activity: a replay may deliver the update before it. After a reset
nobody would send the update again, so there it waits for the result within its workflow task.

Refused is also an update that comes with other events to a worker that continues a run, if the worker before
may have begun a write on these events and lost the next workflow task. The SDK then delivers the events and
the update together, but a replay delivers the update after the beginning of that write.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from temporalio.bridge.proto.workflow_activation import WorkflowActivationJob
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion

from tasquencer.core.actions import TRY_AGAIN
from tasquencer.temporal.bookkeeping import RECORD
from tasquencer.temporal.jobs import ANSWERS, Part

__all__ = ["HeldNews", "with_refusals"]

_TOO_EARLY = (
    "the task must record earlier events first, so the update has changed nothing: send it again in a moment"
)

_CAN_WAIT = ANSWERS | {
    "cancel_workflow",
    "do_update",  # only after a reset, see `Guard._refused`
    "fire_timer",
    "signal_workflow",
}


class HeldNews:
    """Knows the writes under way in one run, and holds the events that arrive meanwhile."""

    def __init__(self) -> None:
        self._writes: set[int] = set()
        self._held: list[Part] = []

    def note(self, jobs: Sequence[WorkflowActivationJob], completion: WorkflowActivationCompletion) -> None:
        """Note the writes that ended with these jobs, and those that began with their completion."""
        self._writes.difference_update(
            job.resolve_activity.seq for job in jobs if job.HasField("resolve_activity")
        )
        for command in completion.successful.commands:
            activity = command.schedule_local_activity
            if command.HasField("schedule_local_activity") and activity.activity_type == RECORD:
                self._writes.add(activity.seq)

    @property
    def wait(self) -> bool:
        """Return whether events have to wait for a write."""
        return bool(self._writes)

    def ready(self, part: Part | None) -> Iterator[Part]:
        """Yield the parts to deliver now, those held before first. Hold the others.

        Each part stays as it came: on replay the write may have ended between two of them.
        """
        if part is not None:
            self._held.append(part)
        while self._held and not self._writes:
            yield self._held.pop(0)
        waiting, self._held = self._held, []
        for held in waiting:
            now = [job for job in held.jobs if job.WhichOneof("variant") not in _CAN_WAIT]
            if now:
                yield Part.of(now, follows=held.follows)
            if later := [job for job in held.jobs if job not in now]:
                self._held.append(Part.of(later, follows=held.follows))


def with_refusals(
    completion: WorkflowActivationCompletion, updates: Sequence[WorkflowActivationJob]
) -> WorkflowActivationCompletion:
    """Return the completion, preceded by the refusal of these updates."""
    if not updates or completion.HasField("failed"):
        return completion
    commands = list(completion.successful.commands)
    del completion.successful.commands[:]
    for job in updates:
        response = completion.successful.commands.add().update_response
        response.protocol_instance_id = job.do_update.protocol_instance_id
        response.rejected.message = _TOO_EARLY
        response.rejected.application_failure_info.type = TRY_AGAIN
    completion.successful.commands.extend(commands)
    return completion
