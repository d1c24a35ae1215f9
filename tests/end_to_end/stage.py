"""The whole project on this machine: Temporal, a scripted provider, a ledger file, the worker process."""

from __future__ import annotations

import os
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from temporalio.client import Client, WorkflowHandle

from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.devkit.processes import ChildProcess
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.settings import DEFAULT_TASK_QUEUE
from tasquencer.sql import SqlLedger, upgrade
from tasquencer.temporal import data_converter
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.provider import ScriptedProvider

__all__ = ["READY", "WORKER", "Stage"]

WORKER = Path(__file__).resolve().parents[2] / "worker.py"
READY = "tasq worker ready"
_OURS = ("OPENAI_", "TASQ_", "TEMPORAL_")


@dataclass(frozen=True)
class Stage:
    """What a worker is connected to, and what became of the tasks it carried out."""

    server: EmbeddedTemporal
    client: Client
    provider: ScriptedProvider
    folder: Path
    task_queue: str

    @classmethod
    async def on(
        cls,
        server: EmbeddedTemporal,
        provider: ScriptedProvider,
        folder: Path,
        *,
        task_queue: str | None = None,
    ) -> Stage:
        """A stage with a ledger of its own and, unless it is given, a task queue of its own.

        The ledger is migrated here, once and for all workers: Alembic costs each process a second.
        """
        folder.mkdir(exist_ok=True)
        await upgrade(_url(folder / "ledger.db"))
        client = await Client.connect(server.address, data_converter=data_converter)
        return cls(server, client, provider, folder, task_queue or f"{DEFAULT_TASK_QUEUE}-{uuid4().hex[:8]}")

    @property
    def ledger_file(self) -> Path:
        return self.folder / "ledger.db"

    def environment(self, settings: Mapping[str, str | None] = {}) -> dict[str, str]:
        """The worker's whole environment; `settings` change it, None takes a variable away."""
        kept = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        profile = self.folder / "temporal.toml"
        profile.touch()
        ours = {
            "NO_PROXY": "127.0.0.1,localhost",
            "no_proxy": "127.0.0.1,localhost",
            "OPENAI_BASE_URL": self.provider.base_url,
            "TASQ_DATABASE_URL": _url(self.ledger_file),
            "TASQ_MODEL": "scripted",
            "TASQ_TASK_QUEUE": self.task_queue,
            "TEMPORAL_ADDRESS": self.server.address,
            "TEMPORAL_CONFIG_FILE": str(profile),
        }
        if kept.pop("PYTHONDONTWRITEBYTECODE", None):  # then each worker compiles everything, for seconds
            ours["PYTHONPYCACHEPREFIX"] = str(self.folder.parent / "bytecode")
        return {name: value for name, value in {**kept, **ours, **settings}.items() if value is not None}

    @asynccontextmanager
    async def process(
        self, *options: str, settings: Mapping[str, str | None] = {}
    ) -> AsyncIterator[ChildProcess]:
        """The worker process, whatever becomes of it; killed when the block ends, if it still runs."""
        process = ChildProcess(
            "the worker", [sys.executable, WORKER, *options], environment=self.environment(settings)
        )
        try:
            yield process
        finally:
            process.kill()

    @asynccontextmanager
    async def worker(
        self, *options: str, settings: Mapping[str, str | None] = {}
    ) -> AsyncIterator[ChildProcess]:
        """The worker process, once it has said that it is ready."""
        async with self.process(*options, settings=settings) as process:

            async def ready() -> bool:
                return READY in process.output()

            await process.wait_ready(ready, timeout_seconds=PATIENCE_SECONDS)
            yield process

    async def start(
        self, prompt: str = "Hello?", *, task_id: str | None = None, **fields: Any
    ) -> WorkflowHandle[Any, Any]:
        """Start a task as `tasq run` does; `fields` are those of its input."""
        return await self.client.start_workflow(
            "AiAgentTask",
            {"prompt": prompt, **fields},
            id=task_id or f"task-{uuid4()}",
            task_queue=self.task_queue,
            static_summary=prompt,
        )

    async def work_items(self, task: WorkflowHandle[Any, Any]) -> list[WorkItem]:
        """The task's work items in the ledger, oldest first."""
        async with SqlLedger(_url(self.ledger_file)) as ledger:
            return await ledger.work_items(WorkItemFilter(task_id=task.id, oldest_first=True))

    async def work_item(self, task: WorkflowHandle[Any, Any], attempt: int, state: WorkItemState) -> WorkItem:
        """The work item of this attempt, once the ledger has it in this state."""

        async def probe() -> WorkItem | None:
            items = await self.work_items(task)
            return next((item for item in items if (item.attempt, item.state) == (attempt, state)), None)

        return await eventually(probe, f"attempt {attempt} is {state}")


def _url(ledger_file: Path) -> str:
    return f"sqlite:///{ledger_file}"
