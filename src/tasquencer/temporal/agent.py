"""The agent's loop, for workflow code: turns of the model, and the tool calls between them.

    agent = Agent(task, request, deadline)
    while (turn := agent.next_turn()) is not None:
        async for work_item in turn.attempts:
            async with work_item:
                work_item.complete(await agent.answer(work_item))
        await agent.use_tools(turn)
    return agent.result()

Each turn, each tool call and each approval is a lineage: `turn-2`, `turn-2/refund`, `turn-2/refund/approval`.
A task without tools has one turn, whose lineage is `main`. A conversation of `ask` or of a fan-out is one of
several, so its lineages begin with its name: `ask-1/turn-2`, `prompt-3/turn-2/refund`. Without tools its only
lineage is the name.
"""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Final

from temporalio import workflow
from temporalio.common import RawValue

from tasquencer.ai.agent import APPROVAL, TOOL, approval_lineage, turn_lineage
from tasquencer.ai.answer import AgentResult, AiAgentResult, AiAnswer, ToolCallResult
from tasquencer.ai.job import AiJob, ChatMessage
from tasquencer.ai.request import AgentOptions, AiAgentRequest
from tasquencer.ai.review import REVIEW_KIND, Review
from tasquencer.ai.timeouts import CALL_MARGIN
from tasquencer.ai.tool_calls import (
    OnToolFailure,
    ToolCall,
    ToolJob,
    assistant_message,
    is_approved,
    is_turn,
    later_choice,
    not_approved,
    tool_lineages,
    tool_message,
)
from tasquencer.core.errors import TaskMisused
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.lineage import MAIN_LINEAGE
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.wording import attempt_label
from tasquencer.core.work_item import WorkItem, WorkItemState
from tasquencer.temporal.activations import behaves
from tasquencer.temporal.attempts import ActiveWorkItem, Attempts
from tasquencer.temporal.behaviour import Behaviour
from tasquencer.temporal.conversation_size import ConversationSize, too_many
from tasquencer.temporal.failures import task_error
from tasquencer.temporal.model_call import answer
from tasquencer.temporal.operators import ResultOf
from tasquencer.temporal.reminders import decided
from tasquencer.temporal.task import ImplicitTask, Task
from tasquencer.temporal.tool_activity import CALL_TOOL
from tasquencer.temporal.wire import received_json, sent

__all__ = ["Agent", "Turn"]

_MOST_TOOLS_AT_ONCE: Final = 8
"""Tool calls of one turn that run at the same time. Approvals do not count."""

_MAX_TURNS: Final = "max_turns"
"""The kind of failure of a conversation whose model calls tools in its last turn."""

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
        task: With `results_bytes=RESULTS_BYTES` and `rules=TOOL_RULES`, unless the agent has a name.
        request: The task's request.
        deadline: The deadline of the whole agent.
        job: What the model is asked first. None: what the request says.
        name: That of a conversation that is one of several in its task. All lineages begin with it, and with
            tools they are a group of this name. None: the task is this conversation.
        kind: That of the turns, if the policy does not count the conversation.
        result_of: Checks the results that come from outside. None: the task's own function does.
    """

    def __init__(
        self,
        task: Task,
        request: AgentOptions,
        deadline: datetime | None,
        *,
        job: AiJob | None = None,
        name: str | None = None,
        kind: str | None = None,
        result_of: ResultOf | None = None,
    ) -> None:
        self._task = task
        self._request = request
        self._deadline = deadline
        self._job = job if job is not None else _job(request)
        self._name = name
        self._kind = kind
        self._result_of = result_of
        self._turns = 0
        self._is_over = False
        self._results: list[ToolCallResult] = []
        self._places = asyncio.Semaphore(_MOST_TOOLS_AT_ONCE)
        self._group = None if request.tools is None else name
        # A workflow without a Task of its own carries nothing along.
        self._size = ConversationSize(self._group, self._job, carries=not isinstance(task, ImplicitTask))
        if self._group is not None:
            task.begin_group(self._group, counted=kind is None)

    @property
    def _has_ended(self) -> bool:
        return self._group is not None and self._task.groups[self._group].state is not None

    def next_turn(self) -> Turn | None:
        """Return the next turn, or None when the model has answered, or the conversation has ended otherwise.

        Raises:
            ApplicationError: of type `TaskFailed`, if no turn is left and the agent has no name.
        """
        if self._is_over or self._has_ended:
            return None
        number = self._turns + 1
        if self._group is None and number > self._request.max_turns:
            raise task_error("TaskFailed", self._no_turn_left())
        self._turns = number
        lineage = turn_lineage(self._request, self._name, number)
        attempts = self._attempts(self._job, lineage, self._request.recipe(), self._kind)
        return Turn(number, lineage, self._job, attempts)

    def _attempts(self, payload: object, lineage: str, recipe: RetryRecipe, kind: str | None) -> Attempts:
        if self._result_of is not None:
            self._task.results_from_outside(lineage, self._result_of)
        return self._task.attempts(
            payload, lineage=lineage, recipe=recipe, deadline=self._deadline, kind=kind, group=self._group
        )

    def _no_turn_left(self) -> str:
        most = self._request.max_turns
        turns = "1 turn" if most == 1 else f"{most} turns"
        return f"the model still calls tools after {turns} (max_turns)"

    def problem_of_size(self, more: int = 0) -> Failure | None:
        """Why the conversation cannot continue: it is too large, or the task has too many work items.

        Args:
            more: Work items that are about to be added.
        """
        items, prefix = self._task.work_items, f"{self._name}/"
        if self._kind is not None:
            items = [item for item in items if item.lineage.startswith(prefix)]
        return self._size.problem(self._job, self._turns) or too_many(len(items) + more)

    async def answer(self, work_item: ActiveWorkItem) -> AiAnswer:
        """Ask the model once for this work item of a turn."""
        job = AiJob.model_validate(work_item.payload)
        summary = None
        if self._request.tools is not None:
            label = attempt_label(work_item.attempt, self._request.max_retries)
            summary = self._named(f"turn {self._turns} · {label}")
        return await answer(work_item, job, self._request, self._deadline, summary=summary)

    def _named(self, summary: str) -> str:
        return summary if self._name is None else f"{self._name[:64]} · {summary}"

    async def use_tools(self, turn: Turn) -> None:
        """Call the tools that the model asked for in this turn, side by side, and keep their results.

        A conversation with a name ends with the failure of a turn, with that of a tool with
        `on_failure="fail_task"`, or when it is too long. Any other agent raises that.

        Raises:
            ApplicationError: the turn has no answer, a tool with `on_failure="fail_task"` has failed, or the
                conversation is too long.
        """
        if self._name is not None and self._group is None:
            self._is_over = True
            return
        answered = await self._answered(turn)
        if answered is None:
            return
        calls = answered.tool_calls
        if not calls:
            self._is_over = True
            await self._end(WorkItemState.COMPLETED, turn.lineage)
            return
        if self._group is not None and (problem := self.problem_of_size(len(calls))) is not None:
            await self._end(WorkItemState.FAILED, turn.lineage, problem)
            return
        lineages = tool_lineages(turn.lineage, calls)
        messages = await asyncio.gather(
            *(self._use(turn.number, call, lineage) for call, lineage in zip(calls, lineages, strict=True))
        )
        if self._stops():
            return
        told = [message for message in messages if message is not None]
        conversation = [*turn.job.messages, assistant_message(answered.text, calls), *told]
        update = {"messages": conversation, "tool_choice": later_choice(turn.job.tool_choice)}
        self._job = turn.job.model_copy(update=update)
        problem = self.problem_of_size()
        if problem is None and self._group is not None and turn.number == self._request.max_turns:
            problem = Failure(kind=_MAX_TURNS, message=self._no_turn_left(), transient=False)
        if problem is not None:
            await self._end(WorkItemState.FAILED, turn.lineage, problem)
        else:
            await self._task.continue_as_new_if_due()

    async def _answered(self, turn: Turn) -> AiAnswer | None:
        """Return the answer of a turn. None if the conversation has ended without one."""
        task, lineage = self._task, turn.lineage
        if self._group is None:
            return AiAnswer.model_validate(task.result(lineage))
        if self._stops():
            return None
        last = task.last(lineage)
        if last.state is not WorkItemState.COMPLETED:
            await self._end(last.state, lineage)
        elif not task.is_carried(lineage):
            message = f"the answer of turn {turn.number} is too large for a task that continues as new"
            await self._end(WorkItemState.FAILED, lineage, Failure.of(FailureKind.TOO_LARGE, message))
        else:
            return AiAnswer.model_validate(last.result)
        return None

    async def _end(self, state: WorkItemState, last: str, failure: Failure | None = None) -> None:
        """End the conversation. An agent without a name raises its failure."""
        if self._group is not None:
            self._size.forget()
            await self._task.end_group(self._group, state, last, failure)
        elif failure is not None:
            raise task_error("TaskFailed", failure.message)

    def _stops(self) -> bool:
        """Return whether the conversation has ended. Raise the failure of the task if that has failed."""
        if self._has_ended:
            return True
        self._task.check()
        return False

    async def _use(self, turn: int, call: ToolCall, lineage: str) -> ChatMessage | None:
        """Call one tool, after its approval if it needs one.

        Return the text for the model, or None if the conversation has ended meanwhile.
        """
        if call.problem is None and call.options.requires_approval:
            asked = await self._approval(call, approval_lineage(lineage))
            if asked is None:
                return None
            if not is_approved(asked):
                self._results.append(_result(turn, call, asked, attempts=0))
                return tool_message(call, asked, self._why_not(asked))
        ended = await self._call(call, lineage)
        if ended is None:
            return None
        self._results.append(_result(turn, call, ended, attempts=ended.attempt + 1))
        return tool_message(call, ended)

    def _why_not(self, asked: WorkItem) -> str:
        is_decided = asked.state is WorkItemState.COMPLETED
        if is_decided or behaves(Behaviour.APPROVALS_LIKE_REVIEWS):
            return not_approved(asked, self._task.reason(asked.lineage))
        return "The call was rejected by a person: no decision came in time"

    async def _call(self, call: ToolCall, lineage: str) -> WorkItem | None:
        options, task = call.options, self._task
        job = ToolJob(
            tool=call.name,
            arguments=call.arguments,
            call_id=call.id,
            idempotency_key=f"{workflow.info().workflow_id}/{lineage}",
        )
        tells_model = call.problem is not None or options.on_failure is OnToolFailure.TELL_MODEL
        if self._stops():
            return None
        is_counted = not tells_model and self._kind is None
        attempts = self._attempts(job, lineage, options.recipe(), None if is_counted else TOOL)
        async with self._places:
            async for work_item in attempts:
                async with work_item:
                    if call.problem is not None:
                        work_item.fail(Failure.of(FailureKind.INVALID_REQUEST, call.problem))
                    else:
                        work_item.complete(await self._execute(work_item, job, call))
        if self._stops():
            return None
        ended = task.last(lineage)
        if not tells_model and ended.state is not WorkItemState.COMPLETED:
            await self._end(ended.state, lineage)
        return ended

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
            summary=self._named(f"tool {call.name[:64]} · {label}"),
        )
        result: object = received_json(returned, workflow.payload_converter().from_payload)
        return result

    async def _approval(self, call: ToolCall, lineage: str) -> WorkItem | None:
        """Wait for a person's decision about the call. Return the last work item of the wait."""
        options = call.options
        is_like_a_review = behaves(Behaviour.APPROVALS_LIKE_REVIEWS)
        limit = options.approval_timeout_seconds
        if is_like_a_review and self._deadline is not None:
            left = max((self._deadline - workflow.now()).total_seconds(), 1)
            limit = left if limit is None else min(limit, left)
        review = Review(
            kind=REVIEW_KIND,
            draft=f"{call.name}({call.arguments})",
            timeout_seconds=limit,
            reminder_seconds=options.reminder_seconds,
        )
        if self._stops():
            return None
        activity = options.reminder_activity if is_like_a_review else None
        attempts = self._attempts(review, lineage, _ONCE, TOOL if self._name is None else APPROVAL)
        async for work_item in attempts:
            async with work_item:
                waits = self._named(f"tool {call.name} · waits for approval")
                queue = options.reminder_task_queue
                work_item.complete(await decided(work_item, lineage, review, activity, queue, waits))
        return None if self._stops() else self._task.last(lineage)

    def last_answer(self) -> AiAnswer:
        """Return the last answer of an agent with a name that the policy does not count.

        Raises:
            ApplicationError: There is none. The type and the message say why.
        """
        task, last = self._task, self._name or MAIN_LINEAGE
        if self._group is not None:
            task.check()
            group = task.groups[self._group]
            if group.failure is not None:
                raise task_error("TaskFailed", f"{self._group}: {group.failure.message}", group.failure)
            if group.last is None:
                raise task_error("TaskFailed", f"{self._group} was canceled")
            last = group.last
        return AiAnswer.model_validate(task.independent_result(last))

    def abandon(self) -> None:
        """End a conversation whose code was canceled."""
        if self._group is not None:
            self._size.forget()
            self._task.abandon_group(self._group)

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


def _job(request: AgentOptions) -> AiJob:
    if not isinstance(request, AiAgentRequest):
        raise TaskMisused("an Agent needs the `job` that its model is asked first")
    return request.job()


def _result(turn: int, call: ToolCall, ended: WorkItem, *, attempts: int) -> ToolCallResult:
    return ToolCallResult(
        turn=turn, tool=call.name, work_item_id=ended.id, state=ended.state, attempts=attempts
    )
