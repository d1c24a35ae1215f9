"""`tasq run` and `tasq watch`: start a task, follow it to its end."""

from __future__ import annotations

import asyncio
import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal
from uuid import uuid4

import typer

from tasquencer.cli.errors import CommandFailed, ExitCode, end_with
from tasquencer.cli.help import examples
from tasquencer.cli.request import check_request, read_messages, read_metadata, read_prompt
from tasquencer.cli.times import parse_duration

if TYPE_CHECKING:
    from pydantic import JsonValue

    from tasquencer.cli.following import FollowedTask

__all__ = ["RUN_EXAMPLES", "WATCH_EXAMPLES", "run", "watch"]

RUN_EXAMPLES = examples(
    'tasq run "Name three moons of Jupiter."',
    'cat letter.txt | tasq run - --system "Summarize in one sentence." --max-retries 5 --json',
    'tasq run "…" --initial-interval 500ms --maximum-interval 1m --deadline 10m --metadata customer=42',
)

WATCH_EXAMPLES = examples("tasq watch ai-agent-1a2b3c4d")

_RETRIES = "Retries"
_TIME = "Time limits"

Json = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as JSON.")]


def _seconds(text: str) -> float:
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


def run(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="What to answer; - reads it from standard input.")
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="A whole conversation in place of the prompt: a JSON list."),
    ] = None,
    system: Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.")] = None,
    model: Annotated[str | None, typer.Option(help="Default: the worker's.")] = None,
    temperature: Annotated[float | None, typer.Option(help="0 to 2. Default: the provider's.")] = None,
    max_output_tokens: Annotated[int | None, typer.Option(help="Most tokens of the answer.")] = None,
    metadata: Annotated[
        list[str] | None,
        typer.Option(metavar="KEY=VALUE", help="A label, kept with each work item. Repeatable."),
    ] = None,
    max_retries: Annotated[
        int | None,
        typer.Option(help="Retries after the first try, 0 to 1000. Default: 3.", rich_help_panel=_RETRIES),
    ] = None,
    initial_interval: Annotated[
        float | None,
        typer.Option(
            parser=_seconds, metavar="TIME", help="First backoff. Default: 1s.", rich_help_panel=_RETRIES
        ),
    ] = None,
    backoff_coefficient: Annotated[
        float | None,
        typer.Option(help="Each backoff to the one before. Default: 2.", rich_help_panel=_RETRIES),
    ] = None,
    maximum_interval: Annotated[
        float | None,
        typer.Option(parser=_seconds, metavar="TIME", help="Longest backoff.", rich_help_panel=_RETRIES),
    ] = None,
    jitter: Annotated[
        float | None,
        typer.Option(help="Share of a delay added at random. Default: 0.", rich_help_panel=_RETRIES),
    ] = None,
    retry_on: Annotated[
        Literal["transient", "any"] | None,
        typer.Option(help="Failures that qualify. Default: transient.", rich_help_panel=_RETRIES),
    ] = None,
    attempt_timeout: Annotated[
        float | None,
        typer.Option(
            parser=_seconds, metavar="TIME", help="Of one AI call. Default: 5m.", rich_help_panel=_TIME
        ),
    ] = None,
    heartbeat_timeout: Annotated[
        float | None,
        typer.Option(
            parser=_seconds,
            metavar="TIME",
            help="How long a silent worker counts as alive. Default: 30s.",
            rich_help_panel=_TIME,
        ),
    ] = None,
    deadline: Annotated[
        float | None,
        typer.Option(
            parser=_seconds, metavar="TIME", help="Of the whole task, from its start.", rich_help_panel=_TIME
        ),
    ] = None,
    task_id: Annotated[str | None, typer.Option("--id", help="The task's id. Default: a new one.")] = None,
    detach: Annotated[
        bool, typer.Option("--detach", help="Print the task's id and leave it running.")
    ] = False,
    as_json: Json = False,
) -> None:
    """Run an AI agent task, and show every attempt until the answer is there.

    The answer goes to standard output, everything else to standard error.
    Ctrl-C stops watching, not the task.

    Exit status: 0 completed, 1 the task failed, 2 usage, 3 Temporal cannot
    be reached.
    """
    request = check_request(
        {
            "prompt": read_prompt(prompt),
            "messages": None if messages is None else read_messages(messages),
            "system": system,
            "model": model,
            "temperature": temperature,
            "max_output_tokens": max_output_tokens,
            "max_retries": max_retries,
            "retry.initial_interval_seconds": initial_interval,
            "retry.backoff_coefficient": backoff_coefficient,
            "retry.maximum_interval_seconds": maximum_interval,
            "retry.jitter": jitter,
            "retry.retry_on": retry_on,
            "attempt_timeout_seconds": attempt_timeout,
            "heartbeat_timeout_seconds": heartbeat_timeout,
            "deadline_seconds": deadline,
            "metadata": read_metadata(metadata or ()) or None,
        }
    )
    if task_id is not None and not task_id.strip():
        raise CommandFailed("--id: a task's id must not be empty", ExitCode.USAGE)
    task_id = task_id or f"ai-agent-{uuid4().hex[:8]}"
    end_with(_run(request, task_id, detach=detach, as_json=as_json))


async def _run(request: dict[str, JsonValue], task_id: str, *, detach: bool, as_json: bool) -> ExitCode:
    from tasquencer.cli.connections import connect_temporal, read_settings
    from tasquencer.cli.following import start_task

    client = await connect_temporal()
    task = await start_task(client, request, task_id=task_id, task_queue=read_settings().task_queue)
    if detach:
        print(json.dumps({"task_id": task.id}) if as_json else task.id, flush=True)
        return ExitCode.COMPLETED
    return await _report(task, as_json=as_json)


def watch(
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task's id.")],
    as_json: Json = False,
) -> None:
    """Watch a task that was started before, and print its answer.

    Exit status as for `tasq run`.
    """
    end_with(_watch(task, as_json=as_json))


async def _watch(task_id: str, *, as_json: bool) -> ExitCode:
    from tasquencer.cli.connections import connect_temporal
    from tasquencer.cli.following import find_task

    return await _report(await find_task(await connect_temporal(), task_id), as_json=as_json)


async def _report(task: FollowedTask, *, as_json: bool) -> ExitCode:
    from tasquencer.cli.reporting import follow_and_report

    try:
        return await follow_and_report(task, as_json=as_json)
    except asyncio.CancelledError:  # Ctrl-C
        quoted = shlex.quote(task.id)
        note = (
            f"stopped watching; task {task.id} goes on. Watch it again: tasq watch {quoted} · "
            f"cancel it: tasq cancel {quoted}"
        )
        print(note, file=sys.stderr, flush=True)
        raise
