"""Every sentence of the ledger's contract, on every kind of ledger."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from datetime import timedelta, timezone
from typing import Any

import pytest
from pydantic import JsonValue

from tasquencer.core.entries import LedgerEntry
from tasquencer.core.errors import LedgerConflict
from tasquencer.core.observed import observed_id
from tasquencer.core.work_item import DelayReason, WorkItem, WorkItemState
from tasquencer.ledger.contract import Ledger, OpenWorkItem, Settlement, WorkItemFilter
from tests.ledger.stories import FAILURE, START, Life, after, ai_job


async def all_ids(ledger: Ledger, **wanted: object) -> list[str]:
    return [item.id for item in await ledger.work_items(WorkItemFilter.model_validate(wanted))]


async def only(ledger: Ledger, work_item_id: str = "a") -> WorkItem:
    [item] = await ledger.work_items(WorkItemFilter(work_item_id=work_item_id))
    return item


# Writing


async def test_what_is_recorded_is_read_back_whole(ledger: Ledger) -> None:
    life = Life(attempt=2, delay_seconds=7.5, delay_reason=DelayReason.RETRY_AFTER)
    entries = life.until(WorkItemState.FAILED)
    for entry in entries:
        await ledger.record([entry])
    assert await only(ledger) == life.item.model_copy(update={"payload": life.payload})
    assert await ledger.transitions("a") == [entry.transition for entry in entries]


async def test_a_result_of_any_json_is_read_back(ledger: Ledger) -> None:
    results: list[JsonValue] = [
        None,
        True,
        3,
        2.5,
        "text",
        [1, [2]],
        {"text": "naïve ☃ 🎉", "big": 2**60, "none": None},
    ]
    for number, result in enumerate(results):
        life = Life(id=f"w{number}", lineage=f"l{number}")
        await ledger.record([life.initialized(), life.started(), life.completed(result)])
        assert (await only(ledger, life.id)).result == result


async def test_times_of_any_zone_are_the_same_instants(ledger: Ledger) -> None:
    life = Life(created_at=START.astimezone(timezone(timedelta(hours=9))))
    await ledger.record([life.initialized()])
    assert (await only(ledger)).created_at == START


async def test_several_transitions_of_one_work_item_fit_in_one_batch(ledger: Ledger) -> None:
    life = Life()
    await ledger.record(life.until(WorkItemState.COMPLETED))
    assert await only(ledger) == life.item.model_copy(update={"payload": life.payload})
    assert [step.sequence for step in await ledger.transitions("a")] == [0, 1, 2]


async def test_a_failure_and_the_next_attempt_fit_in_one_batch(ledger: Ledger) -> None:
    first, second = Life(), Life(id="b", attempt=1, created_at=after(2))
    await ledger.record([first.initialized(), first.started()])
    await ledger.record([first.failed(), second.initialized()])
    assert [item.state for item in await ledger.work_items(WorkItemFilter())] == ["initialized", "failed"]


async def test_an_empty_batch_does_nothing(ledger: Ledger) -> None:
    await ledger.record([])
    assert await all_ids(ledger) == []


async def test_a_large_batch_is_one_call(ledger: Ledger) -> None:
    lives = [Life(id=f"w{number}", lineage=f"l{number}") for number in range(1_500)]
    await ledger.record([life.initialized(ai_job("pending")) for life in lives])
    assert len(await all_ids(ledger, limit=2_000)) == 1_500
    assert len(await ledger.domain_records("ai_jobs", [life.id for life in lives])) == 1_500


async def test_a_batch_delivered_twice_changes_nothing_and_is_no_error(ledger: Ledger) -> None:
    life = Life()
    writes = [[life.initialized(), life.started()], [life.failed()]]
    for write in writes:
        await ledger.record(write)
    before = (await only(ledger), await ledger.transitions("a"))
    for write in writes:
        await ledger.record(write)
    assert (await only(ledger), await ledger.transitions("a")) == before


async def test_an_entry_twice_in_one_batch_is_written_once(ledger: Ledger) -> None:
    entry = Life().initialized()
    await ledger.record([entry, entry])
    assert len(await ledger.transitions("a")) == 1


async def test_an_overlapping_batch_writes_what_is_new(ledger: Ledger) -> None:
    life = Life()
    entries = life.until(WorkItemState.COMPLETED)
    await ledger.record(entries[:2])
    await ledger.record(entries)
    assert (await only(ledger)).state is WorkItemState.COMPLETED


async def test_a_late_copy_of_an_early_entry_is_skipped(ledger: Ledger) -> None:
    life = Life()
    entries = life.until(WorkItemState.COMPLETED)
    await ledger.record(entries)
    await ledger.record(entries[:1])
    assert (await only(ledger)).state is WorkItemState.COMPLETED


async def test_the_same_batch_delivered_many_times_at_once_is_written_once(ledger: Ledger) -> None:
    write = Life().until(WorkItemState.COMPLETED)
    await asyncio.gather(*(ledger.record(write) for _ in range(20)))
    assert len(await ledger.transitions("a")) == 3


async def test_batches_of_many_tasks_at_once_are_all_written(ledger: Ledger) -> None:
    writes = [Life(id=f"w{n}", run_id=f"r{n}").until(WorkItemState.COMPLETED) for n in range(50)]
    await asyncio.gather(*(ledger.record(write) for write in writes))
    assert len(await all_ids(ledger, states={WorkItemState.COMPLETED})) == 50


# Refusing


def _another_end() -> list[LedgerEntry]:
    life = Life()
    life.initialized(), life.started()
    return [life.canceled()]


def _leaves_a_terminal_state() -> list[LedgerEntry]:
    life = Life()
    life.until(WorkItemState.COMPLETED)
    return [life.canceled()]


def _gap() -> list[LedgerEntry]:
    life = Life(id="b", lineage="other")
    life.initialized()
    return [life.started()]


def _illegal() -> list[LedgerEntry]:
    life = Life(id="b", lineage="other")
    entry = life.initialized()
    life.started()
    life.item = life.item.model_copy(update={"state": WorkItemState.INITIALIZED})
    life.sequence = 0
    return [entry, life.completed()]


def _begins_started() -> list[LedgerEntry]:
    life = Life(id="b", lineage="other")
    life.initialized()
    life.sequence = -1
    entry = life.started()
    first = entry.transition.model_copy(update={"previous_state": None})
    return [entry.model_copy(update={"transition": first})]


def _begins_again() -> list[LedgerEntry]:
    life = Life()
    life.initialized()
    first = life.started()
    return [first.model_copy(update={"transition": first.transition.model_copy(update={"sequence": 0})})]


def _attempt_taken() -> list[LedgerEntry]:
    return [Life(id="b").initialized()]


def _taken_in_batch() -> list[LedgerEntry]:
    return [Life(id="b", lineage="other").initialized(), Life(id="c", lineage="other").initialized()]


def _altered(**update: object) -> list[LedgerEntry]:
    life = Life(id="b", lineage="other")
    entries = life.until(WorkItemState.FAILED)
    item = entries[-1].work_item.model_copy(update=update)
    return [*entries[:-1], entries[-1].model_copy(update={"work_item": item})]


def _foreign_transition() -> list[LedgerEntry]:
    entry = Life(id="b", lineage="other").initialized()
    return [
        entry.model_copy(update={"transition": entry.transition.model_copy(update={"work_item_id": "c"})})
    ]


_SELF = "the entry contradicts itself: "

CONFLICTS: dict[str, tuple[Callable[[], list[LedgerEntry]], str, str]] = {
    "another end": (
        _another_end, "a", "its transition 2 is completed, the entry says canceled"),
    "leaves a terminal state": (
        _leaves_a_terminal_state, "a", "it is completed after transition 2 and cannot become canceled"),
    "leaves a gap": (
        _gap, "b", "it does not exist, the entry is its transition 1 from initialized"),
    "is not legal": (
        _illegal, "b", "it is initialized after transition 0 and cannot become completed"),
    "begins in the middle": (
        _begins_started, "b", "it does not exist and cannot become started"),
    "begins again": (
        _begins_again, "a", "its transition 0 is initialized, the entry says started"),
    "attempt taken": (
        _attempt_taken, "b", "attempt 0 of lineage 'main' in run 'run' is already work item 'a'"),
    "attempt taken within the write": (
        _taken_in_batch, "c", "attempt 0 of lineage 'other' in run 'run' is already work item 'b'"),
    "state is not the transition's": (
        lambda: _altered(state=WorkItemState.STARTED), "b",
        _SELF + "the transition leads to failed, the work item is started"),
    "ended without a time": (
        lambda: _altered(ended_at=None), "b", _SELF + "failed without ended_at"),
    "started without a time": (
        lambda: _altered(started_at=None), "b", _SELF + "failed without started_at"),
    "failed without a failure": (
        lambda: _altered(failure=None), "b", _SELF + "failed without a failure"),
    "of two work items": (
        _foreign_transition, "b", _SELF + "its transition is of work item 'c'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFLICTS)
async def test_a_conflict_is_refused_precisely_and_nothing_of_its_batch_is_written(
    ledger: Ledger, case: str
) -> None:
    entries, work_item_id, problem = CONFLICTS[case]
    await ledger.record(Life().until(WorkItemState.COMPLETED))
    before = await only(ledger)
    neighbour = Life(id="n", lineage="neighbour")
    write = [neighbour.initialized(ai_job("pending")), *entries(), neighbour.started()]
    with pytest.raises(LedgerConflict) as refusal:
        await ledger.record(write)
    assert (refusal.value.work_item_id, refusal.value.problem) == (work_item_id, problem)
    assert await all_ids(ledger) == ["a"]
    assert (await only(ledger), len(await ledger.transitions("a"))) == (before, 3)
    assert await ledger.transitions("n") == []
    assert await ledger.domain_records("ai_jobs", ["n"]) == {}


async def test_a_skipped_entry_does_not_excuse_a_conflict_beside_it(ledger: Ledger) -> None:
    life = Life()
    write = life.until(WorkItemState.STARTED)
    await ledger.record(write)
    with pytest.raises(LedgerConflict):
        await ledger.record([*write, *_gap()])


async def test_after_a_refusal_the_ledger_goes_on(ledger: Ledger) -> None:
    await ledger.record([Life().initialized()])
    with pytest.raises(LedgerConflict):
        await ledger.record(_attempt_taken())
    await ledger.record([Life(id="b", attempt=1).initialized()])
    assert sorted(await all_ids(ledger)) == ["a", "b"]


# What which entry sets


async def test_later_entries_do_not_change_what_the_first_one_set(ledger: Ledger) -> None:
    life = Life(delay_seconds=4, delay_reason=DelayReason.BACKOFF)
    await ledger.record([life.initialized()])
    created = life.item
    changed = life.started(
        run_id="x", task_type="x", lineage="x", attempt=9, payload="x", created_at=after(9),
        delay_seconds=9.0, delay_reason=DelayReason.RETRY_AFTER, not_before=after(9),
    )  # fmt: skip
    await ledger.record([changed])
    started = {"state": WorkItemState.STARTED, "started_at": after(1), "worker": "w1"}
    assert await only(ledger) == created.model_copy(update=started)


@pytest.mark.parametrize("writes", [1, 2], ids=["in one write", "in two writes"])
async def test_an_entry_that_names_no_worker_leaves_the_one_before(ledger: Ledger, writes: int) -> None:
    life = Life()
    entries = [life.initialized(), life.started(worker="w1")]
    end = life.completed()
    entries.append(end.model_copy(update={"work_item": end.work_item.model_copy(update={"worker": None})}))
    for write in [entries] if writes == 1 else [entries[:2], entries[2:]]:
        await ledger.record(write)
    assert (await only(ledger)).worker == "w1"


async def test_a_start_that_is_told_again_later_stays_as_its_transition_says(ledger: Ledger) -> None:
    first, again = Life(), Life()
    await ledger.record([first.initialized(), first.started()])
    entries = [again.initialized(), again.started(started_at=after(1.5)), again.completed()]
    await ledger.record(entries)
    log = await ledger.transitions("a")
    assert (await only(ledger)).started_at == log[1].at == after(1)


async def test_a_start_by_an_operator_that_is_told_again_later_keeps_its_wait(ledger: Ledger) -> None:
    first, again = Life(delay_seconds=4), Life(delay_seconds=4)
    await ledger.record([first.initialized(), first.started(**by_operator(1.5))])
    await ledger.record([again.initialized(), again.started(started_at=after(3), **by_operator(3))])
    await ledger.record([again.completed()])
    item = await only(ledger)
    assert item.started_at == after(1)
    assert (item.delay_seconds, item.delay_reason, item.not_before) == (1.5, DelayReason.OPERATOR, after(1.5))


@pytest.mark.parametrize("writes", [1, 2], ids=["in one write", "in two writes"])
async def test_an_operator_changes_the_wait(ledger: Ledger, writes: int) -> None:
    life = Life(delay_seconds=4, delay_reason=DelayReason.BACKOFF)
    entries = [
        life.initialized(),
        life.started(delay_seconds=1.5, delay_reason=DelayReason.OPERATOR, not_before=after(1)),
        life.completed(),
    ]
    for write in [entries] if writes == 1 else [entries[:1], entries[1:]]:
        await ledger.record(write)
    item = await only(ledger)
    assert (item.delay_seconds, item.delay_reason, item.not_before) == (1.5, DelayReason.OPERATOR, after(1))
    assert item.payload == life.payload


def by_operator(seconds: float) -> dict[str, Any]:
    return {"delay_seconds": seconds, "delay_reason": DelayReason.OPERATOR, "not_before": after(seconds)}


# Domain records


async def test_the_domain_record_replaces_the_one_before(ledger: Ledger) -> None:
    life = Life()
    await ledger.record([life.initialized(ai_job("pending"))])
    await ledger.record([life.started(ai_job("started", model="n"))])
    done = ai_job("completed", result="because", input_tokens=5, output_tokens=2**40, cost_usd=0.00025)
    await ledger.record([life.completed(record=done)])
    assert await ledger.domain_records("ai_jobs", ["a"]) == {"a": dict(done.values)}


async def test_the_last_domain_record_of_a_batch_stands(ledger: Ledger) -> None:
    life = Life()
    await ledger.record(
        [life.initialized(ai_job("pending")), life.started(ai_job("started")), life.canceled()]
    )
    assert await ledger.domain_records("ai_jobs", ["a"]) == {"a": dict(ai_job("started").values)}


async def test_the_domain_record_of_a_skipped_entry_is_skipped(ledger: Ledger) -> None:
    life = Life()
    await ledger.record([life.initialized(ai_job("pending"))])
    again = Life().initialized(ai_job("started", model="another"))
    await ledger.record([again])
    assert await ledger.domain_records("ai_jobs", ["a"]) == {"a": dict(ai_job("pending").values)}


async def test_work_items_without_a_domain_record_are_left_out(ledger: Ledger) -> None:
    await ledger.record([Life().initialized(ai_job("pending")), Life(id="b", attempt=1).initialized()])
    assert set(await ledger.domain_records("ai_jobs", ["a", "b", "nobody"])) == {"a"}
    assert await ledger.domain_records("ai_jobs", []) == {}


# Text that databases cannot hold


async def test_nul_and_lone_surrogates_are_replaced_everywhere(ledger: Ledger) -> None:
    life = Life(payload={"que\x00stion": "a\x00b\udcffc"})
    record = ai_job("completed", prompt="p\x00", result="r\ud800")
    await ledger.record(
        [life.initialized(), life.started(worker="w\x00"), life.completed(["x\x00y"], record)]
    )
    item = await only(ledger)
    assert item.payload == {"que\ufffdstion": "a\ufffdb\ufffdc"}
    assert (item.result, item.worker) == (["x\ufffdy"], "w\ufffd")
    [row] = (await ledger.domain_records("ai_jobs", ["a"])).values()
    assert (row["prompt"], row["result"]) == ("p\ufffd", "r\ufffd")


async def test_a_batch_with_such_text_may_be_delivered_twice(ledger: Ledger) -> None:
    write = Life(id="a\x00", payload="\x00").until(WorkItemState.STARTED)
    await ledger.record(write)
    await ledger.record(write)
    assert await all_ids(ledger) == ["a\x00"]


IDS = ["a", "a\x00", "a\ufffd", "a\u2400", "a\u24000000", "a\u2400\x00", "a\u24002400", "a0000"]


async def test_ids_that_differ_in_such_a_character_stay_apart(ledger: Ledger) -> None:
    for name in IDS:
        life = Life(id=name, task_id=f"task {name}", run_id=f"run {name}", lineage=f"lineage {name}")
        await ledger.record([life.initialized(ai_job("pending"))])
        await ledger.record([life.started(ai_job("started"))])
    for name in IDS:
        (item,) = await ledger.work_items(WorkItemFilter(task_id=f"task {name}"))
        assert (item.id, item.task_id, item.run_id) == (name, f"task {name}", f"run {name}")
        assert item.lineage == f"lineage {name}"
        (same,) = await ledger.work_items(WorkItemFilter(work_item_id=name))
        assert same == item
    assert {key: len(value) for key, value in (await ledger.transitions_of(IDS)).items()} == dict.fromkeys(
        IDS, 2
    )
    assert (await ledger.domain_records("ai_jobs", IDS)).keys() == set(IDS)
    open_ones = await ledger.open_work_items(created_before=after(99))
    assert {one.task_id for one in open_ones} == {f"task {name}" for name in IDS}
    settlement = Settlement(
        task_id="task a\x00", run_id="run a\x00", at=after(9), actor="reconciler", reason="terminated"
    )
    assert await ledger.settle(settlement) == ["a\x00"]
    states = {item.id: item.state for item in await ledger.work_items(WorkItemFilter())}
    assert states == dict.fromkeys(IDS, WorkItemState.STARTED) | {"a\x00": WorkItemState.CANCELED}


async def test_a_question_with_such_text_is_no_outage(ledger: Ledger) -> None:
    await ledger.record([Life().initialized()])
    for wanted in (
        WorkItemFilter(task_id="\x00"),
        WorkItemFilter(work_item_id="\x00"),
        WorkItemFilter(failure_kind="\x00"),
        WorkItemFilter(payload_kind="\x00"),
    ):
        assert await ledger.work_items(wanted) == []
    assert await ledger.transitions("\x00") == []
    assert await ledger.domain_records("ai_jobs", ["\x00"]) == {}


# Reading


async def test_lists_are_newest_first_then_by_attempt(ledger: Ledger) -> None:
    await ledger.record(
        [
            Life(id="old", attempt=0, created_at=after(-5)).initialized(),
            Life(id="new-0", attempt=0, run_id="other").initialized(),
            Life(id="new-2", attempt=2).initialized(),
            Life(id="new-1", attempt=1).initialized(),
        ]
    )
    newest_first = ["new-2", "new-1", "new-0", "old"]
    assert await all_ids(ledger) == newest_first
    assert await all_ids(ledger, oldest_first=True) == newest_first[::-1]
    assert await all_ids(ledger, limit=2) == newest_first[:2]
    assert await all_ids(ledger, limit=2, offset=1) == newest_first[1:3]
    assert await all_ids(ledger, offset=4) == []


async def test_work_items_are_selected_by_the_kind_in_their_payload(ledger: Ledger) -> None:
    payloads: list[JsonValue] = [
        {"kind": "review", "draft": "x"},
        {"kind": "visit"},
        {"question": {"kind": "review"}},
        {"kind": ["review"]},
        ["review"],
        "review",
        None,
        {"kind": "review"},
    ]
    for number, payload in enumerate(payloads):
        life = Life(id=f"w{number}", lineage=f"l{number}", payload=payload, created_at=after(number))
        await ledger.record([life.initialized(), *([life.started()] if number < 7 else [])])
    assert await all_ids(ledger, payload_kind="review") == ["w7", "w0"]
    assert await all_ids(ledger, payload_kind="review", states={WorkItemState.STARTED}) == ["w0"]
    assert await all_ids(ledger, payload_kind="nothing") == []


async def test_each_filter_selects_and_filters_combine(ledger: Ledger) -> None:
    for number, state in enumerate(WorkItemState):
        life = Life(id=state.value, task_id=f"task-{number % 2}", attempt=number, created_at=after(number))
        await ledger.record(life.until(state))
    other = Life(id="other", lineage="other", created_at=after(10))
    timed_out = FAILURE.model_copy(update={"kind": "timed_out"})
    await ledger.record([other.initialized(), other.started(), other.failed(timed_out, at=after(20))])

    everything = ["other", "canceled", "failed", "completed", "started", "initialized"]
    assert await all_ids(ledger) == everything
    assert await all_ids(ledger, task_id="task-0") == ["canceled", "completed", "initialized"]
    assert await all_ids(ledger, task_id="nobody") == []
    assert await all_ids(ledger, work_item_id="started") == ["started"]
    assert await all_ids(ledger, states={WorkItemState.FAILED}) == ["other", "failed"]
    open_states = {WorkItemState.INITIALIZED, WorkItemState.STARTED}
    assert await all_ids(ledger, states=open_states) == ["started", "initialized"]
    assert await all_ids(ledger, states={WorkItemState.STARTED}) == ["started"]
    assert await all_ids(ledger, states=frozenset()) == []
    assert await all_ids(ledger, states=set(WorkItemState)) == everything
    assert await all_ids(ledger, failure_kind="rate_limited") == ["failed"]
    assert await all_ids(ledger, failure_kind="timed_out", ended_since=after(20)) == ["other"]
    assert await all_ids(ledger, failure_kind="timed_out", ended_since=after(20.000001)) == []
    assert await all_ids(ledger, created_since=after(4)) == ["other", "canceled"]
    assert await all_ids(ledger, ended_since=after(2)) == ["other", "canceled", "failed", "completed"]
    assert await all_ids(ledger, states=open_states, task_id="task-0") == ["initialized"]


# What is open


async def test_open_work_items_are_listed_oldest_first_page_by_page(ledger: Ledger) -> None:
    for number in range(9):  # three at a time, so that all parts of the order count
        life = Life(f"w{number}", f"task-{number}", f"run-{number}", attempt=2 - number % 3)
        life.created_at = after(number // 3)
        await ledger.record(life.until(WorkItemState.STARTED if number % 2 else WorkItemState.INITIALIZED))
    for state in WorkItemState:
        if state.is_terminal:
            await ledger.record(Life(f"{state}", run_id=f"{state}").until(state))
    everything = ["w2", "w1", "w0", "w5", "w4", "w3", "w8", "w7", "w6"]
    for size in (1, 2, 4, 9, 10):
        found: list[OpenWorkItem] = []
        while page := await ledger.open_work_items(
            created_before=after(100), after=found[-1].place if found else None, limit=size
        ):
            assert len(page) <= size
            found += page
        assert [item.id for item in found] == everything
    assert [item.id for item in await ledger.open_work_items(created_before=after(1))] == everything[:3]
    known = OpenWorkItem(
        id="w1", task_id="task-1", run_id="run-1", lineage="main", attempt=1,
        state=WorkItemState.STARTED, created_at=START,
    )  # fmt: skip
    assert found[1] == known


async def test_what_ends_between_two_pages_does_not_move_the_next_one(ledger: Ledger) -> None:
    await ledger.record([Life(f"w{n}", lineage=f"l{n}", created_at=after(n)).initialized() for n in range(4)])
    first = await ledger.open_work_items(created_before=after(100), limit=2)
    await ledger.settle(SETTLEMENT.model_copy(update={"work_item_ids": frozenset({"w0", "w1", "w3"})}))
    rest = await ledger.open_work_items(created_before=after(100), after=first[-1].place)
    assert [item.id for item in rest] == ["w2"]


# Settling


SETTLEMENT = Settlement(task_id="task", run_id="run", at=after(9), actor="anna", reason="it is over")


async def test_settling_cancels_what_the_run_has_left_open_and_nothing_else(ledger: Ledger) -> None:
    waiting, started = Life("waiting", lineage="1"), Life("started", lineage="2")
    ended, elsewhere = Life("ended", lineage="3"), Life("elsewhere", run_id="another run")
    await ledger.record([waiting.initialized(ai_job("pending"))])
    await ledger.record([started.initialized(), started.started(ai_job("started", model="tiny"))])
    await ledger.record([*ended.until(WorkItemState.FAILED), elsewhere.initialized()])
    untouched = [await only(ledger, "ended"), await only(ledger, "elsewhere")]

    assert sorted(await ledger.settle(SETTLEMENT)) == ["started", "waiting"]

    for life, previous in ((waiting, WorkItemState.INITIALIZED), (started, WorkItemState.STARTED)):
        update = {"state": WorkItemState.CANCELED, "ended_at": after(9), "payload": life.payload}
        assert await only(ledger, life.id) == life.item.model_copy(update=update)
        step = (await ledger.transitions(life.id))[-1]
        assert (step.previous_state, step.next_state) == (previous, WorkItemState.CANCELED)
        assert (step.sequence, step.at) == (life.sequence + 1, after(9))
        assert (step.actor, step.reason) == ("anna", "it is over")
    jobs = await ledger.domain_records("ai_jobs", ["waiting", "started"])
    assert jobs["waiting"]["status"] == jobs["started"]["status"] == "canceled"
    assert jobs["started"]["model"] == "tiny"
    assert [await only(ledger, "ended"), await only(ledger, "elsewhere")] == untouched


async def test_settling_some_leaves_the_others_open(ledger: Ledger) -> None:
    ended = Life("ended", lineage="ended")
    await ledger.record([Life(f"w{n}", lineage=f"l{n}").initialized(ai_job("pending")) for n in range(3)])
    await ledger.record([*ended.until(WorkItemState.COMPLETED), Life("other", run_id="other").initialized()])
    some = frozenset({"w0", "w2", "ended", "other", "nobody"})
    settlement = SETTLEMENT.model_copy(update={"work_item_ids": some})
    assert sorted(await ledger.settle(settlement)) == ["w0", "w2"]
    assert await ledger.settle(settlement) == []
    assert (await only(ledger, "w1")).state is WorkItemState.INITIALIZED
    assert (await only(ledger, "other")).state is WorkItemState.INITIALIZED
    jobs = await ledger.domain_records("ai_jobs", ["w0", "w1", "w2"])
    assert [jobs[f"w{n}"]["status"] for n in range(3)] == ["canceled", "pending", "canceled"]
    assert await ledger.settle(SETTLEMENT.model_copy(update={"work_item_ids": frozenset()})) == []


async def test_settling_a_run_leaves_observed_attempts_open_unless_it_names_them(ledger: Ledger) -> None:
    observed = observed_id("an attempt")
    await ledger.record([Life(observed, lineage="1").initialized(), Life("own", lineage="2").initialized()])
    assert await ledger.settle(SETTLEMENT) == ["own"]
    assert (await only(ledger, observed)).state is WorkItemState.INITIALIZED
    named = SETTLEMENT.model_copy(update={"work_item_ids": frozenset({observed})})
    assert await ledger.settle(named) == [observed]


async def test_settling_a_run_leaves_open_what_it_spares(ledger: Ledger) -> None:
    await ledger.record([Life("spared", lineage="1").initialized(), Life("own", lineage="2").initialized()])
    spares = SETTLEMENT.model_copy(update={"spared": frozenset({"spared"})})
    assert await ledger.settle(spares) == ["own"]
    assert (await only(ledger, "spared")).state is WorkItemState.INITIALIZED


async def test_a_write_tells_what_its_run_has_open(ledger: Ledger) -> None:
    mine, observed = Life("mine\x00", lineage="1"), Life(observed_id("an attempt"), lineage="2")
    await ledger.record([mine.initialized(), observed.initialized()])
    await ledger.record([Life("next-run", run_id="another run").initialized()])
    await ledger.record([Life("elsewhere", task_id="another task", run_id="its run").initialized()])
    last = Life("last", lineage="3")

    async def written(*entries: LedgerEntry) -> frozenset[str]:
        return await ledger.record_and_find_open(entries, "task", "run")

    assert await written(last.initialized(), last.started()) == {"mine\x00", "last"}
    assert await written(last.completed("done")) == {"mine\x00"}
    assert (await only(ledger, "last")).state is WorkItemState.COMPLETED
    assert await written(mine.started(), mine.completed("done")) == frozenset()
    assert await written() == frozenset()


async def test_writes_at_the_same_time_are_each_told_about_their_own_run(ledger: Ledger) -> None:
    lives = [Life(f"w{n}", task_id=f"task-{n % 3}", run_id=f"run-{n}") for n in range(9)]
    found = await asyncio.gather(
        *(ledger.record_and_find_open([one.initialized()], one.task_id, one.run_id) for one in lives)
    )
    assert found == [{one.id} for one in lives]


async def test_a_refused_write_tells_nothing(ledger: Ledger) -> None:
    with pytest.raises(LedgerConflict):
        await ledger.record_and_find_open([Life("a").until(WorkItemState.STARTED)[-1]], "task", "run")
    assert await all_ids(ledger) == []


async def test_settling_twice_settles_nothing_more(ledger: Ledger) -> None:
    await ledger.record([Life("a").initialized()])
    assert await ledger.settle(SETTLEMENT) == ["a"]
    assert await ledger.settle(SETTLEMENT) == []
    assert len(await ledger.transitions("a")) == 2


async def test_settling_at_the_same_time_settles_once(ledger: Ledger) -> None:
    await ledger.record([Life(f"w{n}", lineage=f"l{n}").initialized() for n in range(20)])
    settled = await asyncio.gather(*(ledger.settle(SETTLEMENT) for _ in range(5)))
    assert sorted(key for keys in settled for key in keys) == sorted(f"w{n}" for n in range(20))
    assert [len(await ledger.transitions(f"w{n}")) for n in range(20)] == [2] * 20


async def test_many_work_items_and_their_transitions_are_read_at_once(ledger: Ledger) -> None:
    lives = [Life(id=f"{number:04}", lineage=f"lineage {number}") for number in range(1_200)]
    for some in (lives[:700], lives[700:]):
        await ledger.record([entry for life in some for entry in life.until(WorkItemState.STARTED)])
    assert [item.id for item in await ledger.work_items_of(lives[0].task_id)] == [life.id for life in lives]
    found = await ledger.transitions_of([life.id for life in lives[1:]] + ["nobody", lives[1].id])
    assert set(found) == {life.id for life in lives[1:]}
    assert {tuple(step.sequence for step in steps) for steps in found.values()} == {(0, 1)}
    assert await ledger.work_items_of("nothing") == []


async def test_an_unknown_work_item_has_no_transitions(ledger: Ledger) -> None:
    assert await ledger.transitions("nobody") == []


async def test_a_reader_sees_a_batch_whole_or_not_at_all(ledger: Ledger) -> None:
    async def write() -> None:
        for number in range(20):
            first = Life(id=f"a{number}", run_id=f"r{number}")
            second = Life(id=f"b{number}", run_id=f"r{number}", attempt=1)
            await ledger.record([first.initialized(), second.initialized()])

    writing = asyncio.create_task(write())
    while not writing.done():
        await asyncio.sleep(0)
        assert len(await all_ids(ledger)) % 2 == 0
    await writing
    assert len(await all_ids(ledger)) == 40


async def test_closing_twice_does_nothing(ledger: Ledger) -> None:
    await ledger.close()
    await ledger.close()


async def test_a_closed_ledger_can_be_opened_again(ledger: Ledger) -> None:
    await ledger.record([Life().initialized()])
    await ledger.close()
    await ledger.open()
    assert await all_ids(ledger) == ["a"]


# Superseding


def _decided(entry: LedgerEntry, minute: float, **facts: Any) -> LedgerEntry:
    """Return the entry as the decision of a workflow task that began this number of minutes after noon."""
    return entry.model_copy(update={"as_of": after(60 * minute), **facts})


async def test_a_later_decision_takes_the_place_of_an_earlier_one(ledger: Ledger) -> None:
    lost, kept = Life(), Life()
    record = ai_job("completed", result="lost")
    await ledger.record([_decided(entry, 1) for entry in lost.until(WorkItemState.STARTED)])
    await ledger.record([_decided(lost.completed(result={"text": "lost"}), 2, record=record)])
    kept.until(WorkItemState.STARTED)
    canceled = ai_job("canceled", result=None)
    await ledger.record([_decided(kept.canceled(), 3, record=canceled)])
    item = await only(ledger)
    (replaced,) = (await ledger.supersessions([item.id]))[item.id]
    assert (item.state, item.result, item.payload) == (WorkItemState.CANCELED, None, lost.payload)
    steps = await ledger.transitions(item.id)
    assert [step.next_state.value for step in steps] == ["initialized", "started", "canceled"]
    (job,) = (await ledger.domain_records("ai_jobs", [item.id])).values()
    assert (job["status"], job["result"]) == ("canceled", None)
    assert (replaced.number, replaced.from_sequence) == (1, 2)
    held = replaced.held
    assert isinstance(held["work_item"], dict)
    assert held["work_item"]["result"] == {"text": "lost"}
    assert replaced.decided["transition"]["next_state"] == "canceled"  # type: ignore[index, call-overload]


async def test_an_earlier_decision_replaces_nothing(ledger: Ledger) -> None:
    kept, late = Life(), Life()
    await ledger.record([_decided(entry, 3) for entry in kept.until(WorkItemState.COMPLETED)])
    late.until(WorkItemState.STARTED)
    with pytest.raises(LedgerConflict, match="its transition 2 is completed, the entry says canceled"):
        await ledger.record([_decided(late.canceled(), 2)])
    assert (await only(ledger)).state is WorkItemState.COMPLETED
    assert await ledger.supersessions([kept.item.id]) == {}


async def test_a_work_item_that_differs_from_its_start_is_told_as_a_whole(ledger: Ledger) -> None:
    lost, kept = Life(), Life()
    await ledger.record([_decided(entry, 1) for entry in lost.until(WorkItemState.STARTED)])
    first = kept.initialized()
    canceled = kept.canceled()
    await ledger.record([_decided(first, 2), _decided(canceled, 2)])
    item = await only(ledger)
    assert (item.state, item.started_at) == (WorkItemState.CANCELED, None)
    assert len(await ledger.transitions(item.id)) == 2


async def test_what_has_been_replaced_once_is_immutable_again(ledger: Ledger) -> None:
    lost, kept, again = Life(), Life(), Life()
    await ledger.record([_decided(entry, 1) for entry in lost.until(WorkItemState.COMPLETED)])
    kept.until(WorkItemState.STARTED)
    end = kept.canceled()
    await ledger.record([_decided(end, 2)])
    await ledger.record([_decided(end, 2)])  # delivered twice
    again.until(WorkItemState.STARTED)
    with pytest.raises(LedgerConflict):
        await ledger.record([again.completed()])
    assert len((await ledger.supersessions([kept.item.id]))[kept.item.id]) == 1


async def test_an_entry_about_a_work_item_of_another_task_is_refused(ledger: Ledger) -> None:
    life = Life()
    await ledger.record(life.until(WorkItemState.STARTED))
    end = life.completed()
    forged = end.model_copy(
        update={"work_item": end.work_item.model_copy(update={"task_id": "somebody-elses"})}
    )
    for entry in (forged, _decided(forged, 99)):
        with pytest.raises(LedgerConflict, match="it belongs to task 'task'"):
            await ledger.record([entry])
    assert (await only(ledger)).state is WorkItemState.STARTED


async def test_an_entry_that_is_only_offered_gives_way(ledger: Ledger) -> None:
    held, offered = Life(), Life()
    await ledger.record([_decided(entry, 1) for entry in held.until(WorkItemState.COMPLETED)])
    offered.until(WorkItemState.STARTED)
    await ledger.record([_decided(offered.canceled(), 2, offered=True)])
    assert (await only(ledger)).state is WorkItemState.COMPLETED
