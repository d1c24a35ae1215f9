from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import JsonValue
from rich.console import Console, RenderableType

from tasquencer.cli.progress import progress_lines
from tasquencer.cli.rendering import (
    attempts_table,
    cost_label,
    listing_table,
    live_table,
    totals,
    transitions_table,
)
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.work_item import WorkItem, WorkItemState
from tests.cli.stories import NOON, Story, rate_limited


def drawn(renderable: RenderableType, width: int = 200) -> str:
    console = Console(width=width, markup=False, highlight=False, emoji=False)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def row(table: RenderableType, label: str) -> str:
    (line,) = (line for line in drawn(table).splitlines() if label in line)
    return " ".join(line.split())


def live(story: Story, *, at: float, **options: Any) -> RenderableType:
    options = {"max_retries": 3, "most_rows": 20} | options
    return live_table(story.items, now=NOON + timedelta(seconds=at), **options)


def test_the_live_table_counts_the_backoff_down_to_the_start() -> None:
    story = Story().start(0).fail(0.25, rate_limited(retry_after_seconds=7))
    assert row(live(story, at=1), "retry 1") == "retry 1 of 3 starts in 7 s 7 s asked by the provider"
    assert "starts in 1 s" in row(live(story, at=7), "retry 1")
    assert "starts now" in row(live(story, at=7.25), "retry 1")
    assert "starts now" in row(live(story, at=99), "retry 1")


def test_the_live_table_tells_state_delay_duration_and_failure_of_each_attempt() -> None:
    story = Story().start(0).fail(0.25).start(1.25)
    table = live(story, at=3.9)
    assert row(table, "first try") == "first try failed none 250 ms rate_limited: slow down"
    assert row(table, "retry 1") == "retry 1 of 3 started 1 s backoff 2 s"


def test_a_started_work_item_never_took_less_than_nothing_where_clocks_differ() -> None:
    assert row(live(Story().start(10), at=0), "first try") == "first try started none 0 s"


def test_retries_are_not_counted_where_their_number_is_unknown() -> None:
    story = Story().start(0).fail(1)
    assert row(live(story, at=2, max_retries=None), "retry").startswith("retry 1 starts now")


def test_the_live_table_shows_the_newest_that_fit_and_says_so() -> None:
    story = Story(max_retries=1000)
    for second in range(30):
        story.start(second * 10_000_000).fail(second * 10_000_000 + 1)
    text = drawn(live(story, at=0, most_rows=5))
    assert text.count("retry ") == 5
    assert "the newest 5 of 31 work items" in text


def test_lineages_are_named_once_there_are_several() -> None:
    story = Story()
    story.state.begin(story.items[0].payload, now=NOON, lineage="second")
    assert "second" in drawn(live(story, at=0))
    assert "lineage" not in drawn(live(Story(), at=0))


def test_text_of_the_provider_cannot_steer_the_terminal_nor_rich() -> None:
    story = Story().start(0).fail(1, Failure.of(FailureKind.PROVIDER_ERROR, "\x1b[2J[bold]:smile: [/nope]"))
    assert "provider_error: \N{REPLACEMENT CHARACTER}[2J[bold]:smile: [/nope]" in drawn(live(story, at=1))


@pytest.mark.parametrize("width", [60, 80, 120])
def test_every_row_fits_a_terminal_of_any_width(width: int) -> None:
    story = Story("a-task-with-a-rather-long-id-" * 3).start(0).fail(1, rate_limited("wait " * 300)).start(2)
    records = {}
    for entry in story.entries():
        assert entry.record is not None
        records[entry.work_item.id] = entry.record.values
    for table in (
        live(story, at=3),
        attempts_table(story.items, records, wide=False),
        listing_table(story.items, records, wide=False),
    ):
        assert max(len(line) for line in drawn(table, width).splitlines()) <= width


def test_the_attempts_of_a_task_are_told_with_tokens_cost_and_worker() -> None:
    story = Story().start(0).fail(0.25).start(1.25).complete(3.5)
    records = {entry.work_item.id: entry.record.values for entry in story.entries() if entry.record}
    table = attempts_table(story.items, records)
    assert row(table, "first try") == (
        "first try failed none 2026-11-23 12:00:00 250 ms rate_limited: slow down 1@host"
    )
    assert row(table, "retry 1") == (
        "retry 1 of 3 completed 1 s backoff 2026-11-23 12:00:01 2.2 s 12 tokens in, 34 out, $0.0012"
    )
    assert totals(story.items, records) == (
        "2 work items: 1 completed, 1 failed · 12 tokens in, 34 out · cost $0.0012 · 3.5 s"
    )


def test_totals_of_a_task_under_way_have_no_duration_and_no_invented_cost() -> None:
    story = Story()
    records = {entry.work_item.id: entry.record.values for entry in story.entries() if entry.record}
    assert totals(story.items, records) == "1 work item: 1 initialized · cost unknown"


def test_a_retry_that_waits_says_when_it_starts() -> None:
    story = Story().start(0).fail(0.25)
    table = attempts_table(story.items, {})
    assert row(table, "retry 1").endswith("initialized 1 s backoff starts at 2026-11-23 12:00:01 UTC")


def test_a_result_that_somebody_gave_is_marked() -> None:
    story = Story().start(0).complete(3.5, actor="anna")
    transitions = {"story-0": [entry.transition for entry in story.entries()]}
    assert "given by anna" in row(attempts_table(story.items, {}, transitions), "first try")
    own = {"story-0": [change.model_copy(update={"actor": "task"}) for change in transitions["story-0"]]}
    assert "given by" not in drawn(attempts_table(story.items, {}, own))


@pytest.mark.parametrize("draw", [attempts_table, listing_table])
def test_times_carry_their_zone(draw: Callable[..., RenderableType]) -> None:
    assert "(UTC)" in drawn(draw(Story().start(0).items, {}))


def test_totals_of_a_task_without_ai_jobs_have_no_cost() -> None:
    assert totals(Story().items, {}) == "1 work item: 1 initialized"


def test_the_listing_folds_a_long_task_id_and_never_cuts_it() -> None:
    story = Story("order-4711-summary-of-the-customer-letter")
    lines = drawn(listing_table(story.items, {}, wide=False), width=80).splitlines()
    begin = next(line.index("order-") for line in lines if "order-" in line)
    folded = "".join(line[begin : begin + 17].strip() for line in lines[3:])
    assert folded == "order-4711-summary-of-the-customer-letter"


def test_transitions_are_told_with_actor_and_reason() -> None:
    story = Story().start(0).cancel(1, actor="alice", reason="wrong customer")
    transitions = [entry.transition for entry in story.entries()]
    table = transitions_table(story.items, {"story-0": transitions})
    assert row(table, "canceled") == "2026-11-23 12:00:01.000 canceled alice wrong customer"
    assert row(table, "initialized") == "story-0 first try 2026-11-23 12:00:00.000 initialized task"


TURN: JsonValue = {"tool_calls": [{"name": "search"}, {"name": "refund"}]}


def step(lineage: str, state: str, attempt: int = 0, result: JsonValue = None) -> WorkItem:
    """A work item of an agent's step, a minute after noon if it has ended."""
    is_over = state != "started"
    return WorkItem(
        id=f"{lineage}/{attempt}",
        task_id="agent",
        run_id="run",
        task_type="AiAgentTask",
        lineage=lineage,
        attempt=attempt,
        state=WorkItemState(state),
        failure=Failure(kind="tool_failed", message="closed", transient=True) if state == "failed" else None,
        result=result,
        not_before=NOON,
        created_at=NOON,
        started_at=NOON,
        ended_at=NOON + timedelta(minutes=1) if is_over else None,
    )


AGENT = [
    step("turn-1", "failed"),
    step("turn-1", "completed", 1, TURN),
    step("turn-1/search", "failed"),
    step("turn-1/refund/approval", "completed", 0, {"decision": "reject", "comments": "too old"}),
    step("turn-1/search", "completed", 1, {"order": 7}),
    step("turn-2", "completed", 0, {"tool_calls": [{"name": "refund"}]}),
    step("turn-2/refund/approval", "started"),
]


def first_columns(table: RenderableType) -> list[tuple[str, str]]:
    """Lineage and attempt of each row."""
    found = re.findall(r"(?m)^ (.*?) +(first try|retry \d+(?: of \d+)?) ", drawn(table))
    return [(lineage, attempt) for lineage, attempt in found]


@pytest.mark.parametrize("is_live", [True, False])
def test_the_work_items_of_an_agent_stand_by_turn_and_tool(is_live: bool) -> None:
    later = [*AGENT[:3], step("other", "started"), *AGENT[3:]]
    table = live_table(later, max_retries=3, now=NOON, most_rows=20) if is_live else attempts_table(later, {})
    assert first_columns(table) == [
        ("turn-1", "first try"),
        ("turn-1", "retry 1 of 3" if is_live else "retry 1"),
        ("  search", "first try"),
        ("  search", "retry 1"),
        ("  refund/approval", "first try"),
        ("turn-2", "first try"),
        ("  refund/approval", "first try"),
        ("other", "first try"),
    ]


def test_the_turns_of_several_conversations_stand_one_conversation_after_the_other() -> None:
    lineages = ["ask-1/turn-1", "ask-2/turn-1", "ask-1/turn-1/look", "ask-2/turn-1/look", "ask-1/turn-2"]
    table = live_table(
        [step(lineage, "started") for lineage in lineages], max_retries=None, now=NOON, most_rows=20
    )
    assert [lineage for lineage, _ in first_columns(table)] == [
        "ask-1/turn-1",
        "  look",
        "ask-1/turn-2",
        "ask-2/turn-1",
        "  look",
    ]


def test_a_tool_call_whose_turn_does_not_fit_keeps_its_whole_name() -> None:
    table = live_table(AGENT[:5], max_retries=3, now=NOON, most_rows=3)
    assert [lineage for lineage, _ in first_columns(table)] == [
        "turn-1/search",
        "turn-1/search",
        "turn-1/refund/approval",
    ]


def test_the_live_table_tells_what_a_step_came_to_and_what_waits() -> None:
    text = drawn(live_table(AGENT, max_retries=3, now=NOON, most_rows=20))
    for expected in ("calls search, refund", '{"order": 7}', "reject: too old", "waits for approval"):
        assert expected in text


def test_progress_tells_turn_and_tool() -> None:
    assert progress_lines([], AGENT, max_retries=3) == [
        "turn 1: first try failed after 1 min: tool_failed: closed",
        "turn 1: retry 1 of 3 completed after 1 min: calls search, refund",
        "turn 1 · tool search: first try failed after 1 min: tool_failed: closed",
        "turn 1 · tool refund · approval: first try completed after 1 min: reject: too old",
        'turn 1 · tool search: retry 1 completed after 1 min: {"order": 7}',
        "turn 2: first try completed after 1 min: calls refund",
        "turn 2 · tool refund · approval: waits for approval",
    ]
    (line,) = progress_lines([], [step("ask-1/turn-2", "started")], max_retries=None)
    assert line == "ask-1 · turn 2: first try started"
    (line,) = progress_lines([], [step("prompt-3", "started")], max_retries=None)
    assert line == "prompt-3: first try started"


@pytest.mark.parametrize(
    ("cost", "label"),
    [
        (None, "unknown"),
        (0, "$0.00"),
        (0.0, "$0.00"),
        (0.5, "$0.50"),
        (0.00012, "$0.00012"),
        (0.0000001, "<$0.000001"),
        (12.3456789, "$12.345679"),
    ],
)
def test_costs_are_labelled(cost: float | None, label: str) -> None:
    assert cost_label(cost) == label


def test_progress_is_one_line_for_each_change() -> None:
    story = Story()
    seen = story.items
    lines = progress_lines([], seen, max_retries=3)
    story.start(0)
    lines += progress_lines(seen, story.items, max_retries=3)
    seen = story.items
    assert progress_lines(seen, seen, max_retries=3) == []
    story.fail(0.25)
    lines += progress_lines(seen, story.items, max_retries=3)
    seen = story.items
    story.start(1.25).complete(2.25)
    lines += progress_lines(seen, story.items, max_retries=3)
    assert lines == [
        "first try initialized",
        "first try started",
        "first try failed after 250 ms: rate_limited: slow down",
        "retry 1 of 3 waits: 1 s backoff after rate_limited",
        "retry 1 of 3 completed after 1 s",
    ]


@pytest.mark.parametrize("wide", [True, False])
def test_an_open_work_item_of_a_paused_task_says_so_and_an_ended_one_keeps_its_failure(wide: bool) -> None:
    table = listing_table(
        Story().start(0).fail(1).items, {}, {"story": "paused by ana: too expensive"}, wide=wide
    )
    assert "paused by ana: too expensive" in row(table, "initialized")
    assert "paused" not in row(table, "failed") and "rate_limited" in row(table, "failed")
