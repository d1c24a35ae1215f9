"""Options that several commands share: AI calls, policies, output."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from tasquencer.cli.request import as_json, read_json, read_metadata
from tasquencer.cli.times import parse_duration

__all__ = [
    "Calls",
    "Detach",
    "Json",
    "Policy",
    "TaskId",
    "seconds",
    "with_call_options",
    "with_policy_options",
    "with_tool_options",
]

_RETRIES = "Retries"
_TIME = "Time limits"
_TOOLS = "Tools"
_POLICY = "Policy"

Calls = dict[str, Any]
"""The fields of a request about AI calls, from the options, by name."""

Tools = dict[str, Any]
"""What the options say about the tools of a request: its fields by name."""

Policy = dict[str, Any]
"""The fields of a request about the policy, from the options, by name."""

_Option = tuple[str, Any]
"""A field of a request and its option."""

_Command = Callable[..., None]


def with_call_options(command: _Command) -> _Command:
    """Give the command all options about AI calls. It receives them together as its parameter `calls`."""

    def read(calls: Calls) -> Calls:
        schema, extra = calls["output_schema"], calls["extra_body"]
        return {
            **calls,
            "metadata": read_metadata(calls["metadata"] or ()) or None,
            "output_schema": None if schema is None else read_json(schema, "--output-schema"),
            "extra_body": None if extra is None else as_json(extra, "--extra-body"),
            **{name: calls[name] or None for name in ("stop", "fallback_models", "fallback_on")},
        }

    return _with_options(command, "calls", _CALL_OPTIONS, read)


def with_tool_options(command: _Command) -> _Command:
    """Give the command all options about tools; it takes them together, as its parameter `tools`."""

    def read(tools: Tools) -> Tools:
        return {**tools, "tools": tools["tools"] or None}

    return _with_options(command, "tools", _TOOL_OPTIONS, read)


def with_policy_options(*, whole: str, parts: str) -> Callable[[_Command], _Command]:
    """Give a command all options about policies. It receives them together as its parameter `policy`.

    Args:
        whole: The subject of the policy for the help text: a task, a batch.
        parts: The parts that may fail: prompts, rows.
    """

    def read(policy: Policy) -> Policy:
        if policy["policy.name"] is None and policy["policy.successes"] is not None:
            return {**policy, "policy.name": "require_successes"}
        return policy

    return lambda command: _with_options(command, "policy", _policy_options(whole, parts), read)


def _with_options(
    command: _Command,
    together: str,
    options: dict[str, _Option],
    read: Callable[[dict[str, Any]], dict[str, Any]],
) -> _Command:
    """Return the command with these options instead of its parameter `together`."""
    own = inspect.signature(command, eval_str=True)
    parameters: list[inspect.Parameter] = []
    for parameter in own.parameters.values():
        if parameter.name == together:
            parameters += [
                inspect.Parameter(name, parameter.kind, default=None, annotation=option)
                for name, (_, option) in options.items()
            ]
        else:
            parameters.append(parameter)

    @functools.wraps(command)
    def run(**given: Any) -> None:
        fields = {field: given.pop(name) for name, (field, _) in options.items()}
        command(**given, **{together: read(fields)})

    run.__signature__ = own.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {parameter.name: parameter.annotation for parameter in parameters}
    return run


def seconds(text: str) -> float:
    """Read a duration on the command line. Raises `BadParameter`."""
    try:
        return parse_duration(text)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from None


_TOOL_OPTIONS: dict[str, _Option] = {
    "tool": (
        "tools",
        Annotated[
            list[str] | None,
            typer.Option(
                metavar="NAME",
                help="A tool of the worker that the model may call. Repeatable.",
                rich_help_panel=_TOOLS,
            ),
        ],
    ),
    "tool_choice": (
        "tool_choice",
        Annotated[
            str | None,
            typer.Option(help="auto, none, required, or a tool's name.", rich_help_panel=_TOOLS),
        ],
    ),
    "parallel_tool_calls": (
        "parallel_tool_calls",
        Annotated[
            bool | None,
            typer.Option(help="May one answer call several tools?", rich_help_panel=_TOOLS),
        ],
    ),
    "max_turns": (
        "max_turns",
        Annotated[
            int | None,
            typer.Option(
                help="How often the model may be asked, 1 to 100. Default: 20.", rich_help_panel=_TOOLS
            ),
        ],
    ),
}


_CALL_OPTIONS: dict[str, _Option] = {
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
        Annotated[int | None, typer.Option(help="The maximum tokens of the answer.")],
    ),
    "output_schema": (
        "output_schema",
        Annotated[
            Path | None,
            typer.Option(metavar="FILE", help="A JSON Schema that the answer must satisfy, as JSON."),
        ],
    ),
    "top_p": ("top_p", Annotated[float | None, typer.Option(help="0 to 1.")]),
    "seed": ("seed", Annotated[int | None, typer.Option(help="For answers that repeat.")]),
    "stop": (
        "stop",
        Annotated[list[str] | None, typer.Option(help="A text that ends the answer. Repeatable.")],
    ),
    "reasoning_effort": (
        "reasoning_effort",
        Annotated[str | None, typer.Option(help="Such as low, medium or high.")],
    ),
    "extra_body": (
        "extra_body",
        Annotated[
            str | None,
            typer.Option(metavar="JSON", help="Further fields of the request to the provider."),
        ],
    ),
    "fallback_model": (
        "fallback_models",
        Annotated[
            list[str] | None,
            typer.Option(
                metavar="[PROVIDER:]MODEL",
                help="The model that the next attempt asks after a failure. Repeatable.",
                rich_help_panel=_RETRIES,
            ),
        ],
    ),
    "fallback_on": (
        "fallback_on",
        Annotated[
            list[str] | None,
            typer.Option(
                metavar="KIND",
                help="A kind of failure after which it does. Repeatable. Default: nearly all.",
                rich_help_panel=_RETRIES,
            ),
        ],
    ),
    "feedback": (
        "feedback",
        Annotated[
            bool | None,
            typer.Option(
                help="Tell the model what was wrong with an invalid answer?", rich_help_panel=_RETRIES
            ),
        ],
    ),
    "metadata": (
        "metadata",
        Annotated[
            list[str] | None,
            typer.Option(metavar="KEY=VALUE", help="A label that each work item keeps. Repeatable."),
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
            typer.Option(
                help="Each backoff is this many times the previous one. Default: 2.", rich_help_panel=_RETRIES
            ),
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
            typer.Option(
                help="The maximum part of a delay that is added at random. Default: 0.",
                rich_help_panel=_RETRIES,
            ),
        ],
    ),
    "retry_on": (
        "retry.retry_on",
        Annotated[
            Literal["transient", "any"] | None,
            typer.Option(
                help="Failures that qualify for a retry. Default: transient.", rich_help_panel=_RETRIES
            ),
        ],
    ),
    "attempt_timeout": (
        "attempt_timeout_seconds",
        Annotated[
            float | None,
            typer.Option(
                parser=seconds,
                metavar="TIME",
                help="The timeout of one AI call. Default: 5m.",
                rich_help_panel=_TIME,
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
                help="How long a call may wait for a worker. Default: no limit.",
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
                help="The time for the whole task, from its start.",
                rich_help_panel=_TIME,
            ),
        ],
    ),
}
"""Options by the name of the command's parameter."""


def _policy_options(whole: str, parts: str) -> dict[str, _Option]:
    names = Literal["absorb_failures", "require_successes", "until_exhausted", "fail_fast"]
    about: dict[str, tuple[Any, str]] = {
        "policy": (names, f"When the {whole} completes or fails. Default: absorb_failures."),
        "max_failures": (int, f"{parts.capitalize()} that may fail. Default: any number."),
        "max_failure_fraction": (float, f"The part of the {parts} that may fail, 0 to 1."),
        "successes": (int, "Answers that require_successes needs."),
    }
    fields = ("policy.name", "policy.limit", "policy.fraction", "policy.successes")
    return {
        name: (field, Annotated[kind | None, typer.Option(help=text, rich_help_panel=_POLICY)])
        for field, (name, (kind, text)) in zip(fields, about.items(), strict=True)
    }


TaskId = Annotated[str | None, typer.Option("--id", help="The task's id. Default: a new one.")]
Detach = Annotated[bool, typer.Option("--detach", help="Print the task's id and leave it running.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result, or the error, as JSON.")]
