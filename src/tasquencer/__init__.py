"""Durable AI agent tasks: every attempt is a work item of its own.

This module exports the words and decisions (floor 0) and the ledger's contract. The Temporal side
is in `tasquencer.temporal`, the SQL ledger in `tasquencer.sql`.
"""

from tasquencer.entries import DomainRecord, LedgerEntry
from tasquencer.errors import (
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
from tasquencer.ledger import Ledger, WorkItemFilter
from tasquencer.policy import Counts, TaskPolicy, Verdict, fail_fast, until_exhausted
from tasquencer.retry import Delay, RetryOn, RetryRecipe
from tasquencer.task_state import NextAttempt, StateChange, StateChangeHook, retry_by_recipe
from tasquencer.work_item import DelayReason, Transition, WorkItem, WorkItemState

__all__ = [
    "BookkeepingRefused",
    "Counts",
    "Delay",
    "DelayReason",
    "DomainRecord",
    "Failure",
    "FailureKind",
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
    "StateChange",
    "StateChangeHook",
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
    "fail_fast",
    "retry_by_recipe",
    "until_exhausted",
]
