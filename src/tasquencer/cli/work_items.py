"""`tasq list`, `tasq show` and `tasq db`: read the ledger and upgrade its schema."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from tasquencer.cli.errors import CommandFailed, ExitCode, end_with
from tasquencer.cli.help import examples
from tasquencer.cli.output import print_json, print_line, say
from tasquencer.cli.times import parse_since
from tasquencer.core.display_text import terminal_line

if TYPE_CHECKING:
    from pydantic import JsonValue

    from tasquencer.ledger.contract import WorkItemFilter

__all__ = ["LIST_EXAMPLES", "SHOW_EXAMPLES", "database_commands", "list_", "show"]

LIST_EXAMPLES = examples(
    "tasq list --state failed --since 1h",
    "tasq list --failure-kind rate_limited --since 2026-11-23T08:00 --json",
)

SHOW_EXAMPLES = examples("tasq show ai-agent-1a2b3c4d", "tasq show ai-agent-1a2b3c4d --transitions")


Json = Annotated[bool, typer.Option("--json", help="Print JSON, with the ledger's names.")]


def list_(
    state: Annotated[
        list[str] | None,
        typer.Option(
            metavar="STATE",
            help="Only those that are initialized, started, completed, failed or canceled. Repeatable.",
        ),
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME",
            help="Only those created since: 30m, 1h, 2d ago, or an ISO time (UTC if without offset).",
        ),
    ] = None,
    failure_kind: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Only those with this kind of failure: rate_limited, timed_out …"),
    ] = None,
    task: Annotated[str | None, typer.Option(metavar="TASK", help="Only those of this task.")] = None,
    limit: Annotated[int, typer.Option(min=1, max=10_000, help="How many on a page.")] = 50,
    page: Annotated[int, typer.Option(min=1, help="Which page; 1 has the newest.")] = 1,
    as_json: Json = False,
) -> None:
    """List work items (attempts) of all tasks, newest first, from the ledger.

    Temporal knows which tasks are paused. If it does not answer within two
    seconds, the list comes without that. `tasq tasks` lists the tasks
    themselves.
    """
    from tasquencer.core.work_item import WorkItemState
    from tasquencer.ledger.contract import WorkItemFilter

    unknown = set(state or ()) - set(WorkItemState)
    if unknown:
        known = ", ".join(WorkItemState)
        raise CommandFailed(f"--state: {min(unknown)!r} is none of {known}", ExitCode.USAGE)
    states = frozenset(WorkItemState(name) for name in state) if state else None
    try:
        created_since = None if since is None else parse_since(since, datetime.now(UTC))
    except ValueError as error:
        raise CommandFailed(f"--since: {error}", ExitCode.USAGE) from None
    wanted = WorkItemFilter(
        task_id=task,
        states=states,
        failure_kind=failure_kind,
        created_since=created_since,
        limit=limit + 1,  # one more than shown, to see whether there is another page
        offset=(page - 1) * limit,
    )
    end_with(_list(wanted, page, as_json=as_json))


async def _list(wanted: WorkItemFilter, page: int, *, as_json: bool) -> ExitCode:
    from tasquencer.ai.record import AI_JOBS
    from tasquencer.cli.connections import open_ledger, read_settings
    from tasquencer.cli.display import print_table
    from tasquencer.cli.pauses import KnownPauses
    from tasquencer.cli.rendering import listing_table
    from tasquencer.cli.work_items_json import listed

    async with open_ledger(read_settings()) as ledger:
        found = await ledger.work_items(wanted)
        items = found[: wanted.limit - 1]
        records = await ledger.domain_records(AI_JOBS, [item.id for item in items])
    known = await KnownPauses.among(item.task_id for item in items if not item.state.is_terminal)
    if as_json:
        _print_json(
            [listed(item, not item.state.is_terminal and known.as_json(item.task_id)) for item in items]
        )
    elif items:
        print_table(lambda wide: listing_table(items, records, known.labels(), wide=wide))
        known.say_unknown()
    if len(found) > len(items):
        say(f"There are more: --page {page + 1}")
    elif not items:
        say("No such work items in the ledger.")
    return ExitCode.COMPLETED


def show(
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task's id.")],
    with_transitions: Annotated[
        bool, typer.Option("--transitions", help="Also show every change of state: time, actor, reason.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Show every work item of a task, from the ledger: delays, times, failures, tokens, cost."""
    end_with(_show(task, with_transitions=with_transitions, as_json=as_json))


async def _show(task_id: str, *, with_transitions: bool, as_json: bool) -> ExitCode:
    from tasquencer.ai.record import AI_JOBS
    from tasquencer.cli.connections import open_ledger, read_settings
    from tasquencer.cli.display import print_table
    from tasquencer.cli.pauses import KnownPauses
    from tasquencer.cli.rendering import attempts_table, totals, transitions_table
    from tasquencer.cli.work_items_json import shown

    async with open_ledger(read_settings()) as ledger:
        items = await ledger.work_items_of(task_id)
        if not items:
            raise CommandFailed(
                f"the ledger {ledger.database} has no task {task_id!r}: `tasq list` shows the newest work "
                "items, TASQ_DATABASE_URL names the ledger"
            )
        ids = [item.id for item in items]
        records = await ledger.domain_records(AI_JOBS, ids)
        transitions = await ledger.transitions_of(ids)
    is_open = any(not item.state.is_terminal for item in items)
    known = await KnownPauses.of(task_id) if is_open else KnownPauses()
    if as_json:
        _print_json(shown(task_id, items, records, transitions, known.as_json(task_id)))
        return ExitCode.COMPLETED
    print_line(f"task {task_id} ({items[0].task_type})")
    if (prompt := records.get(items[0].id, {}).get("prompt")) is not None:
        print_line(f"prompt: {terminal_line(str(prompt), 200)}")
    if (pause := known.pauses.get(task_id)) is not None:
        print_line(terminal_line(str(pause)))
    print_table(lambda wide: attempts_table(items, records, transitions, wide=wide))
    if with_transitions:
        print_table(lambda _: transitions_table(items, transitions))
    print_line(totals(items, records))
    known.say_unknown()
    return ExitCode.COMPLETED


def _print_json(value: JsonValue) -> None:
    print_json(value, indent=2)


database_commands = typer.Typer(
    no_args_is_help=True, help="Manage the ledger's database (TASQ_DATABASE_URL)."
)


@database_commands.command(
    epilog=examples("tasq db upgrade", "tasq db upgrade --worker-role tasquencer_worker")
)
def upgrade(
    worker_role: Annotated[
        str,
        typer.Option(
            metavar="ROLE",
            envvar="TASQ_DB_WORKER_ROLE",
            help="On PostgreSQL: the role of the workers. It gets the rights that they need.",
        ),
    ] = "",
) -> None:
    """Migrate the ledger's database to the schema of this release. Safe to run twice."""
    from tasquencer.cli.connections import read_settings, readable_database_url
    from tasquencer.sql import upgrade

    with readable_database_url():
        before, after = asyncio.run(upgrade(read_settings().database_url, worker_role=worker_role or None))
    if before == after:
        print_line(f"The ledger already has schema {after}.")
    else:
        print_line(f"The ledger went from {f'schema {before}' if before else 'no schema'} to schema {after}.")


@database_commands.command(epilog=examples("tasq db version"))
def version() -> None:
    """Print the schema of the database. Exit status 1 if this release does not work on it."""
    from tasquencer.cli.connections import read_settings, readable_database_url
    from tasquencer.core.errors import SchemaMismatch
    from tasquencer.sql.migrate import check_version, schema_version

    with readable_database_url():
        found = asyncio.run(schema_version(read_settings().database_url))
        print_line(found or "none")
        try:
            asyncio.run(check_version(read_settings().database_url))
        except SchemaMismatch as mismatch:
            raise CommandFailed(str(mismatch)) from None
