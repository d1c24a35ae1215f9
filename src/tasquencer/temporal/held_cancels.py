"""Cancels of what a run has just begun wait for its next event.

If code begins a timer, an activity or a child workflow, and cancels it in the same workflow task, Temporal
never hears of it. But a query, or a long local activity, can end that workflow task between the two. Then the
history has the beginning. A replay joins the two again, expects no such event, and fails (`TMPRL1100`). So a
cancel that follows from the result of a local activity waits for the next event, live and on replay.

The cancel of a timer always waits: if it fires first, a replay would cancel it before. The cancel of anything
else brings an event itself, by a short timer, and all that the code decides after it waits, too.

Two gaps are left, because to close them would delay each cancel of a call. An event that has waited for a
write (`held_news`) cancels at once, although what it cancels may have begun in its own workflow task. And the
result of a write cancels an older activity or child workflow at once, although that may have just ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from temporalio.bridge.proto.workflow_activation import WorkflowActivationJob
from temporalio.bridge.proto.workflow_commands import WorkflowCommand
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion

from tasquencer.temporal.completions import ends
from tasquencer.temporal.jobs import Part, is_news, of_kinds

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
    "request_cancel_local_activity": ("schedule_local_activity", "seq"),
    "cancel_timer": (_TIMER, "seq"),
    "request_cancel_activity": ("schedule_activity", "seq"),
    "cancel_child_workflow_execution": ("start_child_workflow_execution", "child_workflow_seq"),
    "request_cancel_nexus_operation": ("schedule_nexus_operation", "seq"),
    "cancel_signal_workflow": ("signal_external_workflow_execution", "seq"),
}

_RESOLVES = {
    "fire_timer": _TIMER,
    "resolve_child_workflow_execution": "start_child_workflow_execution",
    "resolve_nexus_operation": "schedule_nexus_operation",
    "resolve_signal_external_workflow": "signal_external_workflow_execution",
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
        self._own_timers = 0
        self._holds_all = False

    def without_own(self, jobs: Sequence[WorkflowActivationJob]) -> list[WorkflowActivationJob]:
        """Return the jobs that are for the code: no timer of ours, and after its end no events."""
        if any(map(ends, self._held)):
            return of_kinds(jobs, "query_workflow", "remove_from_cache")
        return [job for job in jobs if not (job.HasField("fire_timer") and job.fire_timer.seq >= _FIRST_OWN)]

    def pass_on(self, part: Part, completion: WorkflowActivationCompletion, *, holds: bool) -> None:
        """Hold or release commands. Change the completion, with which the code has answered the part.

        Args:
            part: Its jobs include those that are not for the code.
            completion: What the code has decided.
            holds: False to hold nothing, as in runs of earlier releases.
        """
        if not any(map(is_news, part.jobs)):
            return
        resolved = set(map(_resolved_by, part.jobs))
        self._held = [one for one in self._held if _canceled_by(one) not in resolved]
        released: list[WorkflowCommand] = []
        if part.is_event:
            released, self._held, self._holds_all = self._held, [], False
            self._begun.clear()
        decided = list(completion.successful.commands)
        passed = [*released, *(self._passed(decided) if holds and part.follows else decided)]
        self._begun.update(_begun_by(passed))
        if list(map(id, passed)) != list(map(id, decided)):
            del completion.successful.commands[:]
            completion.successful.commands.extend(passed)

    def _passed(self, commands: Iterable[WorkflowCommand]) -> list[WorkflowCommand]:
        passed: list[WorkflowCommand] = []
        for command in commands:
            kind = _canceled_by(command)
            is_timer = command.HasField("cancel_timer")
            waits = self._holds_all or is_timer or kind in self._begun
            if not waits or command.HasField("set_patch_marker"):
                passed.append(command)
                continue
            if not self._holds_all and not is_timer:
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


def _resolved_by(job: WorkflowActivationJob) -> _Key:
    kind = str(job.WhichOneof("variant"))
    if kind == "resolve_activity":
        begun = "schedule_local_activity" if job.resolve_activity.is_local else "schedule_activity"
        return begun, job.resolve_activity.seq
    if kind == "resolve_child_workflow_execution_start":
        start = job.resolve_child_workflow_execution_start
        return ("" if start.HasField("succeeded") else "start_child_workflow_execution"), start.seq
    return _RESOLVES.get(kind, ""), getattr(getattr(job, kind), "seq", 0)
