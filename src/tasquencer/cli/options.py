"""The options that every command which starts AI calls has."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Annotated, Any, Literal

import typer

from tasquencer.cli.request import read_metadata
from tasquencer.cli.times import parse_duration

__all__ = ["Calls", "Detach", "Json", "TaskId", "seconds", "with_call_options"]

_RETRIES = "Retries"
_TIME = "Time limits"

Calls = dict[str, Any]
"""What the options say about the AI calls of a request: its fields by name."""


def with_call_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command all options about AI calls; it takes them together, as its parameter `calls`."""
    own = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in own.parameters.values():
        if parameter.name == "calls":
            parameters += [
                inspect.Parameter(name, parameter.kind, default=None, annotation=option)
                for name, (_, option) in _OPTIONS.items()
            ]
        else:
            parameters.append(parameter)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        calls: Calls = {field: given.pop(name) for name, (field, _) in _OPTIONS.items()}
        calls["metadata"] = read_metadata(calls["metadata"] or ()) or None
        command(**given, calls=calls)

    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def seconds(text: str) -> float:
    """A duration on the command line. Raises `BadParameter`."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


_OPTIONS: dict[str, tuple[str, Any]] = {
    "system": (
        "system",
        Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.")],
    ),
    "model": (
        "model",
        Annotated[str | None, typer.Option(help="Default: the worker's.")],
    ),
    "temperature": (
        "temperature",
        Annotated[float | None, typer.Option(help="0 to 2. Default: the provider's.")],
    ),
    "max_output_tokens": (
        "max_output_tokens",
        Annotated[int | None, typer.Option(help="Most tokens of the answer.")],
    ),
    "metadata": (
        "metadata",
        Annotated[
            list[str] | None,
            typer.Option(metavar="KEY=VALUE", help="A label, kept with each work item. Repeatable."),
        ],
    ),
    "max_retries": (
        "max_retries",
        Annotated[
            int | None,
            typer.Option(
                help="Retries after the first try, 0 to 1000. Default: 3.", rich_help_panel=_RETRIES
            ),
        ],
    ),
    "initial_interval": (
        "retry.initial_interval_seconds",
        Annotated[
            float | None,
            typer.Option(
                parser=seconds, metavar="TIME", help="First backoff. Default: 1s.", rich_help_panel=_RETRIES
            ),
        ],
    ),
    "backoff_coefficient": (
        "retry.backoff_coefficient",
        Annotated[
            float | None,
            typer.Option(help="Each backoff to the one before. Default: 2.", rich_help_panel=_RETRIES),
        ],
    ),
    "maximum_interval": (
        "retry.maximum_interval_seconds",
        Annotated[
            float | None,
            typer.Option(parser=seconds, metavar="TIME", help="Longest backoff.", rich_help_panel=_RETRIES),
        ],
    ),
    "jitter": (
        "retry.jitter",
        Annotated[
            float | None,
            typer.Option(help="Share of a delay added at random. Default: 0.", rich_help_panel=_RETRIES),
        ],
    ),
    "retry_on": (
        "retry.retry_on",
        Annotated[
            Literal["transient", "any"] | None,
            typer.Option(help="Failures that qualify. Default: transient.", rich_help_panel=_RETRIES),
        ],
    ),
    "attempt_timeout": (
        "attempt_timeout_seconds",
        Annotated[
            float | None,
            typer.Option(
                parser=seconds, metavar="TIME", help="Of one AI call. Default: 5m.", rich_help_panel=_TIME
            ),
        ],
    ),
    "heartbeat_timeout": (
        "heartbeat_timeout_seconds",
        Annotated[
            float | None,
            typer.Option(
                parser=seconds,
                metavar="TIME",
                help="How long a silent worker counts as alive. Default: 30s.",
                rich_help_panel=_TIME,
            ),
        ],
    ),
    "queue_timeout": (
        "queue_timeout_seconds",
        Annotated[
            float | None,
            typer.Option(
                parser=seconds,
                metavar="TIME",
                help="How long a call may wait for a worker. Default: any time.",
                rich_help_panel=_TIME,
            ),
        ],
    ),
    "deadline": (
        "deadline_seconds",
        Annotated[
            float | None,
            typer.Option(
                parser=seconds,
                metavar="TIME",
                help="Of the whole task, from its start.",
                rich_help_panel=_TIME,
            ),
        ],
    ),
}
"""By the name of a command's parameter: the field of a request that it sets, and the option."""

TaskId = Annotated[str | None, typer.Option("--id", help="The task's id. Default: a new one.")]
Detach = Annotated[bool, typer.Option("--detach", help="Print the task's id and leave it running.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as JSON.")]
