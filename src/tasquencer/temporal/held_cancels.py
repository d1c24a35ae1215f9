"""Cancels of what a run has just begun wait for its next event.

If code begins a timer, an activity or a child workflow, and cancels it in the same workflow task, Temporal
never hears of it. But a query, or a long local activity, can end that workflow task between the two. Then the
history has the beginning. A replay joins the two again, expects no such event, and fails (`TMPRL1100`). So a
cancel that follows from the result of a local activity waits for the next event, live and on replay: what has
begun since the last event is always in the history.

A timer may wait for its cancel. The cancel of anything else brings an event itself, by a short timer, and all
that the code decides after it waits, too.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from temporalio.bridge.proto.workflow_activation import WorkflowActivationJob
from temporalio.bridge.proto.workflow_commands import WorkflowCommand
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion

from tasquencer.temporal.completions import ends
from tasquencer.temporal.jobs import is_local_result

__all__ = ["HeldCancels"]

_TIMER = "start_timer"

_STARTS = {
    _TIMER: "seq",
    "schedule_activity": "seq",
    "start_child_workflow_execution": "seq",
    "schedule_nexus_operation": "seq",
    "signal_external_workflow_execution": "seq",
}

_CANCELS = {
    "cancel_timer": (_TIMER, "seq"),
    "request_cancel_activity": ("schedule_activity", "seq"),
    "cancel_child_workflow_execution": ("start_child_workflow_execution", "child_workflow_seq"),
    "request_cancel_nexus_operation": ("schedule_nexus_operation", "seq"),
    "cancel_signal_workflow": ("signal_external_workflow_execution", "seq"),
}

_FIRST_OWN = 4_000_000_000
"""Number of the first timer of ours. The SDK counts the timers of the code from 1."""

_EVENT_NANOSECONDS = 1_000_000
_SUMMARY = b'"look for news"'

_Key = tuple[str, int]


class HeldCancels:
    """Knows what one run has begun since its last event, and holds the cancels of it."""

    def __init__(self) -> None:
        self._begun: set[_Key] = set()
        self._held: list[WorkflowCommand] = []
        self._holds_all = False
        self._own_timers = 0

    def without_own(self, jobs: Sequence[WorkflowActivationJob]) -> list[WorkflowActivationJob]:
        """Return the jobs that are for the code: none after its end, and no timer of ours."""
        if any(ends(command) for command in self._held):
            return []
        return [job for job in jobs if not (job.HasField("fire_timer") and job.fire_timer.seq >= _FIRST_OWN)]

    def pass_on(
        self, jobs: Sequence[WorkflowActivationJob], completion: WorkflowActivationCompletion, *, holds: bool
    ) -> None:
        """Hold or release commands. Change the completion, with which the code has answered the jobs.

        Args:
            jobs: The jobs, with those that are not for the code.
            completion: What the code has decided.
            holds: False to hold nothing, as in runs of earlier releases.
        """
        if all(job.HasField("query_workflow") for job in jobs):
            return
        commands = list(completion.successful.commands)
        if all(map(is_local_result, jobs)):
            if holds:
                commands = self._without_cancels(commands)
        else:
            commands = [*self._released(jobs), *commands]
            self._begun.clear()
        self._begun.update(_begun_by(commands))
        del completion.successful.commands[:]
        completion.successful.commands.extend(commands)

    def _released(self, jobs: Sequence[WorkflowActivationJob]) -> list[WorkflowCommand]:
        fired = {job.fire_timer.seq for job in jobs if job.HasField("fire_timer")}
        released = [
            one for one in self._held if not (one.HasField("cancel_timer") and one.cancel_timer.seq in fired)
        ]
        self._held.clear()
        self._holds_all = False
        return released

    def _without_cancels(self, commands: Iterable[WorkflowCommand]) -> list[WorkflowCommand]:
        passed: list[WorkflowCommand] = []
        for command in commands:
            kind = _canceled_by(command)
            if not self._holds_all and (kind is None or kind not in self._begun):
                passed.append(command)
                continue
            if kind is not None and kind[0] != _TIMER and not self._holds_all:
                self._holds_all = True
                passed.append(self._event_soon())
            self._held.append(command)
        return passed

    def _event_soon(self) -> WorkflowCommand:
        command = WorkflowCommand()
        command.start_timer.seq = _FIRST_OWN + self._own_timers
        command.start_timer.start_to_fire_timeout.FromNanoseconds(_EVENT_NANOSECONDS)
        command.user_metadata.summary.metadata["encoding"] = b"json/plain"
        command.user_metadata.summary.data = _SUMMARY
        self._own_timers += 1
        return command


def _begun_by(commands: Iterable[WorkflowCommand]) -> Iterable[_Key]:
    for command in commands:
        kind = command.WhichOneof("variant")
        if kind in _STARTS:
            yield kind, getattr(getattr(command, kind), _STARTS[kind])


def _canceled_by(command: WorkflowCommand) -> _Key | None:
    kind = command.WhichOneof("variant")
    if kind not in _CANCELS:
        return None
    begun, number = _CANCELS[kind]
    return begun, getattr(getattr(command, kind), number)
