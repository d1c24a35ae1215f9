"""The reconciler: cancels work items that closed tasks have left open, by the state of the tasks in Temporal.

It checks the open work items of the ledger page by page. A settled work item is immutable, so the reconciler
may stop anywhere, begin again, and run twice at the same time, while tasks are running.
"""

from __future__ import annotations

import asyncio
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from temporalio import activity
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.enums.v1 import WorkflowExecutionStatus as Status
from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest, DescribeWorkflowExecutionRequest
from temporalio.client import (
    Client,
    WorkflowHistoryEventFilterType,
    WorkflowQueryFailedError,
    WorkflowQueryRejectedError,
)
from temporalio.service import RPCError, RPCStatusCode

from tasquencer.core.errors import InvalidRequest, LedgerConflict
from tasquencer.core.observed import is_observed
from tasquencer.ledger.contract import Ledger, OpenWorkItem, Place, Settlement
from tasquencer.ledger.reconciliation import (
    Cause,
    Judgement,
    Run,
    RunStatus,
    judge,
    judge_observed,
    reason_of,
)
from tasquencer.temporal.authority import only_for
from tasquencer.temporal.heartbeats import heartbeats
from tasquencer.temporal.ledger_outage import retried_outages
from tasquencer.temporal.not_found import is_missing
from tasquencer.temporal.observed_attempt import STANDALONE
from tasquencer.temporal.observed_ends import Ends
from tasquencer.temporal.schedules import RECONCILE_WORKFLOW

__all__ = [
    "DEFAULT_GRACE",
    "PAGE_SIZE",
    "RECONCILE",
    "RECONCILER",
    "Page",
    "PageRequest",
    "ReconcileRequest",
    "Reconciler",
    "Reconciliation",
    "ReconciliationActivity",
    "Settled",
    "parse_reconcile",
]

RECONCILE = "tasquencer.reconcile"
"""Name of the activity that reconciles one page."""

RECONCILER = "reconciler"
"""The actor of the transitions."""

DEFAULT_GRACE = timedelta(seconds=60)
"""How long after the end of a task its worker may still be writing."""

PAGE_SIZE = 500
"""Open work items on a page."""

_CONCURRENCY = 20
"""Tasks that Temporal is asked about at the same time."""

_QUERY_TIMEOUT = timedelta(seconds=5)


class Reconciliation(BaseModel):
    """The result of a reconciliation.

    Attributes:
        open_work_items: How many were checked.
        settled: How many were canceled, by cause.
        undecided: How many were left for another time, because no worker answered whether the task still
        lists them, or because Temporal does not have the task although its retention has not passed.
    """

    model_config = ConfigDict(frozen=True)

    open_work_items: int = 0
    settled: Mapping[Cause, int] = {}
    undecided: int = 0

    def plus(self, other: Reconciliation) -> Reconciliation:
        """Both together."""
        return Reconciliation(
            open_work_items=self.open_work_items + other.open_work_items,
            settled=dict(Counter(self.settled) + Counter(other.settled)),
            undecided=self.undecided + other.undecided,
        )


class ReconcileRequest(BaseModel):
    """The input of the workflow `ReconcileLedger`. It sets the last two fields itself when it continues as
    new.

    Attributes:
        forgotten_after_seconds: If Temporal does not have a task, its work items of this age are settled.
        None: the namespace's retention. Younger ones may belong to another namespace.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    grace_seconds: float = Field(DEFAULT_GRACE.total_seconds(), ge=0, le=86_400, allow_inf_nan=False)
    page_size: int = Field(PAGE_SIZE, ge=1, le=2_000)
    forgotten_after_seconds: float | None = Field(None, ge=0, allow_inf_nan=False)
    after: Place | None = None
    so_far: Reconciliation = Reconciliation()


def parse_reconcile(raw: object) -> ReconcileRequest:
    """Read the workflow's raw input. None means the defaults. `InvalidRequest` names each wrong field."""
    try:
        return ReconcileRequest.model_validate({} if raw is None else raw)
    except ValidationError as error:
        problems = [
            f"{'.'.join(map(str, found['loc'])) or 'the input'}: {found['msg']}" for found in error.errors()
        ]
        raise InvalidRequest(problems) from None


class PageRequest(BaseModel):
    """Selects the page for the activity to reconcile."""

    model_config = ConfigDict(frozen=True)

    grace_seconds: float
    forgotten_after_seconds: float | None = None
    size: int
    after: Place | None = None


class Page(BaseModel):
    """A reconciled page. `next` is the place where the next one begins, None after the last."""

    model_config = ConfigDict(frozen=True)

    found: Reconciliation
    next: Place | None


@dataclass(frozen=True)
class Settled:
    """A work item that was settled, or would be in a dry run."""

    work_item_id: str
    task_id: str
    run_id: str
    cause: Cause
    reason: str


class Reconciler:
    """Checks the open work items of a ledger.

    Args:
        client: A client for the namespace of the ledger's tasks. Tasks that it does not have are settled.
        ledger: An open ledger.
        grace: Work items are left alone until their task has been closed for this time.
        forgotten_after: Younger work items are left alone if Temporal does not have their task.
        dry_run: True to change nothing.
    """

    def __init__(
        self,
        client: Client,
        ledger: Ledger,
        *,
        grace: timedelta = DEFAULT_GRACE,
        forgotten_after: timedelta = timedelta(0),
        dry_run: bool = False,
    ) -> None:
        self._client = client
        self._ledger = ledger
        self._grace = grace
        self._forgotten_after = forgotten_after
        self._dry_run = dry_run
        self._slots = asyncio.Semaphore(_CONCURRENCY)

    async def page(self, after: Place | None = None, size: int = PAGE_SIZE) -> tuple[Page, list[Settled]]:
        """Reconcile the page that begins after this place.

        Raises:
            RPCError: Temporal does not answer, or has no such namespace.
            LedgerUnavailable: the ledger cannot be read or written.
        """
        before = datetime.now(UTC) - self._grace
        items = await self._ledger.open_work_items(created_before=before, after=after, limit=size)
        tasks: dict[str, list[OpenWorkItem]] = defaultdict(list)
        for item in items:
            tasks[item.task_id].append(item)
        try:
            async with asyncio.TaskGroup() as group:
                doing = [group.create_task(self._task(task_id, left)) for task_id, left in tasks.items()]
        except ExceptionGroup as errors:  # one of them is enough
            raise errors.exceptions[0] from None
        outcomes = [one.result() for one in doing]
        settled = [one for some, _ in outcomes for one in some]
        on_page = {item.id for item in items}
        found = Reconciliation(
            open_work_items=len(on_page.union(one.work_item_id for one in settled)),
            settled=dict(Counter(one.cause for one in settled)),
            undecided=sum(undecided for _, undecided in outcomes),
        )
        return Page(found=found, next=items[-1].place if len(items) == size else None), settled

    async def _task(self, task_id: str, left: Sequence[OpenWorkItem]) -> tuple[list[Settled], int]:
        """Reconcile one task. Return the settled work items, and how many are undecided."""
        settled: list[Settled] = []
        undecided = 0
        async with self._slots:
            latest = None if task_id.startswith(STANDALONE) else await self._describe(task_id)
            for run_id in dict.fromkeys(item.run_id for item in left):
                items = [item for item in left if item.run_id == run_id]
                own = latest
                if latest is not None and latest.id != run_id:
                    own = await self._describe(task_id, run_id)
                if watched := [item for item in items if is_observed(item.id)]:
                    settled += await self._observed(task_id, run_id, watched, own)
                    items = [item for item in items if not is_observed(item.id)]
                judgement = judge(own, latest, now=datetime.now(UTC), grace=self._grace)
                if judgement.cause is None:
                    continue
                if judgement.cause is Cause.UNKNOWN:
                    forgotten_before = datetime.now(UTC) - self._forgotten_after
                    old = [item for item in items if item.created_at <= forgotten_before]
                    undecided += len(items) - len(old)
                    items = old
                if judgement.only_unlisted and latest is not None:
                    listed = await self._listed(task_id, latest.id)
                    if listed is None:
                        undecided += len(items)
                        continue
                    items = [item for item in items if item.id not in listed]
                settled += await self._settle(task_id, run_id, items, judgement)
        return settled, undecided

    async def _observed(
        self, task_id: str, run_id: str, items: Sequence[OpenWorkItem], own: Run | None
    ) -> list[Settled]:
        """Settle observed attempts of a run, with their end in Temporal or with the end of the run."""
        judgement = judge_observed(own, now=datetime.now(UTC), grace=self._grace)
        ends = await Ends(self._client, self._ledger).of_open(items, is_closed=judgement.cause is not None)
        settled = []
        for entry in ends:
            item = entry.work_item
            if not self._dry_run:
                try:
                    await self._ledger.record([entry])
                except LedgerConflict:  # it has just ended
                    continue
            reason = str(item.failure or entry.transition.reason or item.state)
            settled.append(Settled(item.id, task_id, run_id, Cause.ENDED, reason))
        ended = {one.work_item_id for one in settled}
        left = [item for item in items if item.id not in ended and not task_id.startswith(STANDALONE)]
        if judgement.cause is Cause.UNKNOWN:
            forgotten_before = datetime.now(UTC) - self._forgotten_after
            left = [item for item in left if item.created_at <= forgotten_before]
        return settled + await self._settle(task_id, run_id, left, judgement)

    async def _settle(
        self, task_id: str, run_id: str, items: Sequence[OpenWorkItem], judgement: Judgement
    ) -> list[Settled]:
        cause = judgement.cause
        if not items or cause is None:
            return []
        told = None
        if cause is Cause.TERMINATED and judgement.ended_by is not None:
            told = await self._termination_reason(task_id, judgement.ended_by.id)
        reason = reason_of(cause, told)
        ids = [item.id for item in items]
        if not self._dry_run:
            settlement = Settlement(
                task_id=task_id,
                run_id=run_id,
                # All open work items of a closed run are settled, also those on other pages.
                work_item_ids=frozenset(ids) if judgement.only_unlisted else None,
                at=datetime.now(UTC),
                actor=RECONCILER,
                reason=reason,
            )
            ids = await self._ledger.settle(settlement)
        return [Settled(work_item_id, task_id, run_id, cause, reason) for work_item_id in ids]

    async def _describe(self, task_id: str, run_id: str = "") -> Run | None:
        """Return a run, by default the latest, or None if Temporal does not have it."""
        request = DescribeWorkflowExecutionRequest(
            namespace=self._client.namespace,
            execution=WorkflowExecution(workflow_id=task_id, run_id=run_id),
        )
        try:
            found = await self._client.workflow_service.describe_workflow_execution(request, retry=True)
        except RPCError as error:
            if _is_unknown_run(error):
                return None
            raise
        info = found.workflow_execution_info
        return Run(
            id=info.execution.run_id,
            chain=info.first_run_id,
            status=_STATUSES.get(info.status, RunStatus.RUNNING),
            started_at=info.start_time.ToDatetime(tzinfo=UTC),
            closed_at=info.close_time.ToDatetime(tzinfo=UTC) if info.HasField("close_time") else None,
            was_reset=bool(found.workflow_extended_info.reset_run_id),
        )

    async def _listed(self, task_id: str, run_id: str) -> set[str] | None:
        """Return the ids of the work items that the run lists, or None if no worker answers."""
        handle = self._client.get_workflow_handle(task_id, run_id=run_id)
        try:
            listed = await handle.query("work_items", rpc_timeout=_QUERY_TIMEOUT)
        except (RPCError, WorkflowQueryFailedError, WorkflowQueryRejectedError):
            return None
        return {row["id"] for row in listed} if isinstance(listed, list) else None

    async def _termination_reason(self, task_id: str, run_id: str) -> str | None:
        handle = self._client.get_workflow_handle(task_id, run_id=run_id)
        closing = WorkflowHistoryEventFilterType.CLOSE_EVENT
        try:
            async for event in handle.fetch_history_events(event_filter_type=closing):
                if event.HasField("workflow_execution_terminated_event_attributes"):
                    return event.workflow_execution_terminated_event_attributes.reason
        except RPCError as error:
            if not _is_unknown_run(error):
                raise
        return None


_STATUSES = {
    Status.WORKFLOW_EXECUTION_STATUS_COMPLETED: RunStatus.COMPLETED,
    Status.WORKFLOW_EXECUTION_STATUS_FAILED: RunStatus.FAILED,
    Status.WORKFLOW_EXECUTION_STATUS_CANCELED: RunStatus.CANCELED,
    Status.WORKFLOW_EXECUTION_STATUS_TERMINATED: RunStatus.TERMINATED,
    Status.WORKFLOW_EXECUTION_STATUS_CONTINUED_AS_NEW: RunStatus.CONTINUED_AS_NEW,
    Status.WORKFLOW_EXECUTION_STATUS_TIMED_OUT: RunStatus.TIMED_OUT,
}
"""All other statuses are those of runs that are not closed."""


def _is_unknown_run(error: RPCError) -> bool:
    if error.status is RPCStatusCode.INVALID_ARGUMENT:  # the ledger holds an id that Temporal never issued
        return error.message.startswith("Invalid RunId")
    return is_missing(error)


class ReconciliationActivity:
    """The reconciler as an activity of the worker. One per worker.

    Args:
        ledger: An open ledger.
    """

    def __init__(self, ledger: Ledger) -> None:
        self._ledger = ledger

    @activity.defn(name=RECONCILE)
    async def reconcile(self, request: PageRequest) -> Page:
        """Reconcile one page. A retry begins the page again."""
        only_for(RECONCILE_WORKFLOW)
        client, seconds = activity.client(), request.forgotten_after_seconds
        with retried_outages():
            async with heartbeats():
                reconciler = Reconciler(
                    client,
                    self._ledger,
                    grace=timedelta(seconds=request.grace_seconds),
                    forgotten_after=(
                        await _retention(client) if seconds is None else timedelta(seconds=seconds)
                    ),
                )
                page, _ = await reconciler.page(request.after, request.size)
        return page


async def _retention(client: Client) -> timedelta:
    """Return how long Temporal keeps a closed workflow. Before that, only a person can delete it."""
    request = DescribeNamespaceRequest(namespace=client.namespace)
    found = await client.workflow_service.describe_namespace(request, retry=True)
    return found.config.workflow_execution_retention_ttl.ToTimedelta()
