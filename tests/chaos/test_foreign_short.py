"""Foreign workflows and agents in a short form: real workers that die, no promise broken.

At length: `make chaos CHAOS_ARGS="--shapes foreign --tasks 100 --deaths 20"`. The tests below
plant errors in a sound account, one at a time, and see that the checks find them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.work_item import Transition, WorkItem, WorkItemState
from tests.chaos.foreign.application import SEEN, TAKEN, Call, Script
from tests.chaos.foreign.campaign import Execution, ForeignAccount, ForeignTask, run_foreign, task_of
from tests.chaos.foreign.checks import gaps, violations
from tests.chaos.foreign.report import found_in, stories, table
from tests.chaos.shapes.campaign import ShapeOptions
from tests.chaos.shapes.program import Program
from tests.chaos.shapes.witnesses import Run, ShapeAccount

SHORT = ShapeOptions(seed=7, tasks=12, deaths=3, gap_seconds=0.5)

BEGIN = datetime(2026, 11, 1, 12, tzinfo=UTC)
STATES = WorkItemState

Plant = Callable[[ForeignAccount], None]


@pytest.mark.timeout(300)
async def test_no_promise_is_broken_in_foreign_workflows_and_agents(tmp_path: Path) -> None:
    campaign = await run_foreign(SHORT, tmp_path)
    print(table(campaign))
    if found := found_in(campaign):
        pytest.fail(stories(found))
    assert len(campaign.accounts) == SHORT.tasks
    assert campaign.deaths >= SHORT.deaths
    executed = {one.what for account in campaign.accounts for one in account.executions}
    assert {SEEN, TAKEN, "model"} <= executed


def at(seconds: float) -> datetime:
    return BEGIN + timedelta(seconds=seconds)


def row(key: str, lineage: str, attempt: int, begin: float, state: WorkItemState) -> WorkItem:
    return WorkItem(
        id=key,
        task_id="task",
        run_id="run",
        task_type="Mixed",
        lineage=lineage,
        attempt=attempt,
        state=state,
        payload={},
        result={"by": key} if state is STATES.COMPLETED else None,
        failure=Failure.of(FailureKind.PROVIDER_ERROR, "as planned") if state is STATES.FAILED else None,
        not_before=at(begin),
        created_at=at(begin),
        started_at=at(begin),
        ended_at=at(begin + 0.5),
    )


def steps(item: WorkItem) -> list[Transition]:
    ways = [(None, STATES.INITIALIZED), (STATES.INITIALIZED, STATES.STARTED), (STATES.STARTED, item.state)]
    return [
        Transition(
            work_item_id=item.id,
            sequence=number,
            previous_state=before,
            next_state=after,
            at=item.created_at,
            actor="task",
        )
        for number, (before, after) in enumerate(ways)
    ]


def sound() -> ForeignAccount:
    """An observed and an adopted activity, which fail once and then return."""
    rows = [
        row("observed-a", "1", 0, 0, STATES.FAILED),
        row("observed-b", "1", 1, 1, STATES.COMPLETED),
        row("c", "taken_work #1", 0, 0, STATES.FAILED),
        row("d", "taken_work #1", 1, 1, STATES.COMPLETED),
    ]
    executions = [
        Execution(item.id, SEEN if item.lineage == "1" else TAKEN, name, item.attempt + 1, ["started"])
        for item, name in zip(rows, ["1", "1", "c", "d"], strict=True)
    ]
    return ForeignAccount(
        task=ForeignTask("task", Script(2, [Call(SEEN, 1, 5), Call(TAKEN, 1, 5)])),
        known=ShapeAccount(
            program=Program(seed=0, name="task", retries=1),
            task_id="task",
            runs=[Run("run", state="completed", closed_at=at(2), native={"1": 2, "c": 1, "d": 1})],
            items=rows,
            transitions={item.id: steps(item) for item in rows},
        ),
        executions=executions,
        result=[{"by": "observed-b"}, {"by": "d"}],
    )


def change(account: ForeignAccount, key: str, **facts: Any) -> None:
    account.known.items = [
        item.model_copy(update=facts) if item.id == key else item for item in account.known.items
    ]


def without(account: ForeignAccount, key: str) -> None:
    account.known.items = [item for item in account.known.items if item.id != key]


def stands_still(account: ForeignAccount) -> None:
    account.known.runs[-1].state = "open"


def has_no_row(account: ForeignAccount) -> None:
    without(account, "observed-a")


def is_not_started(account: ForeignAccount) -> None:
    account.executions = [replace(one, held=["initialized"]) for one in account.executions]


def counts_wrong(account: ForeignAccount) -> None:
    account.executions = [replace(one, attempt=one.attempt + 1) for one in account.executions]


def runs_twice(account: ForeignAccount) -> None:
    account.executions = [*account.executions, account.executions[-1]]


def is_tried_by_temporal(account: ForeignAccount) -> None:
    account.known.runs[-1].native["d"] = 2


def is_beyond_the_policy(account: ForeignAccount) -> None:
    change(account, "d", attempt=2)


def is_left_open(account: ForeignAccount) -> None:
    account.left_open = [account.known.items[-1]]


def is_left_open_after_records(account: ForeignAccount) -> None:
    is_known_to_a_lost_workflow_task_alone(account)
    account.known.runs[-1].markers = 1


def is_known_to_a_lost_workflow_task_alone(account: ForeignAccount) -> None:
    account.left_open = [account.known.items[2]]
    run = account.known.runs[-1]
    run.canceled, run.lost = True, 1


def stays_open(account: ForeignAccount) -> None:
    change(account, "observed-b", state=STATES.STARTED)


def was_never_made(account: ForeignAccount) -> None:
    account.known.runs[-1].native["1"] = 1


def follows_a_success(account: ForeignAccount) -> None:
    change(account, "observed-a", state=STATES.COMPLETED)


def is_missing_without_a_death(account: ForeignAccount) -> None:
    has_no_row(account)
    account.executions = account.executions[1:]


def is_lost_without_a_death(account: ForeignAccount) -> None:
    change(account, "c", failure=Failure.of(FailureKind.WORKER_LOST, "gone"))


def returned_something_else(account: ForeignAccount) -> None:
    account.result = [{"by": "observed-b"}, {"by": "c"}]


def failed_for_the_workflow(account: ForeignAccount) -> None:
    account.result = [{"by": "observed-b"}, None]


@pytest.mark.parametrize(
    ("wanted", "plant"),
    [
        ("I13: the task stands still", stands_still),
        ("I1: seen_work (observed-a) belongs to no work item", has_no_row),
        ("I1: 1 lacks attempt 0, which was executed", has_no_row),
        ("I1: seen_work (observed-a) found its work item initialized", is_not_started),
        ("I1: taken_work (c) was attempt 2 for itself", counts_wrong),
        ("I2: 2 executions of taken_work", runs_twice),
        ("I2: Temporal tried the activity of d 2 times", is_tried_by_temporal),
        ("I5: taken_work #1 has attempt 2", is_beyond_the_policy),
        ("I6: taken_work #1#1 (d) was left to the reconciler", is_left_open),
        ("I6: taken_work #1#0 (c) was left to the reconciler", is_left_open_after_records),
        ("I6: the task is completed, 1#1 (observed-b) is started", stays_open),
        ("1 has attempt 1, Temporal made 1", was_never_made),
        ("1 has a successor to ['completed']", follows_a_success),
        ("1 lacks attempt 0, no worker died", is_missing_without_a_death),
        ("I8: taken_work #1#0 (c) failed with worker_lost", is_lost_without_a_death),
        ("taken_work returned {'by': 'c'}, its work item is failed", returned_something_else),
        ("taken_work: the workflow saw 0 results of 1", failed_for_the_workflow),
    ],
)
def test_what_is_planted_is_found(wanted: str, plant: Plant) -> None:
    account = sound()
    assert violations(account) == []
    plant(account)
    assert any(one.startswith(wanted) for one in violations(account)), violations(account)


def test_an_attempt_whose_worker_died_first_may_be_missing() -> None:
    account = sound()
    is_missing_without_a_death(account)
    account.known.deaths = [at(0.1)]
    assert violations(account) == []
    assert gaps(account) == [("1", 0)]


def test_a_result_may_be_lost_with_its_worker() -> None:
    account = sound()
    account.result = [None, {"by": "d"}]
    account.died = {"8": at(1.51)}
    change(account, "observed-b", worker="7@here")
    assert any(one.startswith("seen_work: the workflow saw 0 results") for one in violations(account))
    account.died = {"7": at(1.51)}
    assert violations(account) == []


def test_a_canceled_run_may_leave_what_only_a_lost_workflow_task_knew() -> None:
    account = sound()
    is_known_to_a_lost_workflow_task_alone(account)
    assert violations(account) == []


def test_a_seed_always_stands_for_the_same_task() -> None:
    assert [task_of(seed) for seed in range(50)] == [task_of(seed) for seed in range(50)]
    assert {task_of(seed).script is None for seed in range(50)} == {True, False}
