"""Random histories of a task, checked against the invariants by an independent oracle.

A history drives `TaskState` through random outcomes over several lineages, records every entries in the
ledger (some of them twice), and sometimes lets the task continue as new with only JSON crossing over.
After each step it compares what the ledger holds with the invariants, each computed from scratch:

- I3: what ended once never changes, and every event on it is refused.
- I4: no work item starts before the end of its predecessor plus its delay; the delay is no less than
  backoff and Retry-After.
- I5: no lineage has more than `max_retries + 1` work items.
- I6: once the task is closed, nothing is open.
- I7: the verdict is the one that follows from the lineages, computed independently.

Random histories are worth only what they reach, so the test also counts the endings it has seen.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Coroutine
from datetime import datetime, timedelta
from fractions import Fraction
from itertools import count, pairwise
from typing import Any, TypeVar

import pytest
from hypothesis import given, seed, settings, strategies as st

from tasquencer.core.carried import CarriedTask
from tasquencer.core.errors import IllegalTransition
from tasquencer.core.failure import TRANSIENT_KINDS, Failure, FailureKind
from tasquencer.core.policy import Verdict, fail_fast, until_exhausted
from tasquencer.core.retry import RetryOn, RetryRecipe
from tasquencer.core.task_state import TaskState
from tasquencer.core.work_item import WorkItem
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.testing import InMemoryLedger
from tests.unit.driving import NOON

MICROSECOND = timedelta(microseconds=1)
ENDED = {"completed", "failed", "canceled"}
POLICIES = {"until_exhausted": until_exhausted, "fail_fast": fail_fast}

Answer = TypeVar("Answer")

milliseconds = st.integers(0, 20_000).map(lambda number: number / 1000)

recipes = st.builds(
    RetryRecipe,
    max_retries=st.integers(0, 6),
    initial_interval=milliseconds.map(lambda number: timedelta(seconds=number)),
    backoff_coefficient=st.sampled_from([1.0, 1.5, 2.0, 10.0]),
    maximum_interval=st.one_of(st.none(), st.integers(20, 60).map(lambda number: timedelta(seconds=number))),
    jitter=st.sampled_from([0.0, 0.25, 1.0]),
    retry_on=st.sampled_from(RetryOn),
)

# Weighted towards what may be retried, so that lineages grow long.
failures = st.builds(
    lambda kind, retry_after, unless: Failure.of(
        kind, "why", transient=unless, retry_after_seconds=retry_after
    ),
    st.sampled_from([*sorted(TRANSIENT_KINDS) * 4, *FailureKind]),
    st.one_of(st.none(), milliseconds),
    st.sampled_from([None] * 6 + [True, False]),
)

EVENTS = {"start": 8, "fail": 8, "complete": 2, "continue_as_new": 2, "disturb_what_ended": 1}
"""How often what is tried."""
SPOILERS = {"cancel": 1, "close": 1}
"""What ends most tasks at once; only some histories have it."""
MOST_EVENTS = 40


def exact_backoff(recipe: RetryRecipe, attempt: int) -> Fraction:
    """Microseconds, by multiplying step by step instead of by a power."""
    backoff = Fraction(recipe.initial_interval // MICROSECOND)
    for _ in range(attempt):
        backoff *= Fraction(recipe.backoff_coefficient)
    longest = recipe.maximum_interval or timedelta(days=365)
    return min(backoff, Fraction(longest // MICROSECOND))


def at_once(coroutine: Coroutine[Any, Any, Answer]) -> Answer:
    """The in-memory ledger waits for nothing, so it needs no event loop."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        answer: Answer = stop.value
        return answer
    raise AssertionError("the in-memory ledger waited")


class History:
    """One task from its first lineage to its close."""

    def __init__(self, data: st.DataObject) -> None:
        self.draw = data.draw
        self.recipe = self.draw(recipes, label="recipe")
        self.policy = self.draw(st.sampled_from(["until_exhausted"] * 3 + ["fail_fast"]), label="policy")
        seconds = self.draw(st.one_of(st.none(), st.none(), st.integers(1, 300)), label="deadline")
        self.deadline = None if seconds is None else NOON + timedelta(seconds=seconds)
        self.seed = self.draw(st.randoms(use_true_random=False))
        self.events = EVENTS | (SPOILERS if self.draw(st.booleans(), label="may be spoiled") else {})
        self.now = NOON
        self.names = [f"lineage-{number}" for number in range(self.draw(st.integers(1, 4), label="lineages"))]
        self.ids = count()
        self.runs = count()
        self.ledger = InMemoryLedger()
        self.frozen: dict[str, WorkItem] = {}
        self.closed = False
        self.reached = Counter[str]()
        self.state = self.new_state()
        for name in self.names:
            self.state.begin({"asks": name}, now=self.now, lineage=name)
        self.record()

    def run(self) -> None:
        self.check()
        for _ in range(MOST_EVENTS):
            possible = [name for name, weight in self.events.items() if self.can(name) for _ in range(weight)]
            event = self.draw(st.sampled_from(possible), label="event")
            getattr(self, event)()
            self.reached[event] += 1
            self.check()
            if not self.has("initialized", "started"):
                break
        self.reached[f"verdict {self.state.verdict}"] += 1
        if self.state.verdict is Verdict.FAIL:
            self.reached[self.state.failure().type] += 1
        self.reached["longest"] = max(len(self.lineage(name)) for name in self.names)
        self.end()

    def can(self, event: str) -> bool:
        states = {
            "start": ("initialized",),
            "fail": ("started",),
            "complete": ("started",),
            "disturb_what_ended": tuple(ENDED),
        }
        return self.has(*states.get(event, ("initialized", "started")))

    def check(self) -> None:
        self.what_ended_never_changes()
        self.nothing_starts_early()
        self.lineages_are_bounded_and_numbered()
        self.the_policy_decides()
        self.the_task_and_the_ledger_agree()

    def new_state(self) -> TaskState:
        return TaskState(
            task_id="task",
            run_id=f"run-{next(self.runs)}",
            task_type="Test",
            recipe=self.recipe,
            new_id=lambda *_: f"item-{next(self.ids)}",
            random=lambda _: self.seed.random(),
            policy=POLICIES[self.policy],
            deadline=self.deadline,
        )

    # What the ledger says

    def record(self, *, twice: bool = False) -> None:
        entries = self.state.take_entries()
        for _ in range(1 + twice):
            at_once(self.ledger.record(entries))
        wanted = WorkItemFilter(task_id="task", limit=10_000, oldest_first=True)
        self.items = at_once(self.ledger.work_items(wanted))

    def stored(self) -> list[WorkItem]:
        return self.items

    def lineage(self, name: str) -> list[WorkItem]:
        return sorted((item for item in self.stored() if item.lineage == name), key=lambda item: item.attempt)

    # Events

    def has(self, *states: str) -> bool:
        return any(item.state in states for item in self.stored())

    def pick(self, *states: str) -> WorkItem:
        return self.draw(st.sampled_from([item for item in self.stored() if item.state in states]))

    def pass_time(self) -> None:
        self.now += timedelta(seconds=self.draw(milliseconds))

    def start(self) -> None:
        item = self.pick("initialized")
        self.now = max(self.now, item.not_before)
        self.pass_time()
        self.state.start(item.id, now=self.now)
        self.record()

    def complete(self) -> None:
        self.pass_time()
        self.state.complete(self.pick("started").id, {"text": "done"}, now=self.now)
        self.record(twice=self.draw(st.booleans()))

    def fail(self) -> None:
        self.pass_time()
        item, failure = self.pick("started"), self.draw(failures)
        self.state.fail(item.id, failure, now=self.now)
        self.record(twice=self.draw(st.booleans()))
        if self.policy == "until_exhausted":
            self.a_retry_follows_exactly_if_it_should(item, failure)

    def cancel(self) -> None:
        self.state.cancel(self.pick("initialized", "started").id, now=self.now, reason="asked")
        self.record()

    def continue_as_new(self) -> None:
        carried = self.state.carry().model_dump_json()
        self.state = self.new_state()
        self.state.resume(CarriedTask.model_validate_json(carried))
        for name in self.names:
            self.state.begin({"asks": name}, now=self.now, lineage=name)
        assert self.state.take_entries() == []

    def close(self) -> None:
        self.state.close(now=self.now, reason="the task was canceled")
        self.closed = True
        self.record(twice=True)

    def disturb_what_ended(self) -> None:
        ended = self.pick(*ENDED)
        events: dict[str, Callable[[str, datetime], Verdict]] = {
            "start": lambda item, now: self.state.start(item, now=now),
            "complete": lambda item, now: self.state.complete(item, "other", now=now),
            "fail": lambda item, now: self.state.fail(item, Failure.of(FailureKind.REFUSED, "no"), now=now),
            "cancel": lambda item, now: self.state.cancel(item, now=now, reason="other"),
        }
        for event in events.values():
            with pytest.raises(IllegalTransition):
                event(ended.id, self.now)
        assert self.state.take_entries() == []

    def end(self) -> None:
        """I6: closing a task settles whatever it still has, and every event on it is refused from then on."""
        self.close()
        assert not self.has("initialized", "started")
        self.disturb_what_ended()

    # The invariants

    def what_ended_never_changes(self) -> None:
        """I3."""
        for item in self.stored():
            if item.id in self.frozen:
                assert item == self.frozen[item.id]
            elif item.state in ENDED:
                self.frozen[item.id] = item
                path = [step.next_state.value for step in at_once(self.ledger.transitions(item.id))]
                assert path in (
                    ["initialized", "canceled"],
                    ["initialized", "started", "completed"],
                    ["initialized", "started", "failed"],
                    ["initialized", "started", "canceled"],
                )

    def nothing_starts_early(self) -> None:
        """I4."""
        for name in self.names:
            items = self.lineage(name)
            assert (items[0].delay_seconds, items[0].delay_reason) == (0, "first_try")
            for before, item in pairwise(items):
                assert before.ended_at is not None
                assert before.failure is not None
                delay = timedelta(seconds=item.delay_seconds)
                earliest = before.ended_at + delay
                assert item.created_at == before.ended_at  # recorded before the sleep begins
                assert abs(item.not_before - earliest) <= MICROSECOND
                if item.started_at is not None:
                    assert item.started_at >= earliest - MICROSECOND
                asked = before.failure.retry_after_seconds or 0
                backoff = exact_backoff(self.recipe, before.attempt)
                base = max(backoff, Fraction(asked) * 1_000_000)
                assert base - 1 <= delay // MICROSECOND <= base * Fraction(1 + self.recipe.jitter) + 1
                if abs(Fraction(asked) * 1_000_000 - backoff) > 1:
                    longer = Fraction(asked) * 1_000_000 > backoff
                    assert item.delay_reason == ("retry_after" if longer else "backoff")

    def lineages_are_bounded_and_numbered(self) -> None:
        """I5."""
        for name in self.names:
            items = self.lineage(name)
            assert [item.attempt for item in items] == list(range(len(items)))
            assert len(items) <= self.recipe.max_retries + 1
            assert all(item.state in ENDED for item in items[:-1])
            assert {item.state.value for item in items[:-1]} <= {"failed"}

    def the_policy_decides(self) -> None:
        """I7."""
        if self.closed:
            return
        last = {self.lineage(name)[-1].state.value for name in self.names}
        spoiled = last & {"failed", "canceled"}
        if self.policy == "fail_fast":
            spoiled |= {item.state.value for item in self.stored()} & {"failed", "canceled"}
        if spoiled:
            assert self.state.verdict is Verdict.FAIL
            assert not self.has("initialized", "started")  # I6
            assert self.state.failure().type in (
                "RetriesExhausted",
                "NotRetryable",
                "DeadlineExceeded",
                "TaskFailed",
            )
        elif last == {"completed"}:
            assert self.state.verdict is Verdict.COMPLETE
        else:
            assert self.state.verdict is Verdict.CONTINUE

    def the_task_and_the_ledger_agree(self) -> None:
        mine = {item.id: (item.state, item.attempt, item.lineage) for item in self.state.work_items()}
        assert mine == {item.id: (item.state, item.attempt, item.lineage) for item in self.stored()}

    def a_retry_follows_exactly_if_it_should(self, item: WorkItem, failure: Failure) -> None:
        """The recipe, computed independently: a retry follows if one is left, it qualifies, and it fits."""
        items = self.lineage(item.lineage)
        followed = len(items) == item.attempt + 2
        left = item.attempt < self.recipe.max_retries
        qualifies = self.recipe.retry_on == "any" or failure.transient
        if not (left and qualifies):
            assert not followed
            expected = "NotRetryable" if not qualifies else "RetriesExhausted"
            assert self.state.failure().type == expected
        elif self.deadline is None:
            assert followed
        elif followed:
            assert items[-1].not_before < self.deadline
        else:
            base = max(
                exact_backoff(self.recipe, item.attempt),
                Fraction(failure.retry_after_seconds or 0) * 1_000_000,
            )
            latest = self.now + timedelta(microseconds=float(base * Fraction(1 + self.recipe.jitter)) + 1)
            assert latest >= self.deadline
            assert self.state.failure().type == "DeadlineExceeded"


def test_random_histories_keep_the_invariants() -> None:
    reached = Counter[str]()
    lengths = Counter[int]()

    # The same histories each time, so that what they reach is no matter of luck.
    def histories(number: int) -> None:
        @seed(number)
        @settings(max_examples=400, database=None)
        @given(st.data())
        def some(data: st.DataObject) -> None:
            history = History(data)
            history.run()
            longest = history.reached.pop("longest")
            lengths[longest] += 1
            reached.update(history.reached)

        some()

    endings = ["RetriesExhausted", "NotRetryable", "DeadlineExceeded", "TaskFailed", "verdict complete"]
    wanted = [*EVENTS, *SPOILERS, *endings]
    for number in range(8):  # some endings are rare: go on until all were seen
        histories(number)
        if all(reached[name] for name in wanted) and max(lengths) >= 4:
            break
    assert [name for name in wanted if not reached[name]] == []
    assert max(lengths) >= 4
