"""What a task's code may ask about its activations: which behaviours it has, and what it has just heard.

The guard around the workflow instance answers (`guard`). On a worker without a guard the answers are those of
the first release.
"""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING

from temporalio import workflow

from tasquencer.temporal.behaviour import FROM_THE_START, Behaviour

if TYPE_CHECKING:
    from tasquencer.temporal.guard import Guard

__all__ = [
    "GUARD",
    "activation_number",
    "behaves",
    "decide_early",
    "first_part",
    "follows_local_result",
    "is_new_run_due",
    "is_new_run_suggested",
    "note_suggestion",
    "random_seed",
    "report_bug",
    "workflow_task_began",
]

GUARD = "tasquencer_activations"
"""Name of the function that gives a workflow in the sandbox its guard."""


def behaves(behaviour: Behaviour) -> bool:
    """Return whether the current run has the behaviour.

    The first call decides for the rest of the run: yes for a new decision, and in a replay as in its history.
    False on a worker whose runner has no guard.
    """
    guard = _current()
    return guard is not None and guard.decides(behaviour)


def decide_early() -> None:
    """Decide about these behaviours now, so that the first workflow task has their flags."""
    for early in FROM_THE_START:
        behaves(early)


def workflow_task_began() -> datetime:
    """Return when the current workflow task began, by Temporal's clock (aware UTC)."""
    guard = _current()
    return workflow.now() if guard is None else guard.began


def activation_number() -> int | None:
    """Return a number that changes whenever the run gets news: an event, or the result of a local activity.

    It counts for one worker only. Compare it, and never store it. None: the worker's runner has no guard.
    """
    guard = _current()
    return None if guard is None else guard.activations


def follows_local_result() -> bool:
    """Return whether the code runs because of the result of a local activity, such as a write."""
    guard = _current()
    return guard is not None and not guard.hears_event


def random_seed() -> int:
    """Return the run's random seed, which a reset has changed, also to handlers that come with the start.

    The SDK runs these before it changes the seed. The run before the reset has begun the same.
    """
    guard = _current()
    if guard is None or guard.seed is None or not behaves(Behaviour.CANCELS_ON_NEWS):
        return workflow.random_seed()
    return guard.seed


def first_part() -> Callable[[], bool]:
    """Return a function that says whether the run has got nothing yet but what came with its start.

    It can be called where the SDK does not know the current workflow, in a callback for example.
    """
    guard = _current()
    return lambda: guard is not None and guard.parts <= 1


def is_new_run_due() -> bool:
    """Return whether the run continues as new: whether Temporal suggested it at the last write.

    The SDK's own answer can differ on replay. If a local activity continues into the next workflow task, its
    result comes with that task's suggestion on replay, but live with the previous one.
    """
    guard = _current()
    if guard is not None and behaves(Behaviour.NEW_RUN_BY_RECORD):
        return guard.suggested_new_run
    return is_new_run_suggested()


def is_new_run_suggested() -> bool:
    """Return whether Temporal suggests a new run now. A replay may see the suggestion earlier.

    It does if a query has ended a workflow task early: a replay joins that workflow task with the next one.
    """
    guard = _current()
    if guard is None or not behaves(Behaviour.NEW_RUN_ON_NEWS):
        return workflow.info().is_continue_as_new_suggested()
    return guard.suggests_new_run


def note_suggestion(*, suggested: bool) -> None:
    """Note whether Temporal suggested a new run when the last write began."""
    guard = _current()
    if guard is not None:
        guard.suggested_new_run = suggested


def report_bug(error: BaseException) -> None:
    """Fail the current workflow task because of a bug in the task's code, even if other code catches the
    error.

    Otherwise a `TaskGroup` would first cancel its other tasks, and those cancellations would be in the
    history when the bug is fixed.
    """
    guard = _current()
    runtime = workflow._Runtime.current()  # the SDK has no public name for this question
    if guard is not None and not runtime.workflow_is_failure_exception(error):
        guard.bug = error


def _current() -> Guard | None:
    find = workflow.extern_functions().get(GUARD)
    return None if find is None else find()
