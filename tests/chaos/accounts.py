"""One task's accounts side by side: its result, history, ledger rows and requests; and the events."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tasquencer.ai.fan_out import AiFanOutRequest
from tasquencer.ai.request import AiAgentRequest
from tasquencer.core.work_item import WorkItem
from tests.chaos.events import DEATHS, Event
from tests.chaos.histories import History
from tests.chaos.ledger_rows import LedgerRows
from tests.chaos.plan import TaskPlan
from tests.stories.story import Act, Call, Ending, Given, Story

__all__ = ["Account", "BatchAccount", "TaskRun", "calls_in", "make_account"]


@dataclass
class TaskRun:
    """A task as the one who started it knows it.

    Attributes:
        outcome: What the client was told at the end: how it ended, with the result or the error's type and
            message; None: nothing, until time was up.
        terminated_because: The reason somebody gave who terminated the task, or tried to.
        listed: What its query says at the end; None: it does not answer.
    """

    plan: TaskPlan
    task_id: str
    started_at: datetime
    outcome: tuple[str, Mapping[str, Any], str, str] | None = None
    acts: Sequence[Act] = ()
    uncertain: frozenset[str] = frozenset()
    terminated_because: str | None = None
    listed: Sequence[Mapping[str, Any]] | None = None
    query_error: str = ""


@dataclass(frozen=True)
class BatchAccount:
    """What is known of the batch at the end.

    Attributes:
        history: The history of the batch's own workflow.
        result: The result that the client got. None if it got none before the time was up.
        query_error: Why the batch does not report its progress at the end.
        recorded: The state of each row in the ledger, by the row's id.
        tasks: How the workflow of each row's task ended.
    """

    result: Mapping[str, Any] | None
    recorded: Mapping[str, str]
    tasks: Mapping[str, str]
    history: History = field(default_factory=History)
    query_error: str = ""


@dataclass(frozen=True)
class Account:
    """All accounts of one task.

    Attributes:
        story: As `tests.stories` has it.
        outcome: See `TaskRun`, and so for `terminated_because`.
        events: Of the whole run that touch the time of this task.
        last_fault_at: When the faults stopped.
    """

    story: Story
    history: History
    outcome: tuple[str, Mapping[str, Any], str, str] | None
    listed: Sequence[Mapping[str, Any]] | None
    events: Sequence[Event]
    last_fault_at: datetime
    uncertain: frozenset[str] = frozenset()
    query_error: str = ""
    terminated_because: str | None = None

    @property
    def is_cut_off(self) -> bool:
        """Whether Temporal ended the task, which had no chance to settle its work items."""
        return self.history.state in ("terminated", "timed out")

    def events_between(self, kinds: Sequence[str], begin: datetime, end: datetime) -> list[Event]:
        """What of these kinds was under way between the two times."""
        return [event for event in self.events if event.kind in kinds and event.overlaps(begin, end)]


def calls_in(log: Path) -> dict[str, list[Call]]:
    """The provider's log: the requests by task, in the order of their arrival."""
    begun: dict[int, dict[str, Any]] = {}
    ended: dict[int, dict[str, Any]] = {}
    for line in log.read_text().splitlines():
        facts = json.loads(line)
        (ended if "ended_at" in facts else begun)[facts["number"]] = facts
    calls = defaultdict[str, list[Call]](list)
    for number, facts in sorted(begun.items()):
        end = ended.get(number, {})
        call = Call(
            key=facts["key"],
            at=datetime.fromtimestamp(facts["at"], UTC),
            ended_at=datetime.fromtimestamp(end["ended_at"], UTC) if end else None,
            given=Given(**facts["given"]),
            complete=end.get("how") == "answered",
            client_left=end.get("how") == "the client left",
            held=facts["held"],
        )
        calls[facts["prompt"].partition(":")[0]].append(call)
    return calls


def make_account(
    run: TaskRun,
    history: History,
    rows: LedgerRows,
    calls: Sequence[Call],
    sightings: Sequence[WorkItem],
    events: Sequence[Event],
    last_fault_at: datetime,
) -> Account:
    """Put the accounts of one task together."""
    items = rows.items.get(run.task_id, [])
    begin, end = history.started_at or run.started_at, history.closed_at or datetime.now(UTC)
    touching = [event for event in events if event.overlaps(begin, end)]
    kind = AiFanOutRequest if "prompts" in run.plan.request else AiAgentRequest
    state = "hangs" if history.state == "open" else history.state
    story = Story(
        task_id=run.task_id,
        request=kind.model_validate(run.plan.request),
        ending=Ending(
            state=state,
            started_at=begin,
            closed_at=end,
            cancel_at=history.cancel_at,
            result=history.result,
            type=history.error_type,
            message=history.message,
        ),
        items=items,
        transitions={item.id: rows.transitions[item.id] for item in items},
        jobs={item.id: rows.jobs[item.id] for item in items if item.id in rows.jobs},
        listed=run.listed or [],
        calls=calls,
        acts=run.acts,
        sightings=sightings,
        lost_at=frozenset(history.lost_at),
        run_timeout_seconds=run.plan.run_timeout_seconds,
        deaths=[event.at for event in touching if event.kind in DEATHS],
    )
    return Account(
        story=story,
        history=history,
        outcome=run.outcome,
        listed=run.listed,
        events=touching,
        last_fault_at=last_fault_at,
        uncertain=run.uncertain,
        query_error=run.query_error,
        terminated_because=run.terminated_because,
    )
