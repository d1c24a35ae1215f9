"""Worker deployments as people handle them: with the `temporal` command."""

from __future__ import annotations

import asyncio
import json
from dataclasses import dataclass, field
from typing import Any
from uuid import uuid4

from temporalio.api.deployment.v1 import WorkerDeploymentVersion
from temporalio.api.taskqueue.v1 import TaskQueue
from temporalio.api.workflowservice.v1 import (
    DescribeTaskQueueRequest,
    DescribeWorkerDeploymentVersionRequest,
)
from temporalio.client import Client

from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.tasks import executable

__all__ = ["QUICKLY", "Deployment"]

QUICKLY = {
    "matching.wv.VersionDrainageStatusVisibilityGracePeriod": "1s",
    "matching.wv.VersionDrainageStatusRefreshInterval": "1s",
    "matching.numTaskqueueReadPartitions": 1,
    "matching.numTaskqueueWritePartitions": 1,
}
"""Makes a server look every second whether a version is drained; by default it does every three minutes.

A task queue has one partition, so that what it says of its versions holds for all of it.
"""


@dataclass(frozen=True)
class Deployment:
    """A worker deployment on this server."""

    server: EmbeddedTemporal
    name: str = field(default_factory=lambda: f"letters-{uuid4().hex[:8]}")

    async def set_current(self, build_id: str) -> None:
        """Make the build the current one, as soon as one of its workers is there; return when it is."""

        async def is_set() -> bool:
            status, _ = await self._temporal("set-current-version", *self._version(build_id), "--yes")
            return status == 0

        await eventually(is_set, f"build {build_id} to become current")
        service = (await Client.connect(self.server.address)).workflow_service
        version = WorkerDeploymentVersion(deployment_name=self.name, build_id=build_id)
        of_version = DescribeWorkerDeploymentVersionRequest(
            namespace=self.server.namespace, deployment_version=version
        )

        async def is_known() -> bool:
            # The command returns before the task queues know.
            described = await service.describe_worker_deployment_version(of_version, retry=True)
            for queue in described.version_task_queues:
                of_queue = DescribeTaskQueueRequest(
                    namespace=self.server.namespace,
                    task_queue=TaskQueue(name=queue.name),
                    task_queue_type=queue.type,
                )
                known = (await service.describe_task_queue(of_queue, retry=True)).versioning_info
                if known.current_deployment_version != version:
                    return False
            return bool(described.version_task_queues)

        await eventually(is_known, f"the task queues know that build {build_id} is current")

    async def drained(self, build_id: str) -> None:
        """Return when no task needs the build any longer."""

        async def probe() -> bool:
            options = (*self._version(build_id), "--output", "json")
            status, output = await self._temporal("describe-version", *options)
            if status != 0:
                return False
            described: dict[str, Any] = json.loads(output)
            return described["drainageInfo"]["drainageStatus"] == "drained"

        await eventually(probe, f"build {build_id} to be drained")

    async def move(self, task_id: str, build_id: str) -> None:
        """Move a task that is pinned to another build."""
        options = [f"--versioning-override-{name}" for name in ("behavior", "deployment-name", "build-id")]
        values = ("pinned", self.name, build_id)
        override = [part for pair in zip(options, values, strict=True) for part in pair]
        status, output = await self._run("workflow", "update-options", "--workflow-id", task_id, *override)
        assert status == 0, output

    def _version(self, build_id: str) -> tuple[str, ...]:
        return ("--deployment-name", self.name, "--build-id", build_id)

    async def _temporal(self, *command: str) -> tuple[int | None, str]:
        return await self._run("worker", "deployment", *command)

    async def _run(self, *command: str) -> tuple[int | None, str]:
        process = await asyncio.create_subprocess_exec(
            executable("temporal"),
            *command,
            *("--address", self.server.address, "--disable-config-file", "--disable-config-env"),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        output, problem = await asyncio.wait_for(process.communicate(), PATIENCE_SECONDS)
        return process.returncode, (output or problem).decode()
