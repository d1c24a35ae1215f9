"""The scope that the plugin puts around each workflow run and each call, so that nothing stays open.

When the workflow returns, fails or is canceled, in any way, the interceptor settles the open work items and
starts the workflow that follows the task's end. When a task continues as new, its state travels in a header,
so that the workflow's signature does not change.

The id of the run travels in a header with each call of a work item. After a reset, Temporal repeats a running
call in the new run, under the same id. It is stopped before it begins, and the task makes another work item.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import inspect
from collections.abc import Callable, Coroutine, Sequence
from typing import Any, NoReturn

from temporalio import workflow
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue
from temporalio.exceptions import (
    FailureError,
    WorkflowAlreadyStartedError,
    is_cancelled_exception,
)
from temporalio.worker import (
    ActivityInboundInterceptor,
    ContinueAsNewInput,
    ExecuteWorkflowInput,
    HandleSignalInput,
    HandleUpdateInput,
    Interceptor,
    StartActivityInput,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)

from tasquencer.core.carried import CarriedTask
from tasquencer.core.ending import FollowUp, TaskEnd, TaskEndHook, TaskEndState
from tasquencer.core.errors import InvalidRequest, TaskMisused
from tasquencer.temporal.answers import answered_on_news
from tasquencer.temporal.delivery import CallInbound, Delivery
from tasquencer.temporal.driver import TaskDriver
from tasquencer.temporal.failures import task_error
from tasquencer.temporal.fixed_order import fix_order
from tasquencer.temporal.headers import RUN_HEADER, HeaderCodec, pack, unpack
from tasquencer.temporal.run_status import StatusOfRuns
from tasquencer.temporal.unbegun import unbegun
from tasquencer.temporal.wire import json_payload, received

__all__ = [
    "TaskInterceptor",
    "TaskScope",
    "carried_task",
    "makes_calls",
    "to_the_end",
]

_HEADER = "tasquencer-task"
_ATTRIBUTE = "__tasquencer_scope__"
_MAKES_CALLS = "tasquencer_makes_calls"


class TaskScope:
    """One workflow run: its arguments and its task.

    It is stored on the run's event loop, because the package's modules keep no state, and the workflow's
    instance belongs to its author.
    """

    def __init__(self) -> None:
        self._args: Sequence[Any] = ()
        self.driver: TaskDriver | None = None
        self.is_continuing = False
        self._is_over = False
        self._has_order = False
        self._run_headers: dict[str, Payload] = {}
        self._on_ended: TaskEndHook | None = None

    @classmethod
    def current(cls) -> TaskScope:
        """Return the scope of the current run. Raises `TaskMisused` if the worker lacks the plugin."""
        scope = cls.find()
        if scope is None:
            raise TaskMisused("the worker lacks TasquencerPlugin: give it to the client that the worker uses")
        return scope

    @classmethod
    def find(cls) -> TaskScope | None:
        """Return the scope of the current run, if the plugin made one."""
        found: TaskScope | None = vars(asyncio.get_running_loop()).get(_ATTRIBUTE)
        return found

    @classmethod
    def of_the_run(cls) -> TaskScope:
        """Return the scope of the current run. The first call makes it."""
        scope: TaskScope = vars(asyncio.get_running_loop()).setdefault(_ATTRIBUTE, cls())
        return scope

    def begin(self, args: Sequence[Any]) -> None:
        """Begin the workflow's own code. Handlers of signals and updates may have begun before."""
        self._args = args
        self._fix_order()

    def _fix_order(self) -> None:
        if not self._has_order:
            self._has_order = True
            fix_order(asyncio.get_running_loop())

    def run_header(self, work_item_id: str, driver: TaskDriver) -> Payload:
        """The header of a work item's call: the run that has recorded its start.

        After a reset the result of that record can arrive before the news of the reset does.
        """
        run_id = driver.writing.started_by(work_item_id)
        if run_id not in self._run_headers:
            self._run_headers[run_id] = HeaderCodec.encoded(json_payload(run_id))
        return self._run_headers[run_id]

    def enter(self, driver: TaskDriver, on_ended: TaskEndHook | None) -> None:
        """Make this the run's task."""
        if self.driver not in (None, driver):
            raise TaskMisused(
                "a workflow run is one task: make one Task, and a lineage for each chain of attempts"
            )
        self.driver = driver
        self._fix_order()
        self._on_ended = on_ended
        if self._is_over and driver.is_second_edition:
            driver.is_ending = True

    def ends_without_task(self) -> None:
        """Note that the run ends before its task has begun anything. Left-over code must begin nothing."""
        self._is_over = True

    def continue_as_new(self) -> NoReturn:
        """Continue in a new run with the same arguments, which carries the task along."""
        self.is_continuing = True
        workflow.continue_as_new(args=self._args)

    async def close(self, reason: str) -> None:
        """End the open work items, and wait for running actions of operators."""
        driver = self.driver
        if driver is None:
            return
        await driver.close(reason)
        if driver.is_second_edition:
            await workflow.wait_condition(lambda: driver.actions_under_way == 0)
        else:
            await workflow.wait_condition(workflow.all_handlers_finished)

    async def follow_up(self, error: BaseException | None) -> None:
        """Start the workflow that follows the task's end. It runs independently."""
        if self.driver is None or self._on_ended is None:
            return
        info = workflow.info()
        state = _state_of(error)
        failed = error if state is TaskEndState.FAILED and isinstance(error, FailureError) else None
        end = TaskEnd(
            task_id=info.workflow_id,
            task_type=info.workflow_type,
            state=state,
            error_type=getattr(failed, "type", None),
            message=failed.message if failed is not None else None,
            counts=self.driver.state.counts(),
        )
        try:
            wish: object = self._on_ended(end)
        except Exception as raised:
            raise TaskMisused.by("the hook `on_ended`", raised) from raised
        if wish is None:
            return
        if not isinstance(wish, FollowUp):
            raise TaskMisused.returned("the hook `on_ended`", wish, "a FollowUp or None")
        with contextlib.suppress(WorkflowAlreadyStartedError):
            await workflow.start_child_workflow(
                wish.workflow,
                wish.input,
                id=wish.id or f"{info.workflow_id}/follow-up",
                task_queue=wish.task_queue,
                parent_close_policy=workflow.ParentClosePolicy.ABANDON,
                cancellation_type=workflow.ChildWorkflowCancellationType.ABANDON,
            )


def makes_calls() -> bool:
    """Return whether the plugin of the worker has `calls=`."""
    function = workflow.extern_functions().get(_MAKES_CALLS)
    return function is not None and bool(function())


def carried_task(info: workflow.Info) -> CarriedTask | None:
    """Return the state from the previous run, if that continued as new."""
    payload = info.headers.get(_HEADER)
    if payload is None or info.continued_run_id is None:
        return None
    carried = received(RawValue(unpack(HeaderCodec.decoded(payload))), CarriedTask)
    return carried if _is_ours(carried, info) else None


def _is_ours(carried: CarriedTask, info: workflow.Info) -> bool:
    """Return whether the previous run has carried the task along.

    Temporal also passes a header to later runs when it retries a workflow or starts it on a cron schedule. A
    client can put one into a start request. Neither header names the previous run, whose id Temporal chose.
    """
    if any(item.task_id != info.workflow_id for item in carried.work_items):
        return False
    if carried.run_id is None:  # by an earlier release
        return info.cron_schedule is None and info.retry_policy is None
    return carried.run_id == info.continued_run_id


class TaskInterceptor(Interceptor):
    """Puts a `TaskScope` around each workflow run, and a `Delivery` behind each call.

    Args:
        headers: Encodes our headers. None: there are none.
        status: Knows the status of runs. None: nobody knows it.
        makes_calls: The plugin has `calls=`.
    """

    def __init__(
        self,
        headers: HeaderCodec | None = None,
        status: StatusOfRuns | None = None,
        *,
        makes_calls: bool = True,
    ) -> None:
        self._makes_calls = makes_calls
        self._delivery = Delivery()
        self._status = status
        self._headers = headers or HeaderCodec()

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002 - the SDK's name
    ) -> type[WorkflowInboundInterceptor] | None:
        """See the base class."""
        self._headers.offer(input.unsafe_extern_functions)
        if self._status is not None:
            self._status.offer(input.unsafe_extern_functions)
        input.unsafe_extern_functions[_MAKES_CALLS] = lambda: self._makes_calls
        return _Inbound

    def intercept_activity(self, next: ActivityInboundInterceptor) -> ActivityInboundInterceptor:  # noqa: A002
        """See the base class."""
        return CallInbound(next, self._delivery, self._headers)


class _Inbound(WorkflowInboundInterceptor):
    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        super().init(_Outbound(outbound))

    async def handle_signal(self, input: HandleSignalInput) -> None:  # noqa: A002
        TaskScope.of_the_run()
        await super().handle_signal(input)

    async def handle_update_handler(self, input: HandleUpdateInput) -> Any:  # noqa: A002
        scope = TaskScope.of_the_run()
        return await answered_on_news(super().handle_update_handler(input), lambda: scope.driver)

    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:  # noqa: A002
        if _has_task():
            _refuse_surplus(input)
        scope = TaskScope.of_the_run()
        scope.begin(input.args)
        result: Any = None
        error: BaseException | None = None
        try:
            result = await super().execute_workflow(input)
        except GeneratorExit:  # the instance leaves the cache
            raise
        except BaseException as raised:
            driver = scope.driver or unbegun()
            if driver is None or not _ends_the_run(raised, driver):
                raise
            error = raised
        if scope.driver is None:  # a workflow without a task ends as without the plugin
            scope.ends_without_task()
            if (driver := unbegun()) is not None:
                await to_the_end(driver.close(_REASONS[_state_of(error)]))
            if error is not None:
                raise error
            return result
        if isinstance(error, workflow.ContinueAsNewError):  # the user's own: the next run is another task
            await to_the_end(scope.close("the task continued as new"))
            raise error
        # The code has seen a cancel before its end, and has decided about it.
        is_decided = scope.driver.is_second_edition and workflow.cancellation_reason() is not None
        await to_the_end(scope.close(_REASONS[_state_of(error)]))
        # A cancel in time is obeyed, even during the last write of a task.
        is_canceled = workflow.cancellation_reason() is not None and not is_decided
        if is_canceled and _state_of(error) is not TaskEndState.CANCELED:
            error = asyncio.CancelledError("the task was canceled")
        await to_the_end(scope.follow_up(error))
        if error is not None:
            raise error
        return result


def _ends_the_run(raised: BaseException, driver: TaskDriver) -> bool:
    """Return whether the error ends the run. After a bug the workflow task is repeated instead."""
    if isinstance(raised, FailureError):
        return True
    if isinstance(raised, asyncio.CancelledError):
        return workflow.cancellation_reason() is not None
    if not driver.is_second_edition:
        return False
    runtime = workflow._Runtime.current()  # the SDK has no public name for this question
    return isinstance(raised, workflow.ContinueAsNewError) or runtime.workflow_is_failure_exception(raised)


def _has_task() -> bool:
    """Return whether the workflow made a `Task` in its `__init__`, which offers its updates."""
    return workflow.get_update_handler("retry_now") is not None


def _refuse_surplus(given: ExecuteWorkflowInput) -> None:
    """Python's own TypeError would fail the workflow task again and again."""
    if not given.args:
        return
    most = _most_inputs(given.run_fn)
    if most is not None and len(given.args) > most:
        expected = "one input" if most == 1 else f"{most} inputs"
        raise task_error(
            InvalidRequest.__name__, f"the workflow takes {expected}, {len(given.args)} were given"
        )


@functools.lru_cache
def _most_inputs(run: Callable[..., Any]) -> int | None:
    _, *parameters = inspect.signature(run).parameters.values()
    endless = any(parameter.kind is inspect.Parameter.VAR_POSITIONAL for parameter in parameters)
    return None if endless else len(parameters)


_REASONS = {
    TaskEndState.COMPLETED: "the task ended",
    TaskEndState.FAILED: "the task failed",
    TaskEndState.CANCELED: "the task was canceled",
}


def _state_of(error: BaseException | None) -> TaskEndState:
    if error is None:
        return TaskEndState.COMPLETED
    canceled = is_cancelled_exception(error) and workflow.cancellation_reason() is not None
    return TaskEndState.CANCELED if canceled else TaskEndState.FAILED


async def to_the_end(doing: Coroutine[Any, Any, None]) -> None:
    """Run it to its end despite cancels."""
    task = asyncio.create_task(doing)
    while not task.done():
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.shield(task)
    await task


class _Outbound(WorkflowOutboundInterceptor):
    def start_activity(self, input: StartActivityInput) -> workflow.ActivityHandle[Any]:  # noqa: A002
        scope = TaskScope.find()
        driver = None if scope is None else scope.driver
        if scope is not None and driver is not None and driver.calls.is_calling(input.activity_id):
            payload = scope.run_header(input.activity_id or "", driver)
            input.headers = {**input.headers, RUN_HEADER: payload}
        return super().start_activity(input)

    def continue_as_new(self, input: ContinueAsNewInput) -> NoReturn:  # noqa: A002
        scope = TaskScope.find()
        driver = None if scope is None else scope.driver
        if scope is not None and driver is not None and (scope.is_continuing or not driver.is_second_edition):
            carried = driver.carry().model_copy(update={"run_id": workflow.info().run_id})
            payload = HeaderCodec.encoded(pack(json_payload(carried)))
            input.headers = {**input.headers, _HEADER: payload}
        super().continue_as_new(input)
