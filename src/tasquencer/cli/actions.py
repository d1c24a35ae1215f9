"""`tasq retry-now`, `complete`, `fail`, `cancel`: act on a task or on one of its work items."""

from __future__ import annotations

import getpass
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from tasquencer.cli.errors import CommandFailed, ExitCode, end_with
from tasquencer.cli.help import examples
from tasquencer.cli.output import say
from tasquencer.core.display_text import terminal_line

if TYPE_CHECKING:
    from tasquencer.cli.following import FollowedTask

__all__ = [
    "CANCEL_EXAMPLES",
    "COMPLETE_EXAMPLES",
    "FAIL_EXAMPLES",
    "PAUSE_EXAMPLES",
    "RESUME_EXAMPLES",
    "RETRY_NOW_EXAMPLES",
    "Actor",
    "Reason",
    "TaskId",
    "Yes",
    "act",
    "cancel",
    "complete",
    "confirm",
    "fail",
    "pause",
    "resume",
    "retry_now",
]

RETRY_NOW_EXAMPLES = examples('tasq retry-now ai-agent-1a2b3c4d --reason "the provider is back"')
PAUSE_EXAMPLES = examples('tasq pause ai-agent-1a2b3c4d --reason "the provider is down"')
RESUME_EXAMPLES = examples("tasq resume ai-agent-1a2b3c4d")
COMPLETE_EXAMPLES = examples(
    'tasq complete ai-agent-1a2b3c4d "Io, Europa, Ganymede" --reason "asked a colleague"',
    "cat answer.txt | tasq complete ai-agent-1a2b3c4d - --yes",
)
FAIL_EXAMPLES = examples('tasq fail ai-agent-1a2b3c4d --reason "it hangs"')
CANCEL_EXAMPLES = examples(
    "tasq cancel ai-agent-1a2b3c4d",
    'tasq cancel ai-agent-1a2b3c4d --work-item current --reason "not this one" --yes',
)

_CURRENT = "current"

TaskId = Annotated[str, typer.Argument(metavar="TASK", help="The task's id.")]
Reason = Annotated[str | None, typer.Option(help="Kept with the transition.")]
Actor = Annotated[str | None, typer.Option(help="Who acts. Default: your user name.")]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]
Item = Annotated[
    str, typer.Option(metavar="ID", help=f"The work item's id; {_CURRENT}: the one that has not ended.")
]


def retry_now(task: TaskId, reason: Reason = None, actor: Actor = None, yes: Yes = False) -> None:
    """End a task's backoff. The next attempt starts immediately."""
    confirm(f"End the backoff of {task}?", yes)
    end_with(act(task, "retry_now", None, {}, actor, reason))


def pause(task: TaskId, reason: Reason = None, actor: Actor = None) -> None:
    """Pause a task: no further attempt starts. An attempt that is under way continues."""
    end_with(_act_on_task(task, "pause_task", actor, reason, "is paused"))


def resume(task: TaskId, reason: Reason = None, actor: Actor = None) -> None:
    """Let the attempts of a paused task start again."""
    end_with(_act_on_task(task, "resume_task", actor, reason, "continues"))


def complete(
    task: TaskId,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="The answer; - reads it from standard input.")],
    work_item: Item = _CURRENT,
    reason: Reason = None,
    actor: Actor = None,
    yes: Yes = False,
) -> None:
    """Complete a started work item manually. Its call is stopped, and the task continues with this answer."""
    answer = sys.stdin.read() if text == "-" else text
    confirm(f"Complete the work item of {task} with this answer?", yes)
    end_with(act(task, "complete_work_item", work_item, {"result": {"text": answer}}, actor, reason))


def fail(
    task: TaskId, work_item: Item = _CURRENT, reason: Reason = None, actor: Actor = None, yes: Yes = False
) -> None:
    """Fail a started work item manually. Its call is stopped, and the recipe decides about a retry."""
    confirm(f"Fail the work item of {task}?", yes)
    end_with(act(task, "fail_work_item", work_item, {}, actor, reason))


def cancel(
    task: TaskId,
    work_item: Annotated[
        str | None,
        typer.Option(metavar="ID", help=f"Cancel only this work item ({_CURRENT}: the open one)."),
    ] = None,
    reason: Reason = None,
    actor: Actor = None,
    yes: Yes = False,
) -> None:
    """Cancel a task and stop its call. With --work-item, cancel only that work item."""
    if work_item is None:
        confirm(f"Cancel {task}?", yes)
        end_with(_cancel_task(task))
    confirm(f"Cancel the work item of {task}? (the task's policy decides how the task continues)", yes)
    end_with(act(task, "cancel_work_item", work_item, {}, actor, reason))


def confirm(question: str, yes: bool) -> None:
    """Ask for confirmation. Raises `CommandFailed` if there is no terminal."""
    if yes:
        return
    if not sys.stdin.isatty():
        raise CommandFailed("there is no terminal to ask for confirmation: add --yes", ExitCode.USAGE)
    typer.confirm(terminal_line(question), abort=True, err=True)


async def _find(task_id: str) -> FollowedTask:
    from tasquencer.cli.connections import connect_temporal
    from tasquencer.cli.following import find_task

    return await find_task(await connect_temporal(), task_id)


async def _cancel_task(task_id: str) -> ExitCode:
    from temporalio.client import WorkflowExecutionStatus

    handle = (await _find(task_id)).handle
    status = (await handle.describe()).status
    if status is not WorkflowExecutionStatus.RUNNING:
        ended = status.name.lower().replace("_", " ") if status is not None else "not running"
        raise CommandFailed(f"task {task_id!r} has already ended: {ended}")
    await handle.cancel()
    say(f"task {task_id} is being canceled")
    return ExitCode.COMPLETED


async def _act_on_task(
    task_id: str, action: str, actor: str | None, reason: str | None, what: str
) -> ExitCode:
    from tasquencer.cli.following import send_update

    task = await _find(task_id)
    await send_update(task.handle, action, {"actor": actor or getpass.getuser(), "reason": reason})
    say(f"task {task_id} {what}")
    return ExitCode.COMPLETED


async def act(
    task_id: str,
    action: str,
    work_item: str | None,
    more: dict[str, object],
    actor: str | None,
    reason: str | None,
) -> ExitCode:
    """Send an action to a task, and print the new states of its work items.

    Args:
        work_item: The work item's id, or `current`. None if the action is on the whole task.
        more: Further fields of the action.
        actor: None means the user's name.

    Raises:
        CommandFailed: the task refused the action, or no worker answered.
    """
    from tasquencer.cli.following import send_update

    task = await _find(task_id)
    payload: dict[str, object] = {"actor": actor or getpass.getuser(), "reason": reason, **more}
    if work_item is not None:
        payload["work_item_id"] = await _current(task) if work_item == _CURRENT else work_item
    done = await send_update(task.handle, action, payload)
    ids = done.get("work_item_ids", [done.get("work_item_id")])
    what = f"is {done['state']}" if "state" in done else "starts now"
    for work_item_id in ids:
        say(f"work item {work_item_id} {what}")
    return ExitCode.COMPLETED


async def _current(task: FollowedTask) -> str:
    """Return the id of the task's only open work item, from the ledger, or else from the task."""
    from tasquencer.cli.connections import read_settings
    from tasquencer.cli.following import LAST_QUERY_TIMEOUT, work_items_by_query
    from tasquencer.cli.ledger_view import LedgerView

    async with LedgerView(read_settings()) as ledger:
        items = await ledger.work_items_of(task.id, task.started_at)
    if not items:
        items = await work_items_by_query(task.handle, LAST_QUERY_TIMEOUT)
    if items is None:
        raise CommandFailed(
            "the ledger does not have this task and no worker answers: choose one with --work-item ID",
            ExitCode.UNREACHABLE,
        )
    open_items = [item.id for item in items if not item.state.is_terminal]
    if len(open_items) != 1:
        found = "none" if not open_items else f"{len(open_items)}: {', '.join(open_items)}"
        raise CommandFailed(f"open work items of the task: {found}; choose one with --work-item ID")
    return open_items[0]
