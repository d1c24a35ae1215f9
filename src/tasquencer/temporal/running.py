"""The worker process around its `Worker`, from the start to the signal that stops it."""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta

from temporalio.client import Client
from temporalio.runtime import LoggingConfig, PrometheusConfig, Runtime, TelemetryConfig, TelemetryFilter
from temporalio.service import RPCError
from temporalio.worker import Worker

from tasquencer.core.errors import WrongSetting
from tasquencer.settings import named_setting
from tasquencer.temporal.ai_calls import HEARTBEAT_INTERVAL
from tasquencer.temporal.cancels import are_pushed, described
from tasquencer.temporal.connection import report_outages
from tasquencer.temporal.schedules import create_schedule, schedule_id
from tasquencer.temporal.versioning import Version

__all__ = [
    "PARENT_PIPE",
    "STICKY_TIMEOUT",
    "Tuning",
    "run_worker",
    "schedule_reconciliation",
    "stop_on_signals",
    "worker_runtime",
]

PARENT_PIPE = "_TASQUENCER_PARENT_PIPE"
"""The environment variable that gives a worker process the descriptor of a pipe from its parent. The process
stops when the pipe closes."""

STICKY_TIMEOUT = timedelta(seconds=2)
"""How long Temporal waits for a lost worker before another one may continue its tasks."""

_SAME_SIGNAL_SECONDS = 0.25
"""How long a process waits for a signal of its own after its parent has stopped. A service manager may signal
both, and the later one must not count as the second signal."""

_SCHEDULING_SECONDS = 60
"""How long a worker tries to create the schedule of the reconciler."""

_QUIET_EXIT = 0.5
"""Seconds between the end of the Worker and the end of the process. Without them the interpreter sometimes
dies with `PyGILState_Release` (temporalio/sdk-python#300)."""

_STALL_SECONDS = 9
"""How long a workflow may compute before the SDK calls it a deadlock: a little less than the ten seconds that
Temporal gives a workflow task. A burst of large requests shares one interpreter, so the SDK's two seconds
could pass for all of them again and again."""

_SDK_LOG = ",".join(
    [
        TelemetryFilter(core_level="WARN", other_level="ERROR").formatted(),
        "temporalio_client::retry=error",
        "temporalio_sdk_core::worker::activities::activity_heartbeat_manager=error",
        "temporalio_sdk_core::worker::workflow=error",
    ]
)
"""The SDK's default log filter, without a line for each call and task that waits in an outage.
`report_outages` and the bookkeeping report an outage once."""

_log = logging.getLogger("tasquencer.worker")


@dataclass(frozen=True)
class Tuning:
    """The load of a worker, and the way it stops.

    Attributes:
        concurrent_calls: AI calls, and other activities, that it runs at the same time.
        calls_per_second: The limit for the whole task queue. None: no limit.
        grace_period: How long running calls may still take after a signal.
        metrics_address: Host and port for Prometheus metrics. None: do not serve metrics.
        version: The version for Worker Versioning. None: no versioning.
        reconcile_every: The interval of the reconciler's schedule. None: create no schedule.
        heartbeat_interval: Time between two heartbeats of a call.
    """

    concurrent_calls: int = 100
    calls_per_second: float | None = None
    grace_period: timedelta = timedelta(seconds=300)
    metrics_address: str | None = None
    version: Version | None = None
    reconcile_every: timedelta | None = None
    heartbeat_interval: timedelta = HEARTBEAT_INTERVAL


def worker_runtime(metrics_address: str | None) -> Runtime:
    """Return a runtime with the worker's log filter and, if there is an address, Prometheus metrics.

    Raises:
        WrongSetting: nothing can listen on the address.
    """
    metrics = PrometheusConfig(bind_address=metrics_address) if metrics_address is not None else None
    with named_setting("TASQ_METRICS_ADDRESS"):
        return Runtime(telemetry=TelemetryConfig(logging=LoggingConfig(_SDK_LOG), metrics=metrics))


def stop_on_signals() -> asyncio.Future[None]:
    """Return a future that SIGTERM, SIGINT or the end of a parent's pipe completes.

    A second signal ends the process immediately. See `PARENT_PIPE`.
    """
    loop = asyncio.get_running_loop()
    stop = loop.create_future()

    def on_signal(number: int) -> None:
        if stop.done():
            print("second signal: stopping immediately", file=sys.stderr, flush=True)
            os._exit(128 + number)
        stop.set_result(None)

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    if pipe := os.environ.pop(PARENT_PIPE, ""):
        _stop_with_parent(stop, int(pipe))
    return stop


def _stop_with_parent(stop: asyncio.Future[None], pipe: int) -> None:
    loop = asyncio.get_running_loop()
    os.set_inheritable(pipe, False)

    def stop_now() -> None:
        if not stop.done():
            stop.set_result(None)

    def on_end() -> None:
        loop.remove_reader(pipe)
        loop.call_later(_SAME_SIGNAL_SECONDS, stop_now)

    loop.add_reader(pipe, on_end)


async def run_worker(
    worker: Worker, stop: asyncio.Future[None], tuning: Tuning, *, about: Sequence[str] = ()
) -> None:
    """Run the worker until `stop` is done and its running calls or the grace period have ended.

    Prints one line when the worker polls, creates the reconciler's schedule, and logs when Temporal stops
    answering and when it answers again.

    Args:
        worker: Not running yet.
        stop: See `stop_on_signals`.
        tuning: The tuning of the worker.
        about: Further facts for the line, such as the ledger and the model.

    Raises:
        WrongSetting: Temporal refuses the namespace.
    """
    client = worker.client
    _be_patient(worker)
    running = asyncio.create_task(worker.run())
    while not worker.is_running and not running.done():
        await asyncio.sleep(0.01)
    if worker.is_running:
        cancels = described(pushed=await are_pushed(client), interval=tuning.heartbeat_interval)
        _freeze()
        print(_ready_line(worker, tuning, [*about, cancels]), flush=True)
    scheduling = asyncio.create_task(
        schedule_reconciliation(client, worker.task_queue, tuning.reconcile_every)
    )
    watching = asyncio.create_task(report_outages(client))
    await asyncio.wait({running, stop}, return_when=asyncio.FIRST_COMPLETED)
    scheduling.cancel()
    watching.cancel()
    if stop.done():
        _log.info("stopping: running calls have %g s to end", tuning.grace_period.total_seconds())
        await worker.shutdown()
    try:
        await running
    except RuntimeError as error:
        if "validation failed" not in str(error):
            raise
        problem = str(error).partition("message: ")[2].partition('",')[0].strip('"') or str(error)
        raise WrongSetting("TEMPORAL_NAMESPACE", problem) from error
    await asyncio.sleep(_QUIET_EXIT)


async def schedule_reconciliation(client: Client, task_queue: str, every: timedelta | None) -> None:
    """Create the schedule of the reconciler unless there is one. A worker without permission only warns."""
    if every is None:
        return
    name = schedule_id(task_queue)
    try:
        async with asyncio.timeout(_SCHEDULING_SECONDS):
            if await create_schedule(client, task_queue, every):
                _log.info("created schedule %s: it cancels work items that closed tasks have left open", name)
    except (RPCError, TimeoutError) as error:
        _log.warning(
            "cannot create schedule %s, which cancels work items that closed tasks have left open: %s "
            "(run `tasq reconcile` now and then, or set TASQ_RECONCILE_EVERY=0)",
            name,
            error if isinstance(error, RPCError) else "no answer in time",
        )


def _be_patient(worker: Worker) -> None:
    workflows = worker._workflow_worker  # the SDK has no public name for this limit
    if workflows is not None and workflows._deadlock_timeout_seconds is not None:
        workflows._deadlock_timeout_seconds = _STALL_SECONDS


def _freeze() -> None:
    """Make the garbage collector skip all objects that are loaded now, because they stay anyway.

    Otherwise each full collection stops the worker for a tenth of a second (0.13 s, now 0.02 s).
    """
    gc.collect()
    gc.freeze()


def _ready_line(worker: Worker, tuning: Tuning, about: Sequence[str]) -> str:
    client = worker.client
    where = f"{client.service_client.config.target_host} (namespace {client.namespace})"
    parts = [
        f"tasq worker ready: polls {worker.task_queue!r} at {where}",
        *about,
        f"{tuning.concurrent_calls} calls at the same time",
    ]
    return "; ".join(parts if tuning.version is None else [*parts, str(tuning.version)])
