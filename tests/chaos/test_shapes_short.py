"""Random task shapes in a short form: real workers that die, queries under way, no promise broken.

At length: `make chaos CHAOS_ARGS="--shapes any --tasks 1000 --deaths 200"`.
"""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tasquencer.devkit.errors import ProcessFailed
from tests.chaos.shapes.campaign import ShapeOptions, run_shapes
from tests.chaos.shapes.program import (
    CONSTRUCTS,
    lineages_in,
    program_of,
    read_program,
    watched_program,
)
from tests.chaos.shapes.report import found_in, story, table

WATCHED = ShapeOptions(seed=1, tasks=4, deaths=1, constructs=(), caches=(1000,), gap_seconds=1.0)
SHORT = ShapeOptions(seed=3248, tasks=14, deaths=3, gap_seconds=0.4, longest_backoff=0.5)
"""Of a Monday. Each day of the week has seeds of its own."""


def of_day(weekday: int) -> ShapeOptions:
    """The campaign of a day of the week, 0 for Monday."""
    return replace(SHORT, seed=SHORT.seed + weekday * SHORT.tasks)


TODAY = of_day(datetime.now(UTC).weekday())


@pytest.mark.timeout(480)
async def test_no_promise_is_broken_whatever_the_shape(tmp_path: Path) -> None:
    again = tmp_path / "again"
    again.mkdir()
    try:
        campaign = await run_shapes(TODAY, tmp_path)
    except ProcessFailed:  # the dev server itself crashes now and then; what it held is gone with it
        campaign = await run_shapes(TODAY, again)
    print(table(campaign))
    found = found_in(campaign)
    if found:
        pytest.fail("\n\n".join(story(account, wrong) for account, wrong in found))
    assert len(campaign.accounts) == SHORT.tasks
    assert campaign.deaths  # the tasks may end before the last worker dies
    assert campaign.looks
    assert sum(len(account.requests) for account in campaign.accounts) >= SHORT.tasks


@pytest.mark.timeout(480)
async def test_fan_outs_and_agents_that_are_looked_at_end_and_replay(tmp_path: Path) -> None:
    programs = [watched_program(WATCHED.seed + number) for number in range(WATCHED.tasks)]
    campaign = await run_shapes(WATCHED, tmp_path, programs)
    print(table(campaign))
    found = found_in(campaign)
    if found:
        pytest.fail("\n\n".join(story(account, wrong) for account, wrong in found))
    assert {account.last.state for account in campaign.accounts} == {"completed"}
    assert campaign.deaths >= WATCHED.deaths
    assert campaign.looks >= WATCHED.tasks


def test_a_seed_always_stands_for_the_same_program() -> None:
    assert [program_of(seed) for seed in range(50)] == [program_of(seed) for seed in range(50)]


def test_a_program_survives_being_written_down() -> None:
    for seed in range(50):
        program = program_of(seed)
        assert read_program(json.loads(json.dumps(program.as_json()))).as_json() == program.as_json()


def test_every_construct_is_drawn_in_a_week() -> None:
    programs = [program for weekday in range(7) for program in of_day(weekday).programs()]
    names = {name for program in programs for name in _names(program.body)}
    acts = {act.name.partition("-")[0] for program in programs for act in program.acts}
    leaves = {leave for program in programs for leave in ("break", "return") if leave in str(program.body)}
    operators = {"operators"} if {"retry_now", "complete", "fail", "cancel_item"} <= acts else set()
    long = {"continue_as_new"} if any(program.retries > 3 for program in programs) else set()
    assert set(CONSTRUCTS) <= names | acts | leaves | operators | long


def test_each_lineage_of_a_program_has_its_attempts() -> None:
    for seed in range(200):
        program = program_of(seed)
        visits = [act.name for act in program.acts if act.name.startswith("visit")]
        assert sorted([*lineages_in(program.body), *visits]) == sorted(program.attempts)


def _names(part: object) -> set[str]:
    if not isinstance(part, list):
        return set()
    mine = {part[0]} if part and isinstance(part[0], str) else set()
    return mine.union(*(_names(one) for one in part))
