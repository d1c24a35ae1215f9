"""The jobs of a workflow activation, and its place in the history."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from temporalio.bridge.proto.workflow_activation import WorkflowActivation, WorkflowActivationJob

__all__ = ["ANSWERS", "Part", "Place", "is_answer", "is_local_result", "is_news", "of_kinds", "with_jobs"]

ANSWERS = frozenset(
    {
        "resolve_activity",
        "resolve_child_workflow_execution",
        "resolve_child_workflow_execution_start",
        "resolve_nexus_operation",
        "resolve_nexus_operation_start",
        "resolve_request_cancel_external_workflow",
        "resolve_signal_external_workflow",
    }
)
"""Kinds of jobs that tell the code of the beginning or the end of something that it has begun."""


@dataclass(frozen=True)
class Part:
    """Jobs that a workflow instance gets together.

    Attributes:
        is_event: True if the history has an event for them in any case. A refused update leaves none.
        follows: True if they follow from what came before: from the result of a local activity, whose marker
            a replay may find earlier, or from a cancel that the SDK itself answers at once.
    """

    jobs: list[WorkflowActivationJob]
    is_event: bool
    follows: bool

    @classmethod
    def of(cls, jobs: list[WorkflowActivationJob], *, follows: bool) -> Part:
        """Return the part with these jobs."""
        events = [job for job in jobs if is_news(job) and not job.HasField("do_update")]
        return cls(jobs, is_event=bool(events) and not follows, follows=follows)


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
    """Return whether the job may change what the workflow decides. A patch says what a history has."""
    return job.WhichOneof("variant") not in ("query_workflow", "remove_from_cache", "notify_has_patch")


def is_answer(job: WorkflowActivationJob) -> bool:
    """Return whether the job is one of `ANSWERS`."""
    return job.WhichOneof("variant") in ANSWERS


def of_kinds(jobs: Iterable[WorkflowActivationJob], *kinds: str) -> list[WorkflowActivationJob]:
    """Return the jobs of these kinds."""
    return [job for job in jobs if job.WhichOneof("variant") in kinds]


def with_jobs(activation: WorkflowActivation, jobs: Iterable[WorkflowActivationJob]) -> WorkflowActivation:
    """Return the same activation with these jobs."""
    part = WorkflowActivation()
    part.CopyFrom(activation)
    del part.jobs[:]
    part.jobs.extend(jobs)
    return part
