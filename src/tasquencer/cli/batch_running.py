"""The work of the commands of `tasq batch`."""

from __future__ import annotations

import asyncio
import getpass
import shlex
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue
from temporalio.client import Client

from tasquencer.batch.rows import BatchProgress, parse_batch
from tasquencer.batch.store import Batch, BatchState, BatchStore
from tasquencer.cli.batch_following import (
    BatchRun,
    act_on,
    begin,
    find_run,
    follow,
    outcome_in,
    progress_under_way,
    recorded_progress,
)
from tasquencer.cli.batch_input import StagedRows, check_lines, lines_of
from tasquencer.cli.batch_output import Answers, BatchFiles, replacing, write_unanswered
from tasquencer.cli.batch_progress import batch_display, progress_line
from tasquencer.cli.connections import connect_temporal, open_ledger, read_settings
from tasquencer.cli.display import counting
from tasquencer.cli.errors import CommandFailed, ExitCode, complain
from tasquencer.cli.output import print_answer, print_json, print_line, say
from tasquencer.cli.rendering import usage_labels
from tasquencer.core.wording import counted, one_line

__all__ = ["act", "attach_to", "id_of", "print_status", "run_batch", "stage"]


def id_of(file: Path, digest: str) -> str:
    """Return an id made from the file's name and content, so that the same file gets the same id."""
    stem = "batch" if str(file) == "-" else file.name.partition(".")[0]
    kept = "".join(c if c.isprintable() and c != "/" else "_" for c in stem)[:60].strip()
    return f"{kept or 'batch'}-{digest[:10]}"


def stage(file: Path, defaults: dict[str, JsonValue], rows: StagedRows, skip_invalid: Path | None) -> None:
    """Check all lines. Raises `CommandFailed` if some are wrong and no file for them is given."""
    name = "standard input" if str(file) == "-" else repr(str(file))
    with ExitStack() as stack:
        lines = stack.enter_context(lines_of(file))
        aside = None if skip_invalid is None else stack.enter_context(replacing(skip_invalid))
        with counting() as said:
            checked = check_lines(lines, defaults, rows, set_aside=aside, said=said)
    for problem in checked.problems:
        say(str(problem))
    if checked.wrong > len(checked.problems):
        say(f"and {checked.wrong - len(checked.problems):,} more")
    if checked.wrong and skip_invalid is None:
        lines_are = "1 line is wrong" if checked.wrong == 1 else f"{checked.wrong:,} lines are wrong"
        raise CommandFailed(
            f"FILE: {name}: {lines_are}, nothing was started. --skip-invalid FILE continues without them",
            ExitCode.USAGE,
        )
    if not rows.count:
        raise CommandFailed(f"FILE: {name} has no prompts: write one JSON object per line", ExitCode.USAGE)
    if checked.wrong:
        say(f"{checked.wrong:,} wrong lines are in {skip_invalid}")


async def run_batch(
    rows: StagedRows,
    batch_id: str,
    defaults: dict[str, JsonValue],
    request: dict[str, JsonValue],
    files: BatchFiles,
    *,
    retry_failed: bool,
    unordered: bool,
    detach: bool,
    as_json: bool,
) -> ExitCode:
    """Start the batch or continue it, and report its end.

    Args:
        rows: All its rows.
        batch_id: Its id. Raises `CommandFailed` if a batch with this id has other rows or defaults.
        defaults: Fields for rows that do not have them.
        request: The input of the workflow.
        files: The files for the results.
        retry_failed: Also continue a batch that has completed.
        unordered: Write the results in the order in which they arrive.
        detach: Leave it running.
        as_json: Print its end as JSON.
    """
    if problem := parse_batch(request).policy.problem_with(rows.count):
        raise CommandFailed(f"--successes: {problem}", ExitCode.USAGE)
    settings = read_settings()
    client = await connect_temporal()
    async with open_ledger(settings) as ledger:
        batches = ledger.batches
        found = await find_run(client, batch_id)
        wanted = Batch(
            id=batch_id, digest=rows.digest, rows=rows.count, defaults=defaults, created_at=datetime.now(UTC)
        )
        batch = await batches.create(wanted)
        if batch.digest != wanted.digest:
            raise CommandFailed(
                f"there is already a batch {batch_id!r} with other prompts or options: choose another --id"
            )
        if batch.filled_at is None:
            try:
                await _upload(rows, batches, batch_id)
            except asyncio.CancelledError:  # Ctrl-C
                say("stopped before the batch began. Run the same command again to continue")
                raise
        counts = await batches.counts(batch_id)
        lost = counts.failed + counts.canceled
        run: BatchRun | None = None
        if found is not None and found.is_running:
            say(f"batch {batch_id} is already running: its concurrency and policy stay as they are")
            run = found
        elif batch.state is BatchState.COMPLETED and not (retry_failed and lost):
            hint = f"; {counted(lost, 'row')} without an answer (--retry-failed tries again)" if lost else ""
            say(f"batch {batch_id} has already completed{hint}")
        else:
            done = f", {counts.completed:,} already done" if counts.completed else ""
            say(f"batch {batch_id}: {counted(batch.rows, 'prompt')}{done}")
            run = await begin(client, batch, request, settings.task_queue)
        if detach:
            print_json({"batch_id": batch_id}) if as_json else print_answer(batch_id)
            return ExitCode.COMPLETED
        return await _report(client, batches, batch, run, files, unordered=unordered, as_json=as_json)


async def _upload(rows: StagedRows, batches: BatchStore, batch_id: str) -> None:
    sent = 0
    with counting() as said:
        for page in rows.pages():
            await batches.fill(batch_id, page)
            sent += len(page)
            said(f"sent {sent:,} of {counted(rows.count, 'prompt')}")
    await batches.filled(batch_id)


async def attach_to(batch_id: str, files: BatchFiles, *, unordered: bool, as_json: bool) -> ExitCode:
    """Report the end of a batch that was started earlier."""
    client = await connect_temporal()
    async with open_ledger(read_settings()) as ledger:
        batch = await _find(ledger.batches, batch_id)
        run = await find_run(client, batch_id)
        if run is None and batch.filled_at is None:
            raise CommandFailed(
                f"batch {batch_id!r} has not begun, because only a part of its prompts was sent: "
                "run `tasq batch` with the same file to continue"
            )
        return await _report(client, ledger.batches, batch, run, files, unordered=unordered, as_json=as_json)


async def _find(batches: BatchStore, batch_id: str) -> Batch:
    batch = await batches.find(batch_id)
    if batch is None:
        raise CommandFailed(f"the ledger has no batch {batch_id!r}: `tasq batch FILE` starts one")
    return batch


async def _report(
    client: Client,
    batches: BatchStore,
    batch: Batch,
    run: BatchRun | None,
    files: BatchFiles,
    *,
    unordered: bool,
    as_json: bool,
) -> ExitCode:
    """Follow the batch's workflow, if Temporal still has it, and write the results."""
    with replacing(files.out) as out:
        answers = Answers(batches, batch.id, out, unordered=unordered, format=files.format)
        outcome = outcome_in(batch)
        if run is not None:
            try:
                with batch_display() as display:
                    outcome = await follow(client, run, batch, batches, display, answers.write_new)
            except asyncio.CancelledError:  # Ctrl-C
                say(_how_to_go_on(batch.id, files.out))
                raise
        await answers.write_all()
    if answers.gone:
        say(
            f"{counted(answers.gone, 'answer')} without text: the ledger no longer has the work items "
            "(`tasq ledger rebuild` restores what Temporal still has; then run the same file again)"
        )
    if files.failures is not None:
        with replacing(files.failures) as failures:
            await write_unanswered(batches, batch.id, failures, files.format)
    progress = await recorded_progress(batches, batch)
    say(_footer(progress, batch.id, files))
    if as_json:
        end: dict[str, JsonValue] = {
            "batch_id": batch.id,
            **progress.model_dump(exclude={"running", "paused"}),
            "error": None,
        }
        if outcome.error_type is not None:
            end["error"] = {"type": outcome.error_type, "message": outcome.message}
        print_json(end)
    if outcome.error_type is None:
        return ExitCode.COMPLETED
    complain(
        f"{outcome.error_type}: {one_line(outcome.message, 2_000)} (batch {batch.id}: run the same file "
        "again to continue with the lines without an answer)"
    )
    return ExitCode.FAILED


def _how_to_go_on(batch_id: str, out: Path | None) -> str:
    quoted = shlex.quote(batch_id)
    to = f" --out {shlex.quote(str(out))}" if out is not None else ""
    return (
        f"stopped watching; batch {batch_id} continues. Follow it again: tasq batch attach {quoted}{to} · "
        f"cancel it: tasq cancel {quoted}"
    )


def _footer(progress: BatchProgress, batch_id: str, files: BatchFiles) -> str:
    """`98 completed · 2 failed · 1,200 tokens in, 900 out · cost $0.01 · batch a · results in r.jsonl`."""
    pending = progress.rows - progress.ended
    states = {
        "completed": progress.completed,
        "failed": progress.failed,
        "canceled": progress.canceled,
        "not ended": pending,
    }
    parts = [f"{count:,} {name}" for name, count in states.items() if count or name == "completed"]
    parts += usage_labels(progress.usage.model_dump())
    parts.append(f"batch {batch_id}")
    if files.out is not None:
        parts.append(f"results in {files.out}")
    if files.failures is not None and progress.failed + progress.canceled:
        parts.append(f"failures in {files.failures}")
    return " · ".join(parts)


async def print_status(batch_id: str, *, as_json: bool) -> ExitCode:
    """Print a batch's progress, from the ledger."""
    client = await connect_temporal()
    async with open_ledger(read_settings()) as ledger:
        batch = await _find(ledger.batches, batch_id)
        run = await find_run(client, batch_id)
        is_running = run is not None and run.is_running
        if run is not None and is_running:
            progress = await progress_under_way(await run.handle.describe(), ledger.batches, batch)
        else:
            progress = await recorded_progress(ledger.batches, batch)
        retrying = await ledger.batches.retrying(batch_id)
    state = "started" if is_running else batch.state.value
    if not is_running and state == "started":
        state = "stopped"  # it was terminated, or never begun
    if as_json:
        told = {
            "batch_id": batch_id,
            "state": state,
            **progress.model_dump(mode="json"),
            "retrying": retrying,
        }
        print_json(told)
    else:
        print_line(f"batch {batch_id} is {state}: {progress_line(progress, retrying, None)}")
    return ExitCode.COMPLETED


async def act(batch_id: str, update: str, actor: str | None, reason: str | None) -> ExitCode:
    """Pause or resume a batch."""
    await act_on(await connect_temporal(), batch_id, update, actor or getpass.getuser(), reason)
    say(f"batch {batch_id} is paused" if update == "pause" else f"batch {batch_id} continues")
    return ExitCode.COMPLETED
