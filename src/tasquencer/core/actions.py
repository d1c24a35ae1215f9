"""Actions of people and programs on a task's work items.

An action is one JSON object. This module checks, before anything changes, that it can be carried out. A
refusal names the reason and changes nothing.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, ValidationError

from tasquencer.core.errors import ActionRefused, InvalidRequest, UnknownWorkItem
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.task_state import TaskState
from tasquencer.core.validation import keepable, problems_of, refuse_far_too_many
from tasquencer.core.wording import attempt_label, moment
from tasquencer.core.work_item import LEGAL_TRANSITIONS, DelayReason, WorkItem, WorkItemState

__all__ = [
    "TRY_AGAIN",
    "CancelWorkItem",
    "CompleteWorkItem",
    "FailWorkItem",
    "PauseTask",
    "ResumeTask",
    "RetryNow",
    "check_transition",
    "operator_failure",
    "parse_action",
    "waiting",
]

TRY_AGAIN = "TryAgain"
"""Type of the error of an update that came too early. The same update works a moment later."""

_Name = Annotated[str, Field(min_length=1, max_length=200, pattern=r"^[^\x00]*$")]
_Reason = Annotated[str, Field(max_length=2_000, pattern=r"^[^\x00]*$")] | None


class _Action(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")

    actor: _Name
    reason: _Reason = None


class RetryNow(_Action):
    """End the backoff of each work item of the task that is in one."""


class PauseTask(_Action):
    """Let no further attempt of the task start. Attempts that are under way continue."""


class ResumeTask(_Action):
    """Let attempts start again."""


class CompleteWorkItem(_Action):
    """Complete a started work item with this result. Its call is stopped."""

    work_item_id: _Name
    result: Annotated[JsonValue, AfterValidator(keepable)]


class FailWorkItem(_Action):
    """Fail a started work item. Its call is stopped, and the recipe decides about a retry."""

    work_item_id: _Name


class CancelWorkItem(_Action):
    """Cancel a work item that has not ended. Its call is stopped, and the policy decides about the task."""

    work_item_id: _Name


_A = TypeVar("_A", bound=_Action)


def parse_action(kind: type[_A], raw: object) -> _A:
    """Read the action from an update's raw argument.

    Raises:
        InvalidRequest: names each wrong field.
    """
    if isinstance(raw, dict):
        refuse_far_too_many(raw, kind)
    try:
        return kind.model_validate(raw)
    except ValidationError as error:
        problems = problems_of(error)
        if not isinstance(raw, dict):
            problems = [f"the argument: {problem}" for problem in problems]
        raise InvalidRequest(problems) from None


def waiting(state: TaskState) -> list[WorkItem]:
    """Return the work items that are in their backoff. Raises `ActionRefused` if there is none."""
    found = [
        item
        for item in state.open_work_items()
        if item.state is WorkItemState.INITIALIZED and item.delay_reason is not DelayReason.FIRST_TRY
    ]
    if not found:
        items = state.work_items()
        last = f": {_described(state, items[-1])}" if items else ""
        raise ActionRefused(f"nothing waits{last}")
    return found


def check_transition(state: TaskState, work_item_id: str, wanted: WorkItemState) -> None:
    """Check that the work item may change to this state now.

    Raises:
        ActionRefused: the work item is unknown, has ended (the message says when and how), or is in a state
        that does not allow the change.
    """
    try:
        item = state.work_item(work_item_id)
    except UnknownWorkItem as unknown:
        raise ActionRefused(str(unknown)) from None
    if wanted not in LEGAL_TRANSITIONS[item.state]:
        raise ActionRefused(f"work item {work_item_id!r} cannot become {wanted}: {_described(state, item)}")


def operator_failure(action: FailWorkItem) -> Failure:
    """Return the failure that an operator declares. It qualifies for a retry, and the recipe decides."""
    said = f": {action.reason}" if action.reason else ""
    return Failure.of(FailureKind.OPERATOR, f"failed by {action.actor}{said}")


def _described(state: TaskState, item: WorkItem) -> str:
    label = attempt_label(item.attempt, state.recipe_of(item).max_retries)
    if item.ended_at is None:
        return f"{label} is {item.state}"
    how = f" ({item.failure})" if item.failure is not None else ""
    return f"{label} is {item.state} since {moment(item.ended_at)}{how}"
