"""Adopted activities: each attempt of an activity becomes its own activity and work item.

An interceptor returns our own task instead of the SDK's handle. The workflow's code sees the same as
natively, and the retries are decided as Temporal's server would decide them.

A run decides once for each activity type, and its history keeps the decision as a patch
(`workflow.patched`). So adopting can be switched on and off while workflows are running.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from typing import Any

from temporalio import workflow
from temporalio.converter import DataConverter
from temporalio.exceptions import FailureError, is_cancelled_exception
from temporalio.worker import (
    ExecuteWorkflowInput,
    HandleUpdateInput,
    Interceptor,
    StartActivityInput,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)

from tasquencer.ai.agents.steps import PriceOf
from tasquencer.temporal.adopting_attempts import AdoptedActivity, Keeping
from tasquencer.temporal.adopting_run import AdoptedRun
from tasquencer.temporal.agent_steps import prices_here
from tasquencer.temporal.answers import answered_on_news
from tasquencer.temporal.driver import TaskDriver
from tasquencer.temporal.foreign import hides_messages, matches
from tasquencer.temporal.headers import RUN_HEADER
from tasquencer.temporal.scope import TaskScope, to_the_end

__all__ = ["Adopting", "AdoptingInterceptor"]

_FUNCTION = "tasquencer.adopting"
"""Name of the function that tells a workflow in the sandbox which activities are adopted."""

_ATTRIBUTE = "__tasquencer_adopting__"
"""Attribute of the run's event loop: the run's decisions by activity type. See `TaskScope`."""

_PATCH = "tasquencer-adopt"
_BARE = "tasquencer-adopt-bare"
"""The same if the ledger keeps neither arguments nor results, so that a rebuild knows it, too."""


def _no_price(_url: str | None) -> None:
    return None


@dataclass(frozen=True)
class Adopting:
    """The options of adopted activities.

    Attributes:
        patterns: Patterns of activity types, as in `fnmatch`.
        keeps_payloads: True to keep arguments and results.
        keeps_messages: True to keep the messages of failures.
        never: Our own activity types.
        price_of: Prices of model requests.
    """

    patterns: Sequence[str] = ()
    keeps_payloads: bool = True
    keeps_messages: bool = True
    never: Collection[str] = ()
    price_of: PriceOf = _no_price

    @classmethod
    def on(
        cls,
        converter: DataConverter,
        patterns: Sequence[str],
        record_payloads: bool | None,
        never: Collection[str],
    ) -> Adopting:
        """Return the options for a client with this data converter.

        Args:
            converter: The client's converter.
            patterns: Patterns of activity types.
            record_payloads: None means only if the client has no payload codec.
            never: Our own activity types.
        """
        keeps = converter.payload_codec is None if record_payloads is None else record_payloads
        return cls(
            tuple(patterns),
            keeps,
            keeps or not hides_messages(converter),
            frozenset(never),
            prices_here() if patterns else _no_price,
        )


class AdoptingInterceptor(Interceptor):
    """Adopts activities in the workflows of a worker. It is the last interceptor, next to the workflow's
    code.

    Args:
        adopting: The options.
    """

    def __init__(self, adopting: Adopting) -> None:
        self._adopting = adopting

    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002 - the SDK's name
    ) -> type[WorkflowInboundInterceptor] | None:
        """See the base class."""
        input.unsafe_extern_functions[_FUNCTION] = lambda: self._adopting
        return _Inbound


class _Inbound(WorkflowInboundInterceptor):
    def init(self, outbound: WorkflowOutboundInterceptor) -> None:
        super().init(_Outbound(outbound))

    async def handle_update_handler(self, input: HandleUpdateInput) -> Any:  # noqa: A002
        return await answered_on_news(super().handle_update_handler(input), _driver)

    async def execute_workflow(self, input: ExecuteWorkflowInput) -> Any:  # noqa: A002
        result: Any = None
        error: BaseException | None = None
        try:
            result = await super().execute_workflow(input)
        except GeneratorExit:  # the instance is gone, and so is its event loop
            raise
        except BaseException as raised:
            if AdoptedRun.find() is None or not _ends_the_run(raised):
                raise
            error = raised
        run = AdoptedRun.find()
        if run is not None:
            await to_the_end(run.driver.close(_reason(error)))
        if error is not None:
            raise error
        return result


def _driver() -> TaskDriver | None:
    run = AdoptedRun.find()
    return None if run is None else run.driver


def _ends_the_run(raised: BaseException) -> bool:
    if isinstance(raised, FailureError | workflow.ContinueAsNewError):
        return True
    if isinstance(raised, asyncio.CancelledError):
        return workflow.cancellation_reason() is not None
    runtime = workflow._Runtime.current()  # the SDK has no public name for this question
    return runtime.workflow_is_failure_exception(raised)


def _reason(error: BaseException | None) -> str:
    if error is None:
        return "the workflow ended without it"
    if isinstance(error, workflow.ContinueAsNewError):
        return "the workflow continued as new"
    if is_cancelled_exception(error) and workflow.cancellation_reason() is not None:
        return "the workflow was canceled"
    return "the workflow failed"


class _Outbound(WorkflowOutboundInterceptor):
    def start_activity(self, input: StartActivityInput) -> workflow.ActivityHandle[Any]:  # noqa: A002
        keeping = _decision(input)
        if keeping is None:
            return super().start_activity(input)
        adopted = AdoptedActivity(AdoptedRun.current(), input, super().start_activity, keeping)
        return asyncio.create_task(  # type: ignore[return-value] # a task is all that a handle is
            adopted.carry_out(), name=f"activity: {input.activity}"
        )


def _decision(given: StartActivityInput) -> Keeping | None:
    """Return what the run keeps of the activity if it adopts it, or None if Temporal runs it natively."""
    scope = TaskScope.find()
    find: Callable[[], Adopting] | None = workflow.extern_functions().get(_FUNCTION)
    if scope is None or find is None or RUN_HEADER in given.headers:
        return None
    adopting = find()
    if given.activity in adopting.never:
        return None
    if scope.driver is not None and scope.driver.calls.is_calling(given.activity_id):
        return None  # the call of one of the task's own work items
    decided: dict[str, Keeping | None] = vars(asyncio.get_running_loop()).setdefault(_ATTRIBUTE, {})
    if given.activity not in decided:
        decided[given.activity] = _decide(adopting, given.activity)
    return decided[given.activity]


def _decide(adopting: Adopting, kind: str) -> Keeping | None:
    """Decide for a type whose first activity of the run starts now. In a replay the history decides."""
    ids = (f"{_PATCH}-{kind}", True), (f"{_BARE}-{kind}", False)
    if not workflow.unsafe.is_replaying():
        if not matches(adopting.patterns, kind):
            return None
        ids = tuple((patch, keeps) for patch, keeps in ids if keeps is adopting.keeps_payloads)  # type: ignore[assignment]
    for patch, keeps in ids:
        if workflow.patched(patch):
            messages = keeps or adopting.keeps_messages
            return Keeping(payloads=keeps, messages=messages, price_of=adopting.price_of)
    return None
