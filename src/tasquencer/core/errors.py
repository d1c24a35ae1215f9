"""The errors that the package raises deliberately.

    TasquencerError
    ├── ActionRefused          an action from outside cannot be carried out now
    ├── InvalidRequest         the input of a task does not validate
    ├── IllegalTransition      the state machine of a work item forbids the change
    ├── UnknownWorkItem        no work item with that id in this task
    ├── TooManyWorkItems       a hook asked for a retry beyond the recipe's bound
    ├── TaskMisused            a workflow uses `Task` in a way that cannot work
    ├── PluginGivenTwice       a worker has the plugin twice
    ├── TemporalUnreachable    no server answers at Temporal's address
    ├── WrongSetting           a setting has a value that cannot be used
    ├── WrongSettings          the environment has settings that cannot be used
    └── LedgerError
        ├── BookkeepingRefused the ledger refused what a task decided; a bug, the task pauses
        ├── LedgerConflict     an entry contradicts what the ledger already holds
        ├── LedgerUnavailable  the database cannot be reached or used
        └── SchemaMismatch     the database has another schema than this release

These are *errors*: bugs or outages of our own parts. The outcome of an AI call is a *failure*, see
`tasquencer.core.failure`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Sequence

    from tasquencer.core.work_item import WorkItemState

__all__ = [
    "ActionRefused",
    "BookkeepingRefused",
    "IllegalTransition",
    "InvalidRequest",
    "LedgerConflict",
    "LedgerError",
    "LedgerUnavailable",
    "PluginGivenTwice",
    "SchemaMismatch",
    "TaskMisused",
    "TasquencerError",
    "TemporalUnreachable",
    "TooManyWorkItems",
    "UnknownWorkItem",
    "WrongSetting",
    "WrongSettings",
]


class TasquencerError(Exception):
    """Base of all errors of this package."""


class ActionRefused(TasquencerError):
    """An action from outside cannot be carried out now. The message says why. Nothing has changed."""


class InvalidRequest(TasquencerError):
    """The input of a task, or of an action on it, is not valid. The message names each wrong field."""

    def __init__(self, problems: list[str]) -> None:
        self.problems = problems
        super().__init__("; ".join(problems))


class IllegalTransition(TasquencerError):
    """A work item was asked to change in a way its state does not allow."""

    def __init__(self, work_item_id: str, state: WorkItemState | None, wanted: WorkItemState) -> None:
        self.work_item_id = work_item_id
        self.state = state
        self.wanted = wanted
        found = f"is {state}" if state is not None else "does not exist"
        hint = " (a terminal work item is immutable)" if state is not None and state.is_terminal else ""
        super().__init__(f"work item {work_item_id!r} cannot become {wanted}: it {found}{hint}")


class UnknownWorkItem(TasquencerError):
    """The task has no work item with this id."""

    def __init__(self, work_item_id: str, task_id: str) -> None:
        self.work_item_id = work_item_id
        self.task_id = task_id
        super().__init__(f"task {task_id!r} has no work item {work_item_id!r}")


class TooManyWorkItems(TasquencerError):
    """A hook asked for one more attempt than the recipe's `max_retries` allows."""

    def __init__(self, lineage: str, max_retries: int) -> None:
        self.lineage = lineage
        self.max_retries = max_retries
        super().__init__(
            f"lineage {lineage!r} already has its {max_retries + 1} work item{'s' if max_retries else ''} "
            f"(max_retries={max_retries}): the hook must not ask for another attempt"
        )


class TaskMisused(TasquencerError):
    """The workflow's code uses `Task` in a way that cannot work. The message says what to change."""

    @classmethod
    def by(cls, culprit: str, error: Exception) -> TaskMisused:
        """Return the error for a function of the user's that raised an exception."""
        return cls(f"{culprit} raised {type(error).__name__}: {error}")

    @classmethod
    def returned(cls, culprit: str, value: object, expected: str) -> TaskMisused:
        """Return the error for a function of the user's that returned a value of the wrong type."""
        return cls(f"{culprit} must return {expected}, it returned {type(value).__name__} {value!r:.80}")


class PluginGivenTwice(TasquencerError):
    """A worker has `TasquencerPlugin` twice: from its client and from its own `plugins`."""

    def __init__(self) -> None:
        super().__init__(
            "this worker has TasquencerPlugin twice: a worker takes over the plugins of its client, so give "
            "it to Client.connect or to Worker, not to both"
        )


class TemporalUnreachable(TasquencerError):
    """Temporal cannot be reached, or refuses the credentials."""

    def __init__(self, address: str, problem: str, remedy: str | None = None) -> None:
        self.address = address
        self.problem = problem
        remedy = remedy or "set TEMPORAL_ADDRESS, or start a server with `temporal server start-dev`"
        super().__init__(f"cannot reach Temporal at {address}: {problem} ({remedy})")


class WrongSetting(TasquencerError):
    """A setting is missing, or has a value that cannot be used."""

    def __init__(self, name: str, problem: str) -> None:
        self.name = name
        self.problem = problem
        super().__init__(f"{name}: {problem}")


class WrongSettings(TasquencerError):
    """The environment has settings that cannot be used. The message has a line for each of them."""

    def __init__(self, problems: Sequence[WrongSetting]) -> None:
        self.problems = list(problems)
        super().__init__("\n".join(map(str, problems)))


class LedgerError(TasquencerError):
    """Base of the ledger's errors."""


class LedgerConflict(LedgerError):
    """An entry contradicts what the ledger holds. No part of that write is kept."""

    def __init__(self, work_item_id: str, problem: str) -> None:
        self.work_item_id = work_item_id
        self.problem = problem
        super().__init__(f"the ledger refuses the entry for work item {work_item_id!r}: {problem}")


class BookkeepingRefused(LedgerError):
    """The ledger refused a task's decision for good: a bug. The task pauses until it is fixed."""

    def __init__(self, problem: str) -> None:
        self.problem = problem
        super().__init__(f"{problem} (the task pauses; nothing is lost)")


class LedgerUnavailable(LedgerError):
    """The ledger's database cannot be reached or used right now."""

    def __init__(self, database: str, problem: str) -> None:
        self.database = database
        self.problem = problem
        super().__init__(f"the ledger at {database} is unavailable: {problem}")


class SchemaMismatch(LedgerError):
    """The schema of the ledger's database does not fit this release."""

    def __init__(self, database: str, found: str | None, expected: str, remedy: str) -> None:
        self.database = database
        self.found = found
        self.expected = expected
        has = f"schema {found!r}" if found is not None else "no schema"
        super().__init__(f"the ledger at {database} has {has}, this release needs {expected!r}: {remedy}")
