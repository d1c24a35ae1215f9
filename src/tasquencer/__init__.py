"""Durable AI agent tasks on Temporal. Every attempt is its own work item.

This package has the names that tasks, workers and policies need. `tasquencer.ai` has the AI call,
`tasquencer.sql` the ledger, `tasquencer.testing` the parts for tests. A name is imported when it is first
used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasquencer._exports import lazy

if TYPE_CHECKING:
    from tasquencer.core.ending import (
        FollowUp as FollowUp,
        TaskEnd as TaskEnd,
        TaskEndHook as TaskEndHook,
        TaskEndState as TaskEndState,
    )
    from tasquencer.core.entries import DomainRecord as DomainRecord, LedgerEntry as LedgerEntry
    from tasquencer.core.errors import (
        ActionRefused as ActionRefused,
        BookkeepingRefused as BookkeepingRefused,
        IllegalTransition as IllegalTransition,
        InvalidRequest as InvalidRequest,
        LedgerConflict as LedgerConflict,
        LedgerError as LedgerError,
        LedgerUnavailable as LedgerUnavailable,
        PluginGivenTwice as PluginGivenTwice,
        SchemaMismatch as SchemaMismatch,
        TaskMisused as TaskMisused,
        TasquencerError as TasquencerError,
        TemporalUnreachable as TemporalUnreachable,
        TooManyWorkItems as TooManyWorkItems,
        UnknownWorkItem as UnknownWorkItem,
        WrongSetting as WrongSetting,
        WrongSettings as WrongSettings,
    )
    from tasquencer.core.failure import Failure as Failure, FailureKind as FailureKind
    from tasquencer.core.hooks import (
        NextAttempt as NextAttempt,
        StateChange as StateChange,
        StateChangeHook as StateChangeHook,
        retry_by_recipe as retry_by_recipe,
    )
    from tasquencer.core.policy import (
        Counts as Counts,
        TaskPolicy as TaskPolicy,
        Verdict as Verdict,
        absorb_failures as absorb_failures,
        fail_fast as fail_fast,
        require_successes as require_successes,
        until_exhausted as until_exhausted,
    )
    from tasquencer.core.retry import Delay as Delay, RetryOn as RetryOn, RetryRecipe as RetryRecipe
    from tasquencer.core.work_item import (
        DelayReason as DelayReason,
        Transition as Transition,
        WorkItem as WorkItem,
        WorkItemState as WorkItemState,
    )
    from tasquencer.ledger.contract import (
        Ledger as Ledger,
        Settlement as Settlement,
        WorkItemFilter as WorkItemFilter,
    )
    from tasquencer.temporal.asking import ask as ask
    from tasquencer.temporal.connection import connect as connect
    from tasquencer.temporal.plugin import TasquencerPlugin as TasquencerPlugin
    from tasquencer.temporal.task import Task as Task

__getattr__, __dir__, __all__ = lazy(__name__)
