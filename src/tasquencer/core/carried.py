"""The state that a task carries along when it continues as new."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping

from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue

from tasquencer.core.failure import Failure
from tasquencer.core.lineage import Group, Lineage
from tasquencer.core.policy import Verdict
from tasquencer.core.retry import Delay, RetryRecipe
from tasquencer.core.wording import moment, one_line
from tasquencer.core.work_item import Transition, WorkItem, WorkItemState

__all__ = [
    "GROUP_RESULTS_BYTES",
    "RESULTS_BYTES",
    "CarriedGroup",
    "CarriedLineage",
    "CarriedTask",
    "TaskPause",
    "lean_work_items",
]

_MESSAGE_LENGTH = 50
"""Characters of a failure's message that travel along."""

_READ_MESSAGE_LENGTH = 500
"""The same for independent lineages."""

RESULTS_BYTES = 300_000
"""Bytes of results that travel along. The ledger has the only copy of a result that does not fit."""

GROUP_RESULTS_BYTES = 2_560 * 1024
"""The same for results in open groups, whose code needs them. The code limits what it puts into a group."""


class CarriedGroup(BaseModel):
    """A group of a task that continues as new. See `Group`."""

    model_config = ConfigDict(frozen=True)

    counted: bool
    state: WorkItemState | None = None
    last: str | None = None
    failure: Failure | None = None

    @classmethod
    def of(cls, group: Group) -> CarriedGroup:
        """The group as it travels along."""
        return cls(counted=group.counted, state=group.state, last=group.last, failure=group.failure)

    def group(self) -> Group:
        """The group in the next run."""
        return Group(self.counted, self.state, self.last, self.failure)


class CarriedLineage(BaseModel):
    """A lineage of a task that continues as new; the payload is that of its first work item.

    `kind` and what follows it describe an independent lineage and why it ended.
    """

    model_config = ConfigDict(frozen=True)

    payload: JsonValue = None
    recipe: RetryRecipe
    deadline: AwareDatetime | None = None
    kind: str | None = None
    too_late: Delay | None = None
    expired: bool = False
    reason: str | None = None
    group: str | None = None

    @classmethod
    def of(cls, lineage: Lineage) -> CarriedLineage:
        """The lineage as it travels along."""
        return cls(
            payload=None if lineage.standing else lineage.first_payload,
            recipe=lineage.recipe,
            deadline=lineage.deadline,
            kind=lineage.kind,
            too_late=lineage.too_late,
            expired=lineage.expired,
            reason=lineage.reason if (lineage.kind or lineage.group) and lineage.standing else None,
            group=lineage.group,
        )

    def lineage(self) -> Lineage:
        """The lineage in the next run, before its code begins it again."""
        return Lineage(
            self.recipe,
            self.deadline,
            self.payload,
            begun=False,
            kind=self.kind,
            too_late=self.too_late,
            expired=self.expired,
            reason=self.reason,
            group=self.group,
        )


class TaskPause(BaseModel):
    """The person who paused a task, the reason, and the time."""

    model_config = ConfigDict(frozen=True)

    actor: str
    reason: str | None = None
    at: AwareDatetime

    def __str__(self) -> str:
        because = f": {self.reason}" if self.reason else ""
        return f"paused by {self.actor} since {moment(self.at)}{because}"


class CarriedTask(BaseModel):
    """The state that the next run needs to continue without reading the ledger.

    Attributes:
        lineages: By name. Lineages that have ended come without their payload.
        work_items: Oldest first, without payloads. See `lean_work_items`.
        payloads: By id, the payloads of open work items that differ from their lineage's first payload.
        sequences: By id, the sequence of the last transition of each open work item.
        hurried: Work items whose wait an operator has ended but which have not started yet: by id, the
        actor and the reason.
        left_behind: Ids of open work items that a reset has left behind and that are not replaced yet.
        left_out: Ids of work items whose result is not carried along.
        groups: By name.
        run_id: The run that carries the task along. None if an earlier release, which did not record it, did.
        verdict: The last verdict of the policy. If it is FAIL, `decisive` is the transition that it judged.
    """

    model_config = ConfigDict(frozen=True)

    lineages: dict[str, CarriedLineage]
    work_items: list[WorkItem]
    payloads: dict[str, JsonValue]
    sequences: dict[str, int]
    hurried: dict[str, tuple[str, str | None]] = {}
    left_behind: set[str] = set()
    left_out: set[str] = set()
    groups: dict[str, CarriedGroup] = {}
    deadline: AwareDatetime | None = None
    started_at: AwareDatetime | None = None
    run_id: str | None = None
    paused: TaskPause | None = None
    verdict: Verdict = Verdict.CONTINUE
    decisive: Transition | None = None


def lean_work_items(
    work_items: Iterable[WorkItem],
    lineages: Mapping[str, Lineage],
    results_bytes: int = RESULTS_BYTES,
    groups: Mapping[str, Group] | None = None,
) -> tuple[list[WorkItem], set[str]]:
    """Return the work items to carry along, without payloads, and the ids of those whose result is left out.

    Results that are left out, and the details of failures, keep only their numbers.

    Args:
        work_items: Oldest first; their results are carried along in this order.
        lineages: By name. The code that began an independent one may still read why it failed.
        results_bytes: Bytes of results to carry along, as JSON.
        groups: By name. Results in open ones have room of their own. An ended one keeps only its last result.
    """
    room = {False: results_bytes, True: GROUP_RESULTS_BYTES}
    lean, left_out = [], set()
    for item in work_items:
        lineage = lineages[item.lineage]
        group = (groups or {}).get(lineage.group or "")
        is_open = group is not None and group.state is None
        is_over = group is not None and group.state is not None and group.last != item.lineage
        size = len(json.dumps(item.result).encode())
        fits = size <= room[is_open] and not is_over
        if not fits:
            left_out.add(item.id)
        most = _MESSAGE_LENGTH if lineage.kind is None else _READ_MESSAGE_LENGTH
        lean.append(_lean(item, item.result if fits else _numbers(item.result), most))
        room[is_open] -= size if fits else 0
    return lean, left_out


def _numbers(value: JsonValue) -> JsonValue:
    """Return the numbers in an object, such as tokens and cost, for the totals. None if there are none."""
    if not isinstance(value, dict):
        return None
    numbers: dict[str, JsonValue] = {
        name: number
        for name, number in value.items()
        if isinstance(number, int | float) and not isinstance(number, bool)
    }
    return numbers or None


def _lean(item: WorkItem, result: JsonValue, message_length: int) -> WorkItem:
    update: dict[str, object] = {"payload": None, "result": result}
    if item.failure is not None:
        short = one_line(item.failure.message, message_length)
        update["failure"] = item.failure.model_copy(
            update={"message": short, "details": _numbers(item.failure.details) or {}}
        )
    return item.model_copy(update=update)
