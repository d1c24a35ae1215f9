"""Every native attempt of an observed activity leaves a work item, and nothing else changes."""

from __future__ import annotations

import asyncio
import logging
import math
import multiprocessing
import os
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from temporalio import activity
from temporalio.client import Client, WorkflowExecutionStatus, WorkflowFailureError, WorkflowHandle
from temporalio.exceptions import ApplicationError
from temporalio.worker import Replayer, SharedStateManager

from tasquencer.core.entries import LedgerEntry
from tasquencer.core.errors import LedgerUnavailable
from tasquencer.core.work_item import DelayReason, WorkItem, WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import Ledger
from tasquencer.sql import SqlLedger, upgrade
from tasquencer.temporal import TasquencerPlugin, observed_writing
from tasquencer.temporal.reconciling import Reconciler
from tasquencer.testing import InMemoryLedger
from tests.cli.processes import finish
from tests.layer.applications import Greeter, working
from tests.layer.observed import Scripted, Works, work_in_a_process
from tests.support.calls import ScriptedCalls
from tests.support.encryption import encrypting
from tests.support.patience import eventually
from workflows.ai_agent import AiAgentTask

Handle = WorkflowHandle[Any, Any]


@dataclass(frozen=True)
class Scene:
    client: Client
    queue: str
    ledger: Ledger

    async def start(self, kind: str, value: Any = 1, **options: Any) -> Handle:
        return await self.client.start_workflow(
            Works.run, args=[kind, value, options], id=f"works-{uuid4()}", task_queue=self.queue
        )

    async def rows(self, handle: Handle) -> list[WorkItem]:
        return await self.ledger.work_items_of(handle.id)

    async def has(self, handle: Handle, *states: str) -> list[WorkItem]:
        """The work items of the workflow, once they are in these states."""

        async def probe() -> bool:
            return [row.state.value for row in await self.rows(handle)] == list(states)

        await eventually(probe, f"work items {states}")
        return await self.rows(handle)

    async def reconcile(self, *, grace: timedelta = timedelta(0)) -> list[str]:
        reconciler = Reconciler(self.client, self.ledger, grace=grace)
        _, settled = await reconciler.page()
        return [one.reason for one in settled]


@asynccontextmanager
async def observing(
    server: EmbeddedTemporal,
    activities: Sequence[Any],
    *,
    ledger: Ledger | None = None,
    client_options: dict[str, Any] | None = None,
    plugin_options: dict[str, Any] | None = None,
    **options: Any,
) -> AsyncIterator[Scene]:
    ledger = ledger or InMemoryLedger()
    plugin = TasquencerPlugin(ledger, **{"observe_activities": ["*"]} | (plugin_options or {}))
    client = await Client.connect(server.address, plugins=[plugin], **(client_options or {}))
    workflows = [Works, AiAgentTask]
    async with working(client, activities, workflows=workflows, **options) as queue:
        yield Scene(client, queue, ledger)


def states(rows: Sequence[WorkItem]) -> list[str]:
    return [row.state.value if row.failure is None else row.failure.kind for row in rows]


async def test_each_attempt_is_a_work_item_with_its_delay(dev_server: EmbeddedTemporal) -> None:
    asked = ApplicationError("slow down", type="SlowDown", next_retry_delay=timedelta(seconds=0.3))
    scripted = Scripted(ValueError("a bug"), asked)
    async with observing(dev_server, [scripted.work]) as scene:
        handle = await scene.start("work", {"a": [1]}, id="charge")
        assert await handle.result() == {"got": {"a": [1]}}
        rows = await scene.has(handle, "failed", "failed", "completed")
        description = await handle.describe()
    assert states(rows) == ["ValueError", "SlowDown", "completed"]
    assert [row.attempt for row in rows] == [0, 1, 2]
    assert {row.lineage for row in rows} == {"charge"}
    assert {(row.task_id, row.run_id, row.task_type) for row in rows} == {
        (handle.id, description.run_id, "Works")
    }
    assert [row.payload for row in rows] == [{"observed": "work", "arguments": [{"a": [1]}]}] * 3
    assert rows[2].result == {"got": {"a": [1]}}
    assert [row.delay_reason for row in rows] == [
        DelayReason.FIRST_TRY,
        DelayReason.BACKOFF,
        DelayReason.RETRY_AFTER,
    ]
    assert rows[0].delay_seconds == 0
    for before, row in pairwise(rows):
        assert before.ended_at is not None and before.ended_at <= row.created_at
        assert row.delay_seconds == pytest.approx((row.created_at - before.ended_at).total_seconds())
    assert rows[1].delay_seconds > 0.05 and rows[2].delay_seconds > 0.2
    assert all(row.worker == scene.client.identity for row in rows)
    transitions = await scene.ledger.transitions(rows[2].id)
    assert [(one.next_state.value, one.actor) for one in transitions] == [
        ("initialized", "temporal"),
        ("started", "temporal"),
        ("completed", "temporal"),
    ]


async def test_observing_adds_no_event_and_replays_without_the_plugin(dev_server: EmbeddedTemporal) -> None:
    kinds = []
    for patterns in ([], ["*"]):
        scripted = Scripted(ValueError("a bug"))
        async with observing(
            dev_server, [scripted.work], plugin_options={"observe_activities": patterns}
        ) as scene:
            handle = await scene.start("work")
            await handle.result()
            history = await handle.fetch_history()
        kinds.append([event.WhichOneof("attributes") for event in history.events])
        await Replayer(workflows=[Works]).replay_workflow(history)
        assert len(await scene.rows(handle)) == 2 * bool(patterns)
    assert kinds[0] == kinds[1]


async def test_an_attempt_costs_two_writes(dev_server: EmbeddedTemporal) -> None:
    class Counting(InMemoryLedger):
        written = 0

        async def record(self, entries: Sequence[LedgerEntry]) -> None:
            self.written += 1
            await super().record(entries)

    ledger = Counting()
    scripted = Scripted(ValueError("a bug"), ValueError("another"))
    async with observing(dev_server, [scripted.work], ledger=ledger) as scene:
        handle = await scene.start("work")
        await handle.result()
        await scene.has(handle, "failed", "failed", "completed")
    assert ledger.written == 2 * 3


async def test_only_what_the_patterns_name_is_observed_and_nothing_of_ours(
    dev_server: EmbeddedTemporal,
) -> None:
    scripted, calls = Scripted(), ScriptedCalls()
    activities = [scripted.work, Greeter().greet, calls.generate]
    async with observing(dev_server, activities) as scene:
        handle = await scene.start("greet", "Ann")
        await handle.result()
        await scene.has(handle, "completed")
        task = await scene.client.start_workflow(
            "AiAgentTask", {"prompt": "Why?"}, id=f"agent-{uuid4()}", task_queue=scene.queue
        )
        await task.result()
        (row,) = await scene.ledger.work_items_of(task.id)
        assert not row.id.startswith("observed-")
    only = {"observe_activities": ["gr*", "other"]}
    async with observing(dev_server, activities, plugin_options=only) as scene:
        unobserved, observed = await scene.start("work"), await scene.start("greet", "Ann")
        await asyncio.gather(unobserved.result(), observed.result())
        assert (await scene.rows(unobserved), len(await scene.rows(observed))) == ([], 1)


async def test_activities_in_threads_and_local_ones_are_observed(dev_server: EmbeddedTemporal) -> None:
    scripted = Scripted(ValueError("a bug"))
    with ThreadPoolExecutor(2) as threads:
        async with observing(
            dev_server, [scripted.work_in_a_thread, scripted.work], activity_executor=threads
        ) as scene:
            handle = await scene.start("work_in_a_thread")
            assert await handle.result() == {"got": 1, "thread": True}
            assert states(await scene.has(handle, "failed", "completed")) == ["ValueError", "completed"]
            scripted._script = [ValueError("another")]
            handle = await scene.start("work", local=True)
            await handle.result()
            rows = await scene.has(handle, "failed", "completed")
            assert states(rows) == ["ValueError", "completed"]
            assert len({row.lineage for row in rows}) == 1


async def test_activities_in_processes_are_observed(dev_server: EmbeddedTemporal) -> None:
    context = multiprocessing.get_context("spawn")
    manager = context.Manager()
    with ProcessPoolExecutor(1, mp_context=context) as processes:
        shared = SharedStateManager.create_from_multiprocessing(manager)
        async with observing(
            dev_server, [work_in_a_process], activity_executor=processes, shared_state_manager=shared
        ) as scene:
            handle = await scene.start("work_in_a_process", 41)
            assert await handle.result() == 42
            rows = await scene.has(handle, "failed", "completed")
    assert states(rows) == ["Flaky", "completed"] and rows[1].result == 42
    manager.shutdown()


async def test_a_cancel_is_recorded_as_one(dev_server: EmbeddedTemporal) -> None:
    scripted = Scripted("hang")
    async with observing(dev_server, [scripted.work]) as scene:
        handle = await scene.start("work", heartbeat=30, waits_for_cancel=True)
        await scripted.started.wait()
        await handle.cancel()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        assert (await handle.describe()).status is WorkflowExecutionStatus.CANCELED
        (row,) = await scene.has(handle, "canceled")
        assert (await scene.ledger.transitions(row.id))[-1].reason == "canceled"


# The limits hold for the second attempt, too, which must end in time on a busy machine.
OUT_OF_TIME, LOST = {"limit": 6}, {"limit": 60, "heartbeat": 6}


@pytest.mark.parametrize(
    ("limits", "kind"),
    [(OUT_OF_TIME, "timed_out"), (LOST, "worker_lost")],
    ids=["start to close", "heartbeat"],
)
async def test_a_timeout_is_told_from_a_lost_heartbeat(
    dev_server: EmbeddedTemporal, limits: dict[str, Any], kind: str
) -> None:
    scripted = Scripted("silent")
    async with observing(dev_server, [scripted.work]) as scene:
        handle = await scene.start("work", **limits)
        await handle.result()
        rows = await scene.has(handle, "failed", "completed")
    assert states(rows) == [kind, "completed"]


class Forgetful(InMemoryLedger):
    """Loses what first attempts write after their start, as a worker that dies does."""

    async def record(self, entries: Sequence[LedgerEntry]) -> None:
        if activity.in_activity() and activity.info().attempt == 1:
            entries = [one for one in entries if not one.work_item.state.is_terminal]
        await super().record(entries)


@pytest.mark.parametrize(
    ("step", "limits", "kind"),
    [
        ("silent", OUT_OF_TIME, "timed_out"),
        ("silent", LOST, "worker_lost"),
        (ApplicationError("no", type="Refused"), {}, "Refused"),
    ],
    ids=["start to close", "heartbeat", "failure"],
)
async def test_the_next_attempt_settles_the_one_before_with_temporal_s_last_failure(
    dev_server: EmbeddedTemporal, step: Any, limits: dict[str, Any], kind: str
) -> None:
    scripted = Scripted(step)
    async with observing(dev_server, [scripted.work], ledger=Forgetful()) as scene:
        handle = await scene.start("work", **limits)
        await handle.result()
        rows = await scene.has(handle, "failed", "completed")
    assert states(rows)[0] == kind
    assert rows[1].delay_seconds >= 0


async def test_the_reconciler_settles_what_no_attempt_follows(
    server_without_pushes: EmbeddedTemporal,
) -> None:
    ledger = Forgetful()
    scripted = Scripted()
    async with observing(server_without_pushes, [scripted.work], ledger=ledger) as scene:
        done = await scene.start("work")
        await done.result()
        scripted._script = [ApplicationError("never", type="Refused", non_retryable=True)]
        refused = await scene.start("work")
        with pytest.raises(WorkflowFailureError):
            await refused.result()
        scripted._script = ["silent"]
        terminated = await scene.start("work")
        await eventually(scripted.is_over, "the silent attempt")
        scripted._script = ["hang"]
        running = await scene.start("work", heartbeat=30)
        await scene.has(running, "started")
        await terminated.terminate(reason="enough")
        await scene.reconcile()
        assert states(await scene.rows(done)) == ["completed"]
        assert states(await scene.rows(refused)) == ["Refused"]
        (row,) = await scene.rows(terminated)
        assert row.state is WorkItemState.CANCELED
        assert (await ledger.transitions(row.id))[-1].reason == "the task was terminated: enough"
        assert states(await scene.rows(running)) == ["started"]
        await running.terminate()


async def test_an_activity_that_is_completed_elsewhere_is_settled_by_the_reconciler(
    dev_server: EmbeddedTemporal,
) -> None:
    scripted = Scripted("elsewhere", "elsewhere")
    async with observing(dev_server, [scripted.work]) as scene:
        handle = await scene.start("work")
        await scene.has(handle, "started")
        await eventually(lambda: has_token(scripted), "the token")
        assert await scene.reconcile() == []
        await scene.client.get_async_activity_handle(task_token=scripted.token).complete("from a person")
        assert await handle.result() == "from a person"
        await scene.reconcile()
        (row,) = await scene.rows(handle)
        assert (row.state, row.result) == (WorkItemState.COMPLETED, None)
        scripted.token = b""
        handle = await scene.start("work")
        await eventually(lambda: has_token(scripted), "the token")
        token = scene.client.get_async_activity_handle(task_token=scripted.token)
        await token.fail(ApplicationError("not like this", type="Refused"))
        await handle.result()
        assert states(await scene.has(handle, "failed", "completed")) == ["Refused", "completed"]


async def has_token(scripted: Scripted) -> bool:
    return bool(scripted.token)


async def test_an_activity_id_that_is_used_again_has_a_lineage_of_its_own(
    dev_server: EmbeddedTemporal,
) -> None:
    scripted = Scripted(ValueError("first"), "return", ValueError("second"))
    async with observing(dev_server, [scripted.work]) as scene:
        handle = await scene.start("work", id="charge", times=2)
        await handle.result()
        rows = await scene.has(handle, "failed", "completed", "failed", "completed")
    assert [row.attempt for row in rows] == [0, 1, 0, 1]
    assert rows[0].lineage == rows[1].lineage == "charge"
    assert rows[2].lineage == rows[3].lineage and rows[2].lineage.startswith("charge@")


async def test_standalone_activities_are_observed(dev_server: EmbeddedTemporal) -> None:
    scripted = Scripted(ValueError("a bug"))
    async with observing(dev_server, [scripted.work]) as scene:
        name = f"alone-{uuid4()}"
        result = await scene.client.execute_activity(
            scripted.work,
            7,
            id=name,
            task_queue=scene.queue,
            start_to_close_timeout=timedelta(seconds=60),
        )
        assert result == {"got": 7}
        rows = await scene.ledger.work_items_of(f"activity:{name}")
    assert states(rows) == ["ValueError", "completed"]
    assert {(row.task_type, row.lineage) for row in rows} == {("work", name)}


class Broken(InMemoryLedger):
    """Fails until it is repaired."""

    def __init__(self) -> None:
        super().__init__()
        self.is_down = True
        self.tried = 0

    async def record(self, entries: Sequence[LedgerEntry]) -> None:
        self.tried += 1
        if self.is_down:
            raise LedgerUnavailable("the ledger", "connection refused")
        await super().record(entries)


async def test_an_outage_of_the_ledger_does_not_stop_the_activities(
    dev_server: EmbeddedTemporal, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(observed_writing, "_REST_SECONDS", math.inf)
    ledger = Broken()
    scripted = Scripted(ValueError("a bug"))
    with caplog.at_level(logging.WARNING, "tasquencer.temporal.observing"):
        async with observing(dev_server, [scripted.work], ledger=ledger) as scene:
            handles = [await scene.start("work") for _ in range(3)]
            for handle in handles:
                assert await handle.result() == {"got": 1}
            assert ledger.tried == 1  # not twice for each of the four attempts
            ledger.is_down = False
            monkeypatch.setattr(observed_writing, "_REST_SECONDS", 0)
            handle = await scene.start("work")
            await handle.result()
            await scene.has(handle, "completed")
    ours = [record for record in caplog.records if record.name == "tasquencer.temporal.observing"]
    logged = [record.getMessage() for record in ours]
    assert len(logged) == 2, logged
    assert logged[0].startswith("the ledger cannot be written, observed activities: they run unrecorded: ")
    assert logged[1] == ("the ledger can be written again; attempts of observed activities that it lacks: 4")


async def test_observed_activities_wait_for_the_ledger_if_told_to(dev_server: EmbeddedTemporal) -> None:
    ledger = Broken()
    scripted = Scripted()
    waiting = {"observe_on_outage": "wait"}
    async with observing(dev_server, [scripted.work], ledger=ledger, plugin_options=waiting) as scene:
        handle = await scene.start("work")
        await eventually(lambda: has_tried(ledger, 3), "three tries")
        assert scripted.attempts == []
        ledger.is_down = False
        await handle.result()
        assert states(await scene.rows(handle)) == ["completed"]


async def has_tried(ledger: Broken, times: int) -> bool:
    return ledger.tried >= times


@pytest.mark.parametrize(
    ("options", "keeps"), [({}, False), ({"record_payloads": True}, True)], ids=["by default", "told to"]
)
async def test_with_a_codec_the_ledger_keeps_no_payloads_unless_told_to(
    dev_server: EmbeddedTemporal, options: dict[str, Any], keeps: bool
) -> None:
    secret = ApplicationError("a failure", {"secret": "s3cret"}, type="Refused")
    scripted = Scripted(secret)
    async with observing(
        dev_server, [scripted.work], client_options={"data_converter": encrypting}, plugin_options=options
    ) as scene:
        handle = await scene.start("work", "s3cret")
        await handle.result()
        rows = await scene.has(handle, "failed", "completed")
    assert ("s3cret" in "".join(row.model_dump_json() for row in rows)) is keeps
    assert states(rows) == ["Refused", "completed"]
    if not keeps:
        assert [row.payload for row in rows] == [{"observed": "work"}] * 2


async def test_what_is_large_or_no_json_is_kept_as_a_note(dev_server: EmbeddedTemporal) -> None:
    scripted = Scripted()
    async with observing(dev_server, [scripted.work]) as scene:
        large = await scene.start("work", "x" * 70_000)
        binary = await scene.start("work", "small")
        await asyncio.gather(large.result(), binary.result())
        (row,) = await scene.has(large, "completed")
    assert row.payload == {"observed": "work", "arguments": [{"not_recorded": "str", "bytes": 70_002}]}
    assert row.result == {"not_recorded": "dict", "bytes": 70_010}


async def test_a_cancel_that_meets_the_last_write_changes_nothing(dev_server: EmbeddedTemporal) -> None:
    at_the_end = asyncio.Event()

    class Slow(InMemoryLedger):
        async def record(self, entries: Sequence[LedgerEntry]) -> None:
            if any(one.work_item.state.is_terminal for one in entries):
                at_the_end.set()
                while not activity.is_cancelled():
                    activity.heartbeat()  # where cancels are not pushed, its answer brings this one
                    await asyncio.sleep(0.02)
            await super().record(entries)

    scripted = Scripted()
    async with observing(dev_server, [scripted.work], ledger=Slow()) as scene:
        handle = await scene.start("work", heartbeat=30)
        await at_the_end.wait()
        await handle.cancel()
        with pytest.raises(WorkflowFailureError):
            await handle.result()
        assert states(await scene.has(handle, "completed")) == ["completed"]


async def test_the_tools_cope_with_observed_rows(dev_server: EmbeddedTemporal, tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    await upgrade(url)
    environment = dict(os.environ) | {"TASQ_DATABASE_URL": url, "TEMPORAL_ADDRESS": dev_server.address}
    environment["PYTHONPATH"] = str(Path.cwd())
    scripted = Scripted(ValueError("a bug"), "return", ValueError("another"))
    async with SqlLedger(url) as ledger, observing(dev_server, [scripted.work], ledger=ledger) as scene:
        handle = await scene.start("work", {"a": 1})
        await handle.result()
        assert states(await scene.has(handle, "failed", "completed")) == ["ValueError", "completed"]
        shown = await finish("show", handle.id, environment=environment)
        assert (shown.code, "ValueError" in shown.stdout) == (0, True), shown.stderr
        listed = await finish("list", "--json", environment=environment)
        assert listed.code == 0 and handle.id in listed.stdout, listed.stderr
        for command in (["ledger", "verify"], ["ledger", "rebuild"]):
            workflow = ["--workflow", "tests.layer.observed:Works"]
            ran = await finish(*command, handle.id, *workflow, environment=environment)
            assert ran.code == 0, ran.stdout + ran.stderr
        assert len(await scene.rows(handle)) == 2
        reconciled = await finish("reconcile", "--dry-run", environment=environment)
        assert reconciled.code == 0, reconciled.stderr
        now = datetime.now(UTC).isoformat()
        pruned = await finish("ledger", "prune", "--ended-before", now, "--yes", environment=environment)
        assert pruned.code == 0, pruned.stderr
        assert await scene.rows(handle) == []
