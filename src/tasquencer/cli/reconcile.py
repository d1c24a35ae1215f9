"""`tasq reconcile`: cancel the work items that closed tasks have left open, now or regularly."""

from __future__ import annotations

import sys
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer

from tasquencer.cli.errors import CommandFailed, ExitCode, end_with
from tasquencer.cli.help import examples
from tasquencer.cli.options import seconds
from tasquencer.cli.output import print_json, print_line, print_text, say

if TYPE_CHECKING:
    from collections.abc import Sequence

    from pydantic import JsonValue
    from temporalio.client import Client

    from tasquencer.temporal.reconciling import Reconciler, Reconciliation, Settled

__all__ = ["RECONCILE_EXAMPLES", "reconcile"]

RECONCILE_EXAMPLES = examples("tasq reconcile --dry-run", "tasq reconcile --schedule 5m")

_SHORTEST_INTERVAL = 1.0


def reconcile(
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print what would be settled; change nothing.")
    ] = False,
    grace: Annotated[
        float | None,
        typer.Option(
            parser=seconds,
            metavar="TIME",
            help="Ignore tasks that closed less than this time ago. Default: 60s.",
        ),
    ] = None,
    schedule: Annotated[
        float | None,
        typer.Option(
            parser=seconds,
            metavar="TIME",
            help="Make the workers of TASQ_TASK_QUEUE do it at this interval. Safe to run twice.",
        ),
    ] = None,
    unschedule: Annotated[bool, typer.Option("--unschedule", help="Remove that schedule.")] = False,
    yes: Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the outcome as JSON.")] = False,
) -> None:
    """Settle the work items that closed tasks have left open: cancel them, with the reason.

    Tasks that were terminated, timed out, reset or deleted by Temporal had
    no chance to do this. Running tasks are left alone. Safe at any time,
    while workers run, and twice.
    """
    if schedule is not None or unschedule:
        if dry_run or (schedule is not None and unschedule):
            raise CommandFailed("choose one of --schedule, --unschedule and --dry-run", ExitCode.USAGE)
        if schedule is not None and schedule < _SHORTEST_INTERVAL:
            raise CommandFailed("--schedule: must be at least 1s", ExitCode.USAGE)
        end_with(_schedule(schedule, as_json=as_json))
    end_with(_reconcile(grace, dry_run=dry_run, yes=yes, as_json=as_json))


async def _schedule(every: float | None, *, as_json: bool) -> ExitCode:
    from tasquencer.cli.connections import connect_temporal, read_settings
    from tasquencer.core.wording import duration
    from tasquencer.temporal.schedules import put_schedule, remove_schedule, schedule_id

    queue = read_settings().task_queue
    name = schedule_id(queue)
    client = await connect_temporal()
    if every is not None:
        created = await put_schedule(client, queue, timedelta(seconds=every))
        done = f"{'created' if created else 'updated'}: every {duration(every)} on task queue {queue!r}"
    else:
        done = "removed" if await remove_schedule(client, queue) else "does not exist"
        done += "; a worker creates it when it starts, unless TASQ_RECONCILE_EVERY is 0"
    if as_json:
        print_json({"schedule_id": name, "every_seconds": every})
    (say if as_json else print_line)(f"schedule {name} {done}")
    return ExitCode.COMPLETED


async def _reconcile(grace_seconds: float | None, *, dry_run: bool, yes: bool, as_json: bool) -> ExitCode:
    from tasquencer.cli.connections import connect_temporal, open_ledger, read_settings
    from tasquencer.temporal.reconciling import DEFAULT_GRACE, Reconciler

    grace = DEFAULT_GRACE if grace_seconds is None else timedelta(seconds=grace_seconds)
    client = await connect_temporal()
    async with open_ledger(read_settings()) as ledger:
        if not dry_run and not yes and sys.stdin.isatty():
            await _ask(client, Reconciler(client, ledger, grace=grace, dry_run=True))
        found, settled = await _all_pages(Reconciler(client, ledger, grace=grace, dry_run=dry_run))
    if as_json:
        report: dict[str, JsonValue] = found.model_dump(mode="json")
        print_json(report | {"dry_run": dry_run, "work_items": _listed(settled)})
        return ExitCode.COMPLETED
    if dry_run:
        _print_each(settled)
    print_text(_summary(found, client, dry_run=dry_run))
    return ExitCode.COMPLETED


async def _ask(client: Client, reconciler: Reconciler) -> None:
    """Ask for confirmation if Temporal has none of the tasks of a whole page."""
    from tasquencer.ledger.reconciliation import Cause

    page, settled = await reconciler.page()
    if settled and len(settled) == page.found.open_work_items == page.found.settled.get(Cause.UNKNOWN):
        question = f"{_where(client)} has none of the open tasks of this ledger. Is it the right one?"
        typer.confirm(question, abort=True, err=True)


async def _all_pages(reconciler: Reconciler) -> tuple[Reconciliation, list[Settled]]:
    from tasquencer.cli.display import counting
    from tasquencer.temporal.reconciling import Reconciliation

    found, after = Reconciliation(), None
    settled: list[Settled] = []
    with counting() as progress:
        while True:
            page, some = await reconciler.page(after)
            found, after = found.plus(page.found), page.next
            settled += some
            if after is None:
                return found, settled
            progress(f"{found.open_work_items:,} open work items checked, {len(settled):,} to settle")


def _listed(settled: Sequence[Settled]) -> list[JsonValue]:
    return [{**vars(one), "cause": one.cause.value} for one in settled]


def _print_each(settled: Sequence[Settled]) -> None:

    for one in settled:
        print_line(f"{one.work_item_id} of task {one.task_id}: {one.reason}")


def _where(client: Client) -> str:
    return f"Temporal at {client.service_client.config.target_host} (namespace {client.namespace})"


def _summary(found: Reconciliation, client: Client, *, dry_run: bool) -> str:
    """Return a line for each cause, and one for the total."""
    from tasquencer.core.wording import counted
    from tasquencer.ledger.reconciliation import reason_of

    verb = "would be settled" if dry_run else "settled"
    lines = [f"{count:,} {verb}: {reason_of(cause)}" for cause, count in found.settled.items()]
    if found.undecided:
        lines.append(f"{found.undecided:,} undecided: no worker answered whether their tasks still list them")
    total = f"{sum(found.settled.values()):,} {verb}"
    lines.append(f"{counted(found.open_work_items, 'open work item')} checked, {total}; {_where(client)}")
    return "\n".join(lines)
