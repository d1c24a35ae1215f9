"""The options that every command which starts AI calls has."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from tasquencer.cli.request import read_metadata
from tasquencer.cli.times import parse_duration

if TYPE_CHECKING:
    from pydantic import JsonValue

_RETRIES = "Retries"
_TIME = "Time limits"

_FIELDS = {
    "system": "system",
    "model": "model",
    "temperature": "temperature",
    "max_output_tokens": "max_output_tokens",
    "max_retries": "max_retries",
    "initial_interval": "retry.initial_interval_seconds",
    "backoff_coefficient": "retry.backoff_coefficient",
    "maximum_interval": "retry.maximum_interval_seconds",
    "jitter": "retry.jitter",
    "retry_on": "retry.retry_on",
    "attempt_timeout": "attempt_timeout_seconds",
    "heartbeat_timeout": "heartbeat_timeout_seconds",
    "queue_timeout": "queue_timeout_seconds",
    "deadline": "deadline_seconds",
}
"""The fields of a request, by the parameter of a command that sets them."""


def call_fields(parameters: Mapping[str, Any]) -> dict[str, JsonValue]:
    """What these options say about the AI calls of a request.

    Args:
        parameters: All parameters of the command, by name.
    """
    fields = {field: parameters[name] for name, field in _FIELDS.items()}
    return {**fields, "metadata": read_metadata(parameters["metadata"] or ()) or None}


def seconds(text: str) -> float:
    """A duration on the command line. Raises `BadParameter`."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


System = Annotated[str | None, typer.Option(metavar="TEXT", help="System prompt.")]
Model = Annotated[str | None, typer.Option(help="Default: the worker's.")]
Temperature = Annotated[float | None, typer.Option(help="0 to 2. Default: the provider's.")]
MaxOutputTokens = Annotated[int | None, typer.Option(help="Most tokens of the answer.")]
Metadata = Annotated[
    list[str] | None,
    typer.Option(metavar="KEY=VALUE", help="A label, kept with each work item. Repeatable."),
]
MaxRetries = Annotated[
    int | None,
    typer.Option(help="Retries after the first try, 0 to 1000. Default: 3.", rich_help_panel=_RETRIES),
]
InitialInterval = Annotated[
    float | None,
    typer.Option(
        parser=seconds, metavar="TIME", help="First backoff. Default: 1s.", rich_help_panel=_RETRIES
    ),
]
BackoffCoefficient = Annotated[
    float | None,
    typer.Option(help="Each backoff to the one before. Default: 2.", rich_help_panel=_RETRIES),
]
MaximumInterval = Annotated[
    float | None,
    typer.Option(parser=seconds, metavar="TIME", help="Longest backoff.", rich_help_panel=_RETRIES),
]
Jitter = Annotated[
    float | None,
    typer.Option(help="Share of a delay added at random. Default: 0.", rich_help_panel=_RETRIES),
]
RetryOnOption = Annotated[
    Literal["transient", "any"] | None,
    typer.Option(help="Failures that qualify. Default: transient.", rich_help_panel=_RETRIES),
]
AttemptTimeout = Annotated[
    float | None,
    typer.Option(parser=seconds, metavar="TIME", help="Of one AI call. Default: 5m.", rich_help_panel=_TIME),
]
HeartbeatTimeout = Annotated[
    float | None,
    typer.Option(
        parser=seconds,
        metavar="TIME",
        help="How long a silent worker counts as alive. Default: 30s.",
        rich_help_panel=_TIME,
    ),
]
QueueTimeout = Annotated[
    float | None,
    typer.Option(
        parser=seconds,
        metavar="TIME",
        help="How long a call may wait for a worker. Default: any time.",
        rich_help_panel=_TIME,
    ),
]
Deadline = Annotated[
    float | None,
    typer.Option(
        parser=seconds, metavar="TIME", help="Of the whole task, from its start.", rich_help_panel=_TIME
    ),
]
TaskId = Annotated[str | None, typer.Option("--id", help="The task's id. Default: a new one.")]
Detach = Annotated[bool, typer.Option("--detach", help="Print the task's id and leave it running.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as JSON.")]
