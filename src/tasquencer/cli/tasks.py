"""`tasq run`, `tasq fan-out` and `tasq watch`: start a task, follow it to its end."""

from __future__ import annotations

import asyncio
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from uuid import uuid4

import typer

from tasquencer.cli import options
from tasquencer.cli.errors import CommandFailed, ExitCode, end_with
from tasquencer.cli.help import examples
from tasquencer.cli.output import print_answer, print_json, say
from tasquencer.cli.request import check_request, read_messages, read_prompt, read_prompts

if TYPE_CHECKING:
    from pydantic import JsonValue

    from tasquencer.cli.following import FollowedTask

__all__ = [
    "FAN_OUT_EXAMPLES",
    "RUN_EXAMPLES",
    "WATCH_EXAMPLES",
    "chosen_id",
    "fan_out",
    "run",
    "start_and_report",
    "watch",
]

RUN_EXAMPLES = examples(
    'tasq run "Name three moons of Jupiter."',
    'cat letter.txt | tasq run - --system "Summarize in one sentence." --max-retries 5 --json',
    'tasq run "…" --initial-interval 500ms --maximum-interval 1m --deadline 10m --metadata customer=42',
    'tasq run "Where is order 7?" --tool search_orders --tool refund',
)

FAN_OUT_EXAMPLES = examples(
    "tasq fan-out prompts.txt --concurrency 50",
    "tasq fan-out prompts.txt --max-failure-fraction 0.1 --json > answers.json",
    "head -100 prompts.txt | tasq fan-out - --successes 10",
    "tasq fan-out letters.txt --tool search_orders --max-turns 5",
)


WATCH_EXAMPLES = examples("tasq watch ai-agent-1a2b3c4d")


@options.with_call_options
@options.with_tool_options
def run(
    prompt: Annotated[
        str | None, typer.Argument(metavar="PROMPT", help="What to answer; - reads it from standard input.")
    ] = None,
    messages: Annotated[
        Path | None,
        typer.Option(metavar="FILE.json", help="A whole conversation instead of the prompt: a JSON list."),
    ] = None,
    calls: options.Calls = {},  # noqa: B006 (the decorator gives it)
    tools: options.Tools = {},  # noqa: B006 (the decorator gives it)
    task_id: options.TaskId = None,
    detach: options.Detach = False,
    as_json: options.Json = False,
) -> None:
    """Run an AI agent task, and show every attempt until the answer arrives.

    The answer goes to standard output, everything else to standard error.
    Ctrl-C stops watching, not the task.

    Exit status: 0 completed, 1 the task failed, 2 usage, 3 Temporal cannot
    be reached.
    """
    request = check_request(
        {
            "prompt": read_prompt(prompt),
            "messages": None if messages is None else read_messages(messages),
            **calls,
            **tools,
        }
    )
    from tasquencer.cli.following import TASK_TYPE

    end_with(
        start_and_report(request, TASK_TYPE, chosen_id(task_id, "ai-agent"), detach=detach, as_json=as_json)
    )


@options.with_call_options
@options.with_tool_options
@options.with_policy_options(whole="task", parts="prompts")
def fan_out(
    file: Annotated[
        Path,
        typer.Argument(metavar="FILE", help="The prompts, one per line; - reads them from standard input."),
    ],
    concurrency: Annotated[int | None, typer.Option(help="Calls at the same time. Default: 10.")] = None,
    policy: options.Policy = {},  # noqa: B006 (the decorator gives it)
    calls: options.Calls = {},  # noqa: B006 (the decorator gives it)
    tools: options.Tools = {},  # noqa: B006 (the decorator gives it)
    task_id: options.TaskId = None,
    detach: options.Detach = False,
    as_json: options.Json = False,
) -> None:
    """Answer up to 500 prompts in one task, each with attempts of its own.

    The answers go to standard output in the order of the prompts, everything
    else to standard error. Ctrl-C stops watching, not the task.

    Exit status as for `tasq run`.
    """
    from tasquencer.ai.fan_out import parse_fan_out
    from tasquencer.cli.following import FAN_OUT_TYPE

    request = check_request(
        {
            "prompts": read_prompts(file),
            "concurrency": concurrency,
            **policy,
            **calls,
            **tools,
        },
        parse_fan_out,
    )
    end_with(
        start_and_report(
            request, FAN_OUT_TYPE, chosen_id(task_id, "ai-fan-out"), detach=detach, as_json=as_json
        )
    )


def chosen_id(task_id: str | None, prefix: str) -> str:
    """Return the id that the user chose, or a new one. Raises `CommandFailed`."""
    if task_id is not None and not task_id.strip():
        raise CommandFailed("--id: a task's id must not be empty", ExitCode.USAGE)
    return task_id or f"{prefix}-{uuid4().hex[:8]}"


async def start_and_report(
    request: dict[str, JsonValue],
    task_type: str,
    task_id: str,
    *,
    detach: bool,
    as_json: bool,
    hint: str | None = None,
) -> ExitCode:
    """Start a task, and follow it to its end unless `detach` is set.

    Args:
        hint: A further line on standard error after the start.
    """
    from tasquencer.cli.connections import connect_temporal, read_settings
    from tasquencer.cli.following import start_task

    client = await connect_temporal()
    queue = read_settings().task_queue
    task = await start_task(client, request, task_id=task_id, task_queue=queue, task_type=task_type)
    if hint is not None:
        say(hint)
    if detach:
        print_json({"task_id": task.id}) if as_json else print_answer(task.id)
        return ExitCode.COMPLETED
    return await _report(task, as_json=as_json)


def watch(
    task: Annotated[str, typer.Argument(metavar="TASK", help="The task's id.")],
    as_json: options.Json = False,
) -> None:
    """Watch a task that was started earlier, and print its answer.

    Exit status as for `tasq run`.
    """
    end_with(_watch(task, as_json=as_json))


async def _watch(task_id: str, *, as_json: bool) -> ExitCode:
    from tasquencer.cli.connections import connect_temporal
    from tasquencer.cli.following import find_task

    return await _report(await find_task(await connect_temporal(), task_id), as_json=as_json)


async def _report(task: FollowedTask, *, as_json: bool) -> ExitCode:
    from tasquencer.cli.connections import read_settings
    from tasquencer.cli.reporting import follow_and_report

    try:
        return await follow_and_report(task, read_settings(), as_json=as_json)
    except asyncio.CancelledError:  # Ctrl-C
        quoted = shlex.quote(task.id)
        note = (
            f"stopped watching; task {task.id} continues. Watch it again: tasq watch {quoted} · "
            f"cancel it: tasq cancel {quoted}"
        )
        say(note)
        raise
