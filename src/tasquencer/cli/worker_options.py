"""The command line of a worker: its options, its log and the end of its process.

An application's `worker.py` uses the options that it wants, and adds its own:

    def main(concurrent_calls: ConcurrentCalls = 100, log_level: LogLevelOption = LogLevel.INFO) -> None:
        set_up_logging(log_level)
        with errors_as_exit_status():
            asyncio.run(serve(…))

    run_program(main)
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import Annotated, NoReturn

import typer
from typer.exceptions import TyperException

from tasquencer.cli.environment import checked_settings
from tasquencer.cli.log_format import LogFormatter
from tasquencer.cli.output import say
from tasquencer.core.errors import LedgerError, TasquencerError, TemporalUnreachable, WrongSettings
from tasquencer.temporal.running import PARENT_PIPE
from tasquencer.temporal.versioning import Versioning

__all__ = [
    "BuildId",
    "CallsPerSecond",
    "ConcurrentCalls",
    "DeploymentName",
    "GracePeriod",
    "HeartbeatInterval",
    "LogLevel",
    "LogLevelOption",
    "MetricsAddress",
    "Processes",
    "ReconcileEvery",
    "VersioningOption",
    "errors_as_exit_status",
    "run_program",
    "set_up_logging",
]


class LogLevel(StrEnum):
    """How much the worker logs."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


Processes = Annotated[
    int,
    typer.Option(
        "--processes",
        envvar="TASQ_PROCESSES",
        min=1,
        help="Processes of this worker. One process uses one core. If one ends unexpectedly, the others stop "
        "and the exit status is not 0.",
    ),
]
ConcurrentCalls = Annotated[
    int,
    typer.Option(
        envvar="TASQ_CONCURRENT_CALLS",
        min=1,
        help="AI calls that each process of this worker makes at the same time.",
    ),
]
CallsPerSecond = Annotated[
    float | None,
    typer.Option(
        envvar="TASQ_CALLS_PER_SECOND",
        min=0.001,
        help="AI calls per second on the whole task queue. Give every worker the same value, because the "
        "last one to poll decides. Temporal divides it among the partitions of the queue (by default "
        "four), and each may begin with a call. Default: no limit.",
    ),
]
GracePeriod = Annotated[
    float,
    typer.Option(
        envvar="TASQ_GRACE_PERIOD",
        min=0,
        help="Seconds that running calls may still take after SIGTERM or SIGINT. Default: as long as an "
        "attempt may take.",
    ),
]
HeartbeatInterval = Annotated[
    float,
    typer.Option(
        envvar="TASQ_HEARTBEAT_INTERVAL",
        min=0.1,
        help="Seconds between two heartbeats of a call, where the server does not push cancels. A cancel may "
        "take this long to reach the call. Each heartbeat is a billable action on Temporal Cloud.",
    ),
]
MetricsAddress = Annotated[
    str | None,
    typer.Option(
        envvar="TASQ_METRICS_ADDRESS",
        help="Serve Prometheus metrics at this address, such as 127.0.0.1:9464. With several processes, each "
        "further process takes the next port.",
    ),
]
LogLevelOption = Annotated[
    LogLevel, typer.Option(envvar="TASQ_LOG_LEVEL", case_sensitive=False, help="How much to log.")
]
DeploymentName = Annotated[
    str,
    typer.Option(
        envvar="TEMPORAL_DEPLOYMENT_NAME",
        help="The name of the deployment. Turns worker versioning on, and needs --build-id.",
    ),
]
BuildId = Annotated[
    str,
    typer.Option(envvar="TEMPORAL_WORKER_BUILD_ID", help="The version of the code in that deployment."),
]
VersioningOption = Annotated[
    Versioning,
    typer.Option(
        envvar="TASQ_VERSIONING",
        help="With versioning: a task stays on its first build (pinned) or moves to the current one.",
    ),
]
ReconcileEvery = Annotated[
    float,
    typer.Option(
        envvar="TASQ_RECONCILE_EVERY",
        min=0,
        help="Seconds between two runs of the schedule that cancels work items that closed tasks have left "
        "open. The worker creates the schedule if it does not exist. 0: do not create it.",
    ),
]


def set_up_logging(level: LogLevel) -> None:
    """Log to standard error, without lines of other packages that may contain credentials."""
    handler = logging.StreamHandler()
    process = " [%(process)d]" if PARENT_PIPE in os.environ else ""  # several processes share the stream
    handler.setFormatter(LogFormatter(f"%(asctime)s{process} %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(level=level.value, handlers=[handler])
    for name in ("httpx2", "httpcore2", "openai"):  # they log URLs and headers
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)


@contextmanager
def errors_as_exit_status() -> Iterator[None]:
    """Report an expected error of the block in one line and end the process.

    The exit status is 3 if Temporal or the database cannot be reached or used, and 2 if a setting is wrong.
    """
    try:
        yield
    except WrongSettings as wrong:
        for problem in wrong.problems:
            say(f"error: {problem}")
        raise SystemExit(2) from wrong
    except TasquencerError as error:
        say(f"error: {error}")
        raise SystemExit(3 if isinstance(error, LedgerError | TemporalUnreachable) else 2) from error


def run_program(main: Callable[..., None], *, provider: bool = True) -> NoReturn:
    """Run `main` with the options of the command line, and end the process.

    A wrong option is reported first, then all wrong settings of the environment. Both end the process with
    status 2.

    Args:
        main: Runs the worker.
        provider: True if the worker calls a model and needs the provider's settings.
    """
    status: object = 0
    try:
        if "--help" not in sys.argv and _takes(main, sys.argv[1:]):
            with errors_as_exit_status():
                checked_settings(provider=provider)
        typer.run(main)
    except SystemExit as end:
        status = end.code or 0
    # While the interpreter shuts down, a thread of the SDK may block or abort it (temporalio/sdk-python#300),
    # and a supervisor would not restart the worker.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status if isinstance(status, int) else 1)


def _takes(main: Callable[..., None], arguments: list[str]) -> bool:
    """Return whether the options of the command line are valid, without those from the environment."""
    program = typer.Typer(add_completion=False)
    program.command()(main)
    command = typer.main.get_command(program)
    for option in command.params:
        option.envvar = None
    try:
        command.make_context("worker", list(arguments))
    except TyperException:
        return False
    return True
