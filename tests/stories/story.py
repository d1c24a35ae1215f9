"""A task's story: what the task, its query and history, the ledger, the provider and the operators know.

A story says nothing of how it was gathered. `tests.stories.checks` finds the contradictions in it,
`tests.stories.telling` tells it in the order of time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any

from tasquencer.ai.fan_out import AiFanOutRequest, lineage_of
from tasquencer.ai.request import AiAgentRequest
from tasquencer.core.lineage import MAIN_LINEAGE
from tasquencer.core.named_policy import NamedPolicy
from tasquencer.core.task_state import TASK_ACTOR
from tasquencer.core.work_item import Transition, WorkItem, WorkItemState

__all__ = [
    "CANCEL_TASK",
    "LEADS_TO",
    "Act",
    "Call",
    "Ending",
    "Given",
    "Reply",
    "Story",
    "label_of",
    "text_of",
]

CANCEL_TASK = "cancel_task"
"""Temporal's own cancel, among the actions."""

LEADS_TO = {
    "retry_now": WorkItemState.STARTED,
    "complete_work_item": WorkItemState.COMPLETED,
    "fail_work_item": WorkItemState.FAILED,
    "cancel_work_item": WorkItemState.CANCELED,
}
"""The updates, and the state of the transition that each makes."""

_WITH_THE_TASK = ("the task completed", "the task failed", "the task was canceled", "the task ended")
"""How the reason begins with which a work item is canceled because its task ends."""


class Reply(StrEnum):
    """What became of an action."""

    ACCEPTED = "accepted"
    REFUSED = "refused"
    GONE = "gone"
    """The task had ended."""
    LOST = "lost"
    """The task took it on and ended without an answer to it."""


@dataclass(frozen=True)
class Act:
    """One action as the operator who sent it knows it."""

    name: str
    actor: str
    """Of this action alone, also where several share an update id."""
    update_id: str
    work_item_id: str | None
    sent_at: datetime
    answered_at: datetime
    reply: Reply
    says: str = ""
    value: Mapping[str, Any] = field(default_factory=dict)
    recorded: frozenset[str] | None = None
    """The actors of the task's transitions in the ledger just after the answer; None: nobody looked."""

    @property
    def reason(self) -> str:
        return f"because {self.actor} says so"

    @property
    def told(self) -> list[str]:
        """The work items that the answer names."""
        return list(self.value.get("work_item_ids") or [self.value.get("work_item_id", "")])


@dataclass(frozen=True)
class Given:
    """An answer as the provider means it."""

    name: str
    kind: str | None = None
    """Of the failure that it should become; None: it is a good answer."""
    text: str | None = None
    retry_after: float | None = None
    endless: bool = False
    """It never comes: the request ends when the client leaves."""


@dataclass(frozen=True)
class Call:
    """One request as the provider knows it."""

    key: str | None
    at: datetime
    ended_at: datetime | None
    given: Given
    complete: bool
    client_left: bool
    held: Sequence[str] | None = None
    """The states that the ledger knew of the work item when the request arrived; None: nobody looked."""


@dataclass(frozen=True)
class Ending:
    """How the task ended."""

    state: str
    """`completed`, `failed`, `canceled`, or `hangs` where nothing could end it."""
    started_at: datetime
    closed_at: datetime
    cancel_at: datetime | None = None
    """The time of the cancel request in the history. The server also accepts a cancel after the end, but then
    it is in no history."""
    result: Mapping[str, Any] = field(default_factory=dict)
    type: str = ""
    message: str = ""
    cancel_seen_at: datetime | None = None
    """When the first workflow task began whose worker knew of the cancel; None: nobody looked."""


@dataclass(frozen=True)
class Story:
    """All that is known of one task.

    Attributes:
        items: In the ledger, oldest first.
        transitions: In the ledger, by work item.
        jobs: The rows of `ai_jobs`, by work item.
        listed: What the query says once the task is closed.
        sightings: Work items as the ledger showed them meanwhile.
        lost_at: When the workflow tasks began that came to nothing. What they recorded is in the ledger, and
            was decided again later.
        deaths: When a worker died or was stopped.
        run_timeout_seconds: After which Temporal ends a run; the task has to end before.
        replay: Why the history does not replay; empty: it does.
    """

    task_id: str
    request: AiAgentRequest | AiFanOutRequest
    ending: Ending
    items: Sequence[WorkItem]
    transitions: Mapping[str, Sequence[Transition]]
    jobs: Mapping[str, Mapping[str, Any]]
    listed: Sequence[Mapping[str, Any]]
    calls: Sequence[Call] = ()
    acts: Sequence[Act] = ()
    sightings: Sequence[WorkItem] = ()
    lost_at: frozenset[datetime] = frozenset()
    deaths: Sequence[datetime] = ()
    run_timeout_seconds: float | None = None
    replay: str = ""

    @property
    def deadline(self) -> datetime | None:
        limits = [self.request.deadline_seconds]
        if self.run_timeout_seconds is not None:
            limits.append(self.run_timeout_seconds - min(30, self.run_timeout_seconds / 4))
        seconds = min((limit for limit in limits if limit is not None), default=None)
        return None if seconds is None else self.ending.started_at + timedelta(seconds=seconds)

    @property
    def prompts(self) -> dict[str, str]:
        """What was asked, by lineage."""
        if isinstance(self.request, AiFanOutRequest):
            return {lineage_of(index): prompt for index, prompt in enumerate(self.request.prompts)}
        return {MAIN_LINEAGE: self.request.prompt or ""}

    @property
    def policy(self) -> NamedPolicy:
        """A plain task has the default policy."""
        if isinstance(self.request, AiFanOutRequest):
            return self.request.policy
        return NamedPolicy(name="until_exhausted")

    @property
    def concurrency(self) -> int | None:
        """How many work items may be started at once; None: any number."""
        return self.request.concurrency if isinstance(self.request, AiFanOutRequest) else None

    @property
    def lineages(self) -> dict[str, list[WorkItem]]:
        """The work items of each lineage, in the order of their attempts."""
        found = defaultdict[str, list[WorkItem]](list)
        for item in sorted(self.items, key=lambda item: item.attempt):
            found[item.lineage].append(item)
        return dict(found)

    @property
    def forgotten(self) -> set[str]:
        """Work items that were recorded by a workflow task that came to nothing, were not decided again, and
        were settled with the task."""
        known = {row["id"] for row in self.listed} | {call.key for call in self.calls}
        return {
            item.id
            for item in self.items
            if self.lost_at and item.id not in known and self.ended_with_the_task(item)
        }

    @property
    def decided(self) -> dict[str, list[WorkItem]]:
        """The lineages without what is forgotten."""
        forgotten = self.forgotten
        kept = {
            name: [item for item in items if item.id not in forgotten]
            for name, items in self.lineages.items()
        }
        return {name: items for name, items in kept.items() if items}

    def call_of(self, item: WorkItem) -> Call | None:
        """The first request of the work item."""
        return next((call for call in self.calls if call.key == item.id), None)

    def ended_by(self, item: WorkItem) -> str:
        """The actor of the work item's last transition."""
        return self.transitions[item.id][-1].actor

    def ended_with_the_task(self, item: WorkItem) -> bool:
        """Whether the work item was canceled only because its task ended."""
        last = self.transitions[item.id][-1]
        by_task = (last.next_state, last.actor) == (WorkItemState.CANCELED, TASK_ACTOR)
        return by_task and (last.reason or "").startswith(_WITH_THE_TASK)


def label_of(item: WorkItem) -> str:
    """How a person names the work item within its task."""
    return item.label if item.lineage == MAIN_LINEAGE else f"{item.lineage}: {item.label}"


def text_of(item: WorkItem) -> str | None:
    """The answer's text, of a completed work item."""
    text = item.result.get("text") if isinstance(item.result, dict) else None
    return text if isinstance(text, str) else None
