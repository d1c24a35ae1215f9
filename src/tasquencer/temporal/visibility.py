"""Asks Temporal which tasks are paused. Their memos say so."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from pydantic import ValidationError
from temporalio.client import Client, WorkflowExecution, WorkflowExecutionStatus
from temporalio.service import RPCError

from tasquencer.core.carried import TaskPause
from tasquencer.temporal.not_found import is_missing
from tasquencer.temporal.pausing import PAUSED

__all__ = ["Pauses", "pause_of", "pauses_among", "quoted"]

_IDS_IN_A_QUERY = 200

_UNLISTABLE = {'"', "\\"}
"""A server that keeps its lists in SQLite finds no id with these characters, however quoted."""


@dataclass(frozen=True)
class Pauses:
    """The pauses of tasks.

    Attributes:
        by_task: The pauses, by the ids of the paused tasks.
        unreadable: By task id, why its pause cannot be read.
    """

    by_task: Mapping[str, TaskPause] = field(default_factory=dict)
    unreadable: Mapping[str, str] = field(default_factory=dict)


async def pauses_among(client: Client, task_ids: Sequence[str]) -> Pauses:
    """Return the pauses of the running ones of these tasks.

    As in all its lists, the server may show a change a moment late.

    Raises:
        RPCError: the server does not answer, or cannot list workflows.
    """
    found = []
    listable = [task_id for task_id in task_ids if not _UNLISTABLE & set(task_id)]
    for first in range(0, len(listable), _IDS_IN_A_QUERY):
        ids = ", ".join(quoted(task_id) for task_id in listable[first : first + _IDS_IN_A_QUERY])
        query = f"ExecutionStatus = 'Running' AND WorkflowId IN ({ids})"
        found += [execution async for execution in client.list_workflows(query)]
    for task_id in task_ids:
        if _UNLISTABLE & set(task_id):
            found += await _described(client, task_id)
    return await _pauses_in(found)


async def pause_of(client: Client, task_id: str) -> Pauses:
    """Return the pause of one task, never late.

    A task that has ended or that the server no longer has is not paused.

    Raises:
        RPCError: the server does not answer.
    """
    return await _pauses_in(await _described(client, task_id))


async def _described(client: Client, task_id: str) -> list[WorkflowExecution]:
    try:
        return [await client.get_workflow_handle(task_id).describe()]
    except RPCError as error:
        if is_missing(error):
            return []
        raise


async def _pauses_in(executions: Iterable[WorkflowExecution]) -> Pauses:
    found, unreadable = {}, {}
    for execution in executions:
        if execution.status is not WorkflowExecutionStatus.RUNNING:  # its memo may still have a pause
            continue
        try:
            told = await execution.memo_value(PAUSED, None)
            if told is not None:
                found[execution.id] = TaskPause.model_validate(told)
        except ValidationError:  # clients can start workflows with any memo
            unreadable[execution.id] = f"the memo {PAUSED!r} of task {execution.id!r} is not a pause"
        except Exception as error:  # noqa: BLE001 - a codec may raise anything
            unreadable[execution.id] = str(error) or type(error).__name__
    return Pauses(found, unreadable)


def quoted(text: str) -> str:
    """Return the text as a string in a query of the server's lists."""
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
