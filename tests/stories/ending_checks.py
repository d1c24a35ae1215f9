"""I7: checks of how the task ended, by its policy or by a cancel."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import datetime

from tasquencer.ai.fan_out import AiFanOutRequest
from tasquencer.core.named_policy import NamedPolicy
from tasquencer.core.work_item import WorkItem, WorkItemState
from tests.stories.lineage_checks import why_no_retry
from tests.stories.record_checks import LAG, TICK
from tests.stories.story import CANCEL_TASK, Reply, Story, label_of, text_of

__all__ = ["a_cancel_is_obeyed", "the_end_says_what_happened", "the_policy_decides"]


def a_cancel_is_obeyed(story: Story) -> Iterator[str]:
    """A task ends canceled if and only if it was canceled before its end, and then begins nothing more."""
    ending, cancel_at = story.ending, story.ending.cancel_at
    if cancel_at is None:
        if ending.state == "canceled":
            yield "I7: the task ended canceled, nobody canceled it"
        for act in story.acts:
            # The server accepts the cancel of a task that has ended, too, and forgets it.
            in_time = act.answered_at < ending.closed_at
            if act.name == CANCEL_TASK and act.reply is Reply.ACCEPTED and in_time:
                yield f"I7: the cancel of {act.actor} was accepted, the history does not know it"
        return
    if ending.state != "canceled":
        yield f"I7: the task was canceled, yet it {ending.state}"
    seen_at = ending.cancel_seen_at
    for item in story.items:
        # What the workflow task decides in which the cancel arrives is decided.
        if seen_at is not None and item.created_at > seen_at + TICK:
            yield f"I7: {label_of(item)} began after the task was canceled"
        elif seen_at is not None and item.ended_at is not None and item.ended_at > seen_at + LAG:
            yield f"I7: {label_of(item)} went on after the task was canceled"


def the_policy_decides(story: Story) -> Iterator[str]:
    """The task ends as its policy says, as soon as it says so; what is open then is canceled with it."""
    decision, ending = _decision(story), story.ending
    if ending.state != "canceled":
        if decision is None:
            yield f"I7: the task {ending.state}, its policy had not decided"
        elif decision[0] != ending.state:
            yield f"I7: the task {ending.state}, by its policy it {decision[0]}"
    moments = [at for at in (ending.cancel_at, decision and decision[1]) if at is not None]
    for item in story.items:
        if item.ended_at is None or not moments:
            continue
        if decision is not None and item.ended_at > decision[1] and item.id not in story.forgotten:
            yield f"I7: {label_of(item)} went on after the policy had decided"
        if story.ended_with_the_task(item) and item.ended_at < min(moments):
            yield f"I7: {label_of(item)} was canceled before its task ended"


def _decision(story: Story) -> tuple[str, datetime] | None:
    """What the policy says, and when: the first moment at which it could."""
    lasts = [items[-1] for items in story.decided.values()]
    own = [
        (item, item.ended_at)
        for item in story.items
        if item.ended_at is not None and not story.ended_with_the_task(item)
    ]
    for moment in sorted({at for _, at in own}):
        ended = [item for item, at in own if at <= moment]
        verdict = _verdict(
            story.policy,
            lineages=len(story.prompts),
            completed=sum(last in ended and last.state is WorkItemState.COMPLETED for last in lasts),
            lost=sum(last in ended and last.state is not WorkItemState.COMPLETED for last in lasts),
            bad=any(item.state is not WorkItemState.COMPLETED for item in ended),
        )
        if verdict is not None:
            return verdict, moment
    return None


def _verdict(policy: NamedPolicy, *, lineages: int, completed: int, lost: int, bad: bool) -> str | None:
    if policy.name == "require_successes":
        needed = policy.successes or 0
        if completed >= needed:
            return "completed"
        return "failed" if lineages - lost < needed else None
    if policy.name == "absorb_failures":
        too_many = policy.limit is not None and lost > policy.limit
        too_large = policy.fraction is not None and lost > policy.fraction * lineages
        fails = too_many or too_large
    else:
        fails = bad if policy.name == "fail_fast" else lost > 0
    if fails:
        return "failed"
    return "completed" if completed + lost == lineages else None


def the_end_says_what_happened(story: Story) -> Iterator[str]:
    """The result is that of the work items; the error has the type and the words of what failed the task."""
    ending, decision = story.ending, _decision(story)
    if ending.state == "completed" and isinstance(story.request, AiFanOutRequest):
        yield from _the_results_are_those_of_the_lineages(story)
    elif ending.state == "completed":
        last = story.items[-1]
        wanted = {"work_item_id": last.id, "attempts": len(story.items), "text": text_of(last)}
        if {name: ending.result.get(name) for name in wanted} != wanted:
            yield f"I7: the result {dict(ending.result)} is not that of {label_of(last)}"
    elif ending.state == "failed" and decision is not None and decision[0] == "failed":
        culprits = [item for item in story.items if _may_have_failed_the_task(story, item, decision[1])]
        types = [_type_of(story, item) for item in culprits]
        if None in types:
            return  # that a retry is left is another complaint
        if ending.type not in types:
            yield f"I7: the task failed as {ending.type}, expected {' or '.join(map(str, types))}"
        elif not any(item.failure is None or str(item.failure) in ending.message for item in culprits):
            yield f"I7: the task's error does not say what failed: {ending.message}"


def _may_have_failed_the_task(story: Story, item: WorkItem, at: datetime) -> bool:
    is_bad = item.state in (WorkItemState.FAILED, WorkItemState.CANCELED)
    return is_bad and item.ended_at == at and not story.ended_with_the_task(item)


def _type_of(story: Story, item: WorkItem) -> str | None:
    if item.state is WorkItemState.CANCELED:
        late = "before the deadline" in (story.transitions[item.id][-1].reason or "")
        return "DeadlineExceeded" if late else "TaskFailed"
    if story.decided[item.lineage][-1].id != item.id:
        return "TaskFailed"  # the policy did not want to wait for the retry
    return why_no_retry(story, item)


def _the_results_are_those_of_the_lineages(story: Story) -> Iterator[str]:
    lasts = [story.lineages[lineage] for lineage in story.prompts]
    wanted = [
        {
            "state": items[-1].state.value,
            "text": text_of(items[-1]),
            "work_item_id": items[-1].id,
            "attempts": len(items),
        }
        for items in lasts
    ]
    results = story.ending.result.get("results", [])
    if [{name: row.get(name) for name in wanted[0]} for row in results] != wanted:
        yield f"I7: the results {results} are not those of the work items"
    states = [row["state"] for row in wanted]
    for state in ("completed", "failed", "canceled"):
        counted, found = story.ending.result.get(state), states.count(state)
        if counted != found:
            yield f"I7: the result counts {counted} {state}, found {found}"
