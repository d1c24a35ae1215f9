"""The agent's loop, for workflow code: turns of the model, and the tool calls between them.

    agent = Agent(task, request, deadline)
    while (turn := agent.next_turn()) is not None:
        async for work_item in turn.attempts:
            async with work_item:
                work_item.complete(await agent.answer(work_item))
        await agent.use_tools(turn)
    return agent.result()

Each turn, each tool call and each approval is a lineage: `turn-2`, `turn-2/refund`, `turn-2/refund/approval`.
A task without tools has one turn, whose lineage is `main`.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from temporalio import workflow
from temporalio.common import RawValue

from tasquencer.ai.agent import TOOL, approval_lineage, is_turn
from tasquencer.ai.answer import AgentResult, AiAgentResult, AiAnswer, ToolCallResult
from tasquencer.ai.job import MAXIMUM_CONVERSATION_BYTES, AiJob, ChatMessage
from tasquencer.ai.request import AiAgentRequest
from tasquencer.ai.review import REVIEW_KIND, Decision, Review
from tasquencer.ai.timeouts import CALL_MARGIN
from tasquencer.ai.tool_calls import (
    OnToolFailure,
    ToolCall,
    ToolJob,
    assistant_message,
    not_approved,
    tool_lineages,
    tool_message,
)
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.lineage import MAIN_LINEAGE
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.wording import attempt_label
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.temporal.activations import Behaviour, behaves
from tasquencer.temporal.attempts import ActiveWorkItem, Attempts
from tasquencer.temporal.failures import task_error
from tasquencer.temporal.model_call import answer
from tasquencer.temporal.reminders import decided
from tasquencer.temporal.task import Task
from tasquencer.temporal.tool_activity import CALL_TOOL
from tasquencer.temporal.wire import received_json, sent

__all__ = ["Agent", "Turn"]

_MOST_TOOLS_AT_ONCE: Final = 8
"""Tool calls of one turn that run at the same time. Approvals do not count."""

_MOST_WORK_ITEMS: Final = 2_000
"""Maximum work items of one task, which carries all of them along when it continues as new."""

_ONCE = RetryRecipe(max_retries=0)


@dataclass(frozen=True)
class Turn:
    """One turn: the model is asked once, and then its tools are called.

    Attributes:
        number: From 1.
        attempts: The attempts at the model's answer.
    """

    number: int
    lineage: str
    job: AiJob
    attempts: Attempts


class Agent:
    """Continues one conversation until the model answers without calling a tool.

    Args:
        task: With `results_bytes=RESULTS_BYTES` and `rules=TOOL_RULES`.
        request: The task's request.
        deadline: The deadline of the whole task.
    """

    def __init__(self, task: Task, request: AiAgentRequest, deadline: datetime | None) -> None:
        self._task = task
        self._request = request
        self._deadline = deadline
        self._job = request.job()
        self._turns = 0
        self._is_over = False
        self._results: list[ToolCallResult] = []
        self._places = asyncio.Semaphore(_MOST_TOOLS_AT_ONCE)

    def next_turn(self) -> Turn | None:
        """Return the next turn, or None when the model has answered.

        Raises:
            ApplicationError: of type `TaskFailed`, if no turn is left.
        """
        if self._is_over:
            return None
        request, number = self._request, self._turns + 1
        if number > request.max_turns:
            turns = "1 turn" if request.max_turns == 1 else f"{request.max_turns} turns"
            raise task_error("TaskFailed", f"the model still calls tools after {turns} (max_turns)")
        self._turns = number
        lineage = MAIN_LINEAGE if request.tools is None else f"turn-{number}"
        attempts = self._task.attempts(
            self._job, lineage=lineage, recipe=request.recipe(), deadline=self._deadline
        )
        return Turn(number, lineage, self._job, attempts)

    def _check_size(self) -> None:
        size = len(self._job.model_dump_json(exclude_defaults=True).encode())
        if size > MAXIMUM_CONVERSATION_BYTES:
            message = (
                f"the conversation has {size:,} bytes after {self._turns} turns, the limit is "
                f"{MAXIMUM_CONVERSATION_BYTES:,}; nothing more was sent"
            )
            raise task_error("TaskFailed", message)
        if len(self._task.work_items) > _MOST_WORK_ITEMS:
            raise task_error("TaskFailed", f"the task has more than {_MOST_WORK_ITEMS:,} work items")

    async def answer(self, work_item: ActiveWorkItem) -> AiAnswer:
        """Ask the model once for this work item of a turn."""
        job = AiJob.model_validate(work_item.payload)
        summary = None
        if self._request.tools is not None:
            summary = f"turn {self._turns} · {attempt_label(work_item.attempt, self._request.max_retries)}"
        return await answer(work_item, job, self._request, self._deadline, summary=summary)

    async def use_tools(self, turn: Turn) -> None:
        """Call the tools that the model asked for in this turn, side by side, and keep their results.

        Raises:
            ApplicationError: the turn has no answer, a tool with `on_failure="fail_task"` has failed, or the
                conversation is too long.
        """
        answered = AiAnswer.model_validate(self._task.result(turn.lineage))
        calls = answered.tool_calls
        if not calls:
            self._is_over = True
            return
        lineages = tool_lineages(turn.number, calls)
        messages = await asyncio.gather(
            *(self._use(turn.number, call, lineage) for call, lineage in zip(calls, lineages, strict=True))
        )
        self._task.check()
        conversation = [*turn.job.messages, assistant_message(answered.text, calls), *messages]
        update = {"messages": conversation, "tool_choice": _later_choice(turn.job.tool_choice)}
        self._job = turn.job.model_copy(update=update)
        self._check_size()
        await self._task.continue_as_new_if_due()

    async def _use(self, turn: int, call: ToolCall, lineage: str) -> ChatMessage:
        """Call one tool, after its approval if it needs one. Return the text for the model."""
        if call.problem is None and call.options.requires_approval:
            decision, asked = await self._approval(call, approval_lineage(lineage))
            if decision is None or decision.comments is not None:
                self._results.append(_result(turn, call, asked, attempts=0))
                return tool_message(call, asked, self._why_not(asked))
        ended = await self._call(call, lineage)
        self._results.append(_result(turn, call, ended, attempts=ended.attempt + 1))
        return tool_message(call, ended)

    def _why_not(self, asked: WorkItem) -> str:
        is_decided = asked.state is WorkItemState.COMPLETED
        if is_decided or behaves(Behaviour.APPROVALS_LIKE_REVIEWS):
            return not_approved(asked, self._task.reason(asked.lineage))
        return "The call was rejected by a person: no decision came in time"

    async def _call(self, call: ToolCall, lineage: str) -> WorkItem:
        options, task = call.options, self._task
        job = ToolJob(
            tool=call.name,
            arguments=call.arguments,
            call_id=call.id,
            idempotency_key=f"{workflow.info().workflow_id}/{lineage}",
        )
        tells_model = call.problem is not None or options.on_failure is OnToolFailure.TELL_MODEL
        task.check()
        attempts = task.attempts(
            job,
            lineage=lineage,
            recipe=options.recipe(),
            deadline=self._deadline,
            kind=TOOL if tells_model else None,
        )
        async with self._places:
            async for work_item in attempts:
                async with work_item:
                    if call.problem is not None:
                        work_item.fail(Failure.of(FailureKind.INVALID_REQUEST, call.problem))
                    else:
                        work_item.complete(await self._execute(work_item, job, call))
        task.check()
        return task.last(lineage)

    async def _execute(self, work_item: ActiveWorkItem, job: ToolJob, call: ToolCall) -> object:
        limit = timedelta(seconds=call.options.timeout_seconds) + CALL_MARGIN
        if self._deadline is not None:
            left = max(self._deadline - workflow.now(), timedelta(seconds=1)) + CALL_MARGIN
            limit = min(limit, left)
        queue_timeout = self._request.queue_timeout_seconds
        label = attempt_label(work_item.attempt, call.options.max_retries)
        returned = await work_item.execute_activity(
            CALL_TOOL,
            sent(job),
            sent(work_item.attempt),
            result_type=RawValue,
            start_to_close_timeout=limit,
            schedule_to_start_timeout=None if queue_timeout is None else timedelta(seconds=queue_timeout),
            heartbeat_timeout=timedelta(seconds=self._request.heartbeat_timeout_seconds),
            summary=f"tool {call.name[:64]} · {label}",
        )
        result: object = received_json(returned, workflow.payload_converter().from_payload)
        return result

    async def _approval(self, call: ToolCall, lineage: str) -> tuple[Decision | None, WorkItem]:
        """Return a person's decision about the call, or None, and the last work item of the wait."""
        options, task = call.options, self._task
        review = Review(
            kind=REVIEW_KIND,
            draft=f"{call.name}({call.arguments})",
            timeout_seconds=options.approval_timeout_seconds,
            reminder_seconds=options.reminder_seconds,
        )
        reminds = behaves(Behaviour.APPROVALS_LIKE_REVIEWS)
        activity = options.reminder_activity if reminds else None
        task.check()
        attempts = task.attempts(review, lineage=lineage, recipe=_ONCE, deadline=self._deadline, kind=TOOL)
        async for work_item in attempts:
            async with work_item:
                waits = f"tool {call.name} · waits for approval"
                decision = await decided(
                    work_item, lineage, review, activity, options.reminder_task_queue, waits
                )
                work_item.complete(decision)
        task.check()
        asked = task.last(lineage)
        if asked.state is not WorkItemState.COMPLETED:
            return None, asked
        return Decision.model_validate(asked.result), asked

    def result(self) -> AiAgentResult:
        """Return the result of the task: the model's last answer."""
        turns = [item for item in self._task.work_items if is_turn(item)]
        reads_output = self._request.output_schema is not None
        if self._request.tools is None:
            return AiAgentResult.of(self._task.completed(), turns, reads_output=reads_output)
        last = self._task.completed(f"turn-{self._turns}")
        answer = AiAgentResult.of(last, turns, reads_output=reads_output)
        calls = sorted(self._results, key=lambda one: one.turn)
        return AgentResult(**answer.model_dump(), turns=self._turns, tool_calls=calls)


def _later_choice(choice: str | None) -> str | None:
    """Return the tool choice of later turns. A tool that must be called would be called for ever."""
    return choice if choice in (None, "auto", "none") else "auto"


def _result(turn: int, call: ToolCall, ended: WorkItem, *, attempts: int) -> ToolCallResult:
    return ToolCallResult(
        turn=turn, tool=call.name, work_item_id=ended.id, state=ended.state, attempts=attempts
    )
