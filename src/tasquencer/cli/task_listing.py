"""`tasq tasks`: list tasks. `tasq list` lists their attempts."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated

import typer

from tasquencer.cli.errors import CommandFailed, ExitCode, end_with
from tasquencer.cli.help import examples
from tasquencer.cli.output import print_json, say
from tasquencer.cli.request import read_metadata
from tasquencer.cli.times import parse_since

if TYPE_CHECKING:
    from tasquencer.sql.task_listing import TaskFilter

__all__ = ["TASKS_EXAMPLES", "tasks"]

TASKS_EXAMPLES = examples(
    "tasq tasks --state started",
    "tasq tasks --model gpt-5-mini --since 1d",
    "tasq tasks --metadata customer=4711 --json",
)


def tasks(
    state: Annotated[
        str | None,
        typer.Option(
            metavar="STATE",
            help="Only tasks in this state: started, completed, failed or canceled. A task is started while "
            "one of its work items is open. Then it has the state of the one that ended last.",
        ),
    ] = None,
    task_type: Annotated[
        str | None, typer.Option("--type", metavar="TYPE", help="Only those of this workflow type.")
    ] = None,
    model: Annotated[str | None, typer.Option(help="Only those that used this model.")] = None,
    metadata: Annotated[
        list[str] | None, typer.Option(metavar="KEY=VALUE", help="Only those with this label. Repeatable.")
    ] = None,
    since: Annotated[
        str | None,
        typer.Option(
            metavar="TIME", help="Only those with an attempt since: 30m, 1h, 2d ago, or an ISO time (UTC)."
        ),
    ] = None,
    limit: Annotated[int, typer.Option(min=1, max=1_000, help="How many on a page.")] = 50,
    page: Annotated[int, typer.Option(min=1, help="Which page; 1 has the newest.")] = 1,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List tasks with their attempts, cost and age, from the ledger.

    Tokens and cost are those of all attempts. Temporal knows which tasks are
    paused. If it does not answer within two seconds, the list comes without
    that. `tasq list` lists the attempts themselves, `tasq show` those of one
    task.
    """
    from tasquencer.sql.task_listing import TaskFilter, TaskState

    if state is not None and state not in set(TaskState):
        raise CommandFailed(f"--state: {state!r} is none of {', '.join(TaskState)}", ExitCode.USAGE)
    try:
        active_since = None if since is None else parse_since(since, datetime.now(UTC))
    except ValueError as error:
        raise CommandFailed(f"--since: {error}", ExitCode.USAGE) from None
    labels = {key: str(value) for key, value in read_metadata(metadata or ()).items()}
    if any('"' in key for key in labels):
        raise CommandFailed('--metadata: cannot look for a key that contains "', ExitCode.USAGE)
    wanted = TaskFilter(
        state=None if state is None else TaskState(state),
        task_type=task_type,
        model=model,
        metadata=labels,
        active_since=active_since,
        limit=limit + 1,  # one more than shown, to see whether there is another page
        offset=(page - 1) * limit,
    )
    end_with(_list(wanted, page, as_json=as_json))


async def _list(wanted: TaskFilter, page: int, *, as_json: bool) -> ExitCode:
    from tasquencer.cli.connections import open_ledger, read_settings
    from tasquencer.cli.display import print_table
    from tasquencer.cli.pauses import KnownPauses
    from tasquencer.cli.rendering import tasks_table
    from tasquencer.sql.task_listing import TaskState

    async with open_ledger(read_settings()) as ledger:
        found = await ledger.tasks(wanted)
        database = ledger.database
    listed = found[: wanted.limit - 1]
    known = await KnownPauses.among(task.task_id for task in listed if task.state is TaskState.STARTED)
    if as_json:
        dumped = [task.model_dump(mode="json") | {"paused": known.as_json(task.task_id)} for task in listed]
        print_json(dumped, indent=2)
    elif listed:
        print_table(lambda wide: tasks_table(listed, datetime.now(UTC), known.labels(), wide=wide))
        known.say_unknown()
    if len(found) > len(listed):
        say(f"There are more: --page {page + 1}")
    elif not listed:
        say(f"No such tasks in the ledger {database}.")
    return ExitCode.COMPLETED
