"""The crash harness in its short form: real processes, real faults, no promise broken.

At length, with a seed of one's choice: `make chaos CHAOS_ARGS="--seed 7 --tasks 2000 --faults 300"`.
"""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.chaos.events import DEATHS
from tests.chaos.plan import FAULTS, Options, plan_faults, plan_rows, plan_tasks
from tests.chaos.report import found_in, missed_aims, smallest_story, table
from tests.chaos.run import run

SHORT = Options(
    seed=5,
    tasks=40,
    faults=10,
    rows=12,
    ledger="sqlite",
    workers=1,
    witness=False,
    gap_seconds=1.0,
    patience_seconds=180.0,
    quiet=0.0,
    spare_seconds=5.0,
)


@pytest.mark.timeout(480)
async def test_no_promise_is_broken_while_the_parts_are_killed(tmp_path: Path) -> None:
    outcome = await run(SHORT, tmp_path)
    print(table(outcome))
    found = found_in(outcome)
    if found:
        problems = "\n".join(f"  {account.story.task_id}: {one}" for account, wrong in found for one in wrong)
        pytest.fail(f"{len(found)} tasks:\n{problems}\n\nthe smallest story:\n{smallest_story(found)}")
    assert missed_aims(outcome) == []
    assert len(outcome.accounts) == SHORT.tasks + SHORT.rows
    assert len(outcome.events.of_kinds(list(FAULTS))) >= SHORT.faults
    assert outcome.events.of_kinds(DEATHS), "a run without a death proves little: choose another seed"
    assert sum(len(account.story.calls) for account in outcome.accounts) >= SHORT.tasks // 2


def test_a_seed_always_makes_the_same_plan() -> None:
    faults = [[next(plan) for _ in range(50)] for plan in (plan_faults(SHORT), plan_faults(SHORT))]
    assert faults[0] == faults[1]
    assert plan_tasks(SHORT) == plan_tasks(SHORT)
    assert plan_rows(SHORT) == plan_rows(SHORT)
