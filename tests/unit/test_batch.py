"""The lines, the request and the window of a batch."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from tasquencer.batch.rows import (
    AiBatchRequest,
    BatchCounts,
    BatchPause,
    BatchRow,
    RowFailure,
    RowOutcome,
    RowState,
    check_batch_id,
    check_row,
    merged,
    parse_batch,
    parse_line,
    parse_pause,
    task_id_of,
)
from tasquencer.batch.window import LARGEST_PAGE, BatchWindow
from tasquencer.core.errors import InvalidRequest
from tasquencer.core.policy import Verdict

NOON = datetime(2026, 11, 24, 12, tzinfo=UTC)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        (b'{"id": "a", "prompt": "x"}', ("a", {"prompt": "x"})),
        (b'{"id": 7, "prompt": "x"}\n', ("7", {"prompt": "x"})),
        (b'{"prompt": "x", "model": "m"}', ("line-17", {"prompt": "x", "model": "m"})),
        (b'{"id": "a", "prompt": "x", "failure": {"type": "RetriesExhausted"}}', ("a", {"prompt": "x"})),
    ],
)
def test_a_line_is_an_id_and_a_request(line: bytes, expected: tuple[str, dict[str, Any]]) -> None:
    assert parse_line(line, 17) == expected


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b"{", "is not JSON: "),
        (b"[1]", "must be one JSON object"),
        (b'{"prompt": NaN}', "is not JSON: NaN is not JSON"),
        (b"\xff\xfe", "is not UTF-8 text"),
        (b"[" * 100_000, "is not JSON: nested too deeply"),
        (b'{"id": true, "prompt": "x"}', "id: must be text or a whole number"),
        (b'{"id": " ", "prompt": "x"}', "id: must be printable text, and not empty"),
        (b'{"id": "a\\u001bb", "prompt": "x"}', "id: must be printable text, and not empty"),
        (b'{"id": "' + b"a" * 151 + b'", "prompt": "x"}', "id: has 151 characters, the limit is 150"),
    ],
)
def test_a_wrong_line_is_refused(line: bytes, problem: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_line(line, 1)
    assert str(refused.value).startswith(problem)


def test_the_defaults_say_what_a_line_does_not() -> None:
    defaults = {"model": "m", "retry": {"jitter": 0.5, "retry_on": "any"}, "metadata": {"a": "1", "b": "2"}}
    request = {"prompt": "x", "model": "mine", "retry": {"jitter": 0}, "metadata": {"b": "3"}}
    assert merged(defaults, request) == {
        "prompt": "x",
        "model": "mine",
        "retry": {"jitter": 0, "retry_on": "any"},
        "metadata": {"a": "1", "b": "3"},
    }
    assert merged(defaults, {"prompt": "x", "retry": None, "model": None}) == {"prompt": "x", **defaults}


def test_a_row_is_checked_as_its_task_reads_it() -> None:
    assert check_row({"max_retries": 5}, {"prompt": "x"}).max_retries == 5
    with pytest.raises(InvalidRequest, match="promt: unknown field"):
        check_row({}, {"promt": "x"})
    with pytest.raises(InvalidRequest, match="prompt, messages: give one of them, not both"):
        check_row({}, {"prompt": "x", "messages": [{"role": "user", "content": "x"}]})


@pytest.mark.parametrize(
    ("raw", "problem"),
    [
        ([], "the input must be one JSON object"),
        ({"concurrency": 1001}, "concurrency: Input should be less than or equal to 1000"),
        ({"policy": "hope"}, "policy.name: Input should be 'absorb_failures'"),
        ({"prompts": []}, "prompts: unknown field"),
    ],
)
def test_a_wrong_request_is_refused(raw: object, problem: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        parse_batch(raw)
    assert str(refused.value).startswith(problem)


def test_nothing_is_a_request_and_a_pause_has_an_actor() -> None:
    assert parse_batch(None) == AiBatchRequest(concurrency=50)
    assert parse_pause({"actor": "anna", "reason": None}) == BatchPause(actor="anna")
    with pytest.raises(InvalidRequest, match="actor: Field required"):
        parse_pause({})


def test_ids() -> None:
    assert task_id_of("b", "r/1") == "b/r/1"
    check_batch_id("b-1")
    for wrong in ("", "a/b", "x" * 101, "a\nb"):
        with pytest.raises(InvalidRequest, match=r"^id: "):
            check_batch_id(wrong)


def window(pending: int, concurrency: int = 2, policy: object = "absorb_failures") -> BatchWindow:
    request = parse_batch({"concurrency": concurrency, "policy": policy})
    return BatchWindow(request, BatchCounts(pending=pending))


def rows(*positions: int) -> list[BatchRow]:
    return [BatchRow(position=n, row_id=f"r{n}", request={"prompt": "x"}) for n in positions]


def ended(position: int, state: RowState = RowState.COMPLETED) -> RowOutcome:
    failure = None if state is RowState.COMPLETED else RowFailure(type="NotRetryable", message="no")
    return RowOutcome(
        position=position, row_id=f"r{position}", state=state, work_item_id="w", failure=failure
    )


def started(one: BatchWindow) -> list[int]:
    return [row.position for row in one.start()]


def test_the_window_starts_as_many_as_may_be_under_way() -> None:
    one = window(5)
    assert (one.needs_rows, one.cursor, started(one)) == (True, -1, [])
    one.load(rows(0, 1, 2), after=one.cursor, is_last=False)
    assert (started(one), started(one), one.cursor) == ([0, 1], [], 2)
    one.end(ended(1), NOON)
    assert started(one) == [2]
    one.load(rows(3, 4), after=one.cursor, is_last=True)
    assert one.needs_rows is False
    one.end(ended(0), NOON)
    one.end(ended(2), NOON)
    assert started(one) == [3, 4]
    assert one.verdict is Verdict.CONTINUE
    one.end(ended(3), NOON)
    one.end(ended(4), NOON)
    assert (one.verdict, one.result().completed) == (Verdict.COMPLETE, 5)


def test_outcomes_are_numbered_once_and_recorded_together() -> None:
    one = window(3)
    one.load(rows(0, 1, 2), after=one.cursor, is_last=True)
    one.start()
    one.end(ended(1), NOON)
    one.end(ended(1), NOON)  # told twice
    assert [(outcome.position, outcome.number) for outcome in one.to_save()] == [(1, 1)]
    one.end(ended(0, RowState.FAILED), NOON)
    assert one.unsaved == 1
    carried = one.carry()
    assert [outcome.number for outcome in carried.unrecorded] == [1, 2]
    one.saved({})
    assert [(outcome.position, outcome.number, outcome.ended_at) for outcome in one.to_save()] == [
        (0, 2, NOON)
    ]


def test_a_pause_starts_and_loads_nothing() -> None:
    one = window(3)
    one.load(rows(0, 1), after=one.cursor, is_last=False)
    one.pause(BatchPause(actor="anna"))
    assert (started(one), one.needs_rows) == ([], False)
    assert one.progress().paused == BatchPause(actor="anna")
    one.pause(None)
    assert (started(one), one.needs_rows) == ([0, 1], True)


def test_the_next_run_goes_on_where_this_one_was() -> None:
    one = window(6)
    one.load(rows(0, 1, 2, 3), after=one.cursor, is_last=False)
    one.start()
    one.end(ended(0), NOON)
    one.pause(BatchPause(actor="anna"))
    request = parse_batch({"concurrency": 2})
    again = BatchWindow(request, BatchCounts(), one.carry())
    assert (again.cursor, list(again.open), again.rows, again.ended) == (1, [1], 6, 1)
    assert again.paused == BatchPause(actor="anna")
    again.pause(None)
    again.load(rows(2, 3), after=again.cursor, is_last=False)
    assert started(again) == [2]
    assert again.progress().completed == 1


def test_what_temporal_does_not_know_is_started_again_and_nothing_else_is() -> None:
    one = window(6, concurrency=3)
    one.load(rows(0, 1, 2, 3), after=one.cursor, is_last=False)
    one.start()
    one.end(ended(2), NOON)
    one.forget([1])
    assert (one.cursor, one.needs_rows) == (0, True)
    one.load(rows(1, 2, 3, 4), after=one.cursor, is_last=False)  # 2 is not recorded yet
    assert started(one) == [1, 3]


def test_rows_that_wait_are_loaded_again_after_something_was_forgotten() -> None:
    one = window(6, concurrency=2)
    one.load(rows(0, 1, 2), after=one.cursor, is_last=False)
    one.start()
    one.load(rows(3, 4), after=one.cursor, is_last=False)
    one.forget([1])
    one.load(rows(1, 2, 3, 4, 5), after=one.cursor, is_last=True)
    assert started(one) == [1]
    one.forget([0])
    assert one.cursor == -1


def test_a_page_that_was_asked_for_before_something_was_forgotten_is_passed_over() -> None:
    one = window(5)
    one.load(rows(0, 1), after=-1, is_last=False)
    one.start()
    one.forget([0])
    one.load(rows(2, 3, 4), after=1, is_last=True)
    assert (started(one), one.needs_rows, one.cursor) == ([], True, -1)


def test_a_row_that_has_ended_and_is_recorded_since_the_page_was_read_is_not_started_again() -> None:
    one = window(3)
    one.load(rows(0, 1), after=-1, is_last=False)
    one.start()
    one.forget([0])
    one.end(ended(1), NOON)
    one.to_save()
    one.saved({})
    one.load(rows(0, 1, 2), after=-1, is_last=True)  # as it was before that
    assert started(one) == [0, 2]


def test_rows_that_are_gone_are_noticed() -> None:
    one = window(3)
    one.load(rows(0), after=one.cursor, is_last=True)
    one.start()
    assert not one.is_missing_rows
    one.end(ended(0), NOON)
    assert one.is_missing_rows


@pytest.mark.parametrize(
    ("policy", "states", "verdict"),
    [
        ("absorb_failures", "fffc", Verdict.COMPLETE),
        ({"name": "absorb_failures", "limit": 1}, "fc", Verdict.FAIL),
        ({"name": "absorb_failures", "limit": 1}, "f", Verdict.CONTINUE),
        ({"name": "absorb_failures", "fraction": 0.25}, "f", Verdict.CONTINUE),  # 1 of 4
        ({"name": "absorb_failures", "fraction": 0.25}, "ff", Verdict.FAIL),
        ("fail_fast", "dd", Verdict.CONTINUE),
        ("fail_fast", "ddf", Verdict.FAIL),
        ({"name": "require_successes", "successes": 2}, "dfd", Verdict.COMPLETE),
        ({"name": "require_successes", "successes": 3}, "ff", Verdict.FAIL),
    ],
)
def test_the_policy_sees_each_row_as_a_lineage_that_has_begun(
    policy: object, states: str, verdict: Verdict
) -> None:
    one = window(4, concurrency=4, policy=policy)
    one.load(rows(0, 1, 2, 3), after=one.cursor, is_last=True)
    one.start()
    by_letter = {"d": RowState.COMPLETED, "f": RowState.FAILED, "c": RowState.CANCELED}
    for position, letter in enumerate(states):
        one.end(ended(position, by_letter[letter]), NOON)
    assert one.verdict is verdict
    assert started(one) == []


def test_a_batch_with_nothing_left_to_do_completes_at_once() -> None:
    request = parse_batch({})
    one = BatchWindow(request, BatchCounts(completed=3, ended=3, input_tokens=9, cost_usd=0.5))
    assert one.verdict is Verdict.COMPLETE
    assert one.result().model_dump() == {
        "rows": 3,
        "completed": 3,
        "failed": 0,
        "canceled": 0,
        "input_tokens": 9,
        "output_tokens": 0,
        "cost_usd": 0.5,
    }


def test_a_batch_that_has_answers_enough_starts_nothing() -> None:
    request = parse_batch({"policy": {"name": "require_successes", "successes": 2}})
    assert BatchWindow(request, BatchCounts(completed=1, pending=3)).verdict is Verdict.CONTINUE
    one = BatchWindow(request, BatchCounts(completed=2, pending=2))
    assert one.verdict is Verdict.COMPLETE
    one.load(rows(2, 3), after=one.cursor, is_last=True)
    assert started(one) == []
    assert (one.result().completed, one.result().canceled) == (2, 2)


def test_not_more_starts_in_one_workflow_task_than_temporal_takes() -> None:
    one = window(6, concurrency=6)
    sizes = (700_000, 300_000, 700_000, 1_500_000)
    large = [row.model_copy(update={"size": size}) for row, size in zip(rows(0, 1, 2, 3), sizes, strict=True)]
    one.load(large, after=-1, is_last=False)
    assert one.needs_rows is False
    used = [one.start(used) for used in (0, 1_000_000, 0, 700_000, 0)]
    assert [[row.position for row in some] for some in used] == [[0, 1], [], [2], [], [3]]
    needs_rows = one.needs_rows
    assert needs_rows


def test_a_page_is_neither_tiny_nor_huge() -> None:
    assert [window(1, concurrency).page_size for concurrency in (1, 50, 1000)] == [20, 50, LARGEST_PAGE]
