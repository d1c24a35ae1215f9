"""Random actions on random tasks, on a real server, with the real AI call and the ledger in a real database.

A run starts a number of AI agent tasks against a provider that answers at random (well, late, never, with
errors), and lets operators act on them at random moments: on the right work item, on one that has ended, on
one that never was, with the same update id twice, two at once, and with Temporal's own cancel. Afterwards
each task's story, which is what the task, its query, the ledger and the provider each know of it, is checked
by `violations`, a pure function; the second half of this file plants each violation in a good story and sees
it found.

    TASQ_RANDOM_SEED=7 TASQ_RANDOM_TASKS=200 pytest -s tests/workflows/test_random_actions.py
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from temporalio.client import Client, WorkflowFailureError, WorkflowHandle, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError, CancelledError
from temporalio.service import RPCError, RPCStatusCode
from temporalio.worker import Replayer, Worker

from activities.client import make_client
from activities.generate import AiActivities
from tasquencer.ai import AI_JOBS, AiAgentRequest
from tasquencer.devkit.http_server import Exchange
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.failure import Failure, FailureKind
from tasquencer.ledger import Ledger, WorkItemFilter
from tasquencer.sql import SqlLedger, upgrade
from tasquencer.temporal import TasquencerPlugin
from tasquencer.testing import InMemoryLedger
from tasquencer.work_item import DelayReason, Transition, WorkItem, WorkItemState
from tests.support import answers
from tests.support.answers import Answer, Body
from tests.support.postgres import EmbeddedPostgres, NoPostgres, embedded_postgres
from tests.support.provider import ProviderRequest, ScriptedProvider
from workflows.ai_agent import AiAgentTask

Handle = WorkflowHandle[Any, Any]

LAG = timedelta(seconds=5)
"""A call is told to stop in the answer to a heartbeat, and this machine may be busy."""

TICK = timedelta(microseconds=1)
"""What a time may lose on its way through a float."""

CANCEL_TASK = "cancel_task"
"""Temporal's own cancel, among the actions."""

LEADS_TO = {
    "retry_now": WorkItemState.STARTED,
    "complete_work_item": WorkItemState.COMPLETED,
    "fail_work_item": WorkItemState.FAILED,
    "cancel_work_item": WorkItemState.CANCELED,
}
"""The updates, and the state of the transition that each makes."""


# What a task's story consists of


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
    """Of this action alone, also where two share an update id."""
    update_id: str
    work_item_id: str | None
    sent_at: datetime
    answered_at: datetime
    reply: Reply
    says: str = ""
    value: Mapping[str, Any] = field(default_factory=dict)
    recorded: frozenset[str] = frozenset()
    """The actors of the task's transitions in the ledger just after the answer."""

    @property
    def reason(self) -> str:
        return f"because {self.actor} says so"


@dataclass(frozen=True)
class Given:
    """An answer as the provider means it."""

    name: str
    kind: str | None = None
    """Of the failure that it should become; None: it is a good answer."""
    text: str | None = None
    retry_after: float | None = None


@dataclass(frozen=True)
class Call:
    """One request as the provider knows it."""

    key: str | None
    at: datetime
    ended_at: datetime | None
    given: Given
    complete: bool
    client_left: bool
    held: tuple[str, ...]
    """The states that the ledger knew of the work item when the request arrived."""


@dataclass(frozen=True)
class Ending:
    """How the task ended."""

    state: str
    """`completed`, `failed`, `canceled`, or `hangs` where nothing could end it."""
    started_at: datetime
    closed_at: datetime
    result: Mapping[str, Any] = field(default_factory=dict)
    type: str = ""
    message: str = ""


@dataclass(frozen=True)
class Story:
    """All that anybody knows of one task."""

    task_id: str
    request: AiAgentRequest
    ending: Ending
    items: list[WorkItem]
    """In the ledger, oldest first."""
    transitions: dict[str, list[Transition]]
    jobs: dict[str, dict[str, Any]]
    listed: list[dict[str, Any]]
    """What the query says once the task is closed."""
    calls: list[Call] = field(default_factory=list)
    acts: list[Act] = field(default_factory=list)
    sightings: list[WorkItem] = field(default_factory=list)
    """Work items as the ledger showed them meanwhile."""
    cancel_at: Any = None
    history: Any = None
    replay: str = ""
    """Why the history does not replay; empty: it does."""

    @property
    def deadline(self) -> datetime | None:
        seconds = self.request.deadline_seconds
        return None if seconds is None else self.ending.started_at + timedelta(seconds=seconds)

    def call_of(self, item: WorkItem) -> Call | None:
        return next((call for call in self.calls if call.key == item.id), None)

    def ended_by(self, item: WorkItem) -> str:
        return self.transitions[item.id][-1].actor


# The checker


def violations(story: Story) -> list[str]:
    """Each contradiction among what is known of the task, and each breach of an invariant."""
    if story.ending.state == "hangs":
        return ["the task cannot be brought to an end"]
    if not story.items:
        return ["the ledger has no work item of the task"]
    try:
        return [found for check in CHECKS for found in check(story)]
    except (KeyError, IndexError, TypeError) as error:  # so contradictory that a check stumbles
        return [f"a check stumbles: {error!r}", *nothing_dangles(story), *paths_are_legal(story)]


def paths_are_legal(story: Story) -> Iterator[str]:
    """Each work item goes a legal path to one end, and its row says the same as its log."""
    legal = {
        ("initialized", "canceled"),
        *(("initialized", "started", end) for end in ("completed", "failed", "canceled")),
    }
    for item in story.items:
        log = story.transitions.get(item.id, [])
        path = tuple(step.next_state.value for step in log)
        if path not in legal:
            yield f"{item.label}: its path is {' → '.join(path) or 'empty'}"
            continue
        if [step.sequence for step in log] != list(range(len(log))):
            yield f"{item.label}: its transitions are numbered {[step.sequence for step in log]}"
        if [step.previous_state for step in log] != [None, *(step.next_state for step in log[:-1])]:
            yield f"{item.label}: its transitions do not follow one another"
        if item.state is not log[-1].next_state:
            yield f"{item.label}: the row is {item.state}, the log says {log[-1].next_state}"
        times = [item.created_at, *([item.started_at] if item.started_at else []), item.ended_at]
        if [step.at for step in log] != times:
            yield f"{item.label}: row and log disagree on its times"
        if any(earlier > later for earlier, later in pairwise(step.at for step in log)):
            yield f"{item.label}: its times run backwards"


def what_ended_never_changed(story: Story) -> Iterator[str]:
    """I3."""
    now = {item.id: item for item in story.items}
    for seen in story.sightings:
        if seen.id not in now:
            yield f"I3: {seen.label} was in the ledger and is no more"
        elif seen.state.is_terminal and seen != now[seen.id]:
            yield f"I3: {seen.label} was {seen.state} and has changed since"


def nothing_starts_early(story: Story) -> Iterator[str]:
    """I4."""
    recipe = story.request.recipe()
    first = story.items[0]
    if (first.delay_seconds, first.delay_reason) != (0, DelayReason.FIRST_TRY):
        yield "I4: the first try has a delay"
    for before, item in pairwise(story.items):
        if before.ended_at is None or before.failure is None:
            continue  # somebody else's complaint
        if item.created_at != before.ended_at:
            yield f"I4: {item.label} was not recorded when {before.label} failed"
        if item.delay_reason is DelayReason.OPERATOR:
            starts = [step for step in story.transitions[item.id] if step.next_state == "started"]
            if not starts or starts[0].actor == "task":
                yield f"I4: {item.label} was hurried by nobody"
            elif item.not_before != item.started_at:
                yield f"I4: {item.label} was hurried, its not_before is not its start"
            continue
        delay = timedelta(seconds=item.delay_seconds)
        if abs(item.not_before - before.ended_at - delay) > TICK:
            yield f"I4: not_before of {item.label} is not the end before plus the delay"
        if item.started_at is not None and item.started_at < before.ended_at + delay - TICK:
            yield f"I4: {item.label} started early"
        asked = timedelta(seconds=before.failure.retry_after_seconds or 0)
        backoff = recipe.initial_interval * recipe.backoff_coefficient**before.attempt
        base = max(asked, backoff)
        if not base - TICK <= delay <= base * (1 + recipe.jitter) + TICK:
            yield f"I4: {item.label} waits {item.delay_seconds} s, the recipe says {base.total_seconds()} s"
        if item.delay_reason != ("retry_after" if asked > backoff else "backoff"):
            yield f"I4: the reason for the wait of {item.label} is {item.delay_reason}"


def lineage_is_bounded(story: Story) -> Iterator[str]:
    """I5."""
    if [item.attempt for item in story.items] != list(range(len(story.items))):
        yield f"I5: the attempts are numbered {[item.attempt for item in story.items]}"
    if len(story.items) > story.request.max_retries + 1:
        yield f"I5: {len(story.items)} work items, {story.request.max_retries} retries are allowed"
    if any(item.state != "failed" for item in story.items[:-1]):
        yield "I5: a work item follows one that did not fail"


def nothing_dangles(story: Story) -> Iterator[str]:
    """I6."""
    for item in story.items:
        if not item.state.is_terminal:
            yield f"I6: the task is closed, {item.label} is {item.state}"
    for call in story.calls:
        if call.ended_at is None or call.ended_at > story.ending.closed_at + LAG:
            yield f"I6: the task is closed, request {call.key} went on"


def the_policy_decided(story: Story) -> Iterator[str]:
    """I7."""
    ending, last = story.ending, story.items[-1]
    stopped = [act for act in story.acts if act.name == CANCEL_TASK and act.reply is Reply.ACCEPTED] if story.cancel_at else []
    if stopped and ending.state != "canceled":
        yield f"I7: the task was canceled, yet it {ending.state}"
    if ending.state == "canceled":
        if not stopped:
            yield "I7: the task ended canceled, nobody canceled it"
        elif any(item.created_at > stopped[0].answered_at + LAG for item in story.items):
            yield "I7: a work item began after the task was canceled"
    elif ending.state == "completed":
        if last.state != "completed":
            yield f"I7: the task completed, {last.label} is {last.state}"
            return
        text = last.result.get("text") if isinstance(last.result, dict) else None
        wanted = {"work_item_id": last.id, "attempts": len(story.items), "text": text}
        if {name: ending.result.get(name) for name in wanted} != wanted:
            yield f"I7: the result {dict(ending.result)} is not that of {last.label}"
    elif (expected := expected_failure(story)) != ending.type:
        yield f"I7: the task failed as {ending.type}, {last.label} makes it {expected}"
    elif last.failure is not None and str(last.failure) not in ending.message:
        yield f"I7: the task's failure does not say how {last.label} failed"


def expected_failure(story: Story) -> str:
    """The type of the task's failure, from the last work item alone."""
    last, recipe = story.items[-1], story.request.recipe()
    if last.state == "canceled":
        late = "before the deadline" in (story.transitions[last.id][-1].reason or "")
        return "DeadlineExceeded" if late else "TaskFailed"
    if last.failure is None or last.ended_at is None:
        return "none"
    if not recipe.qualifies(last.failure):
        return "NotRetryable"
    if last.attempt >= recipe.max_retries:
        return "RetriesExhausted"
    wait = recipe.delay(last.attempt, last.failure, 1.0).duration
    late = story.deadline is not None and last.ended_at + wait >= story.deadline
    return "DeadlineExceeded" if late else "none: a retry is left"


def nothing_starts_after_the_deadline(story: Story) -> Iterator[str]:
    for item in story.items:
        if story.deadline is not None and item.started_at is not None and item.started_at >= story.deadline:
            yield f"{item.label} started after the deadline"


def each_request_has_its_work_item(story: Story) -> Iterator[str]:
    """I1 and I2."""
    items = {item.id: item for item in story.items}
    for key, number in Counter(call.key for call in story.calls).items():
        if key not in items:
            yield f"I1: request {key} belongs to no work item"
        if number > 1:
            yield f"I2: {number} requests of {items[key].label if key in items else key}"
    for call in story.calls:
        item = items.get(call.key or "")
        if item is None:
            continue
        if "started" not in call.held:
            yield f"I1: {item.label} was {'/'.join(call.held) or 'unknown'} when its request arrived"
        # A start carries the time of its decision, so it is earlier than its record, which is earlier
        # than the request; all three by the clock of one machine.
        if item.started_at is None or call.at < item.started_at:
            yield f"I1: the request of {item.label} arrived before its start"
        if item.ended_at is not None and call.at > item.ended_at + LAG:
            yield f"I1: the request of {item.label} arrived after its end"


def each_end_has_its_cause(story: Story) -> Iterator[str]:
    """What a work item ended with is what the provider answered, unless somebody else ended it."""
    for item in story.items:
        call = story.call_of(item)
        if item.started_at is None or item.ended_at is None:
            continue
        if story.ended_by(item) != "task" or item.state == "canceled":
            yield from the_call_was_stopped(item, call)
        elif call is None:
            yield f"{item.label} is {item.state} without a request"
        elif item.state == "completed":
            text = item.result.get("text") if isinstance(item.result, dict) else None
            if call.given.kind is not None or not call.complete or text != call.given.text:
                yield f"{item.label} completed with {text!r}, the provider's answer is {call.given}"
        elif item.failure is not None:
            yield from the_failure_is_the_provider_s(story, item, item.failure, call)


def the_call_was_stopped(item: WorkItem, call: Call | None) -> Iterator[str]:
    if call is None or item.ended_at is None:
        return  # it ended before its request was sent
    if call.ended_at is None or call.ended_at > item.ended_at + LAG:
        yield f"the request of {item.label} went on after somebody ended the work item"
    elif call.given.name == "stall" and not call.client_left:
        yield f"the request of {item.label} was not disconnected"


def the_failure_is_the_provider_s(
    story: Story, item: WorkItem, failure: Failure, call: Call
) -> Iterator[str]:
    if failure.kind == FailureKind.TIMED_OUT:
        limit = timedelta(seconds=story.request.attempt_timeout_seconds)
        if story.deadline is not None and item.started_at is not None:
            limit = min(limit, max(story.deadline - item.started_at, timedelta(seconds=1)) - LAG / 10)
        if item.ended_at is not None and item.started_at is not None:
            if item.ended_at - item.started_at < limit:
                yield f"{item.label} timed out before its time"
        return
    if failure.kind != call.given.kind:
        yield f"{item.label} failed with {failure.kind}, the provider's answer is {call.given}"
    elif failure.retry_after_seconds != call.given.retry_after:
        asked = f"{failure.retry_after_seconds} s, the provider asked for {call.given.retry_after} s"
        yield f"{item.label} failed with a Retry-After of {asked}"


def each_action_counts_once(story: Story) -> Iterator[str]:
    """Every accepted action is in the log with its actor, once; no other left a trace."""
    made = defaultdict(list)
    for item in story.items:
        for step in story.transitions[item.id]:
            made[step.actor].append(step)
    for stranger in made.keys() - {"task"} - {act.actor for act in story.acts}:
        yield f"{stranger} acted, but never asked to"
    groups = defaultdict(list)
    for act in story.acts:
        if act.name != CANCEL_TASK:
            groups[act.update_id].append(act)
    for update_id, group in groups.items():
        steps = [step for act in group for step in made[act.actor]]
        accepted = [act for act in group if act.reply is Reply.ACCEPTED]
        what = f"{group[0].name} {update_id}"
        if any(act.reply is Reply.LOST for act in group):
            yield f"{what} was taken on and never answered"
        if len(steps) > 1:
            yield f"{what} acted {len(steps)} times"
        elif not accepted and steps:
            yield f"{what} was not accepted, yet it acted"
        elif accepted and not steps:
            yield f"{what} was accepted and did nothing"
        elif accepted:
            yield from the_action_did_what_it_says(what, group, accepted, steps[0])


def the_action_did_what_it_says(
    what: str, group: Sequence[Act], accepted: Sequence[Act], step: Transition
) -> Iterator[str]:
    act = next(act for act in group if act.actor == step.actor)
    if step.next_state is not LEADS_TO[act.name]:
        yield f"{what} led to {step.next_state}"
    ids = act.value.get("work_item_ids") or [act.value.get("work_item_id")]
    if step.work_item_id not in ids or act.work_item_id not in (None, step.work_item_id):
        yield f"{what} acted on {step.work_item_id}, it was meant for {act.work_item_id} and says {ids}"
    if act.reason not in (step.reason or ""):
        yield f"{what}: its reason is not in the log"
    if any(one.value != act.value for one in accepted):
        yield f"{what} was answered in two ways"
    if not min(one.sent_at for one in group) <= step.at <= max(one.answered_at for one in group):
        yield f"{what} acted at {step.at}, not between question and answer"
    if any(step.actor not in one.recorded for one in accepted):
        yield f"{what} was answered before it was in the ledger"


def the_query_agrees_with_the_ledger(story: Story) -> Iterator[str]:
    left_out = {"payload", "result", "worker"}  # the first two are large, the third only the ledger knows
    mine = [item.model_dump(mode="json", exclude=left_out) for item in story.items]
    theirs = [{key: value for key, value in row.items() if key in mine[0]} for row in story.listed]
    if [row["id"] for row in mine] != [row["id"] for row in theirs]:
        yield "the query lists other work items than the ledger"
        return
    for item, row, told in zip(story.items, mine, theirs, strict=True):
        different = [name for name in row if row[name] != told.get(name)]
        if different:
            name = different[0]
            yield f"{item.label}: {name} is {row[name]!r} in the ledger, {told.get(name)!r} in the query"


def the_ai_jobs_agree(story: Story) -> Iterator[str]:
    for item in story.items:
        job = story.jobs.get(item.id)
        result = item.result.get("text") if isinstance(item.result, dict) else None
        failure = str(item.failure) if item.failure is not None else None
        status = "pending" if item.state == "initialized" else item.state.value
        wanted = {"attempt": item.attempt, "status": status, "result": result, "last_error": failure}
        found = None if job is None else {name: job.get(name) for name in wanted}
        if found != wanted:
            yield f"{item.label}: its AI job is {found}, expected {wanted}"


def the_history_replays(story: Story) -> Iterator[str]:
    """I10, of this release."""
    if story.replay:
        yield f"I10: the history does not replay: {story.replay}"


CHECKS: list[Callable[[Story], Iterator[str]]] = [
    paths_are_legal,
    what_ended_never_changed,
    nothing_starts_early,
    lineage_is_bounded,
    nothing_dangles,
    the_policy_decided,
    nothing_starts_after_the_deadline,
    each_request_has_its_work_item,
    each_end_has_its_cause,
    each_action_counts_once,
    the_query_agrees_with_the_ledger,
    the_ai_jobs_agree,
    the_history_replays,
]


def told(story: Story) -> str:
    """The story in order of time, in seconds since the task's start."""
    labels = {item.id: f"{item.label} ({item.id[:8]})" for item in story.items}
    lines: list[tuple[datetime, str]] = [
        (story.ending.started_at, f"task {story.task_id} {story.request.model_dump(exclude_defaults=True)}"),
        (
            story.ending.closed_at,
            f"task {story.ending.state} {story.ending.type} {story.ending.message}"
            f"{dict(story.ending.result) or ''}",
        ),
    ]
    for item in story.items:
        for step in story.transitions.get(item.id, []):
            more = (
                f" after {item.delay_seconds:g} s {item.delay_reason}" if step.next_state == "started" else ""
            )
            more += f" {item.failure}" if step.next_state == "failed" else ""
            said = f"{labels[item.id]} {step.next_state} by {step.actor}{more}"
            lines.append((step.at, f"{said}: {step.reason}" if step.reason else said))
    for call in story.calls:
        label = labels.get(call.key or "", call.key)
        lines.append(
            (call.at, f"request of {label}, answer {call.given.name}; ledger: {'/'.join(call.held)}")
        )
        if call.ended_at is not None:
            how = "the client left" if call.client_left else "answered" if call.complete else "broken off"
            lines.append((call.ended_at, f"request of {label} over: {how}"))
    for act in story.acts:
        target = labels.get(act.work_item_id or "", act.work_item_id or "")
        lines.append((act.sent_at, f"{act.actor} sends {act.name} {target} as {act.update_id}"))
        lines.append((act.answered_at, f"{act.actor} is told: {act.reply} {act.says or dict(act.value)}"))
    start = story.ending.started_at
    return "\n".join(
        f"  {(at - start).total_seconds():8.3f}  {line}"
        for at, line in sorted(lines, key=lambda line: line[0])
    )


# The provider


def late(seconds: float, then: Answer) -> Answer:
    """The same answer, later."""

    async def give(exchange: Exchange, body: Body) -> None:
        await asyncio.sleep(seconds)
        await then.give(exchange, body)

    return Answer(then.name, give)


def random_answer(dice: random.Random, key: str) -> tuple[Answer, Given]:
    """An answer and what it means; good ones quote the request's key, so that no two are alike."""
    text = f"answer to {key}"
    asked = dice.choice([None, 0.0, 0.1, 0.35])
    (name,) = dice.choices(
        ["ok", "slow", "stall", "rate_limited", "status 500", "status 400", "reset", "closed", "filtered"],
        [3, 3, 6, 5, 4, 1, 2, 1, 1],
    )
    header = None if asked is None else str(asked)
    makers: dict[str, tuple[Answer, Given]] = {
        "ok": (answers.ok(text), Given(name, None, text)),
        "slow": (answers.slow(text, pause_seconds=dice.choice([0.02, 0.2])), Given(name, None, text)),
        "stall": (answers.stall(), Given(name, "timed_out")),
        "rate_limited": (answers.rate_limited(header), Given(name, "rate_limited", retry_after=asked)),
        "status 500": (answers.status(500), Given(name, "provider_error")),
        "status 400": (answers.status(400), Given(name, "invalid_request")),
        "reset": (answers.reset(), Given(name, "unreachable")),
        "closed": (answers.closed(), Given(name, "unreachable")),
        "filtered": (answers.content_filter(), Given(name, "refused")),
    }
    answer, given = makers[name]
    if dice.random() < 0.5:
        answer = late(dice.uniform(0, 0.6), answer)
    return answer, given


class RandomProvider:
    """Decides about the answers, notes what the ledger knows when a request arrives, and tells the operators
    when something happens, because that is when an action meets something."""

    def __init__(self, seed: str, ledger: Ledger) -> None:
        self._seed = seed
        self._ledger = ledger
        self._given: dict[int, tuple[Given, tuple[str, ...]]] = {}
        self._requests: Counter[str] = Counter()
        self.moments: defaultdict[str, asyncio.Event] = defaultdict(asyncio.Event)
        self.server = ScriptedProvider(self._choose)

    async def _choose(self, request: ProviderRequest) -> Answer:
        prompt, key = request.prompt, request.idempotency_key or ""
        self._requests[prompt] += 1
        dice = random.Random(f"{self._seed}/{prompt}/{self._requests[prompt]}")
        chosen, given = random_answer(dice, key)
        self._given[request.number] = (given, ())
        held = await self._ledger.transitions(key)
        self._given[request.number] = (given, tuple(step.next_state.value for step in held))
        moment = self.moments[prompt]
        moment.set()

        async def give(exchange: Exchange, body: Body) -> None:
            await chosen.give(exchange, body)
            moment.set()

        return Answer(chosen.name, give)

    def calls_of(self, prompt: str) -> list[Call]:
        return [
            Call(
                key=request.idempotency_key,
                at=request.at,
                ended_at=request.ended_at,
                given=self._given[request.number][0],
                complete=request.complete,
                client_left=request.client_left,
                held=self._given[request.number][1],
            )
            for request in self.server.requests
            if request.prompt == prompt
        ]


# The operators


def random_request(dice: random.Random, prompt: str) -> dict[str, Any]:
    request: dict[str, Any] = {
        "prompt": prompt,
        "max_retries": dice.choice([0, 1, 2, 3, 3, 5, 8]),
        "attempt_timeout_seconds": dice.choice([0.7, 3.0, 30.0, 30.0]),
        "retry": {
            "initial_interval_seconds": dice.choice([0, 0.05, 0.1, 0.3, 0.3, 3600]),
            "backoff_coefficient": dice.choice([1, 1.5, 2]),
            "jitter": dice.choice([0, 0, 0.5]),
            "retry_on": dice.choice(["transient", "any"]),
        },
    }
    if dice.random() < 0.1:
        request["deadline_seconds"] = dice.choice([1.5, 3.0])
    return request


class Operators:
    """Random people who act on one task until it has ended, and in the end bring it to an end."""

    def __init__(self, dice: random.Random, handle: Handle, ledger: Ledger, moment: asyncio.Event) -> None:
        self._dice = dice
        self._handle = handle
        self._ledger = ledger
        self._moment = moment
        self._names = itertools.count()
        self.acts: list[Act] = []
        self.sightings: list[WorkItem] = []

    async def work(self) -> bool:
        """Whether the task could be brought to an end."""
        for _ in range(self._dice.randrange(1, 9)):
            await self._wait_for_a_moment()
            if not await self._act(self._random_style()):
                return True
        self._dice = random.Random(self._dice.random())
        for _ in range(60):
            await asyncio.sleep(0.2)
            if not await self._act("closing"):
                return True
        return False

    async def _wait_for_a_moment(self) -> None:
        gap = self._dice.uniform(0, 0.5)
        if self._dice.random() < 0.6:
            self._moment.clear()
            with suppress(TimeoutError):
                await asyncio.wait_for(self._moment.wait(), gap)
            gap = self._dice.choice([0, 0, 0.003, 0.01, 0.03, 0.1])
        await asyncio.sleep(gap)

    def _random_style(self) -> str:
        styles = ["one", "again", "twice", "race"]
        return self._dice.choices(styles, [5, 1, 2, 3])[0]

    async def _act(self, style: str) -> bool:
        """Act once, in this style; False: the task has ended."""
        items = await self._look()
        if style == "closing":
            if (await self._handle.describe()).close_time is not None:
                return False
            style = "one"
        name, target = self._random_action(items)
        update_id = f"update-{next(self._names)}"
        if name == CANCEL_TASK and style != "race":
            style = "one"
        sends: list[Awaitable[Act]] = [self._send(name, target, update_id)]
        if style == "twice":
            sends += [self._send(name, target, update_id) for _ in range(self._dice.randrange(1, 3))]
        elif style == "race":
            for _ in range(self._dice.randrange(1, 3)):
                sends.append(self._send(*self._random_action(items), f"update-{next(self._names)}"))
        acts = list(await asyncio.gather(*sends))
        if style == "again":
            acts.append(await self._send(name, target, update_id))
        self.acts += acts
        return any(act.reply is not Reply.GONE for act in acts)

    async def _look(self) -> list[WorkItem]:
        wanted = WorkItemFilter(task_id=self._handle.id, oldest_first=True, limit=2000)
        items = await self._ledger.work_items(wanted)
        self.sightings += items
        return items

    def _random_action(self, items: Sequence[WorkItem]) -> tuple[str, str | None]:
        state = items[-1].state.value if items else "initialized"
        # retry_now, complete, fail, cancel, cancel of the task
        weights = {"initialized": [12, 1, 1, 2, 1], "started": [1, 4, 12, 2, 1]}.get(state, [1, 1, 1, 1, 1])
        (name,) = self._dice.choices([*LEADS_TO, CANCEL_TASK], weights)
        if name in ("retry_now", CANCEL_TASK):
            return name, None
        ids = [item.id for item in items] or ["too early"]
        return name, self._dice.choices([ids[-1], self._dice.choice(ids), "nobody"], [8, 1, 1])[0]

    async def _send(self, name: str, target: str | None, update_id: str) -> Act:
        actor = f"operator-{next(self._names)}"
        act = Act(name, actor, update_id, target, NOWHEN, NOWHEN, Reply.ACCEPTED)
        payload: dict[str, Any] = {"actor": actor, "reason": act.reason}
        if target is not None:
            payload["work_item_id"] = target
        if name == "complete_work_item":
            payload["result"] = {"text": f"by hand of {actor}"}
        sent_at = datetime.now(UTC)
        value: Mapping[str, Any] = {}
        reply, says = Reply.ACCEPTED, ""
        try:
            if name == CANCEL_TASK:
                await self._handle.cancel()
            else:
                value = await self._handle.execute_update(name, payload, id=update_id)
        except WorkflowUpdateFailedError as error:
            cause = error.cause
            refused = isinstance(cause, ApplicationError) and cause.type in (
                "ActionRefused",
                "InvalidRequest",
            )
            reply, says = Reply.REFUSED if refused else Reply.LOST, str(cause)
        except RPCError as error:
            if error.status is not RPCStatusCode.NOT_FOUND:
                raise
            reply, says = Reply.GONE, error.message
        answered_at = datetime.now(UTC)
        recorded: set[str] = set()
        for item in await self._look():
            recorded |= {step.actor for step in await self._ledger.transitions(item.id)}
        return replace(
            act,
            sent_at=sent_at,
            answered_at=answered_at,
            reply=reply,
            says=says,
            value=value,
            recorded=frozenset(recorded),
        )


NOWHEN = datetime(1970, 1, 1, tzinfo=UTC)


# A run


@asynccontextmanager
async def worker_for(server: EmbeddedTemporal, ledger: Ledger, base_url: str) -> AsyncIterator[Worker]:
    client = await Client.connect(server.address, plugins=[TasquencerPlugin(ledger)])
    async with make_client(api_key="sk-test-0123456789abcdef", base_url=base_url) as model:
        worker = Worker(
            client,
            task_queue=f"random-{random.SystemRandom().getrandbits(64):x}",
            workflows=[AiAgentTask],
            activities=[AiActivities(model, "tiny-1", lambda *_: None).generate],
            max_heartbeat_throttle_interval=timedelta(milliseconds=50),
        )
        async with worker:
            yield worker


async def random_stories(
    server: EmbeddedTemporal, ledger: Ledger, seed: int, number: int, at_once: int = 25
) -> list[Story]:
    """Run so many tasks and gather what is known of each."""
    provider = RandomProvider(str(seed), ledger)
    async with provider.server, worker_for(server, ledger, provider.server.base_url) as worker:
        slots = asyncio.Semaphore(at_once)

        async def one(prompt: str) -> Story:
            async with slots:
                return await random_story(worker, ledger, provider, seed, prompt)

        return list(await asyncio.gather(*(one(f"prompt {count}") for count in range(number))))


async def random_story(
    worker: Worker, ledger: Ledger, provider: RandomProvider, seed: int, prompt: str
) -> Story:
    dice = random.Random(f"{seed}/{prompt}")
    request = random_request(dice, prompt)
    handle = await worker.client.start_workflow(
        "AiAgentTask",
        args=[request],
        id=f"{worker.task_queue}-{prompt.replace(' ', '-')}",
        task_queue=worker.task_queue,
    )
    operators = Operators(dice, handle, ledger, provider.moments[prompt])
    could_end = await operators.work()
    h = await handle.fetch_history()
    items = await ledger.work_items(WorkItemFilter(task_id=handle.id, oldest_first=True, limit=2000))
    ids = [item.id for item in items]
    ending = await ending_of(handle) if could_end else await hangs(handle)
    items = await ledger.work_items(WorkItemFilter(task_id=handle.id, oldest_first=True, limit=2000))
    ids = [item.id for item in items]
    return Story(
        task_id=handle.id,
        request=AiAgentRequest.model_validate(request),
        ending=ending,
        items=items,
        transitions={item_id: await ledger.transitions(item_id) for item_id in ids},
        jobs={key: dict(job) for key, job in (await ledger.domain_records(AI_JOBS, ids)).items()},
        listed=await handle.query("work_items") if could_end else [],
        calls=provider.calls_of(prompt),
        acts=operators.acts,
        sightings=operators.sightings,
        replay=await replay_of(handle),
        cancel_at=next((e.event_time.ToDatetime(UTC) for e in h.events if e.HasField('workflow_execution_cancel_requested_event_attributes')),None), history=h,
    )


async def ending_of(handle: Handle) -> Ending:
    state, result, kind, message = "completed", {}, "", ""
    try:
        result = await handle.result()
    except WorkflowFailureError as error:
        state = "canceled" if isinstance(error.cause, CancelledError) else "failed"
        if isinstance(error.cause, ApplicationError):
            kind, message = error.cause.type or "", error.cause.message
    described = await handle.describe()
    assert described.close_time is not None
    return Ending(state, described.start_time, described.close_time, result, kind, message)


async def hangs(handle: Handle) -> Ending:
    """The task as it hangs, before it is terminated."""
    described = await handle.describe()
    with suppress(RPCError):
        await handle.terminate()
    return Ending("hangs", described.start_time, datetime.now(UTC))


async def replay_of(handle: Handle) -> str:
    replayer = Replayer(workflows=[AiAgentTask], plugins=[TasquencerPlugin(InMemoryLedger())])
    result = await replayer.replay_workflow(await handle.fetch_history(), raise_on_replay_failure=False)
    return str(result.replay_failure or "")


def reached(stories: Sequence[Story]) -> Counter[str]:
    """What happened how often: a run that reaches nothing proves nothing."""
    seen: Counter[str] = Counter()
    for story in stories:
        seen[f"task {story.ending.state} {story.ending.type}".strip()] += 1
        seen["work items"] += len(story.items)
        seen["requests"] += len(story.calls)
        seen["disconnected"] += sum(call.client_left for call in story.calls)
        seen["hurried"] += sum(item.delay_reason is DelayReason.OPERATOR for item in story.items)
        seen["outcome kept in a canceled task"] += (
            story.ending.state == "canceled" and story.items[-1].state != "canceled"
        )
        for act in story.acts:
            seen[f"{act.name} {act.reply}"] += 1
        ids = Counter(act.update_id for act in story.acts if act.reply is Reply.ACCEPTED)
        seen["accepted again under the same id"] += sum(count - 1 for count in ids.values())
        for item in story.items:
            call = story.call_of(item)
            if item.state.is_terminal and call is not None and story.ended_by(item) != "task":
                seen["answer and operator met"] += call.complete
    return seen


WANTED = [
    "task completed",
    "task canceled",
    "disconnected",
    "hurried",
    *(f"{name} {reply}" for name in LEADS_TO for reply in ("accepted", "refused")),
    "accepted again under the same id",
]


SEED = os.environ.get("TASQ_RANDOM_SEED")
TASKS = int(os.environ.get("TASQ_RANDOM_TASKS", "20"))
RUNS = [("sqlite", 1), ("sqlite", 2), ("postgresql", 3)] if SEED is None else [("sqlite", int(SEED))]


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def postgres() -> AsyncIterator[EmbeddedPostgres]:
    """A PostgreSQL server. A machine without one skips, CI fails."""
    try:
        async with embedded_postgres() as server:
            yield server
    except NoPostgres as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(str(error))


@pytest.fixture(params=["sqlite", pytest.param("postgresql", marks=pytest.mark.postgresql)])
async def ledger(request: pytest.FixtureRequest, tmp_path: Path) -> AsyncIterator[Ledger]:
    """An empty ledger in a database of its own."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    if request.param == "postgresql":
        server: EmbeddedPostgres = request.getfixturevalue("postgres")
        url = await server.create_database("random_actions")
        await upgrade(url)
    async with SqlLedger(url) as opened:
        yield opened


@pytest.mark.timeout(60 + 4 * TASKS)
async def test_random_actions_keep_the_invariants(dev_server: EmbeddedTemporal, ledger: Ledger) -> None:
    seeds = [int(SEED)] if SEED else [1, 2]
    stories = [story for seed in seeds for story in await random_stories(dev_server, ledger, seed, TASKS)]
    wrong = {story.task_id: found for story in stories if (found := violations(story))}
    smallest = min(
        (story for story in stories if story.task_id in wrong),
        key=lambda story: len(told(story)),
        default=None,
    )
    seen = reached(stories)
    for story in stories:
        if story.task_id in wrong:
            print('='*30, wrong[story.task_id]); print(told(story))
            for e in story.history.events:
                a=e.WhichOneof('attributes')
                x=getattr(e,a)
                print('   ', (e.event_time.ToDatetime(UTC)-story.ending.started_at).total_seconds(), e.event_id, a[:-17], str(getattr(x,'cause','')), str(getattr(x,'marker_name','')), str(getattr(x,'activity_id','')))
    print("", *(f"{count:6} {what}" for what, count in sorted(seen.items())), sep="\n")
    if smallest is not None:
        kinds = "\n".join(f"  {task}: {problem}" for task, found in wrong.items() for problem in found)
        problems = "\n".join(f"  {problem}" for problem in wrong[smallest.task_id])
        pytest.fail(
            f"seeds {seeds}, {len(wrong)} of {len(stories)} tasks:\n{kinds}\n\n"
            f"the smallest story:\n{told(smallest)}\n{problems}"
        )
    if len(stories) >= 40:
        assert [what for what in WANTED if not seen[what]] == []
