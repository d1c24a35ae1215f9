"""The entry point of `tasq`: the commands, and the end of the process."""

from __future__ import annotations

import logging
import os
import sys
from typing import Annotated

import typer

from tasquencer.cli import (
    actions,
    batch,
    demo_command,
    ledger,
    new,
    providers,
    reconcile,
    reviews,
    task_listing,
    tasks,
    work_items,
    worker,
)
from tasquencer.cli.errors import ErrorReportingGroup
from tasquencer.cli.help import examples
from tasquencer.cli.output import print_line, replace_what_cannot_be_shown, silence
from tasquencer.settings import clean

__all__ = ["app", "main"]

app = typer.Typer(
    name="tasq",
    cls=ErrorReportingGroup,
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    epilog=examples(
        "tasq demo",
        'tasq run "Name three moons of Jupiter."',
        "tasq batch prompts.jsonl --out results.jsonl",
        "tasq list --state failed --since 1h",
    ),
)
app.command(epilog=demo_command.EXAMPLES)(demo_command.demo)
app.command(epilog=new.EXAMPLES)(new.new)
app.command(epilog=worker.EXAMPLES, add_help_option=False, context_settings=worker.SETTINGS)(worker.worker)
app.command(epilog=providers.PROVIDERS_EXAMPLES)(providers.providers)
app.command(epilog=tasks.RUN_EXAMPLES)(tasks.run)
app.command("fan-out", epilog=tasks.FAN_OUT_EXAMPLES)(tasks.fan_out)
app.add_typer(batch.batch_commands, name="batch")
app.command(epilog=reviews.DRAFT_EXAMPLES)(reviews.draft)
app.command(epilog=tasks.WATCH_EXAMPLES)(tasks.watch)
app.command("tasks", epilog=task_listing.TASKS_EXAMPLES)(task_listing.tasks)
app.command("list", epilog=work_items.LIST_EXAMPLES)(work_items.list_)
app.command(epilog=work_items.SHOW_EXAMPLES)(work_items.show)
app.command(epilog=reviews.REVIEW_EXAMPLES)(reviews.review)
app.command("retry-now", epilog=actions.RETRY_NOW_EXAMPLES)(actions.retry_now)
app.command(epilog=actions.PAUSE_EXAMPLES)(actions.pause)
app.command(epilog=actions.RESUME_EXAMPLES)(actions.resume)
app.command(epilog=actions.COMPLETE_EXAMPLES)(actions.complete)
app.command(epilog=actions.FAIL_EXAMPLES)(actions.fail)
app.command(epilog=actions.CANCEL_EXAMPLES)(actions.cancel)
app.command(epilog=reconcile.RECONCILE_EXAMPLES)(reconcile.reconcile)
app.add_typer(ledger.history_commands, name="ledger")
app.add_typer(work_items.database_commands, name="db")


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print_line(f"tasq {version('tasquencer')}")
        raise typer.Exit


@app.callback()
def tasq(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """AI agent tasks on Temporal. Every attempt is its own work item.

    Settings come from the environment: TASQ_DATABASE_URL, TASQ_TASK_QUEUE,
    TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE, and the other variables of the
    temporal command.
    """


def main() -> None:
    """Run the command that the command line names, and end the process."""
    logging.getLogger("tasquencer").addHandler(logging.NullHandler())  # its warnings are for workers
    replace_what_cannot_be_shown()
    clean(os.environ)
    try:
        app()
    except SystemExit as end:
        if "temporalio" in sys.modules:
            # While the interpreter shuts down, a thread of the SDK may still call into it and abort the
            # process (temporalio/sdk-python#300); the exit status would be lost.
            silence()
            os._exit(end.code if isinstance(end.code, int) else 1)
        silence()
        raise
