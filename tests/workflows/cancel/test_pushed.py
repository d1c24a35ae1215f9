"""Cancels that the server pushes to the worker, so that a call sends few heartbeats."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

import pytest
from temporalio.client import Client
from temporalio.runtime import BufferedMetricUpdate, MetricBuffer, Runtime, TelemetryConfig

import worker as worker_process
from tasquencer.ai import AiCalls
from tasquencer.ai.provider.client import make_client
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal import TasquencerPlugin
from tasquencer.temporal.cancels import are_pushed, described, heartbeat_interval
from tasquencer.temporal.running import Tuning
from tasquencer.testing import InMemoryLedger
from tests.activities.calling import KEY, MODEL
from tests.support import answers
from tests.support.answers import Answer
from tests.support.patience import eventually
from tests.support.provider import ScriptedProvider
from tests.support.tasks import Tasks
from tests.workflows.cancel.scene import ASK, Scene, cancel, ends_canceled

SECOND = timedelta(seconds=1)


@dataclass
class Counted(Scene):
    """A scene whose worker counts the heartbeats that it sends."""

    metrics: MetricBuffer
    updates: list[BufferedMetricUpdate]

    @property
    def heartbeats(self) -> int:
        self.updates.extend(self.metrics.retrieve_updates())
        return sum(
            int(one.value)
            for one in self.updates
            if one.metric.name == "temporal_request"
            and one.attributes.get("operation") == "RecordActivityTaskHeartbeat"
        )


@asynccontextmanager
async def counted(server: EmbeddedTemporal, script: Sequence[Answer]) -> AsyncIterator[Counted]:
    """A worker as the worker process makes it."""
    metrics = MetricBuffer(100_000)
    ledger, queue = InMemoryLedger(), f"queue-{uuid4()}"
    async with (
        ScriptedProvider(list(script)) as provider,
        make_client(api_key=KEY, base_url=provider.base_url) as model,
    ):
        client = await Client.connect(
            server.address,
            plugins=[TasquencerPlugin(ledger, calls=AiCalls(model, MODEL))],
            runtime=Runtime(telemetry=TelemetryConfig(metrics=metrics)),
        )
        async with worker_process.make_worker(client, queue, Tuning(grace_period=timedelta(0))):
            yield Counted(Tasks(client, queue, ledger), provider, metrics, [])


async def test_a_cancel_closes_the_connection_without_a_heartbeat(dev_server: EmbeddedTemporal) -> None:
    async with counted(dev_server, [answers.stall()]) as now:
        handle = await now.tasks.start("AiAgentTask", ASK)
        await now.provider.wait_for_requests(1)
        await cancel(handle)
        await ends_canceled(handle)
        request = await now.provider.wait_for_end(0)
        assert (request.client_left, now.heartbeats) == (True, 0)


async def test_where_cancels_are_not_pushed_heartbeats_bring_them(
    server_without_pushes: EmbeddedTemporal,
) -> None:
    async with counted(server_without_pushes, [answers.stall()]) as now:
        handle = await now.tasks.start("AiAgentTask", ASK)

        async def several() -> bool:
            return now.heartbeats > 2

        await eventually(several, "a third heartbeat")
        await cancel(handle)
        await ends_canceled(handle)
        request = await now.provider.wait_for_end(0)
        assert request.client_left


@pytest.mark.slow
async def test_a_call_of_eight_seconds_sends_at_most_one_heartbeat(dev_server: EmbeddedTemporal) -> None:
    async with counted(dev_server, [answers.slow(pause_seconds=0.8, pieces=10)]) as now:
        handle = await now.tasks.start("AiAgentTask", ASK)
        await handle.result()
        assert now.heartbeats <= 1


async def test_the_namespace_says_whether_cancels_are_pushed(
    dev_server: EmbeddedTemporal, server_without_pushes: EmbeddedTemporal
) -> None:
    told = [
        await are_pushed(await Client.connect(server.address))
        for server in (dev_server, server_without_pushes)
    ]
    missing = await Client.connect(dev_server.address, namespace="no-such-namespace")
    assert (told, await are_pushed(missing)) == ([True, False], False)


@pytest.mark.parametrize(
    ("heartbeat_timeout", "pushed", "expected"),
    [
        (30 * SECOND, True, 10 * SECOND),
        (30 * SECOND, False, 0.4 * SECOND),
        (0.9 * SECOND, True, 0.3 * SECOND),
        (0.9 * SECOND, False, 0.3 * SECOND),
        (None, True, 60 * SECOND),
        (None, False, 0.4 * SECOND),
    ],
)
def test_a_third_of_the_heartbeat_timeout_is_between_two_heartbeats(
    heartbeat_timeout: timedelta | None, pushed: bool, expected: timedelta
) -> None:
    assert heartbeat_interval(0.4 * SECOND, heartbeat_timeout, pushed=pushed) == expected


def test_the_worker_says_how_a_cancel_reaches_a_call() -> None:
    said = [described(pushed=pushed, interval=0.4 * SECOND) for pushed in (True, False)]
    assert said == ["cancels are pushed", "cancels come with heartbeats, every 0.4 s"]
