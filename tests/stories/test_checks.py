"""Good stories have no violation, and each violation that is planted in one is found, by its check alone."""

from __future__ import annotations

import pytest

from tests.stories import good
from tests.stories.checks import CHECKS, violations
from tests.stories.good import canceled, exhausted, fan_out, fan_out_failed, retried_by_hand
from tests.stories.planted_in_actions import IN_ACTIONS
from tests.stories.planted_in_calls import IN_CALLS
from tests.stories.planted_in_endings import IN_ENDINGS
from tests.stories.planted_in_lineages import IN_LINEAGES
from tests.stories.planted_in_records import IN_RECORDS
from tests.stories.planting import Planted, ending, story_with
from tests.stories.story import Story
from tests.stories.telling import told

PLANTED = [*IN_RECORDS, *IN_LINEAGES, *IN_ENDINGS, *IN_CALLS, *IN_ACTIONS]

FAILING = (
    "until_exhausted",
    "fail_fast",
    {"name": "absorb_failures", "limit": 0},
    {"name": "absorb_failures", "fraction": 0.3},
    {"name": "require_successes", "successes": 3},
)


@pytest.mark.parametrize(
    "story",
    [
        pytest.param(good.retried_by_hand(), id="retried by a person"),
        pytest.param(good.exhausted(), id="exhausted"),
        pytest.param(good.too_late(), id="too late"),
        pytest.param(good.expired(), id="expired"),
        pytest.param(good.canceled(), id="canceled"),
        pytest.param(good.given_up(), id="given up"),
        pytest.param(good.impatient(), id="impatient"),
        pytest.param(good.hurried_in_vain(), id="hurried in vain"),
        pytest.param(good.decided_again(), id="decided again"),
        pytest.param(good.forgotten(), id="forgotten"),
        pytest.param(fan_out(), id="absorbs a failure"),
        pytest.param(fan_out({"name": "require_successes", "successes": 2}), id="requires two answers"),
        *(pytest.param(fan_out_failed(policy), id=f"fails by {policy}") for policy in FAILING),
    ],
)
def test_a_good_story_has_no_violation(story: Story) -> None:
    assert violations(story) == [], told(story)


@pytest.mark.parametrize(
    "planted", [pytest.param(one, id=f"{one.check.__name__}: {one.says}") for one in PLANTED]
)
def test_a_planted_violation_is_found_by_its_check_alone(planted: Planted) -> None:
    story = planted.plant(planted.good())
    found = {check.__name__: sentences for check in CHECKS if (sentences := list(check(story)))}
    assert list(found) == [planted.check.__name__], found
    assert any(planted.says in sentence for sentence in found[planted.check.__name__]), found


def test_every_check_has_a_planted_violation() -> None:
    assert {planted.check for planted in PLANTED} == set(CHECKS)


def test_a_task_that_cannot_be_ended_is_a_violation() -> None:
    hangs = ending(state="hangs")(canceled())
    assert violations(hangs) == ["the task cannot be brought to an end"]


def test_only_a_task_that_was_canceled_at_once_may_have_no_work_item() -> None:
    nothing = story_with(items=[], calls=[])
    assert violations(nothing(exhausted())) == ["the ledger has no work item of the task"]
    assert violations(nothing(canceled())) == []


def test_a_story_too_contradictory_for_a_check_is_a_violation() -> None:
    assert any("stumbles" in found for found in violations(story_with(transitions={})(canceled())))


def test_a_story_is_told_in_the_order_of_time() -> None:
    lines = told(retried_by_hand()).splitlines()
    times = [float(line.split()[0]) for line in lines]
    assert times == sorted(times)
    assert lines[0].split()[1:3] == ["task", "task-1"]
    wanted = "retry 1 (w1) started by operator-1 after 2 s operator: because operator-1 says so"
    assert f"     5.000  {wanted}" in lines
