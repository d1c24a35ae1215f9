"""The end of commands: exit codes, and expected errors as one line with the next step."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Coroutine, Sequence
from enum import IntEnum
from functools import partial
from typing import TYPE_CHECKING, Any, NoReturn

import typer
from typer.core import TyperGroup

from tasquencer.cli.output import say
from tasquencer.core.errors import (
    InvalidRequest,
    LedgerUnavailable,
    SchemaMismatch,
    TasquencerError,
    TemporalUnreachable,
    WrongSetting,
    WrongSettings,
)

if TYPE_CHECKING:
    from temporalio.service import RPCError

__all__ = ["CommandFailed", "ErrorReportingGroup", "ExitCode", "complain", "end_with"]


class ExitCode(IntEnum):
    """The outcomes that a program that calls `tasq` can distinguish."""

    COMPLETED = 0
    """Success. The task completed."""
    FAILED = 1
    """The task failed, was canceled or terminated, ran out of time, or does not exist."""
    USAGE = 2
    """The command or the request is wrong. Nothing was sent."""
    UNREACHABLE = 3
    """Temporal or the ledger's database cannot be reached or used."""
    INTERRUPTED = 130
    """Ctrl-C."""


class CommandFailed(Exception):
    """Ends the command with one line on standard error and the exit code."""

    def __init__(self, message: str, code: ExitCode = ExitCode.FAILED) -> None:
        self.code = code
        super().__init__(message)


def complain(message: str) -> None:
    """Write `error: …` on standard error, in one line that cannot control the terminal."""
    say(f"error: {message}")


def end_with(command: Coroutine[Any, Any, ExitCode]) -> NoReturn:
    """Run the command's asynchronous part, and end the command with its exit code."""
    try:
        code = asyncio.run(command)
    except KeyboardInterrupt:
        code = ExitCode.INTERRUPTED
    raise typer.Exit(code)


class ErrorReportingGroup(TyperGroup):
    """A command group that turns expected errors of its commands into one line."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        windows_expand_args: bool = True,
        **extra: Any,
    ) -> Any:
        """Run the command. As a program (`standalone_mode`), end the process with its exit code."""
        run = partial(super().main, args, prog_name, complete_var, False, windows_expand_args, **extra)
        if not standalone_mode:
            return run()
        try:
            code = run() or 0
        except WrongSettings as wrong:
            for problem in wrong.problems:
                complain(str(problem))
            code = ExitCode.USAGE
        except Exception as error:
            explained = _explained(error)
            if explained is None:
                raise
            message, code = explained
            if message:
                complain(message)
        sys.exit(int(code))


def _explained(error: Exception) -> tuple[str, ExitCode] | None:
    """Return the message and exit code for an expected error, or None for a bug."""
    if isinstance(error, CommandFailed):
        return str(error), error.code
    if isinstance(error, typer.Abort):
        return "stopped", ExitCode.FAILED
    if isinstance(error, InvalidRequest | WrongSetting):
        return str(error), ExitCode.USAGE
    if isinstance(error, TemporalUnreachable | LedgerUnavailable):
        return str(error), ExitCode.UNREACHABLE
    if isinstance(error, SchemaMismatch):
        return str(error), ExitCode.UNREACHABLE
    if isinstance(error, TasquencerError):
        return str(error), ExitCode.FAILED
    if isinstance(error, ModuleNotFoundError) and error.name:
        return _missing_part(error.name)
    if (context := getattr(error, "ctx", None)) is not None and hasattr(error, "format_message"):
        problem = error.format_message().rstrip(".")  # empty when the help text has been printed instead
        end = "" if problem.endswith("?") else "."
        return problem and f"{problem}{end} Try '{context.command_path} --help'.", ExitCode.USAGE
    if "temporalio" in sys.modules:
        from temporalio.service import RPCError

        if isinstance(error, RPCError):
            return _explained_answer(error)
    return None


def _missing_part(module: str) -> tuple[str, ExitCode] | None:
    for part, modules in _PARTS.items():
        if module.partition(".")[0] in modules:
            return (
                f"{module} is not installed: pip install 'tasquencer[{part}]'",
                ExitCode.FAILED,
            )
    return None


_PARTS = {
    "worker": {"alembic", "asyncpg", "httpx2", "openai", "platformdirs", "sqlalchemy"},
    "devkit": {"h11", "xllamacpp"},
}
"""Modules of the package's optional parts."""


def _explained_answer(error: RPCError) -> tuple[str, ExitCode]:
    from temporalio.service import RPCStatusCode as Status

    from tasquencer.temporal.not_found import is_missing_namespace

    message = error.message.rstrip(".")
    match error.status:
        case Status.NOT_FOUND if is_missing_namespace(error):
            hint = "set TEMPORAL_NAMESPACE, or create it: temporal operator namespace create"
            return f"Temporal: {message} ({hint})", ExitCode.UNREACHABLE
        case Status.UNAVAILABLE | Status.DEADLINE_EXCEEDED | Status.CANCELLED | Status.RESOURCE_EXHAUSTED:
            return f"Temporal does not answer: {message} (started tasks continue)", ExitCode.UNREACHABLE
        case Status.UNAUTHENTICATED | Status.PERMISSION_DENIED:
            hint = "check TEMPORAL_API_KEY or the TLS settings"
            return f"Temporal refuses the credentials: {message} ({hint})", ExitCode.UNREACHABLE
        case Status.INVALID_ARGUMENT:
            return f"Temporal refuses the request: {message}", ExitCode.USAGE
        case _:
            return f"Temporal: {message}", ExitCode.FAILED
