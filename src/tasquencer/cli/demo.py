"""The demo: all parts on this machine, one task, two failures on the way. It leaves nothing running."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import tempfile
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, AsyncExitStack
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any, TypeVar
from uuid import uuid4

import platformdirs
from temporalio.client import Client

from tasquencer.ai.record import AI_JOBS
from tasquencer.cli.application import find_worker
from tasquencer.cli.connections import open_ledger, quiet_runtime
from tasquencer.cli.demo_parts import answering_model, running_worker, worker_environment
from tasquencer.cli.display import print_table
from tasquencer.cli.errors import ExitCode
from tasquencer.cli.following import start_task
from tasquencer.cli.rendering import attempts_table, totals
from tasquencer.cli.reporting import follow_and_report
from tasquencer.devkit.errors import ProcessFailed
from tasquencer.devkit.fault_proxy import DroppedConnection, TooManyRequests, fault_proxy
from tasquencer.devkit.processes import ChildProcess
from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.settings import Settings
from tasquencer.temporal.converter import data_converter

__all__ = ["run_demo"]

_PROMPT = "Why is the sky blue? Answer in two sentences."
_FAULTS = (TooManyRequests(retry_after_seconds=2), DroppedConnection())
_LOOK_SECONDS = 0.2

T = TypeVar("T")


def run_demo(*, keep: bool, prompt: str | None) -> int:
    """Run the demo and return the exit code. Ctrl-C ends it, which is the normal end with `keep`."""
    progress = _Progress()
    try:
        return asyncio.run(_demo(keep=keep, prompt=prompt or _PROMPT, progress=progress))
    except (KeyboardInterrupt, asyncio.CancelledError):
        _say("stopped; nothing is left running")
        return ExitCode.COMPLETED if progress.completed else ExitCode.INTERRUPTED


@dataclass
class _Progress:
    completed: bool = False


async def _demo(*, keep: bool, prompt: str, progress: _Progress) -> ExitCode:
    this = asyncio.current_task()
    assert this is not None
    # By default SIGTERM ends this process without cleanup. Like Ctrl-C it must leave nothing running.
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, this.cancel)
    program = find_worker(Path.cwd())
    async with AsyncExitStack() as parts:
        folder = _folder(parts, keep=keep)
        settings = Settings(database_url=f"sqlite:///{folder / 'ledger.db'}")
        server = await _start(
            parts, "Temporal", embedded_temporal(), lambda running: f"Web UI at {running.ui_url}"
        )
        model = await _start(parts, "model", answering_model(os.environ), lambda running: running.name)
        proxy = await _start(
            parts,
            "fault proxy",
            fault_proxy(model.base_url, faults=_FAULTS),
            lambda _: "answers the first request with 429 and Retry-After 2, drops the second",
        )
        environment = worker_environment(os.environ, server, settings, model, proxy.base_url, folder)
        worker = await _start(
            parts,
            "worker",
            running_worker(program, environment),
            lambda _: f"polls task queue {settings.task_queue!r}",
        )
        client = await Client.connect(
            server.address,
            namespace=server.namespace,
            data_converter=data_converter,
            runtime=quiet_runtime(),
        )
        task_id = f"demo-{uuid4().hex[:8]}"
        _say(f"\ntask {task_id}: {prompt}")
        _say(f"in the Web UI, while the demo runs: {_page(server, task_id)}\n")
        request = {"prompt": prompt, **model.options}
        task = await start_task(client, request, task_id=task_id, task_queue=settings.task_queue)
        code = await _unless_it_ends(worker, follow_and_report(task, settings, as_json=False))
        progress.completed = code is ExitCode.COMPLETED
        if model.warning:
            _say(f"\n{model.warning}")
        await _show_attempts(settings, task_id)
        if keep:
            await _stay(server, settings, task_id)
        _say(f"\nTo look around in the Web UI and run your own tasks: {_tasq()} demo --keep")
        _say("stopping everything")
    return code


async def _stay(server: EmbeddedTemporal, settings: Settings, task_id: str) -> None:
    _say(f"\nThe task in the Web UI: {_page(server, task_id)}")
    _say("Continue in another terminal:\n")
    _say(f"  export TEMPORAL_ADDRESS={server.address} TASQ_DATABASE_URL={settings.database_url}")
    _say(f'  {_tasq()} run "Name three moons of Jupiter." --max-output-tokens 60')
    _say(f"  {_tasq()} list\n")
    _say("Everything runs until Ctrl-C.")
    await asyncio.Event().wait()


def _page(server: EmbeddedTemporal, task_id: str) -> str:
    return f"{server.ui_url}/namespaces/{server.namespace}/workflows/{task_id}"


async def _show_attempts(settings: Settings, task_id: str) -> None:
    async with open_ledger(settings) as ledger:
        items = await ledger.work_items(WorkItemFilter(task_id=task_id, oldest_first=True))
        records = await ledger.domain_records(AI_JOBS, [item.id for item in items])
    print("\nThe attempts, from the ledger:")
    print_table(lambda wide: attempts_table(items, records, wide=wide))
    print(totals(items, records), flush=True)


def _folder(parts: AsyncExitStack, *, keep: bool) -> Path:
    if not keep:
        return Path(parts.enter_context(tempfile.TemporaryDirectory(prefix="tasq-demo-")))
    folder = Path(platformdirs.user_data_dir("tasquencer", appauthor=False)) / "demo"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


async def _start(
    parts: AsyncExitStack, name: str, part: AbstractAsyncContextManager[T], told: Callable[[T], str]
) -> T:
    """Start a part that ends with the demo, and print its description and the time it took."""
    began = monotonic()
    running = await parts.enter_async_context(part)
    _say(f"{name} ({monotonic() - began:.1f} s): {told(running)}")
    return running


async def _unless_it_ends(worker: ChildProcess, follow: Coroutine[Any, Any, ExitCode]) -> ExitCode:
    """Return the result of `follow`, but stop if the worker ends, because it would wait for ever."""
    following = asyncio.create_task(follow)
    try:
        while not following.done():
            if worker.exit_status is not None:
                problem = f"ended with status {worker.exit_status}"
                raise ProcessFailed(worker.name, problem, worker.last_line())
            await asyncio.wait({following}, timeout=_LOOK_SECONDS)
        return following.result()
    finally:
        following.cancel()
        await asyncio.wait({following})


def _tasq() -> str:
    """Return the command that was used to call this program, as it works from this folder."""
    called = Path(sys.argv[0]).absolute()
    try:
        return str(called.relative_to(Path.cwd()))
    except ValueError:
        return "tasq"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
