"""Cancels that follow from the result of a local activity wait for the next event.

A query, or a long local activity, can end a workflow task before the result of a write. The next workflow
task then cancels what the code no longer wants: a timer, an activity or a child workflow. A replay finds the
result earlier, and cancels in the workflow task before. If what is canceled has begun there, Temporal should
never have heard of it, but the history has its beginning. If it has ended in between, the history has its
end and no cancel. Both fail (`TMPRL1100`). So the cancel waits for the next event, live and on replay, and is
left out if what it cancels has ended by then.

A timer may wait for its cancel. The cancel of anything else brings an event itself, by a short timer, and all
that the code decides after it waits, too.

One gap is left: an event that has waited for a write (`held_news`) cancels at once, although what it cancels
may have begun in its own workflow task. To wait there as well would delay each cancel of a call.
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
_LOCAL = "request_cancel_local_activity"

_CANCELS = {
    _LOCAL: ("schedule_local_activity", "seq"),
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
    """Holds the cancels of one run."""

    def __init__(self) -> None:
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
        if (not self._held and not (holds and part.follows)) or not any(map(is_news, part.jobs)):
            return
        resolved = set(map(_resolved_by, part.jobs))
        self._held = [one for one in self._held if _canceled_by(one) not in resolved]
        released: list[WorkflowCommand] = []
        if part.is_event:
            released, self._held, self._holds_all = self._held, [], False
        decided = list(completion.successful.commands)
        passed = [*released, *(self._passed(decided) if holds and part.follows else decided)]
        if list(map(id, passed)) != list(map(id, decided)):
            del completion.successful.commands[:]
            completion.successful.commands.extend(passed)

    def _passed(self, commands: Iterable[WorkflowCommand]) -> list[WorkflowCommand]:
        passed: list[WorkflowCommand] = []
        for command in commands:
            kind = command.WhichOneof("variant")
            waits = self._holds_all or (kind in _CANCELS and kind != _LOCAL)
            if not waits or kind == "set_patch_marker":
                passed.append(command)
                continue
            if not self._holds_all and kind != "cancel_timer":
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
