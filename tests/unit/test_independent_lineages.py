"""Independent lineages: the code that began them decides what their end means, not the task's policy."""

from __future__ import annotations

from tasquencer.core.carried import CarriedTask
from tasquencer.core.entries import DomainRecord
from tasquencer.core.hooks import LineageRules, NextAttempt, StateChange, retry_by_recipe
from tasquencer.core.policy import Verdict
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.task_state import TaskState
from tasquencer.core.work_item import WorkItem, WorkItemState
from tests.unit.driving import after, rate_limited, refused, task


def recorded(work_item: WorkItem, recipe: RetryRecipe) -> DomainRecord:
    return DomainRecord(table="ai_jobs", values={"status": work_item.state.value})


def with_another_payload(change: StateChange) -> NextAttempt | None:
    wish = retry_by_recipe(change)
    return None if wish is None else NextAttempt("the second question", wish.delay)


RULES = {"ask": LineageRules(with_another_payload, recorded)}
NO_RETRY = RetryRecipe(max_retries=0)


def asked(state: TaskState, lineage: str = "ask-1", recipe: RetryRecipe | None = None) -> WorkItem:
    item = state.begin("a question", now=after(0), lineage=lineage, recipe=recipe, kind="ask")
    state.start(item.id, now=after(1))
    return item


def test_its_failure_does_not_fail_the_task() -> None:
    state = task(rules=RULES)
    item = asked(state)

    verdict = state.fail(item.id, refused(), now=after(2))

    assert verdict is Verdict.CONTINUE
    assert state.counts().lineages == state.counts().failed == 0
    assert state.failure_in("ask-1").type == "NotRetryable"


def test_its_own_hook_and_its_own_record_hold() -> None:
    state = task(rules=RULES)
    item = asked(state)

    state.fail(item.id, rate_limited(), now=after(2))

    assert state.latest("ask-1").payload == "the second question"
    assert {entry.record.table for entry in state.take_entries() if entry.record} == {"ai_jobs"}


def test_the_task_s_completion_leaves_it_open() -> None:
    state = task(rules=RULES)
    question = asked(state)
    other = state.begin("work", now=after(0), lineage="main")
    state.start(other.id, now=after(1))

    assert state.complete(other.id, "done", now=after(2)) is Verdict.COMPLETE
    assert state.work_item(question.id).state is WorkItemState.STARTED
    state.complete(question.id, "an answer", now=after(3))
    assert state.latest("ask-1").result == "an answer"


def test_the_task_s_failure_ends_it_and_is_not_blamed_on_it() -> None:
    state = task(rules=RULES, recipe=NO_RETRY)
    lost, question = asked(state), asked(state, "ask-2")
    state.fail(lost.id, refused(), now=after(2))
    other = state.begin("work", now=after(0), lineage="main")
    state.start(other.id, now=after(1))

    assert state.fail(other.id, rate_limited(), now=after(3)) is Verdict.FAIL
    assert state.work_item(question.id).state is WorkItemState.CANCELED
    assert state.failure().type == "RetriesExhausted"


def test_the_next_run_knows_why_it_ended() -> None:
    state = task(rules=RULES)
    late = state.begin("a question", now=after(0), lineage="ask-1", deadline=after(2.5), kind="ask")
    state.start(late.id, now=after(1))
    state.fail(late.id, rate_limited(), now=after(2))
    given_up = asked(state, "ask-2")
    state.cancel(given_up.id, now=after(2), reason="canceled by anna")
    carried = CarriedTask.model_validate_json(state.carry().model_dump_json())

    onward = task(rules=RULES, prefix="x")
    onward.resume(carried)
    onward.begin("a question", now=after(9), lineage="ask-1", kind="ask")

    assert onward.failure_in("ask-1").type == "DeadlineExceeded"
    assert onward.failure_in("ask-2").message.endswith("was canceled: canceled by anna")
    assert onward.counts() == state.counts()
