"""The worker process: settings → ledger → plugin → Worker.

Polls the task queue, carries out tasks and makes the AI calls. Stop it with SIGTERM or SIGINT: it
takes no new work and lets the calls under way end; a second signal stops it at once.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from enum import StrEnum
from typing import Annotated

import openai
import typer
from temporalio.client import Client
from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.runtime import LoggingConfig, PrometheusConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError
from temporalio.worker import Worker, WorkerDeploymentConfig

from activities import ACTIVITIES
from tasquencer.ai.provider.client import client_from
from tasquencer.core.errors import LedgerError, TasquencerError, TemporalUnreachable, WrongSetting
from tasquencer.settings import Settings
from tasquencer.sql import SqlLedger
from tasquencer.temporal import TasquencerPlugin, connect
from tasquencer.temporal.ai_calls import HEARTBEAT_INTERVAL, AiCalls
from tasquencer.temporal.connection import check_namespace, report_outages
from tasquencer.temporal.schedules import create_schedule, schedule_id
from workflows import WORKFLOWS

_STICKY_TIMEOUT = timedelta(seconds=2)
"""How long Temporal waits for a lost worker to take up its tasks before another one may."""

_SCHEDULING_SECONDS = 60
"""How long a worker tries to create the schedule of the reconciler."""

_QUIET_EXIT = 0.5
"""Seconds between the end of the Worker and that of the process: without them the interpreter sometimes
dies with `PyGILState_Release` (temporalio/sdk-python#300)."""

_SDK_LOG = ",".join(
    [
        TelemetryFilter(core_level="WARN", other_level="ERROR").formatted(),
        "temporalio_client::retry=error",
        "temporalio_sdk_core::worker::activities::activity_heartbeat_manager=error",
        "temporalio_sdk_core::worker::workflow=error",
    ]
)
"""What the SDK logs by itself: its default, without a line for each call and task that waits in an outage.
`report_outages` and the bookkeeping say once what the matter is."""

_log = logging.getLogger("tasquencer.worker")


@contextmanager
def _setting(name: str) -> Iterator[None]:
    try:
        yield
    except ValueError as error:
        raise WrongSetting(name, str(error)) from error


class Versioning(StrEnum):
    """Which worker a task goes on with, where the workers have versions."""

    PINNED = "pinned"
    """Always one with the build that it began on."""
    AUTO_UPGRADE = "auto-upgrade"
    """One with the current build."""


@dataclass(frozen=True)
class Version:
    """This worker's version, as Temporal's Worker Versioning knows it."""

    deployment_name: str
    build_id: str
    versioning: Versioning

    def __str__(self) -> str:
        return f"build {self.build_id!r} of deployment {self.deployment_name!r} ({self.versioning})"

    @classmethod
    def of(cls, deployment_name: str, build_id: str, versioning: Versioning) -> Version | None:
        """The version that the settings give; None without a name and a build. Raises `WrongSetting`."""
        if bool(deployment_name) != bool(build_id):
            given, missing = ("TEMPORAL_DEPLOYMENT_NAME", "TEMPORAL_WORKER_BUILD_ID")
            if build_id:
                given, missing = missing, given
            raise WrongSetting(missing, f"must be set too where {given} is")
        if deployment_name.startswith("__") or set(".:") & set(deployment_name):
            # Temporal refuses it, but the worker would not end: it would wait for tasks in vain.
            problem = f"{deployment_name!r} begins with '__' or contains '.' or ':': Temporal refuses that"
            raise WrongSetting("TEMPORAL_DEPLOYMENT_NAME", problem)
        return cls(deployment_name, build_id, versioning) if build_id else None

    def config(self) -> WorkerDeploymentConfig:
        """As the SDK takes it."""
        pinned = self.versioning is Versioning.PINNED
        return WorkerDeploymentConfig(
            version=WorkerDeploymentVersion(self.deployment_name, self.build_id),
            use_worker_versioning=True,
            default_versioning_behavior=(
                VersioningBehavior.PINNED if pinned else VersioningBehavior.AUTO_UPGRADE
            ),
        )


class LogLevel(StrEnum):
    """How much the worker logs."""

    DEBUG = "DEBUG"
    INFO = "INFO"
    WARNING = "WARNING"
    ERROR = "ERROR"


@dataclass(frozen=True)
class Tuning:
    """How much the worker takes on, and how it lets go."""

    concurrent_calls: int
    calls_per_second: float | None
    grace_period: timedelta
    metrics_address: str | None
    version: Version | None = None
    reconcile_every: timedelta | None = None
    heartbeat_interval: timedelta = HEARTBEAT_INTERVAL


def main(
    concurrent_calls: Annotated[
        int, typer.Option(envvar="TASQ_CONCURRENT_CALLS", min=1, help="AI calls this worker makes at once.")
    ] = 100,
    calls_per_second: Annotated[
        float | None,
        typer.Option(
            envvar="TASQ_CALLS_PER_SECOND",
            min=0.001,
            help="AI calls a second on the whole task queue. Tell every worker the same: the last to poll "
            "decides. Temporal divides it among the partitions of the queue (four unless configured), and "
            "lets each begin with a call. Default: no limit.",
        ),
    ] = None,
    grace_period: Annotated[
        float,
        typer.Option(
            envvar="TASQ_GRACE_PERIOD",
            min=0,
            help="Seconds that calls under way have to end after SIGTERM or SIGINT; by default as long as an "
            "attempt may take.",
        ),
    ] = 300,
    heartbeat_interval: Annotated[
        float,
        typer.Option(
            envvar="TASQ_HEARTBEAT_INTERVAL",
            min=0.1,
            help="Seconds between two heartbeats of a call: so long a cancel may take to reach it. Each is a "
            "billable action on Temporal Cloud.",
        ),
    ] = HEARTBEAT_INTERVAL.total_seconds(),
    metrics_address: Annotated[
        str | None,
        typer.Option(
            envvar="TASQ_METRICS_ADDRESS", help="Serve Prometheus metrics there, for example 127.0.0.1:9464."
        ),
    ] = None,
    log_level: Annotated[
        LogLevel, typer.Option(envvar="TASQ_LOG_LEVEL", case_sensitive=False, help="How much is logged.")
    ] = LogLevel.INFO,
    deployment_name: Annotated[
        str,
        typer.Option(
            envvar="TEMPORAL_DEPLOYMENT_NAME",
            help="Turn worker versioning on: the name of the deployment. Needs --build-id too.",
        ),
    ] = "",
    build_id: Annotated[
        str,
        typer.Option(envvar="TEMPORAL_WORKER_BUILD_ID", help="The version of the code in that deployment."),
    ] = "",
    versioning: Annotated[
        Versioning,
        typer.Option(
            envvar="TASQ_VERSIONING",
            help="With versioning: a task ends on the build that it began on, or moves to the current one.",
        ),
    ] = Versioning.PINNED,
    reconcile_every: Annotated[
        float,
        typer.Option(
            envvar="TASQ_RECONCILE_EVERY",
            min=0,
            help="Seconds between two runs of the schedule that settles what closed tasks have left open. "
            "Created if it is not there; 0: do not.",
        ),
    ] = 300,
) -> None:
    """Run AI agent tasks: poll the task queue until told to stop.

    Settings from the environment: TASQ_DATABASE_URL, TASQ_MODEL, TASQ_TASK_QUEUE; OPENAI_API_KEY,
    OPENAI_BASE_URL; TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE, TEMPORAL_PROFILE and the other settings
    of the temporal CLI.

    Example: OPENAI_BASE_URL=http://127.0.0.1:11434/v1 TASQ_MODEL=llama3.2 python worker.py
    """
    logging.basicConfig(level=log_level.value, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for name in ("httpx2", "httpcore2", "openai"):  # they log URLs and headers, which may hold credentials
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("alembic").setLevel(logging.WARNING)
    settings = Settings.from_environment(os.environ)
    try:
        tuning = Tuning(
            concurrent_calls,
            calls_per_second,
            timedelta(seconds=grace_period),
            metrics_address,
            Version.of(deployment_name, build_id, versioning),
            timedelta(seconds=max(1.0, reconcile_every)) if reconcile_every else None,
            timedelta(seconds=heartbeat_interval),
        )
        status = asyncio.run(serve(settings, tuning))
    except TasquencerError as error:
        print("error:", " ".join(str(error).split()), file=sys.stderr)
        status = 3 if isinstance(error, LedgerError | TemporalUnreachable) else 2
    raise SystemExit(status)


async def serve(settings: Settings, tuning: Tuning) -> int:
    """Run a worker until a signal asks for its end; the process's exit status."""
    stop = _stop_on_signals()
    async with client_from(os.environ) as provider:
        with _setting("TASQ_DATABASE_URL"):
            ledger = SqlLedger(settings.database_url)
        with _setting("TASQ_METRICS_ADDRESS"):
            runtime = _runtime(tuning.metrics_address)
        calls = AiCalls(provider, settings.model, heartbeat_interval=tuning.heartbeat_interval)
        client = await connect(plugins=[TasquencerPlugin(ledger, calls=calls)], runtime=runtime)
        await check_namespace(client)
        worker = _worker(client, settings, tuning)
        running = asyncio.create_task(worker.run())
        while not worker.is_running and not running.done():
            await asyncio.sleep(0.01)
        if worker.is_running:
            _freeze()
            print(_ready_line(client, provider, ledger, settings, tuning), flush=True)
        scheduling = asyncio.create_task(_schedule_reconciliation(client, settings, tuning))
        watching = asyncio.create_task(report_outages(client))
        await asyncio.wait({running, stop}, return_when=asyncio.FIRST_COMPLETED)
        scheduling.cancel()
        watching.cancel()
        if stop.done():
            _log.info("stopping: calls under way have %g s to end", tuning.grace_period.total_seconds())
            await worker.shutdown()
        try:
            await running
        except RuntimeError as error:
            if "validation failed" not in str(error):
                raise
            problem = str(error).partition("message: ")[2].partition('",')[0].strip('"') or str(error)
            raise WrongSetting("TEMPORAL_NAMESPACE", problem) from error
    await asyncio.sleep(_QUIET_EXIT)
    return 0


def _worker(client: Client, settings: Settings, tuning: Tuning) -> Worker:
    return Worker(
        client,
        task_queue=settings.task_queue,
        workflows=WORKFLOWS,
        activities=ACTIVITIES,
        deployment_config=None if tuning.version is None else tuning.version.config(),
        max_concurrent_activities=tuning.concurrent_calls,
        max_task_queue_activities_per_second=tuning.calls_per_second,
        graceful_shutdown_timeout=tuning.grace_period,
        sticky_queue_schedule_to_start_timeout=_STICKY_TIMEOUT,
        # A cancel is only seen at a heartbeat that really goes out.
        max_heartbeat_throttle_interval=tuning.heartbeat_interval,
        default_heartbeat_throttle_interval=tuning.heartbeat_interval,
    )


async def _schedule_reconciliation(client: Client, settings: Settings, tuning: Tuning) -> None:
    """Create the schedule of the reconciler unless there is one. A worker that may not do so goes on."""
    if tuning.reconcile_every is None:
        return
    name = schedule_id(settings.task_queue)
    try:
        async with asyncio.timeout(_SCHEDULING_SECONDS):
            if await create_schedule(client, settings.task_queue, tuning.reconcile_every):
                _log.info("created schedule %s: it settles what closed tasks have left open", name)
    except (RPCError, TimeoutError) as error:
        _log.warning(
            "cannot create schedule %s, which settles what closed tasks have left open: %s "
            "(run `tasq reconcile` now and then, or set TASQ_RECONCILE_EVERY=0)",
            name,
            error if isinstance(error, RPCError) else "no answer in time",
        )


def _runtime(metrics_address: str | None) -> Runtime:
    metrics = PrometheusConfig(bind_address=metrics_address) if metrics_address is not None else None
    return Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(_SDK_LOG), metrics=metrics))


def _freeze() -> None:
    """Let the garbage collector pass over all that is loaded by now, which stays anyway.

    Else nothing moves for a tenth of a second each time that it looks through all of it (0.13 s, now 0.02 s).
    """
    gc.collect()
    gc.freeze()


def _ready_line(
    client: Client, provider: openai.AsyncOpenAI, ledger: SqlLedger, settings: Settings, tuning: Tuning
) -> str:
    return (
        f"tasq worker ready: polls {settings.task_queue!r} at {client.service_client.config.target_host} "
        f"(namespace {client.namespace}); ledger {ledger.database}; model {settings.model} "
        f"at {provider.base_url.host}; {tuning.concurrent_calls} calls at once"
        + (f"; {tuning.version}" if tuning.version is not None else "")
    )


def _stop_on_signals() -> asyncio.Future[None]:
    loop = asyncio.get_running_loop()
    stop = loop.create_future()

    def on_signal(number: int) -> None:
        if stop.done():
            print("second signal: stopping at once", file=sys.stderr, flush=True)
            os._exit(128 + number)
        stop.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    return stop


def run() -> None:
    """Be the program: run with the options of the command line, and end the process."""
    try:
        typer.run(main)
    except SystemExit as end:
        # While the interpreter shuts down, a thread of the SDK may hold it up or abort it
        # (temporalio/sdk-python#300); nobody would start the worker again.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(end.code if isinstance(end.code, int) else 1)


if __name__ == "__main__":
    run()
