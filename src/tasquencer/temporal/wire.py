"""Sends our own values through Temporal, with any data converter of the client.

The SDK requires every payload converter to pass on a `RawValue` unchanged. So we write the JSON of our own
models ourselves, as a `RawValue`. It reads the same with every converter, and the client's codec encodes it
like any other payload. It is the JSON of our own converter, so histories of earlier releases can be read,
too.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, NoReturn, TypeVar, cast, get_type_hints

from pydantic import BaseModel, TypeAdapter, ValidationError
from pydantic_core import to_json
from temporalio import activity
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue
from temporalio.exceptions import ApplicationError
from temporalio.worker import (
    ContinueAsNewInput,
    ExecuteWorkflowInput,
    HandleQueryInput,
    HandleUpdateInput,
    Interceptor,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
    WorkflowOutboundInterceptor,
)

__all__ = [
    "JSON",
    "WireInterceptor",
    "activity_name",
    "json_payload",
    "received",
    "received_json",
    "run_of",
    "sent",
    "wired",
]

T = TypeVar("T")

JSON = b"json/plain"
_NULL = b"binary/null"
_RUN = "tasquencer-run"
"""Metadata of a result: the run for which the activity worked."""

_MARK = "tasquencer-mark"
"""Metadata of a first argument that the result gets, too. So the history keeps a fact of the moment."""


def json_payload(value: object) -> Payload:
    """Return the value as JSON. Raises `PydanticSerializationError` if JSON cannot hold it."""
    return Payload(metadata={"encoding": JSON}, data=to_json(value))


def sent(value: object, *, mark: bool = False) -> RawValue:
    """Return the value as an argument or a result that every payload converter passes on.

    Args:
        mark: Mark the first argument of an activity of ours. Its result is then marked (`is_marked`).
    """
    payload = Payload(metadata={"encoding": _NULL}) if value is None else json_payload(value)
    if mark:
        payload.metadata[_MARK] = b"1"
    return RawValue(payload)


def is_marked(raw: RawValue) -> bool:
    """Return whether the first argument of the activity that gave this result was marked."""
    return _MARK in raw.payload.metadata


def received(raw: RawValue, kind: type[T]) -> T:
    """Read a sent value as this type. Raises `pydantic.ValidationError` if it does not fit."""
    adapter: TypeAdapter[T] = _adapter(kind)
    return cast("T", _read(raw, adapter))


def run_of(raw: RawValue) -> str | None:
    """The run for which an activity of ours gave this result; None if an earlier release did not say so.

    After a reset the result is in the history of a run for which the activity did not work.
    """
    run = raw.payload.metadata.get(_RUN, b"").decode()
    return run or None


def received_json(raw: RawValue, otherwise: Callable[[Payload], Any]) -> Any:
    """Read a sent value as plain JSON values.

    Args:
        otherwise: The client's payload converter, which reads values of other senders that are not JSON.
    """
    payload = raw.payload
    if payload.metadata.get("encoding") != JSON:
        return otherwise(payload)
    try:
        return json.loads(payload.data)
    except (ValueError, RecursionError):
        return payload.data


def activity_name(function: Callable[..., Any]) -> str | None:
    """Return the name under which an activity is registered, or None for a dynamic one."""
    return activity._Definition.must_from_callable(function).name


def wired(function: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[RawValue]]:
    """Return our activity for the registration. This module reads its arguments and sends its result."""
    name = activity_name(function)
    hints = get_type_hints(function)
    hints.pop("return", None)
    adapters: list[TypeAdapter[Any]] = [TypeAdapter(hint) for hint in hints.values()]

    async def carried_out(*raws: RawValue) -> RawValue:
        try:
            arguments = [_read(raw, adapter) for raw, adapter in zip(raws, adapters, strict=True)]
        except ValidationError as error:
            raise ApplicationError("Failed decoding arguments") from error
        result = sent(await function(*arguments))
        result.payload.metadata[_RUN] = (activity.info().workflow_run_id or "").encode()
        if is_marked(raws[0]):
            result.payload.metadata[_MARK] = b"1"
        return result

    async def of_one(raw: RawValue) -> RawValue:
        return await carried_out(raw)

    async def of_two(first: RawValue, second: RawValue) -> RawValue:
        return await carried_out(first, second)

    by_arguments: dict[int, Callable[..., Awaitable[RawValue]]] = {1: of_one, 2: of_two}
    return activity.defn(name=name)(by_arguments[len(adapters)])


def _read(raw: RawValue, adapter: TypeAdapter[Any]) -> Any:
    payload = raw.payload
    if payload.metadata.get("encoding") == _NULL:
        return None  # for any type, because earlier releases returned nothing in some places
    return adapter.validate_json(payload.data)


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}
"""A cache: an adapter takes milliseconds to make."""


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


class WireInterceptor(Interceptor):
    """Sends our own models if a workflow returns them or passes them to its next run."""

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
        return _sent_if_ours(await super().execute_workflow(input))

    async def handle_query(self, input: HandleQueryInput) -> Any:  # noqa: A002
        return _sent_if_ours(await super().handle_query(input))

    async def handle_update_handler(self, input: HandleUpdateInput) -> Any:  # noqa: A002
        return _sent_if_ours(await super().handle_update_handler(input))


class _Outbound(WorkflowOutboundInterceptor):
    def continue_as_new(self, input: ContinueAsNewInput) -> NoReturn:  # noqa: A002
        input.args = [_sent_if_ours(value) for value in input.args]
        super().continue_as_new(input)


def _sent_if_ours(value: object) -> object:
    is_ours = isinstance(value, BaseModel) and type(value).__module__.partition(".")[0] == "tasquencer"
    return sent(value) if is_ours else value
