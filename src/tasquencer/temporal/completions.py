"""What a workflow instance answered to an activation: joined, read, and made by the guard itself."""

from __future__ import annotations

from collections.abc import Collection

from temporalio.bridge.proto.workflow_activation import WorkflowActivation
from temporalio.bridge.proto.workflow_commands import WorkflowCommand
from temporalio.bridge.proto.workflow_completion import WorkflowActivationCompletion

from tasquencer.temporal.bookkeeping import RECORD

__all__ = ["cancels", "ends", "failed", "joined", "keeps_books", "leave_resolved", "nothing"]

_ENDS = (
    "complete_workflow_execution",
    "fail_workflow_execution",
    "cancel_workflow_execution",
    "continue_as_new_workflow_execution",
)


_CANCELS = ("request_cancel_activity", "cancel_child_workflow_execution", "request_cancel_nexus_operation")


def cancels(completion: WorkflowActivationCompletion) -> bool:
    """Return whether it cancels an activity, a child workflow or an operation."""
    return any(command.WhichOneof("variant") in _CANCELS for command in completion.successful.commands)


def ends(command: WorkflowCommand) -> bool:
    """Return whether the command ends the run."""
    return command.WhichOneof("variant") in _ENDS


def joined(
    first: WorkflowActivationCompletion, second: WorkflowActivationCompletion
) -> WorkflowActivationCompletion:
    """Return the second completion, preceded by the first one's commands and flags."""
    commands = list(first.successful.commands)
    if not any(map(ends, commands)):
        commands += second.successful.commands
    flags = {*first.successful.used_internal_flags, *second.successful.used_internal_flags}
    del second.successful.commands[:], second.successful.used_internal_flags[:]
    second.successful.commands.extend(commands)
    second.successful.used_internal_flags.extend(sorted(flags))
    return second


def keeps_books(completion: WorkflowActivationCompletion) -> bool:
    """Return whether it begins a write to the ledger."""
    return any(
        command.HasField("schedule_local_activity")
        and command.schedule_local_activity.activity_type == RECORD
        for command in completion.successful.commands
    )


def leave_resolved(completion: WorkflowActivationCompletion, resolved: Collection[int]) -> None:
    """Remove cancels of local activities whose results have just come. The SDK fails on them."""
    if not resolved:
        return
    commands = list(completion.successful.commands)
    kept = [
        one
        for one in commands
        if not one.HasField("request_cancel_local_activity")
        or one.request_cancel_local_activity.seq not in resolved
    ]
    if len(kept) != len(commands):
        del completion.successful.commands[:]
        completion.successful.commands.extend(kept)


def nothing(activation: WorkflowActivation) -> WorkflowActivationCompletion:
    """Return an answer without commands."""
    completion = WorkflowActivationCompletion(run_id=activation.run_id)
    completion.successful.SetInParent()
    return completion


def failed(activation: WorkflowActivation, message: str) -> WorkflowActivationCompletion:
    """Return an answer that fails the workflow task, or the query."""
    completion = WorkflowActivationCompletion(run_id=activation.run_id)
    completion.failed.failure.message = message
    completion.failed.failure.application_failure_info.SetInParent()
    return completion
