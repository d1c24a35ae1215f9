"""The jobs of a workflow activation, and its place in the history."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from temporalio.bridge.proto.workflow_activation import WorkflowActivation, WorkflowActivationJob

__all__ = ["Place", "is_local_result", "is_news", "updates_in", "with_jobs"]


@dataclass(frozen=True)
class Place:
    """The position in the history that an activation reaches."""

    length: int
    size: int
    time: int

    @classmethod
    def of(cls, activation: WorkflowActivation) -> Place:
        """Return the place of this activation."""
        return cls(
            activation.history_length, activation.history_size_bytes, activation.timestamp.ToNanoseconds()
        )


def is_local_result(job: WorkflowActivationJob) -> bool:
    """Return whether the job is the result of a local activity, such as a write."""
    return job.HasField("resolve_activity") and job.resolve_activity.is_local


def is_news(job: WorkflowActivationJob) -> bool:
    """Return whether the job may change what the workflow decides."""
    return not job.HasField("query_workflow") and not job.HasField("remove_from_cache")


def updates_in(activation: WorkflowActivation) -> list[WorkflowActivationJob]:
    """Return the updates that the activation brings."""
    return [job for job in activation.jobs if job.HasField("do_update")]


def with_jobs(activation: WorkflowActivation, jobs: Iterable[WorkflowActivationJob]) -> WorkflowActivation:
    """Return the same activation with these jobs."""
    part = WorkflowActivation()
    part.CopyFrom(activation)
    del part.jobs[:]
    part.jobs.extend(jobs)
    return part
