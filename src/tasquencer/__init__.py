"""Durable AI agent tasks: every attempt is a work item of its own.

This module exports the words and decisions (floor 0) and the ledger's contract. The Temporal side
is in `tasquencer.temporal`, the SQL ledger in `tasquencer.sql`.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tasquencer.ending import FollowUp, TaskEnd, TaskEndHook, TaskEndState
    from tasquencer.entries import DomainRecord, LedgerEntry
    from tasquencer.errors import (
        ActionRefused,
        AlreadyEnded,
        BookkeepingRefused,
        IllegalTransition,
        InvalidRequest,
        LedgerConflict,
        LedgerError,
        LedgerUnavailable,
        SchemaMismatch,
        TaskMisused,
        TasquencerError,
        TemporalUnreachable,
        TooManyWorkItems,
        UnknownWorkItem,
    )
    from tasquencer.failure import Failure, FailureKind
    from tasquencer.ledger import Ledger, Settlement, WorkItemFilter
    from tasquencer.policy import (
        Counts,
        TaskPolicy,
        Verdict,
        absorb_failures,
        fail_fast,
        require_successes,
        until_exhausted,
    )
    from tasquencer.retry import Delay, RetryOn, RetryRecipe
    from tasquencer.task_state import NextAttempt, StateChange, StateChangeHook, retry_by_recipe
    from tasquencer.work_item import DelayReason, Transition, WorkItem, WorkItemState

__all__ = [
    "ActionRefused",
    "AlreadyEnded",
    "BookkeepingRefused",
    "Counts",
    "Delay",
    "DelayReason",
    "DomainRecord",
    "Failure",
    "FailureKind",
    "FollowUp",
    "IllegalTransition",
    "InvalidRequest",
    "Ledger",
    "LedgerConflict",
    "LedgerEntry",
    "LedgerError",
    "LedgerUnavailable",
    "NextAttempt",
    "RetryOn",
    "RetryRecipe",
    "SchemaMismatch",
    "Settlement",
    "StateChange",
    "StateChangeHook",
    "TaskEnd",
    "TaskEndHook",
    "TaskEndState",
    "TaskMisused",
    "TaskPolicy",
    "TasquencerError",
    "TemporalUnreachable",
    "TooManyWorkItems",
    "Transition",
    "UnknownWorkItem",
    "Verdict",
    "WorkItem",
    "WorkItemFilter",
    "WorkItemState",
    "absorb_failures",
    "fail_fast",
    "require_successes",
    "retry_by_recipe",
    "until_exhausted",
]

_HOMES = {
    "ActionRefused": "errors",
    "AlreadyEnded": "errors",
    "BookkeepingRefused": "errors",
    "Counts": "policy",
    "Delay": "retry",
    "DelayReason": "work_item",
    "DomainRecord": "entries",
    "Failure": "failure",
    "FailureKind": "failure",
    "FollowUp": "ending",
    "IllegalTransition": "errors",
    "InvalidRequest": "errors",
    "Ledger": "ledger",
    "LedgerConflict": "errors",
    "LedgerEntry": "entries",
    "LedgerError": "errors",
    "LedgerUnavailable": "errors",
    "NextAttempt": "task_state",
    "RetryOn": "retry",
    "RetryRecipe": "retry",
    "SchemaMismatch": "errors",
    "Settlement": "ledger",
    "StateChange": "task_state",
    "StateChangeHook": "task_state",
    "TaskEnd": "ending",
    "TaskEndHook": "ending",
    "TaskEndState": "ending",
    "TaskMisused": "errors",
    "TaskPolicy": "policy",
    "TasquencerError": "errors",
    "TemporalUnreachable": "errors",
    "TooManyWorkItems": "errors",
    "Transition": "work_item",
    "UnknownWorkItem": "errors",
    "Verdict": "policy",
    "WorkItem": "work_item",
    "WorkItemFilter": "ledger",
    "WorkItemState": "work_item",
    "absorb_failures": "policy",
    "fail_fast": "policy",
    "require_successes": "policy",
    "retry_by_recipe": "task_state",
    "until_exhausted": "policy",
}
"""Where each name lives. They are imported when first asked for: `tasq --help` needs none of them."""


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
