"""Finds the ledger writes of a task by replaying its histories.

A replay repeats the task's decisions, and passes each write to the same local activity. The activity does not
run. Its arguments are the entries, and a marker in the history shows that they were written.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from temporalio import workflow
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHistory
from temporalio.service import RPCError
from temporalio.worker import (
    Interceptor,
    Replayer,
    StartLocalActivityInput,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)

from tasquencer.core.entries import LedgerEntry
from tasquencer.ledger.contract import Settlement
from tasquencer.ledger.memory import InMemoryLedger
from tasquencer.temporal.bookkeeping import RECORD
from tasquencer.temporal.not_found import is_missing
from tasquencer.temporal.plugin import TasquencerPlugin
from tasquencer.temporal.visibility import quoted
from tasquencer.temporal.wire import received

__all__ = ["Histories", "TaskHistory", "Write"]


@dataclass(frozen=True)
class Write:
    """The entries of one call of the bookkeeping.

    Attributes:
        position: The number of events in the history at that time.
    """

    entries: Sequence[LedgerEntry]
    settlement: Settlement | None
    position: int

    def of_run(self, replayed_as: str, run_id: str) -> Write:
        """Return the write with the id of the run that made it instead of the id during the replay."""
        entries = [
            entry.model_copy(update={"work_item": entry.work_item.model_copy(update={"run_id": run_id})})
            if entry.work_item.run_id == replayed_as
            else entry
            for entry in self.entries
        ]
        settlement = self.settlement
        if settlement is not None and settlement.run_id == replayed_as:
            settlement = settlement.model_copy(update={"run_id": run_id})
        return Write(entries, settlement, self.position)


@dataclass
class TaskHistory:
    """The writes of a task's runs.

    Attributes:
        writes: In order, run by run.
        under_way: True if one of them is running.
        gaps: The parts that could not be read, one line each.
    """

    task_id: str
    task_type: str = ""
    writes: list[Write] = field(default_factory=list)
    under_way: bool = False
    gaps: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class _Run:
    id: str
    task_type: str
    started_at: datetime
    running: bool


class Histories:
    """Replays tasks.

    Args:
        client: For the namespace of the tasks.
        workflows: Their classes.
    """

    def __init__(self, client: Client, workflows: Sequence[type]) -> None:
        self._client = client
        self._writes: list[Write] = []
        self._replayer = Replayer(
            workflows=workflows,
            plugins=[TasquencerPlugin(InMemoryLedger())],
            interceptors=[_Listener(self._writes.append)],
            namespace=client.namespace,
            data_converter=client.data_converter,
            runtime=client.service_client.config.runtime,
        )
        self._types = {workflow._Definition.must_from_class(kind).name for kind in workflows}

    async def task_ids(self, since: datetime | None, limit: int) -> list[str]:
        """Return the ids of tasks of these types, newest first, at most `limit`."""
        types = ", ".join(quoted(name) for name in sorted(name for name in self._types if name))
        query = f"WorkflowType IN ({types})"
        if since is not None:
            query += f" AND StartTime >= {quoted(since.isoformat())}"
        found: dict[str, None] = {}
        async for execution in self._client.list_workflows(query):
            found[execution.id] = None
            if len(found) >= limit:
                break
        return list(found)

    async def read(self, task_id: str) -> TaskHistory | None:
        """Replay all runs of a task. Return None if Temporal does not have it."""
        runs = await self._runs(task_id)
        if not runs:
            return None
        told = TaskHistory(task_id, runs[-1].task_type)
        told.under_way = any(run.running for run in runs)
        known = {run.id for run in runs}
        for run in runs:
            if run.task_type not in self._types:
                told.gaps.append(f"run {run.id} is of type {run.task_type!r}: name its class with --workflow")
                continue
            await self._replay(told, run, known)
        return told

    async def _replay(self, told: TaskHistory, run: _Run, known: set[str]) -> None:
        try:
            history = await self._client.get_workflow_handle(told.task_id, run_id=run.id).fetch_history()
        except RPCError as error:
            if not is_missing(error):
                raise
            told.gaps.append(f"the history of run {run.id} is gone")
            return
        begin = history.events[0].workflow_execution_started_event_attributes
        before = begin.continued_execution_run_id
        if before and before not in known:
            told.gaps.append(f"the history of run {before}, which continued as run {run.id}, is gone")
        self._writes.clear()
        try:
            await self._replayer.replay_workflow(WorkflowHistory(told.task_id, history.events))
        except Exception as error:  # noqa: BLE001 - whatever the task's own code raises
            told.gaps.append(f"run {run.id} does not replay on this code: {error}")
        # A run made by a reset begins with the events of the earlier run, and is replayed under the earlier
        # id.
        resets = [
            (event.event_id, event.workflow_task_failed_event_attributes.new_run_id)
            for event in history.events
            if event.HasField("workflow_task_failed_event_attributes")
            and event.workflow_task_failed_event_attributes.new_run_id
        ]
        original = begin.original_execution_run_id
        for write in self._writes:
            made_by = [original, *(made for at, made in resets if at <= write.position)][-1]
            told.writes.append(write.of_run(original, made_by))

    async def _runs(self, task_id: str) -> list[_Run]:
        """Return all runs of the task that Temporal still has, oldest first."""
        found: dict[str, _Run] = {}
        async for execution in self._client.list_workflows(f"WorkflowId = {quoted(task_id)}"):
            found[execution.run_id] = _run(execution)
        try:  # the list may not have it yet
            latest = await self._client.get_workflow_handle(task_id).describe()
        except RPCError as error:
            if not is_missing(error):
                raise
        else:
            found[latest.run_id] = _run(latest)
        return sorted(found.values(), key=lambda run: run.started_at)


def _run(execution: Any) -> _Run:
    running = execution.status is WorkflowExecutionStatus.RUNNING
    return _Run(execution.run_id, execution.workflow_type, execution.start_time, running)


_WRITTEN = "tasquencer.written"
"""Name of the function with which a workflow in the sandbox reports its writes."""


class _Listener(Interceptor):
    def __init__(self, written: Callable[[Write], None]) -> None:
        self._written = written

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002 - the SDK's name
    ) -> type[WorkflowInboundInterceptor] | None:
        input.unsafe_extern_functions[_WRITTEN] = self._written
        return _Inbound


class _Inbound(WorkflowInboundInterceptor):
    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        super().init(_Outbound(outbound))


class _Outbound(WorkflowOutboundInterceptor):
    def start_local_activity(self, input: StartLocalActivityInput) -> workflow.ActivityHandle[Any]:  # noqa: A002
        handle = super().start_local_activity(input)
        if input.activity == RECORD:
            tell: Callable[[Write], None] = workflow.extern_functions()[_WRITTEN]
            entries, settlement = input.args
            position = workflow.info().get_current_history_length()
            settling: Settlement | None = received(settlement, Settlement | None)  # type: ignore[arg-type]
            write = Write(received(entries, list[LedgerEntry]), settling, position)

            def confirmed(done: asyncio.Task[Any]) -> None:
                # In a replay, only an activity with a marker in the history ends.
                if not done.cancelled() and done.exception() is None:
                    tell(write)

            handle.add_done_callback(confirmed)
        return handle
