"""Groups of lineages: the policy counts a group as one lineage, and the task's code ends it."""

from __future__ import annotations

from typing import Any

from tasquencer.core.carried import GROUP_RESULTS_BYTES, CarriedTask
from tasquencer.core.failure import Failure
from tasquencer.core.hooks import LineageRules, retry_by_recipe
from tasquencer.core.lineage import Group
from tasquencer.core.policy import Verdict, absorb_failures, fail_fast, require_successes, until_exhausted
from tasquencer.core.task_state import TaskState
from tasquencer.core.work_item import WorkItem, WorkItemState
from tests.unit.driving import after, rate_limited, refused, task

RULES = {"tool": LineageRules(retry_by_recipe, lambda item, recipe: None)}
TOO_LONG = Failure(kind="max_turns", message="too many turns", transient=False)


def grouped(*names: str, **options: Any) -> TaskState:
    """A task with open groups."""
    state = task(rules=RULES, **options)
    for name in names:
        state.begin_group(name, counted=True)
    return state


def begun(state: TaskState, lineage: str, kind: str | None = None) -> WorkItem:
    item = state.begin("work", now=after(0), lineage=lineage, kind=kind, group=lineage.partition("/")[0])
    state.start(item.id, now=after(1))
    return item


def done(state: TaskState, lineage: str, kind: str | None = None, result: Any = "done") -> Verdict:
    return state.complete(begun(state, lineage, kind).id, result, now=after(2))


def ends(
    state: TaskState,
    name: str,
    last: str,
    end: WorkItemState = WorkItemState.COMPLETED,
    failure: Failure | None = None,
) -> Verdict:
    return state.end_group(name, Group(True, end, last, failure), now=after(9))


def test_a_group_is_one_lineage_however_many_it_has() -> None:
    state = grouped("a", "b", policy=require_successes(1))

    assert done(state, "a/1") is Verdict.CONTINUE
    assert done(state, "a/1/tool", "tool") is Verdict.CONTINUE
    assert done(state, "a/2") is Verdict.CONTINUE
    counts = state.counts()
    assert (counts.lineages, counts.open_lineages, counts.completed) == (2, 2, 2)

    assert ends(state, "a", "a/2") is Verdict.COMPLETE
    assert (state.counts().completed_lineages, state.counts().canceled_lineages) == (1, 1)
    assert state.groups["b"].state is WorkItemState.CANCELED


def test_the_default_policy_waits_for_all_groups() -> None:
    state = grouped("a", "b", policy=until_exhausted)
    done(state, "a/1")
    assert ends(state, "a", "a/1") is Verdict.CONTINUE
    done(state, "b/1")
    assert ends(state, "b", "b/1") is Verdict.COMPLETE


def test_the_policy_sees_each_failed_attempt_in_a_group() -> None:
    state = grouped("a", policy=fail_fast)
    assert state.fail(begun(state, "a/1").id, rate_limited(), now=after(2)) is Verdict.FAIL


def test_a_lost_group_is_absorbed_and_one_too_many_is_blamed_on_its_work_item() -> None:
    state = grouped("a", "b", "c", policy=absorb_failures(limit=1))
    for name in "ab":
        item = begun(state, f"{name}/1")
        assert state.fail(item.id, refused(), now=after(2)) is Verdict.CONTINUE
        verdict = ends(state, name, f"{name}/1", WorkItemState.FAILED)
    assert verdict is Verdict.FAIL
    assert state.failure().message.startswith("b/1: first try failed with refused")
    assert state.groups["c"].state is WorkItemState.CANCELED


def test_a_group_that_the_code_gives_up_says_why() -> None:
    state = grouped("a", "b", policy=absorb_failures(fraction=0.4))
    done(state, "a/1")
    assert ends(state, "a", "a/1", WorkItemState.FAILED, TOO_LONG) is Verdict.FAIL
    ended = state.failure()
    assert (ended.type, ended.message, ended.failure) == ("TaskFailed", "a: too many turns", TOO_LONG)


def test_the_end_of_a_group_cancels_what_is_open_in_it_and_nothing_else() -> None:
    state = grouped("a", "b")
    tool, other = begun(state, "a/1/tool", "tool"), begun(state, "b/1/tool", "tool")
    done(state, "a/1")
    ends(state, "a", "a/1")
    assert state.work_item(tool.id).state is WorkItemState.CANCELED
    assert state.work_item(other.id).state is WorkItemState.STARTED


def test_a_complete_task_leaves_no_tool_of_a_counted_group_open() -> None:
    state = grouped("a", "b", policy=require_successes(1))
    tool = begun(state, "b/1/tool", "tool")
    done(state, "a/1")
    assert ends(state, "a", "a/1") is Verdict.COMPLETE
    assert state.work_item(tool.id).state is WorkItemState.CANCELED


def test_a_group_ends_once() -> None:
    state = grouped("a", "b")
    done(state, "a/1")
    ends(state, "a", "a/1")
    ends(state, "a", "a/1", WorkItemState.FAILED, TOO_LONG)
    assert state.groups["a"].state is WorkItemState.COMPLETED
    assert state.counts().completed_lineages == 1


def test_an_uncounted_group_is_nobody_s_business() -> None:
    state = task(rules=RULES, policy=fail_fast)
    state.begin_group("ask", counted=False)
    state.fail(begun(state, "ask/1", "tool").id, refused(), now=after(2))
    verdict = state.end_group("ask", Group(False, WorkItemState.FAILED, "ask/1"), now=after(3))
    assert verdict is Verdict.CONTINUE
    assert state.counts().lineages == 0


def continued(state: TaskState, **options: Any) -> TaskState:
    onward = task(rules=RULES, prefix="x", **options)
    onward.resume(CarriedTask.model_validate_json(state.carry().model_dump_json()))
    return onward


def test_the_next_run_has_all_results_of_open_groups_and_the_last_of_ended_ones() -> None:
    state = grouped("over", "open")
    state.results_bytes = 40_000
    large = "x" * 30_000
    for name in ("over", "open"):
        done(state, f"{name}/1", result=large)
        done(state, f"{name}/1/tool", "tool", result=large)
        done(state, f"{name}/2", result=large)
    ends(state, "over", "over/2")

    onward = continued(state)

    kept = [item.lineage for item in onward.work_items() if item.result == large]
    assert kept == ["over/2", "open/1", "open/1/tool", "open/2"]
    assert onward.groups == state.groups
    assert onward.counts() == state.counts()
    assert ends(onward, "open", "open/2") is Verdict.COMPLETE


def test_even_open_groups_have_a_limit() -> None:
    state = grouped("open")
    done(state, "open/1", result="x" * GROUP_RESULTS_BYTES)
    assert continued(state).left_out == {state.latest("open/1").id}
