"""The worker process: settings → plugin → Worker.

It polls the task queue, runs the tasks and makes the AI calls. SIGTERM or SIGINT stops it: it takes no new
work and lets its running calls end. A second signal stops it immediately.
"""

from __future__ import annotations

import asyncio
import os
from datetime import timedelta

from temporalio.client import Client
from temporalio.worker import Worker

from activities import ACTIVITIES, TOOLS
from tasquencer.ai import AiCalls
from tasquencer.ai.provider.client import client_from
from tasquencer.cli.environment import checked_settings
from tasquencer.cli.worker_options import (
    BuildId,
    CallsPerSecond,
    ConcurrentCalls,
    DeploymentName,
    GracePeriod,
    HeartbeatInterval,
    LogLevel,
    LogLevelOption,
    MetricsAddress,
    Processes,
    ReconcileEvery,
    VersioningOption,
    errors_as_exit_status,
    run_program,
    set_up_logging,
)
from tasquencer.cli.worker_processes import run_processes
from tasquencer.settings import Settings, named_setting
from tasquencer.sql import SqlLedger
from tasquencer.temporal import TasquencerPlugin, connect
from tasquencer.temporal.ai_calls import HEARTBEAT_INTERVAL
from tasquencer.temporal.connection import check_namespace
from tasquencer.temporal.running import STICKY_TIMEOUT, Tuning, run_worker, stop_on_signals, worker_runtime
from tasquencer.temporal.versioning import Version, Versioning
from workflows import WORKFLOWS

_HEARTBEAT_SECONDS = HEARTBEAT_INTERVAL.total_seconds()


def main(
    processes: Processes = 1,
    concurrent_calls: ConcurrentCalls = 100,
    calls_per_second: CallsPerSecond = None,
    grace_period: GracePeriod = 300,
    heartbeat_interval: HeartbeatInterval = _HEARTBEAT_SECONDS,
    metrics_address: MetricsAddress = None,
    log_level: LogLevelOption = LogLevel.INFO,
    deployment_name: DeploymentName = "",
    build_id: BuildId = "",
    versioning: VersioningOption = Versioning.PINNED,
    reconcile_every: ReconcileEvery = 300,
) -> None:
    """Run AI agent tasks: poll the task queue until a signal stops the process.

    Settings from the environment: TASQ_DATABASE_URL, TASQ_MODEL, TASQ_TASK_QUEUE; OPENAI_API_KEY,
    OPENAI_BASE_URL; TEMPORAL_ADDRESS, TEMPORAL_NAMESPACE, TEMPORAL_PROFILE and the other settings
    of the temporal CLI.

    Example: OPENAI_BASE_URL=http://127.0.0.1:11434/v1 TASQ_MODEL=llama3.2 python worker.py
    """
    set_up_logging(log_level)
    with errors_as_exit_status():
        settings = checked_settings(provider=True)
        if processes > 1:
            run_processes(processes, metrics_address=metrics_address)
        tuning = Tuning(
            concurrent_calls=concurrent_calls,
            calls_per_second=calls_per_second,
            grace_period=timedelta(seconds=grace_period),
            metrics_address=metrics_address,
            version=Version.of(deployment_name, build_id, versioning),
            reconcile_every=timedelta(seconds=max(1.0, reconcile_every)) if reconcile_every else None,
            heartbeat_interval=timedelta(seconds=heartbeat_interval),
        )
        asyncio.run(serve(settings, tuning))


async def serve(settings: Settings, tuning: Tuning) -> None:
    """Run a worker until a signal stops it."""
    stop = stop_on_signals()
    async with client_from(os.environ) as provider:
        with named_setting("TASQ_DATABASE_URL"):
            ledger = SqlLedger(settings.database_url)
        calls = AiCalls(provider, settings.model, heartbeat_interval=tuning.heartbeat_interval, tools=TOOLS)
        plugin = TasquencerPlugin(ledger, calls=calls)
        client = await connect(plugins=[plugin], runtime=worker_runtime(tuning.metrics_address))
        await check_namespace(client)
        about = [f"ledger {ledger.database}", f"model {settings.model} at {provider.base_url.host}"]
        await run_worker(make_worker(client, settings.task_queue, tuning), stop, tuning, about=about)


def make_worker(client: Client, task_queue: str, tuning: Tuning) -> Worker:
    """Return a worker for the application's tasks and activities."""
    return Worker(
        client,
        task_queue=task_queue,
        workflows=WORKFLOWS,
        activities=ACTIVITIES,
        deployment_config=tuning.version.config() if tuning.version else None,
        max_concurrent_activities=tuning.concurrent_calls,
        max_task_queue_activities_per_second=tuning.calls_per_second,
        graceful_shutdown_timeout=tuning.grace_period,
        sticky_queue_schedule_to_start_timeout=STICKY_TIMEOUT,
        # Temporal delivers a cancel in the answer to a heartbeat, so none may be held back.
        max_heartbeat_throttle_interval=tuning.heartbeat_interval,
        default_heartbeat_throttle_interval=tuning.heartbeat_interval,
    )


if __name__ == "__main__":
    run_program(main)
