"""Calls the hook and the policy of a task. A mistake of theirs raises `TaskMisused`."""

from __future__ import annotations

from tasquencer.core.errors import TaskMisused
from tasquencer.core.hooks import NextAttempt, StateChange, StateChangeHook
from tasquencer.core.policy import Counts, TaskPolicy, Verdict
from tasquencer.core.work_item import Transition

__all__ = ["verdict_of", "wish_of"]

_HOOK = "the hook `on_work_item_state_changed`"


def wish_of(hook: StateChangeHook, change: StateChange) -> NextAttempt | None:
    """Return the next attempt that the hook asks for, or None."""
    try:
        wish: object = hook(change)
    except Exception as error:
        raise TaskMisused.by(_HOOK, error) from error
    if wish is not None and not isinstance(wish, NextAttempt):
        raise TaskMisused.returned(_HOOK, wish, "a NextAttempt or None")
    return wish


def verdict_of(policy: TaskPolicy, transition: Transition, counts: Counts) -> Verdict:
    """Return the policy's verdict after this transition."""
    try:
        verdict: object = policy(transition, counts)
    except Exception as error:
        raise TaskMisused.by("the policy", error) from error
    if not isinstance(verdict, Verdict):
        raise TaskMisused.returned("the policy", verdict, "a Verdict")
    return verdict
