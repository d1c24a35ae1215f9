"""`tasq ledger verify` and `tasq ledger rebuild`: compare the ledger with the histories, or restore it."""

from __future__ import annotations

import importlib
import logging
import sys
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from tasquencer.cli.errors import CommandFailed, ExitCode, end_with
from tasquencer.cli.help import examples
from tasquencer.cli.output import print_json, print_line, say
from tasquencer.cli.pruning import prune
from tasquencer.cli.times import parse_since
from tasquencer.core.display_text import terminal_line

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

    from tasquencer.ledger.contract import Ledger
    from tasquencer.temporal.histories import Histories, TaskHistory

__all__ = ["history_commands"]

_SHIPPED = (
    "workflows.ai_agent:AiAgentTask",
    "workflows.ai_fan_out:AiFanOutTask",
    "workflows.reviewed_draft:ReviewedDraft",
)
"""The tasks of this project."""

Task = Annotated[
    str | None, typer.Argument(metavar="[TASK]", help="Only this task. Default: all that Temporal lists.")
]
Since = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="Only tasks started since: 30m, 1h, 2d ago, or an ISO time."),
]
Limit = Annotated[int, typer.Option(min=1, help="The maximum number of tasks, newest first.")]
Workflow = Annotated[
    list[str] | None,
    typer.Option(
        metavar="MODULE:CLASS",
        help="A task's class. Repeatable. Default: the tasks of this project.",
    ),
]
Folder = Annotated[
    Path | None,
    typer.Option(
        "--path",
        metavar="DIR",
        help="The folder to import the classes from. Its code is run. Default: only installed packages.",
    ),
]
Json = Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")]

history_commands = typer.Typer(
    no_args_is_help=True,
    help="Compare the ledger with the tasks' histories, restore lost entries, remove old tasks.",
)
history_commands.command(epilog=examples("tasq ledger prune --ended-before 90d --dry-run"))(prune)


@history_commands.command(epilog=examples("tasq ledger verify --since 1d", "tasq ledger verify TASK --json"))
def verify(
    task: Task = None,
    since: Since = None,
    limit: Limit = 1000,
    workflow: Workflow = None,
    path: Folder = None,
    as_json: Json = False,
) -> None:
    """Compare the ledger with the histories. Exit status 1 if they differ.

    Replays the histories with the code of the tasks. Changes nothing.
    """
    end_with(_verify(task, _time(since), limit, _classes(workflow, path), as_json=as_json))


@history_commands.command(epilog=examples("tasq ledger rebuild", "tasq ledger rebuild TASK"))
def rebuild(
    task: Task = None,
    since: Since = None,
    limit: Limit = 1000,
    workflow: Workflow = None,
    path: Folder = None,
    as_json: Json = False,
) -> None:
    """Add entries that the ledger has lost, from the histories. Changes no existing entry.

    Use it after you restored the ledger from an old backup. Safe to run
    twice. Run `tasq reconcile` afterwards.
    """
    end_with(_rebuild(task, _time(since), limit, _classes(workflow, path), as_json=as_json))


async def _verify(
    task: str | None, since: datetime | None, limit: int, classes: Sequence[type], *, as_json: bool
) -> ExitCode:
    from tasquencer.core.wording import counted
    from tasquencer.temporal.projection import verify

    report: dict[str, Any] = {"tasks": 0, "work_items": 0, "differences": [], "gaps": []}
    async with _beside(classes) as (histories, ledger):
        async for told in _told(histories, task, since, limit):
            found = await verify(told, ledger)
            report["tasks"] += 1
            report["work_items"] += found.work_items
            report["differences"] += [vars(one) for one in found.differences]
            report["gaps"] += [f"task {told.task_id}: {gap}" for gap in found.gaps]
            if not as_json:
                for one in found.differences:
                    print_line(str(one))
    _end(report, as_json=as_json)
    if not as_json:
        compared = (
            f"{counted(report['tasks'], 'task')}, {counted(report['work_items'], 'work item')} compared"
        )
        print_line(f"{compared}: {counted(len(report['differences']), 'difference')}")
    return ExitCode.FAILED if report["differences"] else ExitCode.COMPLETED


async def _rebuild(
    task: str | None, since: datetime | None, limit: int, classes: Sequence[type], *, as_json: bool
) -> ExitCode:
    from tasquencer.core.wording import counted
    from tasquencer.temporal.projection import rebuild

    report: dict[str, Any] = {"tasks": 0, "work_items": 0, "transitions": 0, "added": [], "refused": []}
    report["gaps"] = []
    async with _beside(classes) as (histories, ledger):
        async for told in _told(histories, task, since, limit):
            done = await rebuild(told, ledger)
            report["tasks"] += 1
            report["work_items"] += len(done.work_items)
            report["transitions"] += done.transitions
            report["refused"] += [f"task {told.task_id}: {one}" for one in done.refused]
            report["gaps"] += [f"task {told.task_id}: {gap}" for gap in done.gaps]
            if done.transitions:
                added = {
                    "task_id": told.task_id,
                    "work_items": done.work_items,
                    "transitions": done.transitions,
                }
                report["added"].append(added)
                if not as_json:
                    what = _added(len(done.work_items), done.transitions)
                    print_line(f"task {told.task_id}: {what}")
    _end(report, as_json=as_json)
    for one in report["refused"]:
        say(f"not added: {one}")
    if not as_json:
        what = _added(report["work_items"], report["transitions"])
        print_line(f"{counted(report['tasks'], 'task')} replayed: {what}")
    return ExitCode.FAILED if report["refused"] else ExitCode.COMPLETED


def _added(work_items: int, transitions: int) -> str:
    from tasquencer.core.wording import counted

    return f"{counted(work_items, 'work item')}, {counted(transitions, 'transition')} added"


def _end(report: dict[str, Any], *, as_json: bool) -> None:

    for gap in report["gaps"]:
        say(terminal_line(f"gap: {gap}", 500))
    if as_json:
        print_json(report)


@asynccontextmanager
async def _beside(classes: Sequence[type]) -> AsyncIterator[tuple[Histories, Ledger]]:
    """The histories and the ledger."""
    from tasquencer.cli.connections import connect_temporal, open_ledger, read_settings
    from tasquencer.temporal.histories import Histories

    # Replay problems are reported in one line each. The SDK would print pages.
    logging.getLogger("temporalio").setLevel(logging.CRITICAL)
    client = await connect_temporal()
    async with open_ledger(read_settings()) as ledger:
        yield Histories(client, classes), ledger


async def _told(
    histories: Histories, task: str | None, since: datetime | None, limit: int
) -> AsyncIterator[TaskHistory]:
    """Replay the histories, task by task."""
    from tasquencer.cli.display import counting

    ids = [task] if task is not None else await histories.task_ids(since, limit + 1)
    with counting() as progress:
        for number, task_id in enumerate(ids[:limit], 1):
            progress(f"task {number:,} of {min(len(ids), limit):,}")
            told = await histories.read(task_id)
            if told is not None:
                yield told
            elif task is not None:
                raise CommandFailed(f"Temporal has no task {task!r}")
    if len(ids) > limit:
        say(f"There are more tasks than {limit:,}: --limit, or --since")


def _classes(names: Sequence[str] | None, folder: Path | None) -> list[type]:
    """Return the classes of these names. Raises `CommandFailed`.

    Args:
        names: None means the tasks of this project.
        folder: The folder to import them from. The current folder is not trusted automatically.
    """
    from tasquencer.cli.application import bundled_application

    if folder is None and not names:
        folder = bundled_application()
    if folder is not None:
        sys.path.insert(0, str(folder.resolve()))
    return [_workflow_class(name) for name in names or _SHIPPED]


def _workflow_class(name: str) -> type:
    module, _, attribute = name.partition(":")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise CommandFailed(
            f"--workflow: cannot import {name!r}: {error} (--path DIR names its folder)", ExitCode.USAGE
        ) from error
    if not hasattr(found, "__temporal_workflow_definition"):
        raise CommandFailed(f"--workflow: {name!r} is not a class with @workflow.defn", ExitCode.USAGE)
    kind: type = found
    return kind


def _time(since: str | None) -> datetime | None:
    try:
        return None if since is None else parse_since(since, datetime.now(UTC))
    except ValueError as error:
        raise CommandFailed(f"--since: {error}", ExitCode.USAGE) from None
