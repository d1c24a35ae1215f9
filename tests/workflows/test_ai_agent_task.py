"""The AI agent task on Temporal, with a scripted call: attempts, delays, records, ends."""

from __future__ import annotations

from datetime import timedelta
from itertools import pairwise

import pytest
from temporalio.api.common.v1 import Payload
from temporalio.common import RawValue

from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.work_item import WorkItemState
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.testing import InMemoryLedger
from tests.support.calls import ANSWER, GONE, SLOW_DOWN, WRONG_KEY, ScriptedCalls
from tests.support.tasks import history, tasks_on_skipped_time, timers
from workflows.ai_agent import AiAgentTask

MOST_EVENTS_OF_A_SUCCESS = 14
MOST_EVENTS_OF_A_FAILED_ATTEMPT = 13


def running(calls: ScriptedCalls, ledger: InMemoryLedger | None = None):  # type: ignore[no-untyped-def]
    return tasks_on_skipped_time([AiAgentTask], [calls.generate], ledger=ledger)


async def test_a_first_try_that_succeeds_gives_the_result_of_the_contract() -> None:
    async with running(ScriptedCalls()) as tasks:
        result, handle = await tasks.run("AiAgentTask", {"prompt": "What is it?"})
        (item,) = await tasks.work_items(handle)
    assert result == {
        "text": "42",
        "model": "tiny",
        "finish_reason": "stop",
        "work_item_id": item.id,
        "attempts": 1,
        "input_tokens": 3,
        "output_tokens": 1,
        "cost_usd": 0.0004,
        "total": {"input_tokens": 3, "output_tokens": 1, "cost_usd": 0.0004},
    }
    assert item.state is WorkItemState.COMPLETED
    assert item.result == ANSWER.model_dump(mode="json", exclude_defaults=True)


async def test_the_result_has_the_tokens_and_the_cost_of_all_attempts() -> None:
    used = {"input_tokens": 3, "output_tokens": 11, "cost_usd": 0.002}
    empty = Failure.of(FailureKind.INVALID_OUTPUT, "the answer is empty", **used)  # type: ignore[arg-type]
    async with running(ScriptedCalls(empty, SLOW_DOWN)) as tasks:
        result, _ = await tasks.run("AiAgentTask", {"prompt": "What is it?"})
    assert (result["attempts"], result["input_tokens"], result["output_tokens"]) == (3, 3, 1)
    assert result["total"] == {"input_tokens": 6, "output_tokens": 12, "cost_usd": pytest.approx(0.0024)}


@pytest.mark.usefixtures("no_write_is_slow")
async def test_a_task_that_succeeds_at_once_costs_at_most_fourteen_events() -> None:
    async with running(ScriptedCalls()) as tasks:
        _, handle = await tasks.run("AiAgentTask", {"prompt": "?"})
        assert len(await history(handle)) <= MOST_EVENTS_OF_A_SUCCESS


@pytest.mark.usefixtures("no_write_is_slow")
async def test_each_failed_attempt_costs_at_most_thirteen_events() -> None:
    async with running(ScriptedCalls(SLOW_DOWN, GONE, SLOW_DOWN)) as tasks:
        _, handle = await tasks.run("AiAgentTask", {"prompt": "?"})
        assert len(await history(handle)) <= MOST_EVENTS_OF_A_SUCCESS + 3 * MOST_EVENTS_OF_A_FAILED_ATTEMPT


async def test_the_backoff_doubles_from_one_second() -> None:
    async with running(ScriptedCalls(*[SLOW_DOWN] * 5)) as tasks:
        _, handle = await tasks.run("AiAgentTask", {"prompt": "?", "max_retries": 5})
        assert timers(await history(handle)) == [1, 2, 4, 8, 16]


@pytest.mark.parametrize(
    ("retry", "expected"),
    [
        ({"initial_interval_seconds": 0.5}, [0.5, 1, 2]),
        ({"backoff_coefficient": 3}, [1, 3, 9]),
        ({"backoff_coefficient": 1}, [1, 1, 1]),
        ({"maximum_interval_seconds": 1.5}, [1, 1.5, 1.5]),
        ({"initial_interval_seconds": 0}, []),
    ],
)
async def test_the_task_s_own_recipe_sets_the_timers(retry: dict[str, float], expected: list[float]) -> None:
    async with running(ScriptedCalls(*[SLOW_DOWN] * 3)) as tasks:
        _, handle = await tasks.run("AiAgentTask", {"prompt": "?", "retry": retry})
        assert timers(await history(handle)) == expected


async def test_jitter_only_adds() -> None:
    async with running(ScriptedCalls(*[SLOW_DOWN] * 3)) as tasks:
        _, handle = await tasks.run("AiAgentTask", {"prompt": "?", "retry": {"jitter": 0.5}})
        waited = timers(await history(handle))
    assert all(base <= wait <= 1.5 * base for base, wait in zip([1, 2, 4], waited, strict=True))
    assert waited != [1, 2, 4]


async def test_a_retry_after_beyond_the_backoff_is_waited_for_in_full() -> None:
    asks = SLOW_DOWN.model_copy(update={"retry_after_seconds": 600.25})
    async with running(ScriptedCalls(asks, SLOW_DOWN)) as tasks:
        _, handle = await tasks.run("AiAgentTask", {"prompt": "?", "retry": {"maximum_interval_seconds": 5}})
        items = await tasks.work_items(handle)
        assert timers(await history(handle)) == [600.25, 2]
    assert [(item.delay_seconds, item.delay_reason) for item in items] == [
        (0, "first_try"),
        (600.25, "retry_after"),
        (2, "backoff"),
    ]


async def test_no_work_item_starts_before_its_predecessor_s_end_plus_its_delay() -> None:
    async with running(ScriptedCalls(*[SLOW_DOWN] * 3)) as tasks:
        _, handle = await tasks.run("AiAgentTask", {"prompt": "?"})
        items = await tasks.work_items(handle)
    for before, item in pairwise(items):
        assert before.ended_at is not None
        assert item.started_at is not None
        assert item.not_before == before.ended_at + timedelta(seconds=item.delay_seconds)
        assert item.started_at >= item.not_before


async def test_spent_retries_fail_the_task_with_the_last_failure_as_detail() -> None:
    async with running(ScriptedCalls(*[SLOW_DOWN] * 3, GONE)) as tasks:
        error, handle = await tasks.failure("AiAgentTask", {"prompt": "?"})
        items = await tasks.work_items(handle)
    assert error.type == "RetriesExhausted"
    assert error.message == "retry 3 of 3 failed with unreachable: connection refused; all retries are spent"
    assert Failure.model_validate(error.details[0]) == GONE
    assert [item.state for item in items] == [WorkItemState.FAILED] * 4


async def test_a_failure_that_does_not_qualify_ends_the_task_at_once() -> None:
    async with running(ScriptedCalls(WRONG_KEY)) as tasks:
        error, handle = await tasks.failure("AiAgentTask", {"prompt": "?"})
        assert len(await tasks.work_items(handle)) == 1
    assert error.type == "NotRetryable"
    assert "unauthorized: 401 from the provider" in error.message


async def test_retry_on_any_retries_every_kind() -> None:
    async with running(ScriptedCalls(WRONG_KEY)) as tasks:
        result, _ = await tasks.run("AiAgentTask", {"prompt": "?", "retry": {"retry_on": "any"}})
    assert result["attempts"] == 2


async def test_without_retries_one_failure_is_the_end() -> None:
    async with running(ScriptedCalls(SLOW_DOWN)) as tasks:
        error, handle = await tasks.failure("AiAgentTask", {"prompt": "?", "max_retries": 0})
        assert len(await tasks.work_items(handle)) == 1
    assert error.type == "RetriesExhausted"


async def test_a_wait_beyond_the_deadline_fails_the_task_at_once_and_says_both_times() -> None:
    asks = SLOW_DOWN.model_copy(update={"retry_after_seconds": 600.0})
    async with running(ScriptedCalls(asks)) as tasks:
        error, handle = await tasks.failure("AiAgentTask", {"prompt": "?", "deadline_seconds": 60})
        assert timers(await history(handle)) == []
    assert error.type == "DeadlineExceeded"
    assert "10 min" in error.message
    assert "the deadline is" in error.message


async def test_a_call_may_not_outlast_the_deadline() -> None:
    async with running(ScriptedCalls()) as tasks:
        _, handle = await tasks.run("AiAgentTask", {"prompt": "?", "deadline_seconds": 60})
        (scheduled,) = [
            event.activity_task_scheduled_event_attributes
            for event in await history(handle)
            if event.HasField("activity_task_scheduled_event_attributes")
        ]
    assert scheduled.start_to_close_timeout.ToTimedelta() <= timedelta(seconds=65)


@pytest.mark.parametrize(
    ("args", "field"),
    [
        ([], "the input must be one JSON object"),
        ([None], "the input must be one JSON object"),
        (["just a text"], "the input must be one JSON object"),
        ([[]], "the input must be one JSON object"),
        ([{}], "prompt"),
        ([{"promt": "?"}], "promt: unknown field (did you mean 'prompt'?)"),
        ([{"prompt": ""}], "prompt"),
        ([{"prompt": "?", "max_retries": 1001}], "max_retries"),
        ([{"prompt": "?", "retry": {"backof": 2}}], "retry.backof"),
        ([{"prompt": "?", "attempt_timeout_seconds": "soon"}], "attempt_timeout_seconds"),
        ([{"prompt": "?", "metadata": {"a": 1}}], "metadata.a"),
        ([{"prompt": "x" * 1_600_000}], "prompt: the request has 1,600,013 bytes, the limit is 1,572,864"),
    ],
)
async def test_invalid_input_fails_the_task_before_any_work_item_and_names_the_field(
    args: list[object], field: str
) -> None:
    calls = ScriptedCalls()
    async with running(calls) as tasks:
        error, handle = await tasks.failure("AiAgentTask", *args)
        assert error.type == "InvalidRequest"
        assert field in error.message
        assert await handle.query("work_items") == []
        assert await tasks.work_items(handle) == []
    assert calls.calls == []


async def test_the_query_lists_the_work_items_with_the_ledger_s_names() -> None:
    async with running(ScriptedCalls(GONE)) as tasks:
        _, handle = await tasks.run("AiAgentTask", {"prompt": "?"})
        first, second = await handle.query("work_items")
        in_ledger = await tasks.work_items(handle)
    assert [first["id"], second["id"]] == [item.id for item in in_ledger]
    assert (first["state"], first["failure_kind"], first["failure_message"]) == (
        "failed",
        "unreachable",
        "connection refused",
    )
    assert (second["state"], second["attempt"], second["delay_seconds"], second["delay_reason"]) == (
        "completed",
        1,
        1.0,
        "backoff",
    )


async def test_no_call_is_made_before_its_work_item_is_recorded_as_started() -> None:
    ledger = InMemoryLedger()
    seen: list[WorkItemState] = []

    async def look(work_item_id: str) -> None:
        (item,) = await ledger.work_items(WorkItemFilter(work_item_id=work_item_id))
        seen.append(item.state)

    async with running(ScriptedCalls(GONE, GONE, before=look), ledger) as tasks:
        await tasks.run("AiAgentTask", {"prompt": "?"})
    assert seen == [WorkItemState.STARTED] * 3


async def test_each_attempt_has_its_ai_job() -> None:
    async with running(ScriptedCalls(GONE)) as tasks:
        _, handle = await tasks.run(
            "AiAgentTask", {"prompt": "What is it?", "model": "small", "max_retries": 7}
        )
        items = await tasks.work_items(handle)
        jobs = await tasks.ledger.domain_records("ai_jobs", [item.id for item in items])
    first, second = (jobs[item.id] for item in items)
    assert (first["status"], first["last_error"], first["attempt"]) == (
        "failed",
        "unreachable: connection refused",
        0,
    )
    assert (second["status"], second["result"], second["attempt"]) == ("completed", "42", 1)
    assert (second["prompt"], second["max_retries"], second["output_tokens"]) == ("What is it?", 7, 1)


async def test_the_activity_is_the_work_item_s_and_is_never_retried_by_temporal() -> None:
    async with running(ScriptedCalls(GONE)) as tasks:
        _, handle = await tasks.run("AiAgentTask", {"prompt": "?"})
        items = await tasks.work_items(handle)
        scheduled = [
            event.activity_task_scheduled_event_attributes
            for event in await history(handle)
            if event.HasField("activity_task_scheduled_event_attributes")
        ]
    assert [attributes.activity_id for attributes in scheduled] == [item.id for item in items]
    assert {attributes.retry_policy.maximum_attempts for attributes in scheduled} == {1}


async def test_the_kind_of_failure_is_the_type_of_the_activity_s_error() -> None:
    async with running(ScriptedCalls(GONE)) as tasks:
        _, handle = await tasks.run("AiAgentTask", {"prompt": "?"})
        failed = [
            event.activity_task_failed_event_attributes.failure.application_failure_info.type
            for event in await history(handle)
            if event.HasField("activity_task_failed_event_attributes")
        ]
    assert failed == ["unreachable"]


async def test_an_expected_failure_brings_no_stack_trace_into_the_history() -> None:
    async with running(ScriptedCalls(GONE, WRONG_KEY)) as tasks:
        _, handle = await tasks.failure("AiAgentTask", {"prompt": "?"})
        text = (await handle.fetch_history()).to_json()
    assert "connection refused" in text
    assert "stackTrace" not in text
    assert "Traceback" not in text


@pytest.mark.parametrize(
    ("data", "says"),
    [
        # Half an emoji, as JavaScript writes it.
        (b'{"prompt": "\\ud800"}', "prompt: must not contain lone surrogates"),
        (b'{"prompt": ', "the input must be one JSON object"),
        (b'{"prompt": ' + b"[" * 250 + b"]" * 250 + b"}", "prompt: "),
    ],
)
async def test_odd_json_fails_the_task_instead_of_leaving_it_stuck(data: bytes, says: str) -> None:
    odd = RawValue(Payload(metadata={"encoding": b"json/plain"}, data=data))
    async with running(ScriptedCalls()) as tasks:
        error, _ = await tasks.failure("AiAgentTask", odd)
    assert error.type == "InvalidRequest"
    assert says in error.message
