"""Builds a task's request from the options of `tasq run`: only the options that are set, as plain JSON."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tasquencer.cli.errors import CommandFailed, ExitCode
from tasquencer.core.errors import InvalidRequest

if TYPE_CHECKING:
    from pydantic import JsonValue

__all__ = [
    "DRAFT_OPTIONS",
    "FAN_OUT_OPTIONS",
    "OPTIONS",
    "as_json",
    "check_request",
    "read_json",
    "read_messages",
    "read_metadata",
    "read_prompt",
    "read_prompts",
]

OPTIONS = {
    "prompt": "PROMPT",
    "messages": "--messages",
    "system": "--system",
    "model": "--model",
    "temperature": "--temperature",
    "max_output_tokens": "--max-output-tokens",
    "output_schema": "--output-schema",
    "top_p": "--top-p",
    "seed": "--seed",
    "stop": "--stop",
    "reasoning_effort": "--reasoning-effort",
    "extra_body": "--extra-body",
    "fallback_models": "--fallback-model",
    "fallback_on": "--fallback-on",
    "feedback": "--feedback",
    "max_retries": "--max-retries",
    "retry.initial_interval_seconds": "--initial-interval",
    "retry.backoff_coefficient": "--backoff-coefficient",
    "retry.maximum_interval_seconds": "--maximum-interval",
    "retry.jitter": "--jitter",
    "retry.retry_on": "--retry-on",
    "attempt_timeout_seconds": "--attempt-timeout",
    "heartbeat_timeout_seconds": "--heartbeat-timeout",
    "queue_timeout_seconds": "--queue-timeout",
    "deadline_seconds": "--deadline",
    "metadata": "--metadata",
    "tools": "--tool",
    "tool_choice": "--tool-choice",
    "parallel_tool_calls": "--parallel-tool-calls",
    "max_turns": "--max-turns",
}
"""The fields of a request, and their names on the command line."""

FAN_OUT_OPTIONS = {
    "prompts": "FILE",
    "concurrency": "--concurrency",
    "policy.name": "--policy",
    "policy.limit": "--max-failures",
    "policy.fraction": "--max-failure-fraction",
    "policy.successes": "--successes",
}
"""The fields that only a fan-out has."""

DRAFT_OPTIONS = {
    "max_revisions": "--max-revisions",
    "review_timeout_seconds": "--review-timeout",
    "reminder_seconds": "--reminder",
    "reminder_activity": "--reminder-activity",
    "reminder_task_queue": "--reminder-task-queue",
}
"""The fields that only a reviewed draft has."""

_NAMES = {**OPTIONS, **FAN_OUT_OPTIONS, **DRAFT_OPTIONS}


def read_prompt(prompt: str | None, name: str = "PROMPT") -> str | None:
    """Return the prompt. `-` means standard input, without its last line break.

    Args:
        name: Its name on the command line.
    """
    try:
        text = sys.stdin.buffer.read().decode().rstrip("\r\n") if prompt == "-" else prompt
    except UnicodeDecodeError as error:
        raise _wrong(
            f"{name}: standard input is not UTF-8 text ({error.reason} at byte {error.start:,})"
        ) from None
    if text == "":
        raise _wrong(f"{name}: must not be empty")
    return text


def read_prompts(file: Path) -> list[JsonValue]:
    """Return the prompts in a text file, one per line, without blank lines. `-` means standard input."""
    try:
        text = (sys.stdin.buffer.read() if str(file) == "-" else file.read_bytes()).decode("utf-8-sig")
    except OSError as error:
        raise _wrong(f"FILE: cannot read {str(file)!r}: {error.strerror}") from None
    except UnicodeDecodeError as error:
        raise _wrong(f"FILE: is not UTF-8 text ({error.reason} at byte {error.start:,})") from None
    prompts: list[JsonValue] = [line.strip() for line in re.split(r"\r\n|\n|\r", text) if line.strip()]
    if not prompts:
        raise _wrong(f"FILE: {str(file)!r} has no prompts: write one per line")
    return prompts


def read_messages(file: Path) -> JsonValue:
    """Return the conversation in a JSON file."""
    return read_json(file, "--messages")


def read_json(file: Path, name: str) -> JsonValue:
    """Return the JSON in the file that an option of this name gives."""
    try:
        value: JsonValue = json.loads(file.read_bytes())
    except OSError as error:
        raise _wrong(f"{name}: cannot read {str(file)!r}: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or not JSON
        raise _wrong(f"{name}: {str(file)!r} is not JSON: {error}") from None
    return value


def as_json(text: str, name: str) -> JsonValue:
    """Return the JSON that an option of this name gives."""
    try:
        value: JsonValue = json.loads(text)
    except ValueError as error:
        raise _wrong(f"{name}: not JSON: {error}") from None
    return value


def read_metadata(pairs: Sequence[str]) -> dict[str, JsonValue]:
    """Return the labels in `key=value` pairs."""
    metadata: dict[str, JsonValue] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            raise _wrong(f"--metadata: {pair!r} is not key=value")
        if key in metadata:
            raise _wrong(f"--metadata: {key!r} is given twice")
        metadata[key] = value
    return metadata


def check_request(
    fields: Mapping[str, JsonValue], parse: Callable[[object], object] | None = None
) -> dict[str, JsonValue]:
    """Return the request to send, from its fields by their names in `OPTIONS`, without those that are None.

    Args:
        fields: `retry.jitter` is the field `jitter` of the object `retry`.
        parse: Checks the request. By default, the check of an AI agent task.

    Raises:
        CommandFailed: the request is not valid. The message uses the names of the options.
    """
    from tasquencer.ai.request import parse_request

    request: dict[str, JsonValue] = {}
    for name, value in fields.items():
        outer, _, inner = name.partition(".")
        if value is not None and inner:
            part = request.setdefault(outer, {})
            assert isinstance(part, dict)
            part[inner] = value
        elif value is not None:
            request[name] = value
    try:
        (parse or parse_request)(request)
    except InvalidRequest as invalid:
        raise _wrong("; ".join(_by_option(problem) for problem in invalid.problems)) from None
    return request


def _by_option(problem: str) -> str:
    place, separator, message = problem.partition(": ")
    if not separator:
        return problem
    for name in sorted(_NAMES, key=len, reverse=True):
        if name.startswith("retry.") or "_" in name:  # other words could be ordinary text
            message = re.sub(rf"\b{re.escape(name.removeprefix('retry.'))}\b", _NAMES[name], message)
    message = message.removeprefix("Input ").replace("(or messages)", "(or --messages)")
    options = [_option(part.strip()) for part in place.split(",")]
    named = " and ".join(option for option in options if option)
    return f"{named}: {message}" if named else message


def _option(place: str) -> str:
    if place in ("retry", "policy"):
        return ""
    for name, option in _NAMES.items():
        if place == name:
            return option
        if place.startswith(f"{name}."):
            return f"{option}: {place.removeprefix(f'{name}.')}"
    return place


def _wrong(message: str) -> CommandFailed:
    return CommandFailed(message, ExitCode.USAGE)
