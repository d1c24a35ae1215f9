"""The decisions of a task while the server's clock is set forward and back between its events.

Times are the server's. Within a run a workflow's time never goes back: the SDK's Core keeps the latest one. A
timer fires when the server's clock has come so far; a new run begins at whatever the clock says then. So a
wait that was set before a step is longer or shorter by it, and a wait is never negative.

What is recorded is exact whatever the clock does, with one exception: where the clock was set back during a
run, the time of a start stands still and may be less than the work item's `not_before`, by no more than the
clock was set back. The wait itself was not shorter.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from itertools import pairwise

from hypothesis import given, strategies as st

from tasquencer.core.carried import CarriedTask
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.task_state import TaskState
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.testing import InMemoryLedger
from tests.unit.driving import NOON, task
from tests.unit.test_task_properties import MICROSECOND, at_once

HOUR = 3600.0

steps = st.one_of(st.just(0.0), st.floats(-HOUR, HOUR), st.floats(-0.2, 0.2))

attempts = st.lists(
    st.tuples(
        steps,  # in the wait
        steps,  # in the call
        st.floats(0, 30),  # how long the call takes
        st.one_of(st.none(), st.floats(0, 60)),  # Retry-After
        st.booleans(),  # whether the task continues as new before the wait
    ),
    min_size=1,
    max_size=6,
)

recipes = st.builds(
    RetryRecipe,
    max_retries=st.integers(0, 5),
    initial_interval=st.floats(0, 20).map(lambda seconds: timedelta(seconds=seconds)),
    jitter=st.sampled_from([0.0, 0.5]),
)


class Server:
    """A server's clock, and what really passes."""

    def __init__(self) -> None:
        self.clock = NOON
        self.really = 0.0
        self.set_back = timedelta(0)
        self._latest = NOON

    def step(self, seconds: float) -> None:
        self.clock += timedelta(seconds=seconds)
        self.set_back += max(timedelta(0), timedelta(seconds=-seconds))

    def pass_by(self, seconds: float) -> None:
        self.clock += timedelta(seconds=seconds)
        self.really += seconds

    def new_run(self) -> None:
        self._latest = self.clock

    def now(self) -> datetime:
        """A workflow's time."""
        self._latest = max(self._latest, self.clock)
        return self._latest

    def sleep(self, wait: timedelta, step: float) -> None:
        """A timer: it fires when the clock has come so far, which is stepped meanwhile."""
        assert wait >= timedelta(0)
        due = self.clock + wait
        self.step(step)
        self.pass_by(max(0.0, (due - self.clock).total_seconds()))


def carried_on(state: TaskState, recipe: RetryRecipe, number: int) -> TaskState:
    carried = CarriedTask.model_validate_json(state.carry().model_dump_json())
    fresh = task(recipe=recipe, random=lambda *_: 0.5, prefix=f"run{number}-")
    fresh.resume(carried)
    return fresh


@given(recipes, attempts)
def test_steps_of_the_clock_make_nothing_early_unbounded_negative_or_out_of_order(
    recipe: RetryRecipe, script: list[tuple[float, float, float, float | None, bool]]
) -> None:
    server, ledger = Server(), InMemoryLedger()
    state = task(recipe=recipe, random=lambda *_: 0.5)
    item = state.begin("work", now=server.now())
    seen: dict[str, tuple[timedelta, float]] = {}
    for number, (in_the_wait, in_the_call, seconds, retry_after, continues) in enumerate(script):
        at_once(ledger.record(state.take_entries()))
        wait = timedelta(seconds=item.delay_seconds)
        if continues:
            state = carried_on(state, recipe, number)
            server.new_run()
            item = state.begin("work", now=server.now())
            wait = max(timedelta(0), item.not_before - server.now())
        set_back, began = server.set_back, server.really
        server.sleep(wait, in_the_wait)
        # The part of the wait that a step forward takes away is all that may be missing.
        assert server.really - began >= wait.total_seconds() - max(0.0, in_the_wait) - 1e-5
        state.start(item.id, now=server.now())
        seen[item.id] = (server.set_back - set_back, retry_after or 0.0)
        if continues:
            assert server.now() >= item.not_before - (server.set_back - set_back) - MICROSECOND
        server.pass_by(seconds)
        server.step(in_the_call)
        failure = Failure.of(FailureKind.RATE_LIMITED, "slow down", retry_after_seconds=retry_after)
        state.fail(item.id, failure, now=server.now())
        following = state.latest()
        if following.state is not WorkItemState.INITIALIZED:
            break
        item = following
    at_once(ledger.record(state.take_entries()))
    items = state.work_items()
    assert len(items) <= recipe.max_retries + 1
    assert [item.attempt for item in items] == list(range(len(items)))
    for item in items:
        log = at_once(ledger.transitions(item.id))
        assert [step.sequence for step in log] == list(range(len(log)))
        assert [step.at for step in log] == [
            at for at in (item.created_at, item.started_at, item.ended_at) if at
        ]
    for before, item in pairwise(items):
        _was_planned(recipe, before, item, seen[before.id][1])
        if item.started_at is not None:
            assert item.started_at >= item.not_before - server.set_back - MICROSECOND
            if server.set_back == timedelta(0):
                assert item.started_at >= item.not_before - MICROSECOND


def _was_planned(recipe: RetryRecipe, before: WorkItem, item: WorkItem, retry_after: float) -> None:
    assert before.ended_at is not None
    assert item.created_at == before.ended_at
    delay = timedelta(seconds=item.delay_seconds)
    assert abs(item.not_before - before.ended_at - delay) <= MICROSECOND
    assert delay >= max(recipe.backoff(before.attempt), timedelta(seconds=retry_after)) - MICROSECOND


@given(steps, steps)
def test_a_wait_that_is_ended_by_hand_is_recorded_as_no_less_than_nothing(
    first: float, second: float
) -> None:
    server, state = Server(), task()
    item = state.begin("work", now=server.now())
    state.start(item.id, now=server.now())
    server.step(first)
    state.fail(item.id, Failure.of(FailureKind.RATE_LIMITED, "slow down"), now=server.now())
    carried = carried_on(state, RetryRecipe(), 1)
    server.step(second)
    server.new_run()
    item = carried.begin("work", now=server.now())
    carried.start(item.id, now=server.now(), actor="anna", hurried=True)
    hurried = carried.latest()
    assert hurried.delay_seconds >= 0
    assert hurried.not_before == hurried.started_at


def test_a_clock_that_is_set_back_during_a_wait_makes_its_recorded_end_early_and_the_wait_no_shorter() -> (
    None
):
    server, state = Server(), task()
    item = state.begin("work", now=server.now())
    state.start(item.id, now=server.now())
    state.fail(item.id, Failure.of(FailureKind.RATE_LIMITED, "slow down"), now=server.now())
    server.step(-60)
    server.sleep(timedelta(seconds=state.latest().delay_seconds), 0)
    state.start(state.latest().id, now=server.now())
    second = state.latest()
    assert server.really == 1.0
    assert second.started_at == NOON  # by the clock it is 59 s before that
    assert second.not_before == NOON + timedelta(seconds=1)
