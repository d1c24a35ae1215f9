"""Applications of somebody else, to which the plugin is added."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import uuid4

from temporalio import activity, workflow
from temporalio.client import Client
from temporalio.common import RetryPolicy
from temporalio.converter import CompositePayloadConverter, DefaultPayloadConverter, JSONPlainPayloadConverter
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from tasquencer.temporal.plugin import TasquencerPlugin
from tests.support.patience import PATIENCE_SECONDS


class _PlainJson(JSONPlainPayloadConverter):
    """Takes what `json` takes, and nothing else: no models, no dates."""

    def __init__(self) -> None:
        super().__init__(encoder=json.JSONEncoder)

    def to_payload(self, value: Any) -> Any:
        if hasattr(value, "model_dump"):
            raise TypeError(f"{type(value).__name__} is no plain JSON")
        return super().to_payload(value)

    def from_payload(self, payload: Any, type_hint: type | None = None) -> Any:
        return super().from_payload(payload)


class PlainJsonConverter(CompositePayloadConverter):
    """A payload converter of the application's own, for which pydantic is nothing special."""

    def __init__(self) -> None:
        others = DefaultPayloadConverter.default_encoding_payload_converters
        super().__init__(
            *(one for one in others if not isinstance(one, JSONPlainPayloadConverter)), _PlainJson()
        )


FLAKY = RetryPolicy(initial_interval=timedelta(milliseconds=50), backoff_coefficient=1, maximum_attempts=4)


class Greeter:
    """An activity that fails this number of times first."""

    def __init__(self, failures: int = 0) -> None:
        self.failures = failures
        self.made = 0

    @activity.defn
    async def greet(self, name: str) -> str:
        self.made += 1
        if self.made <= self.failures:
            raise ApplicationError(f"not yet, {name}", {"secret": name}, type="NotYet")
        return f"Hello, {name}!"


@workflow.defn
class Plain:
    """Activity, local activity, timer, signals, child, update, query, continue-as-new, version marker."""

    def __init__(self) -> None:
        self._noted: list[str] = []

    @workflow.run
    async def run(self, name: str, again: bool = True) -> list[str]:
        workflow.patched("a-patch")
        first = await workflow.execute_activity(
            "greet", name, start_to_close_timeout=timedelta(seconds=60), retry_policy=FLAKY, result_type=str
        )
        second = await workflow.execute_local_activity(
            "greet", name, start_to_close_timeout=timedelta(seconds=60), result_type=str
        )
        await workflow.sleep(0.05)
        child = await workflow.execute_child_workflow(
            Small.run, name, id=f"{workflow.info().workflow_id}/child/{again}"
        )
        await workflow.wait_condition(lambda: bool(self._noted))
        workflow.upsert_memo({"noted": len(self._noted)})
        if again:
            workflow.continue_as_new(args=[name, False])
        return [first, second, child, *self._noted]

    @workflow.signal
    async def note(self, text: str) -> None:
        self._noted.append(text)

    @workflow.update
    async def noted(self, text: str) -> int:
        self._noted.append(text)
        return len(self._noted)

    @workflow.query
    def everything(self) -> dict[str, Any]:
        """All that the instance holds: nothing of anybody else's."""
        return dict(self.__dict__)


@workflow.defn
class Small:
    @workflow.run
    async def run(self, name: str) -> str:
        return name.upper()


@workflow.defn
class SleepingHandler:
    """Ends while its signal handler is asleep."""

    def __init__(self) -> None:
        self._dozes = False

    @workflow.run
    async def run(self) -> str:
        await workflow.wait_condition(lambda: self._dozes)
        await workflow.sleep(0.01)
        return "done"

    @workflow.signal(unfinished_policy=workflow.HandlerUnfinishedPolicy.ABANDON)
    async def doze(self) -> None:
        self._dozes = True
        await workflow.sleep(3600)


@workflow.defn
class Failing:
    """Fails with the failure of its activity."""

    @workflow.run
    async def run(self, name: str) -> str:
        return await workflow.execute_activity(
            "greet",
            name,
            start_to_close_timeout=timedelta(seconds=60),
            retry_policy=RetryPolicy(maximum_attempts=1),
            result_type=str,
        )


@workflow.defn
class Slotted:
    """Its instances have no place for anybody else's attributes."""

    __slots__ = ("_name",)

    @workflow.run
    async def run(self, name: str) -> str:
        self._name = name
        await workflow.sleep(0.01)
        return self._name


PLAIN: list[type] = [Plain, Small, SleepingHandler, Failing, Slotted]


@asynccontextmanager
async def working(
    client: Client,
    activities: Sequence[Any],
    *,
    workflows: Sequence[type] = PLAIN,
    plugins: Sequence[Any] = (),
    task_queue: str | None = None,
    **options: Any,
) -> AsyncIterator[str]:
    """A worker of the application."""
    queue = task_queue or f"queue-{uuid4()}"
    async with Worker(
        client,
        task_queue=queue,
        workflows=workflows,
        activities=activities,
        plugins=plugins,
        max_heartbeat_throttle_interval=timedelta(milliseconds=50),
        **options,
    ):
        yield queue


async def run_plain(client: Client, queue: str) -> Any:
    """A whole life of `Plain`: the handle of its first run, once it has ended."""
    handle = await client.start_workflow(Plain.run, args=["Ann"], id=f"plain-{uuid4()}", task_queue=queue)
    first_run, handle = handle.first_execution_run_id, client.get_workflow_handle(handle.id)
    async with asyncio.timeout(PATIENCE_SECONDS):
        await handle.signal(Plain.note, "a signal")
        while (await handle.describe()).run_id == first_run:
            await asyncio.sleep(0.1)
        await handle.execute_update(Plain.noted, "an update")
        await handle.result()
    return handle


def on(where: str, plugin: TasquencerPlugin) -> tuple[list[Any], list[Any]]:
    """The plugins of the client and those of the worker."""
    return ([plugin], []) if where == "client" else ([], [plugin])
