"""`tasq ledger prune`: remove old tasks from the ledger."""

from __future__ import annotations

from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from tasquencer.cli.errors import CommandFailed, ExitCode, end_with
from tasquencer.cli.output import print_json, print_line
from tasquencer.cli.times import parse_since

if TYPE_CHECKING:
    from tasquencer.sql.pruning import Old

__all__ = ["prune"]


def prune(
    ended_before: Annotated[
        str,
        typer.Option(
            metavar="TIME",
            help="Tasks whose work items all ended before this time: 90d ago, or an ISO time (UTC if without "
            "offset).",
        ),
    ],
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only count; change nothing.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Remove old tasks (work items, transitions, AI jobs) and old batches from the ledger.

    Workers may keep running. Choose a time that is longer ago than the
    namespace's retention, because `tasq ledger rebuild` restores tasks that
    Temporal still has.
    """
    now = datetime.now(UTC)
    try:
        before = parse_since(ended_before, now)
    except ValueError as error:
        raise CommandFailed(f"--ended-before: {error}", ExitCode.USAGE) from None
    if before > now:
        raise CommandFailed("--ended-before: must be in the past", ExitCode.USAGE)
    end_with(_prune(before, dry_run=dry_run, yes=yes, as_json=as_json))


async def _prune(before: datetime, *, dry_run: bool, yes: bool, as_json: bool) -> ExitCode:
    from tasquencer.cli.connections import read_settings, readable_database_url
    from tasquencer.cli.display import counting
    from tasquencer.core.wording import moment
    from tasquencer.sql.pruning import old_tasks, prune

    url = read_settings().database_url
    with readable_database_url():
        found = await old_tasks(url, before)
    if (found.tasks or found.batches) and not dry_run:
        if not yes:
            question = f"Remove {_told(found)}, ended before {moment(before)}, from the ledger for good?"
            typer.confirm(question, abort=True, err=True)
        with counting() as progress:
            found = await prune(url, before, lambda done: progress(f"{_told(done)} removed"))
    if as_json:
        print_json({**asdict(found), "dry_run": dry_run})
    else:
        print_line(
            f"{_told(found)} {'would be removed' if dry_run else 'removed'}: ended before {moment(before)}"
        )
    return ExitCode.COMPLETED


def _told(old: Old) -> str:
    from tasquencer.core.wording import counted

    told = f"{counted(old.tasks, 'task')} with {counted(old.work_items, 'work item')}"
    return told + (f" and {counted(old.batches, 'batch', 'batches')}" if old.batches else "")
