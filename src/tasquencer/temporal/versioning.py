"""The version of a worker, for Temporal's Worker Versioning."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from temporalio.common import VersioningBehavior, WorkerDeploymentVersion
from temporalio.worker import WorkerDeploymentConfig

from tasquencer.core.errors import WrongSetting

__all__ = ["Version", "Versioning"]


class Versioning(StrEnum):
    """Selects the worker that continues a task, if workers have versions."""

    PINNED = "pinned"
    """A worker with the task's first build."""
    AUTO_UPGRADE = "auto-upgrade"
    """A worker with the current build."""


@dataclass(frozen=True)
class Version:
    """A worker's version: its deployment, its build, and the rule for the tasks that it continues."""

    deployment_name: str
    build_id: str
    versioning: Versioning

    def __str__(self) -> str:
        return f"build {self.build_id!r} of deployment {self.deployment_name!r} ({self.versioning})"

    @classmethod
    def of(cls, deployment_name: str, build_id: str, versioning: Versioning) -> Version | None:
        """Return the version that the settings describe, or None without a name and a build.

        Raises:
            WrongSetting: one of the two is missing, or Temporal refuses the name.
        """
        if bool(deployment_name) != bool(build_id):
            given, missing = ("TEMPORAL_DEPLOYMENT_NAME", "TEMPORAL_WORKER_BUILD_ID")
            if build_id:
                given, missing = missing, given
            raise WrongSetting(missing, f"must be set too where {given} is")
        if deployment_name.startswith("__") or set(".:") & set(deployment_name):
            # Temporal refuses it, but the worker would not end. It would wait for tasks in vain.
            problem = f"{deployment_name!r} begins with '__' or contains '.' or ':': Temporal refuses that"
            raise WrongSetting("TEMPORAL_DEPLOYMENT_NAME", problem)
        return cls(deployment_name, build_id, versioning) if build_id else None

    def config(self) -> WorkerDeploymentConfig:
        """Return the version for the SDK."""
        pinned = self.versioning is Versioning.PINNED
        return WorkerDeploymentConfig(
            version=WorkerDeploymentVersion(self.deployment_name, self.build_id),
            use_worker_versioning=True,
            default_versioning_behavior=(
                VersioningBehavior.PINNED if pinned else VersioningBehavior.AUTO_UPGRADE
            ),
        )
