"""Plays a task to its end: the decisions are the product's own, the times and the provider are made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import count
from typing import Any

from tasquencer.ai.answer import AiAgentResult
from tasquencer.ai.fan_out import AiFanOutRequest, AiFanOutResult
from tasquencer.ai.job import AiJob, ChatMessage
from tasquencer.ai.record import ai_job_record
from tasquencer.ai.request import AiAgentRequest
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.task_state import TaskState
from tasquencer.core.work_item import WorkItem
from tests.stories.story import CANCEL_TASK, Act, Call, Ending, Given, Reply, Story

__all__ = ["Play", "at", "listed"]

START = datetime(2026, 11, 23, 12, tzinfo=UTC)


def at(seconds: float) -> datetime:
    """So many seconds after the start of the task."""
    return START + timedelta(seconds=seconds)


def listed(items: Sequence[WorkItem]) -> list[dict[str, Any]]:
    """What the query says of these work items."""
    return [item.model_dump(mode="json", exclude={"payload", "result", "worker"}) for item in items]


class Play:
    """A task whose work items are called w0, w1 … and begin at second 0."""

    def __init__(self, **request: Any) -> None:
        is_fan_out = "prompts" in request
        self.request = (AiFanOutRequest if is_fan_out else AiAgentRequest).model_validate(request)
        self.calls: list[Call] = []
        self.acts: list[Act] = []
        self._sightings: list[WorkItem] = []
        bare = Story("", self.request, Ending("", START, START), [], {}, {}, [])
        numbers = count()
        self.state = TaskState(
            task_id="task-1",
            run_id="run-1",
            task_type="AiFanOutTask" if is_fan_out else "AiAgentTask",
            recipe=self.request.recipe(),
            policy=bare.policy.decide(),
            record_of=ai_job_record,
            deadline=bare.deadline,
            new_id=lambda *_: f"w{next(numbers)}",
            random=lambda *_: 0.0,
        )
        for lineage, prompt in bare.prompts.items():
            job = AiJob(messages=[ChatMessage(role="user", content=prompt)])
            self.state.begin(job.model_dump(mode="json", exclude_defaults=True), now=START, lineage=lineage)

    def call(self, key: str, start: float, end: float, given: Given, actor: str = "") -> None:
        """The work item starts, its request arrives a second later, and is answered or left."""
        reason = f"because {actor} says so" if actor else None
        self.state.start(key, now=at(start), actor=actor or "task", reason=reason, hurried=bool(actor))
        self.calls.append(
            Call(
                key,
                at(start + 1),
                at(end),
                given,
                complete=not given.endless,
                client_left=given.endless,
                held=("initialized", "started"),
            )
        )

    def completes(self, key: str, start: float, end: float) -> None:
        """The provider gives a good answer."""
        text = f"answer to {key}"
        self.call(key, start, end, Given("ok", text=text))
        self.state.complete(key, {"text": text}, now=at(end))

    def fails(
        self, key: str, start: float, end: float, kind: FailureKind, retry_after: float | None = None
    ) -> None:
        """The provider gives a bad one."""
        self.call(key, start, end, Given(kind.value, kind.value, retry_after=retry_after))
        failure = Failure.of(kind, "it says so", retry_after_seconds=retry_after)
        self.state.fail(key, failure, now=at(end))

    def act(
        self, name: str, number: int, sent: float, reply: Reply, key: str | None = None, **more: Any
    ) -> str:
        """Somebody acts, and is answered two seconds later; their name."""
        actor = f"operator-{number}"
        value = {"work_item_id": key} if reply is Reply.ACCEPTED and name != CANCEL_TASK else {}
        act = Act(
            name=name,
            actor=actor,
            update_id=f"update-{number}",
            work_item_id=key,
            sent_at=at(sent),
            answered_at=at(sent + 2),
            reply=reply,
            value=value,
            recorded=frozenset({actor}),
        )
        self.acts.append(replace(act, **more))
        return actor

    def look(self) -> None:
        """Somebody looks into the ledger."""
        self._sightings += self.state.work_items()

    def story(self, state: str, closed: float, cancel_at: datetime | None = None) -> Story:
        """All that is known at the end."""
        items = self.state.work_items()
        entries = self.state.take_entries()
        result: dict[str, Any] = {}
        kind = message = ""
        if state == "completed" and isinstance(self.request, AiFanOutRequest):
            result = AiFanOutResult.of(items, len(self.request.prompts)).model_dump(mode="json")
        elif state == "completed":
            result = AiAgentResult.of(items[-1], items).model_dump(mode="json")
        elif state == "failed":
            failure = self.state.failure()
            kind, message = failure.type, failure.message
        steps = [entry.transition for entry in entries]
        return Story(
            task_id="task-1",
            request=self.request,
            ending=Ending(
                state, START, at(closed), cancel_at=cancel_at, result=result, type=kind, message=message
            ),
            items=items,
            transitions={item.id: [step for step in steps if step.work_item_id == item.id] for item in items},
            jobs={entry.work_item.id: entry.record.values for entry in entries if entry.record is not None},
            listed=listed(items),
            calls=self.calls,
            acts=self.acts,
            sightings=self._sightings,
        )
