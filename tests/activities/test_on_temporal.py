"""The AI call as an activity of a real Temporal server's, run by a real worker."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import timedelta
from uuid import uuid4

import pytest
from temporalio import workflow
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle
from temporalio.common import RetryPolicy
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.exceptions import ActivityError, ApplicationError, CancelledError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import UnsandboxedWorkflowRunner, Worker

from tasquencer.ai import timeouts
from tasquencer.ai.answer import AiAnswer
from tasquencer.ai.job import AiJob
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tests.activities.calling import KEY, SHORT_SECONDS, activities_for, job
from tests.support import answers
from tests.support.provider import ScriptedProvider


@workflow.defn
class Ask:
    """One AI call, executed as the AI agent task does it."""

    @workflow.run
    async def run(self, asked: AiJob, limit_seconds: float) -> AiAnswer:
        return await workflow.execute_activity(
            "generate",
            asked,
            result_type=AiAnswer,
            activity_id="wi-7",
            start_to_close_timeout=timedelta(seconds=limit_seconds) + timeouts.CALL_MARGIN,
            heartbeat_timeout=timedelta(seconds=30),
            retry_policy=RetryPolicy(maximum_attempts=1),
            cancellation_type=workflow.ActivityCancellationType.WAIT_CANCELLATION_COMPLETED,
        )


@dataclass(frozen=True)
class Running:
    client: Client
    task_queue: str
    stop: Callable[[], Awaitable[None]]

    async def ask(
        self, asked: AiJob | None = None, limit_seconds: float = 30
    ) -> WorkflowHandle[Ask, AiAnswer]:
        return await self.client.start_workflow(
            Ask.run, args=[asked or job(), limit_seconds], id=str(uuid4()), task_queue=self.task_queue
        )


@asynccontextmanager
async def worker_for(
    server: EmbeddedTemporal, base_url: str, *, grace: timedelta = timedelta(seconds=10)
) -> AsyncIterator[Running]:
    client = await Client.connect(
        server.address, namespace=server.namespace, data_converter=pydantic_data_converter
    )
    queue = str(uuid4())
    async with activities_for(base_url) as activities:
        worker = Worker(
            client,
            task_queue=queue,
            workflows=[Ask],
            activities=[activities.generate],
            workflow_runner=UnsandboxedWorkflowRunner(),
            graceful_shutdown_timeout=grace,
            max_heartbeat_throttle_interval=timedelta(seconds=1),
            default_heartbeat_throttle_interval=timedelta(seconds=1),
        )
        async with worker:
            yield Running(client, queue, worker.shutdown)


async def cause_of(handle: WorkflowHandle[Ask, AiAnswer]) -> BaseException | None:
    """Why the activity ended."""
    with pytest.raises(WorkflowFailureError) as caught:
        await handle.result()
    error = caught.value.cause
    return error.cause if isinstance(error, ActivityError) else error


async def tidy_up(handle: WorkflowHandle[Ask, AiAnswer]) -> None:
    """End a workflow whose worker has gone. That worker may have taken its last workflow task, too."""
    try:
        await handle.terminate()
    except RPCError as error:
        if error.status != RPCStatusCode.NOT_FOUND:
            raise


async def test_an_answer_reaches_the_workflow_and_the_activitys_id_the_provider(
    dev_server: EmbeddedTemporal,
) -> None:
    async with (
        ScriptedProvider([answers.ok("Hello!")]) as provider,
        worker_for(dev_server, provider.base_url) as running,
    ):
        answer = await (await running.ask()).result()
    assert (answer.text, answer.input_tokens, answer.output_tokens) == ("Hello!", 11, 7)
    assert [request.idempotency_key for request in provider.requests] == ["wi-7"]


async def test_a_failed_call_is_one_request_and_one_attempt_and_leaves_no_trace_of_the_key(
    dev_server: EmbeddedTemporal, caplog: pytest.LogCaptureFixture
) -> None:
    wrong = {"error": {"message": f"Incorrect API key provided: {KEY}", "code": "invalid_api_key"}}
    async with (
        ScriptedProvider([answers.status(401, wrong)]) as provider,
        worker_for(dev_server, provider.base_url) as running,
    ):
        with caplog.at_level(logging.DEBUG):
            handle = await running.ask()
            error = await cause_of(handle)
        history = (await handle.fetch_history()).to_json()
    assert isinstance(error, ApplicationError)
    assert (error.type, error.non_retryable, error.cause) == ("unauthorized", True, None)
    assert len(provider.requests) == 1
    assert "activityTaskStartedEventAttributes" in history
    assert KEY not in history
    assert KEY not in caplog.text
    told = [record for record in caplog.records if "Completing activity as failed" in record.getMessage()]
    assert [record for record in told if record.levelno > logging.DEBUG] == []


async def test_cancelling_the_workflow_closes_the_connection_before_the_workflow_ends(
    dev_server: EmbeddedTemporal,
) -> None:
    async with (
        ScriptedProvider([answers.stall()]) as provider,
        worker_for(dev_server, provider.base_url) as running,
    ):
        handle = await running.ask()
        (request,) = await provider.wait_for_requests(1)
        await handle.cancel()
        with pytest.raises(WorkflowFailureError) as caught:
            await handle.result()
        assert request.ended.is_set()
    assert isinstance(caught.value.cause, CancelledError | ActivityError)
    assert request.client_left
    assert request.status is None


async def test_a_worker_whose_grace_period_runs_out_closes_the_connection_and_says_worker_shutdown(
    dev_server: EmbeddedTemporal,
) -> None:
    async with ScriptedProvider([answers.stall()]) as provider:
        grace = timedelta(seconds=0.5)
        async with worker_for(dev_server, provider.base_url, grace=grace) as running:
            handle = await running.ask()
            await provider.wait_for_requests(1)
        request = await provider.wait_for_end(0)  # the worker has stopped
        assert request.client_left
        async for event in handle.fetch_history_events():
            if event.HasField("activity_task_failed_event_attributes"):
                failed = event.activity_task_failed_event_attributes.failure
        assert failed.application_failure_info.type == "WorkerShutdown"
        await tidy_up(handle)


async def test_a_worker_that_stops_waits_for_a_call_within_its_grace_period(
    dev_server: EmbeddedTemporal,
) -> None:
    hold = answers.Hold()
    async with ScriptedProvider([answers.stall(hold)]) as provider:
        async with worker_for(dev_server, provider.base_url) as running:
            handle = await running.ask()
            await provider.wait_for_requests(1)
            stopping = asyncio.ensure_future(running.stop())
            done, _ = await asyncio.wait({stopping}, timeout=1)
            assert not done
            hold.release()
            await stopping
        events = [event async for event in handle.fetch_history_events()]
        assert any(event.HasField("activity_task_completed_event_attributes") for event in events)
        await tidy_up(handle)


async def test_the_call_reports_its_timeout_itself_before_temporal_does(
    dev_server: EmbeddedTemporal, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(timeouts, "CALL_MARGIN", timedelta(minutes=1))  # for a busy machine
    async with (
        ScriptedProvider([answers.stall()]) as provider,
        worker_for(dev_server, provider.base_url) as running,
    ):
        error = await cause_of(await running.ask(limit_seconds=SHORT_SECONDS))
    assert isinstance(error, ApplicationError)
    assert error.type == "timed_out"
    assert error.details[0]["outcome_unknown"] is True


async def test_an_answer_just_under_the_limit_fits_into_temporals_payload(
    dev_server: EmbeddedTemporal,
) -> None:
    async with (
        ScriptedProvider([answers.huge(1_900_000)]) as provider,
        worker_for(dev_server, provider.base_url) as running,
    ):
        assert len((await (await running.ask()).result()).text) == 1_900_000
