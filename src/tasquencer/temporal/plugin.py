"""`TasquencerPlugin`: what a worker needs to run tasks, in one object.

    client = await connect(plugins=[TasquencerPlugin(ledger, calls=AiCalls())])
    async with Worker(client, task_queue="…", workflows=[…], activities=[…]):
        …

Give it to the client only; the worker takes it over from there.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from temporalio.plugin import SimplePlugin
from temporalio.worker import ReplayerConfig, UnsandboxedWorkflowRunner, WorkerConfig, WorkflowRunner
from temporalio.worker.workflow_sandbox import SandboxedWorkflowRunner

from tasquencer.batch.store import BatchStore
from tasquencer.ledger.contract import Ledger
from tasquencer.temporal.activations import guarded
from tasquencer.temporal.batches import BatchActivities
from tasquencer.temporal.bookkeeping import Bookkeeping
from tasquencer.temporal.converter import data_converter
from tasquencer.temporal.reconciling import ReconciliationActivity
from tasquencer.temporal.scope import TaskInterceptor

if TYPE_CHECKING:
    from tasquencer.temporal.ai_calls import AiCalls

__all__ = ["TasquencerPlugin"]

_PASSED_THROUGH = (
    # Otherwise the sandbox imports a second copy of each class and `isinstance` fails across the border.
    "tasquencer",
    # Imported while the first payload is converted; re-importing them for each workflow costs milliseconds.
    "pydantic",
    "pydantic_core",
    "annotated_types",
    "typing_inspection",
)


class TasquencerPlugin(SimplePlugin):
    """Adds the Pydantic converter, the bookkeeping activities, the task scope and the sandbox passthrough.

    Args:
        ledger: Opened when the worker starts to run, closed after it has stopped.
        batches: The batches beside it, for a worker that carries out `AiBatchTask`; None: the ledger's own
            (`SqlLedger.batches`), if it has any.
        calls: Registers the AI call, the activity `generate`; None: this worker makes no AI calls.
    """

    def __init__(
        self, ledger: Ledger, batches: BatchStore | None = None, *, calls: AiCalls | None = None
    ) -> None:
        self._ledger = ledger
        self._calls = calls
        if batches is None:
            batches = getattr(ledger, "batches", None)
        activities: list[Callable[..., Any]] = [
            Bookkeeping(ledger).record,
            ReconciliationActivity(ledger).reconcile,
        ]
        if calls is not None:
            activities.append(calls.generate)
        if batches is not None:
            of_batches = BatchActivities(batches, ledger)
            activities += [
                of_batches.begin,
                of_batches.load,
                of_batches.save,
                of_batches.cancel,
                of_batches.follow,
                of_batches.end,
            ]
        super().__init__(
            "tasquencer.TasquencerPlugin",
            data_converter=data_converter,
            interceptors=[TaskInterceptor()],
            activities=activities,
            workflow_runner=_passing_through,
            run_context=self._open,
        )

    def configure_worker(self, config: WorkerConfig) -> WorkerConfig:
        """See the base class."""
        config = super().configure_worker(config)
        config["unsandboxed_workflow_runner"] = _unsandboxed(config.get("unsandboxed_workflow_runner"))
        return config

    def configure_replayer(self, config: ReplayerConfig) -> ReplayerConfig:
        """See the base class."""
        config = super().configure_replayer(config)
        config["unsandboxed_workflow_runner"] = _unsandboxed(config.get("unsandboxed_workflow_runner"))
        return config

    @asynccontextmanager
    async def _open(self) -> AsyncIterator[None]:
        async with self._ledger, self._calls or nullcontext():
            yield


def _passing_through(runner: WorkflowRunner | None) -> WorkflowRunner:
    if runner is None:
        raise ValueError("expected the worker's workflow runner, found none")
    if isinstance(runner, SandboxedWorkflowRunner):
        runner = replace(runner, restrictions=runner.restrictions.with_passthrough_modules(*_PASSED_THROUGH))
    return guarded(runner)


def _unsandboxed(runner: WorkflowRunner | None) -> WorkflowRunner:
    return guarded(runner or UnsandboxedWorkflowRunner())
