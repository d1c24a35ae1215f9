"""Every payload of ours is encoded by the codec of the client, whatever payload converter it has."""

from __future__ import annotations

from collections.abc import AsyncIterator
from datetime import timedelta
from types import TracebackType
from typing import Any, cast
from uuid import uuid4

import pytest
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import ResetWorkflowExecutionRequest
from temporalio.client import Client, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.common import HeaderCodecBehavior
from temporalio.converter import DataConverter, DefaultFailureConverterWithEncodedAttributes
from temporalio.worker import Replayer

from tasquencer.batch.memory import InMemoryBatches
from tasquencer.core.work_item import WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tasquencer.ledger.contract import Ledger, WorkItemFilter
from tasquencer.temporal import TasquencerPlugin
from tasquencer.temporal.ai_calls import AiCalls
from tasquencer.temporal.histories import Histories
from tasquencer.temporal.projection import verify
from tasquencer.testing import InMemoryLedger
from tests.layer.applications import Greeter, PlainJsonConverter, on, run_plain, working
from tests.support.batches import filled_batch
from tests.support.calls import GONE, Hang, ScriptedCalls
from tests.support.encryption import ENCRYPTED, Encryption, encrypting, encrypting_models, payloads_in
from tests.support.patience import eventually
from tests.support.tasks import failure_of_task
from workflows.ai_agent import AiAgentTask
from workflows.ai_batch import AiBatchTask
from workflows.ai_fan_out import AiFanOutTask
from workflows.reconcile_ledger import ReconcileLedger

Handle = WorkflowHandle[Any, Any]

OURS = [AiAgentTask, AiFanOutTask, AiBatchTask, ReconcileLedger]
AT_ONCE = {"initial_interval_seconds": 0}
SOON = {"initial_interval_seconds": 0.1, "backoff_coefficient": 1}

HIDING = DataConverter(
    payload_codec=Encryption(), failure_converter_class=DefaultFailureConverterWithEncodedAttributes
)
PLAIN_JSON = DataConverter(payload_converter_class=PlainJsonConverter)
HIDDEN_PLAIN_JSON = DataConverter(payload_converter_class=PlainJsonConverter, payload_codec=Encryption())

CONVERTERS = {
    "the SDK's converter with a codec": encrypting,
    "our converter with a codec": encrypting_models(),
    "a codec that hides failures": HIDING,
    "a converter that knows no models, with a codec": HIDDEN_PLAIN_JSON,
    "a converter that knows no models": PLAIN_JSON,
}


class Calls(ScriptedCalls):
    """A scripted call that the plugin registers as it does `AiCalls`."""

    @property
    def activities(self) -> list[Any]:
        return [self.generate]

    def check_in(self, ledger: Ledger) -> None:
        """It makes any call."""

    def stops_within(self, grace_period: timedelta) -> None:
        """It is never paused."""

    def cancels_are_pushed(self, pushed: bool) -> None:
        """It sends no heartbeats."""

    async def __aenter__(self) -> Calls:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing to close."""


def plugin_with(calls: Calls, ledger: InMemoryLedger, batches: InMemoryBatches) -> TasquencerPlugin:
    return TasquencerPlugin(ledger, batches, calls=cast("AiCalls", calls))


@pytest.fixture(scope="module")
async def short_histories() -> AsyncIterator[EmbeddedTemporal]:
    """A dev server on which a task continues as new after a few attempts."""
    settings = {"limit.historyCount.suggestContinueAsNew": 30}
    async with embedded_temporal(ui=False, dynamic_config=settings) as server:
        yield server


async def all_runs(client: Client, workflow_id: str) -> list[Handle]:
    """A handle for each run of the workflow, oldest first."""
    handles = []
    run_id = (await client.get_workflow_handle(workflow_id).describe()).run_id
    while run_id:
        handle = client.get_workflow_handle(workflow_id, run_id=run_id)
        handles.append(handle)
        first = await anext(handle.fetch_history_events(page_size=1))
        run_id = first.workflow_execution_started_event_attributes.continued_execution_run_id
    return handles[::-1]


async def encodings_of(handle: Handle) -> dict[str, set[bytes]]:
    """The encodings of all payloads in a history, by their place."""
    found: dict[str, set[bytes]] = {}
    async for event in handle.fetch_history_events():
        for path, payload in payloads_in(event):
            found.setdefault(path, set()).add(payload.metadata["encoding"])
    return found


@pytest.mark.parametrize("where", ["client", "worker"])
@pytest.mark.parametrize("name", CONVERTERS)
async def test_tasks_work_and_every_payload_is_encoded(
    short_histories: EmbeddedTemporal, name: str, where: str
) -> None:
    converter = CONVERTERS[name]
    ledger = InMemoryLedger()
    batches = InMemoryBatches(ledger)
    calls = Calls(GONE, GONE, GONE, GONE, GONE)
    of_client, of_worker = on(where, plugin_with(calls, ledger, batches))
    client = await Client.connect(short_histories.address, data_converter=converter, plugins=of_client)
    assert client.data_converter == converter
    async with working(client, [], workflows=OURS, plugins=of_worker) as queue:
        request = {"prompt": "Why?", "max_retries": 9, "retry": SOON}
        agent = await client.start_workflow(
            "AiAgentTask", request, id=f"agent-{uuid4()}", task_queue=queue, memo={"for": "Ann"}
        )
        answer = await agent.result()
        assert (answer["text"], answer["attempts"]) == ("42", 6)
        assert [row["attempt"] for row in await agent.query("work_items")] == list(range(6))
        batch_id = f"batch-{uuid4()}"
        await filled_batch(batches, batch_id, ["One?", "Two?"])
        batch = await client.start_workflow("AiBatchTask", id=batch_id, task_queue=queue)
        assert (await batch.result())["completed"] == 2
        reconciled = await client.execute_workflow(
            "ReconcileLedger", {"page_size": 1}, id=f"reconcile-{uuid4()}", task_queue=queue
        )
        assert reconciled["open_work_items"] == 0
    runs = await all_runs(client, agent.id)
    assert len(runs) > 1  # so that the state has travelled in a header
    for handle in (*runs, batch):
        encodings = await encodings_of(handle)
        headers = [path for path in encodings if "header" in path]
        assert handle is batch or handle is runs[0] or headers
        if converter.payload_codec is not None:
            assert {path: found for path, found in encodings.items() if found != {ENCRYPTED}} == {}
    found = await Histories(client, [AiAgentTask]).read(agent.id)
    assert found is not None
    checked = await verify(found, ledger)
    assert (checked.work_items, checked.differences, checked.gaps) == (6, [], [])


@pytest.mark.parametrize("name", ["the SDK's converter with a codec", "a converter that knows no models"])
async def test_operators_and_resets_work_with_every_converter(
    dev_server: EmbeddedTemporal, name: str
) -> None:
    ledger = InMemoryLedger()
    calls = Calls(GONE, Hang(), Hang())
    plugin = plugin_with(calls, ledger, InMemoryBatches(ledger))
    client = await Client.connect(dev_server.address, data_converter=CONVERTERS[name], plugins=[plugin])
    async with working(client, [], workflows=OURS) as queue:
        request = {"prompt": "Why?", "retry": {"initial_interval_seconds": 3600}}
        handle = await client.start_workflow("AiAgentTask", request, id=f"agent-{uuid4()}", task_queue=queue)
        await eventually(lambda: is_waiting(ledger, handle.id), "a backoff")
        hurried = await handle.execute_update("retry_now", {"actor": "Ann", "reason": "now"})
        assert len(hurried["work_item_ids"]) == 1
        await eventually(lambda: is_called(calls, 2), "the second call")
        point = await last_workflow_task(handle)
        made = await client.workflow_service.reset_workflow_execution(
            ResetWorkflowExecutionRequest(
                namespace="default",
                workflow_execution=WorkflowExecution(workflow_id=handle.id),
                reason="a test",
                workflow_task_finish_event_id=point,
                request_id=str(uuid4()),
            )
        )
        await eventually(lambda: is_called(calls, 3), "the call of the new run")
        (item,) = [one for one in await ledger.work_items_of(handle.id) if one.run_id == made.run_id]
        with pytest.raises(WorkflowUpdateFailedError):
            await handle.execute_update("complete_work_item", {"work_item_id": item.id, "actor": "Ann"})
        done = await handle.execute_update(
            "complete_work_item", {"work_item_id": item.id, "actor": "Ann", "result": {"text": "By Ann."}}
        )
        assert done == {"work_item_id": item.id, "state": "completed"}
        latest = client.get_workflow_handle(handle.id, run_id=made.run_id)
        assert (await latest.result())["text"] == "By Ann."
        refused = await client.start_workflow(
            "AiAgentTask", args=[request, 2], id=f"agent-{uuid4()}", task_queue=queue
        )
        assert (await failure_of_task(refused)).type == "InvalidRequest"


async def is_waiting(ledger: InMemoryLedger, task_id: str) -> bool:
    items = await ledger.work_items(WorkItemFilter(task_id=task_id))
    return bool(items) and items[0].state is WorkItemState.INITIALIZED and items[0].attempt == 1


async def is_called(calls: Calls, times: int) -> bool:
    return len(calls.calls) == times


async def last_workflow_task(handle: Handle) -> int:
    events = [event async for event in handle.fetch_history_events()]
    return max(
        event.event_id for event in events if event.HasField("workflow_task_completed_event_attributes")
    )


@pytest.mark.parametrize("behavior", [HeaderCodecBehavior.CODEC, HeaderCodecBehavior.WORKFLOW_ONLY_CODEC])
async def test_a_client_that_encodes_headers_itself_encodes_ours_once(
    short_histories: EmbeddedTemporal, behavior: HeaderCodecBehavior
) -> None:
    ledger = InMemoryLedger()
    plugin = plugin_with(Calls(*[GONE] * 5), ledger, InMemoryBatches(ledger))
    client = await Client.connect(
        short_histories.address, data_converter=encrypting, plugins=[plugin], header_codec_behavior=behavior
    )
    async with working(client, [], workflows=OURS) as queue:
        request = {"prompt": "Why?", "max_retries": 9, "retry": SOON}
        handle = await client.start_workflow("AiAgentTask", request, id=f"agent-{uuid4()}", task_queue=queue)
        assert (await handle.result())["attempts"] == 6
    runs = await all_runs(client, handle.id)
    assert len(runs) > 1
    last = await runs[-1].fetch_history()
    started = last.events[0].workflow_execution_started_event_attributes
    (header,) = await Encryption().decode([started.header.fields["tasquencer-task"]])
    assert header.metadata["encoding"] == b"tasquencer/zlib"
    replayer = Replayer(
        workflows=OURS,
        plugins=[TasquencerPlugin(InMemoryLedger())],
        data_converter=encrypting,
        header_codec_behavior=behavior,
    )
    await replayer.replay_workflow(last)


async def test_a_worker_in_the_debug_mode_encodes_headers_too(short_histories: EmbeddedTemporal) -> None:
    ledger = InMemoryLedger()
    plugin = plugin_with(Calls(*[GONE] * 5), ledger, InMemoryBatches(ledger))
    client = await Client.connect(short_histories.address, data_converter=encrypting, plugins=[plugin])
    async with working(client, [], workflows=OURS, debug_mode=True) as queue:
        request = {"prompt": "Why?", "max_retries": 9, "retry": SOON}
        handle = await client.start_workflow("AiAgentTask", request, id=f"agent-{uuid4()}", task_queue=queue)
        assert (await handle.result())["attempts"] == 6
    assert len(await all_runs(client, handle.id)) > 1


async def test_a_workflow_without_a_task_is_encoded_as_before(dev_server: EmbeddedTemporal) -> None:
    plugin = TasquencerPlugin(InMemoryLedger())
    client = await Client.connect(dev_server.address, data_converter=HIDING, plugins=[plugin])
    async with working(client, [Greeter(failures=1).greet]) as queue:
        handle = await run_plain(client, queue)
    for run in await all_runs(client, handle.id):
        encodings = await encodings_of(run)
        assert {path: found for path, found in encodings.items() if found != {ENCRYPTED}} == {}
