"""What the plugin adds around each workflow run: its scope, and the certainty that nothing dangles.

The interceptor settles the work items that are still open when the workflow returns, fails or is
canceled, however the workflow's own code got there. When a task continues as new, its state travels
in a header, so that the workflow's signature stays its own.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NoReturn

from temporalio import workflow
from temporalio.exceptions import FailureError
from temporalio.worker import (
    ContinueAsNewInput,
    ExecuteWorkflowInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)

from tasquencer.errors import TaskMisused
from tasquencer.task_state import CarriedTask

if TYPE_CHECKING:
    from tasquencer.temporal.driver import TaskDriver

__all__ = ["TaskInterceptor", "TaskScope", "carried_task"]

_HEADER = "tasquencer-task"
_ATTRIBUTE = "__tasquencer_scope__"


class TaskScope:
    """One workflow run, as the package sees it: its arguments and its task.

    It rests on the workflow instance, because the package's modules keep no state of their own.
    """

    def __init__(self, args: Sequence[Any]) -> None:
        self._args = args
        self.driver: TaskDriver | None = None

    @classmethod
    def current(cls) -> TaskScope:
        """The scope of the current run. Raises `TaskMisused` if the worker lacks the plugin."""
        scope = cls.find()
        if scope is None:
            raise TaskMisused("the worker lacks TasquencerPlugin: give it to the client that the worker uses")
        return scope

    @classmethod
    def find(cls) -> TaskScope | None:
        """The scope of the current run, if the plugin made one."""
        found: TaskScope | None = vars(workflow.instance()).get(_ATTRIBUTE)
        return found

    def enter(self, driver: TaskDriver) -> None:
        """Make this the run's task."""
        if self.driver not in (None, driver):
            raise TaskMisused(
                "a workflow run is one task: make one Task, and a lineage for each chain of attempts"
            )
        self.driver = driver

    def continue_as_new(self) -> NoReturn:
        """Go on in a new run, with the arguments of this one; the task travels along."""
        workflow.continue_as_new(args=self._args)

    async def close(self, reason: str) -> None:
        """Settle what is still open."""
        if self.driver is not None:
            await self.driver.close(reason)
        await workflow.wait_condition(workflow.all_handlers_finished)


def carried_task(info: workflow.Info) -> CarriedTask | None:
    """What the run before this one carried along, if it continued as new."""
    payload = info.headers.get(_HEADER)
    if payload is None or info.continued_run_id is None:
        return None
    carried: CarriedTask = workflow.payload_converter().from_payload(payload, CarriedTask)
    return carried


class TaskInterceptor(Interceptor):
    """Puts a `TaskScope` around each workflow run."""

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002 - the SDK's name
    ) -> type[WorkflowInboundInterceptor] | None:
        """See the base class."""
        return _Inbound


class _Inbound(WorkflowInboundInterceptor):
    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        super().init(_Outbound(outbound))

    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:  # noqa: A002
        scope = TaskScope(input.args)
        vars(workflow.instance())[_ATTRIBUTE] = scope
        try:
            result = await super().execute_workflow(input)
        except (FailureError, asyncio.CancelledError) as error:
            canceled = workflow.cancellation_reason() is not None
            if canceled or isinstance(error, FailureError):
                await scope.close("the task was canceled" if canceled else "the task failed")
            raise
        await scope.close("the task ended")
        return result


class _Outbound(WorkflowOutboundInterceptor):
    def continue_as_new(self, input: ContinueAsNewInput) -> NoReturn:  # noqa: A002
        scope = TaskScope.find()
        if scope is not None and scope.driver is not None:
            payload = workflow.payload_converter().to_payload(scope.driver.carry())
            input.headers = {**input.headers, _HEADER: payload}
        super().continue_as_new(input)
