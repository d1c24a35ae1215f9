"""Workflows that use nothing of ours run with the plugin as they would without it."""

from __future__ import annotations

import asyncio
from collections import Counter
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest
from temporalio import activity, workflow
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowHandle, WorkflowHistory
from temporalio.contrib.pydantic import PydanticPayloadConverter, pydantic_data_converter
from temporalio.converter import (
    DataConverter,
    DefaultFailureConverterWithEncodedAttributes,
    DefaultPayloadConverter,
)
from temporalio.plugin import SimplePlugin
from temporalio.worker import Replayer, Worker

from tasquencer.core.errors import PluginGivenTwice
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.temporal import TasquencerPlugin, connect, data_converter
from tasquencer.testing import InMemoryLedger
from tests.layer.applications import (
    PLAIN,
    Failing,
    Greeter,
    Plain,
    SleepingHandler,
    Slotted,
    on,
    run_plain,
    working,
)
from tests.layer.test_encoding import all_runs
from tests.support.patience import PATIENCE_SECONDS, eventually

Handle = WorkflowHandle[Any, Any]


async def histories(client: Client, queue: str, greeter: Greeter) -> list[WorkflowHistory]:
    """The histories of all plain workflows, run on this queue."""
    found = [await run.fetch_history() for run in await all_runs(client, (await run_plain(client, queue)).id)]
    sleeping = await client.start_workflow(SleepingHandler.run, id=f"sleeping-{uuid4()}", task_queue=queue)
    await sleeping.signal(SleepingHandler.doze)
    assert await sleeping.result() == "done"
    slotted = await client.start_workflow(Slotted.run, "Ann", id=f"slotted-{uuid4()}", task_queue=queue)
    assert await slotted.result() == "Ann"
    greeter.made = 0
    failing = await client.start_workflow(Failing.run, "Ann", id=f"failing-{uuid4()}", task_queue=queue)
    await failure_cause(failing)
    return [*found, *[await handle.fetch_history() for handle in (sleeping, slotted, failing)]]


async def failure_cause(handle: Handle) -> None:
    with pytest.raises(Exception, match="Workflow execution failed"):
        await handle.result()


def told(history: WorkflowHistory) -> Counter[str]:
    """How many events of each kind there are; how they fall into workflow tasks is left to chance."""
    kinds = Counter(str(event.WhichOneof("attributes")) for event in history.events)
    return Counter({kind: count for kind, count in kinds.items() if not kind.startswith("workflow_task")})


@pytest.mark.parametrize("where", ["client", "worker"])
async def test_histories_with_and_without_the_plugin_are_the_same_and_replay_on_each_other(
    dev_server: EmbeddedTemporal, where: str
) -> None:
    native = await Client.connect(dev_server.address)
    greeter = Greeter(failures=2)
    async with working(native, [greeter.greet]) as queue:
        without = await histories(native, queue, greeter)
    ledger = InMemoryLedger()
    plugin = TasquencerPlugin(ledger)
    of_client, of_worker = on(where, plugin)
    client = await Client.connect(dev_server.address, plugins=of_client)
    greeter = Greeter(failures=2)
    async with working(client, [greeter.greet], plugins=of_worker) as queue:
        with_it = await histories(client, queue, greeter)
    assert [told(history) for history in with_it] == [told(history) for history in without]
    assert len(with_it) == 5
    ours = Replayer(workflows=PLAIN, plugins=[TasquencerPlugin(InMemoryLedger())])
    for history in without:
        await ours.replay_workflow(history)
    theirs = Replayer(workflows=PLAIN)
    for history in with_it:
        await theirs.replay_workflow(history)
        flags = [
            flag
            for event in history.events
            for flag in event.workflow_task_completed_event_attributes.sdk_metadata.lang_used_flags
        ]
        assert all(flag < 1_000 for flag in flags)  # those of the SDK itself
    assert await ledger.work_items(WorkItemFilter()) == []


async def test_the_instance_of_a_plain_workflow_holds_nothing_of_ours(dev_server: EmbeddedTemporal) -> None:
    client = await Client.connect(dev_server.address, plugins=[TasquencerPlugin(InMemoryLedger())])
    async with working(client, [Greeter().greet]) as queue:
        handle = await client.start_workflow(Plain.run, args=["Ann"], id=f"plain-{uuid4()}", task_queue=queue)
        assert await handle.query(Plain.everything) == {"_noted": []}
        await handle.terminate()


async def test_a_plain_workflow_ends_though_a_signal_handler_is_asleep(dev_server: EmbeddedTemporal) -> None:
    client = await Client.connect(dev_server.address, plugins=[TasquencerPlugin(InMemoryLedger())])
    async with working(client, []) as queue:
        handle = await client.start_workflow(SleepingHandler.run, id=f"sleeping-{uuid4()}", task_queue=queue)
        await handle.signal(SleepingHandler.doze)
        assert await handle.result() == "done"
        assert (await handle.describe()).status is WorkflowExecutionStatus.COMPLETED


@activity.defn(name="elsewhere")
async def elsewhere() -> str:
    return "done by the worker that has it"


@workflow.defn
class CallsElsewhere:
    """Its activity is registered on another worker of the same queue."""

    @workflow.run
    async def run(self) -> list[str]:
        return [
            await workflow.execute_activity(elsewhere, start_to_close_timeout=timedelta(seconds=60))
            for _ in range(10)
        ]


async def test_a_worker_without_activities_takes_none_from_the_queue(dev_server: EmbeddedTemporal) -> None:
    client = await Client.connect(dev_server.address, plugins=[TasquencerPlugin(InMemoryLedger())])
    native = await Client.connect(dev_server.address)
    queue = f"queue-{uuid4()}"
    async with (
        working(client, [], workflows=[CallsElsewhere], task_queue=queue),
        working(native, [elsewhere], workflows=[], task_queue=queue),
    ):
        handle = await client.start_workflow(CallsElsewhere.run, id=f"calls-{uuid4()}", task_queue=queue)
        assert len(await handle.result()) == 10
    starts = [
        event.activity_task_started_event_attributes
        async for event in handle.fetch_history_events()
        if event.HasField("activity_task_started_event_attributes")
    ]
    assert [start.attempt for start in starts] == [1] * 10


@pytest.mark.parametrize("where", ["client", "worker"])
async def test_activities_that_a_later_plugin_brings_are_carried_out(
    dev_server: EmbeddedTemporal, where: str
) -> None:
    ours = TasquencerPlugin(InMemoryLedger())
    theirs = SimplePlugin("theirs", activities=[elsewhere])
    of_client, of_worker = ([ours, theirs], []) if where == "client" else ([], [ours, theirs])
    client = await Client.connect(dev_server.address, plugins=of_client)
    async with working(client, [], workflows=[CallsElsewhere], plugins=of_worker) as queue:
        handle = await client.start_workflow(CallsElsewhere.run, id=f"calls-{uuid4()}", task_queue=queue)
        async with asyncio.timeout(PATIENCE_SECONDS):
            assert len(await handle.result()) == 10


class CountedLedger(InMemoryLedger):
    def __init__(self) -> None:
        super().__init__()
        self.opened = self.closed = 0

    async def open(self) -> None:
        self.opened += 1
        await asyncio.sleep(0.1)  # another worker may start meanwhile

    async def close(self) -> None:
        await asyncio.sleep(0.1)
        self.closed += 1


async def test_two_workers_of_one_client_share_the_ledger(dev_server: EmbeddedTemporal) -> None:
    ledger = CountedLedger()
    client = await Client.connect(dev_server.address, plugins=[TasquencerPlugin(ledger)])
    async with working(client, [Greeter().greet]):
        async with working(client, [Greeter().greet]):
            await eventually(lambda: has(ledger, opened=1, closed=0), "an open ledger")
        assert (ledger.opened, ledger.closed) == (1, 0)
    assert (ledger.opened, ledger.closed) == (1, 1)


async def has(ledger: CountedLedger, *, opened: int, closed: int) -> bool:
    return (ledger.opened, ledger.closed) == (opened, closed)


async def test_the_plugin_on_client_and_worker_is_refused(dev_server: EmbeddedTemporal) -> None:
    plugin = TasquencerPlugin(InMemoryLedger())
    client = await Client.connect(dev_server.address, plugins=[plugin])
    for another in (plugin, TasquencerPlugin(InMemoryLedger())):
        with (
            pytest.warns(UserWarning, match="same plugin type"),
            pytest.raises(PluginGivenTwice, match="not to both"),
        ):
            Worker(client, task_queue="queue", workflows=PLAIN, plugins=[another])


HIDING_FAILURES = DataConverter(failure_converter_class=DefaultFailureConverterWithEncodedAttributes)


class TheirConverter(PydanticPayloadConverter):
    """Of another plugin, which insists on it."""


def insisting(converter: DataConverter | None) -> DataConverter:
    if converter is None or converter.payload_converter_class is DefaultPayloadConverter:
        return DataConverter(payload_converter_class=TheirConverter)
    if converter.payload_converter_class is not TheirConverter:
        raise ValueError(f"this plugin needs its own converter, found {converter.payload_converter_class}")
    return converter


@pytest.mark.parametrize("ours_first", [True, False])
@pytest.mark.parametrize("connecting", [Client.connect, connect])
async def test_a_plugin_that_brings_a_converter_keeps_it(
    dev_server: EmbeddedTemporal, ours_first: bool, connecting: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", dev_server.address)
    ours, theirs = TasquencerPlugin(InMemoryLedger()), SimplePlugin("theirs", data_converter=insisting)
    plugins = [ours, theirs] if ours_first else [theirs, ours]
    options: dict[str, Any] = {} if connecting is connect else {"target_host": dev_server.address}
    client = await connecting(plugins=plugins, **options)
    assert client.data_converter.payload_converter_class is TheirConverter


async def test_our_converter_is_installed_only_where_all_is_the_default(dev_server: EmbeddedTemporal) -> None:
    plugin = TasquencerPlugin(InMemoryLedger())
    address = dev_server.address
    by_default = await Client.connect(address, plugins=[plugin, SimplePlugin("does nothing")])
    assert by_default.data_converter is data_converter
    for chosen in (pydantic_data_converter, HIDING_FAILURES):
        client = await Client.connect(address, plugins=[plugin], data_converter=chosen)
        assert client.data_converter is chosen


async def test_connect_takes_what_the_client_takes(
    dev_server: EmbeddedTemporal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TEMPORAL_ADDRESS", "127.0.0.1:1")
    monkeypatch.delenv("TASQ_DATA_CONVERTER", raising=False)
    client = await connect(target_host=dev_server.address, identity="somebody", namespace="default")
    assert (client.identity, client.data_converter) == ("somebody", data_converter)
    client = await connect(target_host=dev_server.address, data_converter=pydantic_data_converter)
    assert client.data_converter is pydantic_data_converter
