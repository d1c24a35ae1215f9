"""`ask`: an AI call in one line, in any workflow of a worker whose plugin has `calls=`.

    label = await ask("Is this ticket urgent? " + text, output=Label, max_retries=5)

Each call is an independent lineage of the workflow's task, or with tools an independent group of them.
A workflow that makes no `Task` gets one with its
first call. It then keeps its own ways: a backoff never continues it as new.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar, Unpack, overload

from pydantic import JsonValue, TypeAdapter

from tasquencer.ai.agent import agent_result, turn_lineage
from tasquencer.ai.answer import AiAnswer, parse_answer
from tasquencer.ai.job import ChatMessage
from tasquencer.ai.ladder import kept_output
from tasquencer.ai.output import OutputType, output_type
from tasquencer.ai.request import AiAgentRequest, AskOptions, parse_request
from tasquencer.ai.tool_calls import is_turn
from tasquencer.core.errors import InvalidRequest, TaskMisused
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.work_item import WorkItem
from tasquencer.temporal.agent import Agent
from tasquencer.temporal.failures import task_error
from tasquencer.temporal.independent import ASK
from tasquencer.temporal.operators import ResultOf
from tasquencer.temporal.scope import makes_calls
from tasquencer.temporal.task import Task, accept

__all__ = ["Question", "ask"]

T = TypeVar("T")

Question = str | Sequence[ChatMessage | Mapping[str, Any]]
"""A prompt, or a conversation: `ChatMessage`s or objects such as `{"role": "user", "content": "…"}`."""


@overload
async def ask(question: Question, *, lineage: str | None = None, **options: Unpack[AskOptions]) -> str: ...


@overload
async def ask(
    question: Question,
    *,
    output: type[T] | TypeAdapter[T],
    lineage: str | None = None,
    **options: Unpack[AskOptions],
) -> T: ...


@overload
async def ask(
    question: Question, *, output: Any, lineage: str | None = None, **options: Unpack[AskOptions]
) -> Any: ...


async def ask(
    question: Question, *, output: Any = str, lineage: str | None = None, **options: Unpack[AskOptions]
) -> Any:
    """Ask a model and return its answer. Each attempt is a work item of the running workflow.

    With `tools=[…]` the model may call tools of the worker before it answers. Each turn, each tool call and
    each approval is then a lineage that begins with the name of the call: `ask-1/turn-2`,
    `ask-1/turn-2/refund`.

    Calls may run side by side with `asyncio.gather`. The JSON Schema of `output` goes to the provider, and an
    answer that does not fit is retried as `invalid_output`.

    Args:
        question: The prompt, or the messages of a conversation.
        output: What to return: `str`, a Pydantic model, or any type that Pydantic's `TypeAdapter` takes.
        lineage: Names the chain of attempts, or with tools the conversation. Unique in the workflow. None:
            `ask-1`, `ask-2-label` …, in the order of the calls.
        options: The other fields of `tasquencer.ai.AiAgentRequest`. `deadline_seconds` counts from this call.

    Raises:
        ApplicationError: of type `RetriesExhausted`, `NotRetryable`, `DeadlineExceeded`, `TaskFailed` or
            `InvalidRequest`. An error that the workflow's code catches does not fail the workflow.
        TaskMisused: the worker lacks the plugin or its `calls=`, or `output` has no JSON Schema.
    """
    task = Task.current()
    if not makes_calls():
        raise TaskMisused(
            "ask needs the AI call: give the worker's plugin `calls=`, "
            "as in TasquencerPlugin(ledger, calls=AiCalls())"
        )
    wanted = output_type(output)
    request = accept(_request, (question, wanted, options))
    name = lineage or task.next_name("ask", wanted.name)

    def result_of(item: WorkItem, result: JsonValue) -> JsonValue:
        if not is_turn(item):
            return agent_result(item, result)
        given = parse_answer(result)
        found = AiAnswer.model_validate(given)
        try:
            _read(found, wanted)
        except ValueError as problem:
            raise InvalidRequest([f"result.text: {problem}"]) from None
        return given

    agent = _agent(task, request, name, result_of)
    try:
        while (turn := agent.next_turn()) is not None:
            async for work_item in turn.attempts:
                async with work_item:
                    found = await agent.answer(work_item)
                    try:
                        _read(found, wanted)
                    except ValueError as problem:
                        work_item.fail(_unfit(found, str(problem)))
                    else:
                        work_item.complete(found)
            await agent.use_tools(turn)
    except asyncio.CancelledError:
        agent.abandon()
        raise
    return wanted.read(agent.last_answer().text)


def _agent(task: Task, request: AiAgentRequest, name: str, result_of: ResultOf) -> Agent:
    within = None if request.deadline_seconds is None else timedelta(seconds=request.deadline_seconds)
    deadline = task.deadline_within(within, turn_lineage(request, name, 1))
    agent = Agent(task, request, deadline, job=request.job(), name=name, kind=ASK, result_of=result_of)
    if request.tools is not None and (problem := agent.problem_of_size()) is not None:
        raise task_error("TaskFailed", f"{name}: {problem.message}", problem)
    return agent


def _read(found: AiAnswer, wanted: OutputType[Any]) -> None:
    """Raise `ValueError` if the answer does not fit. A turn that calls tools is none yet."""
    if not found.tool_calls:
        wanted.read(found.text)


def _request(raw: object) -> AiAgentRequest:
    assert isinstance(raw, tuple)
    question: Question
    wanted: OutputType[Any]
    question, wanted, options = raw
    if taken := sorted({"prompt", "messages"} & options.keys()):
        raise InvalidRequest([f"{name}: give it to ask as its first argument" for name in taken])
    asked = {"prompt": question} if isinstance(question, str) else {"messages": _listed(question)}
    schema = {} if wanted.schema is None else {"output_schema": wanted.schema}
    if schema and options.get("output_schema") is not None:
        raise InvalidRequest(["output, output_schema: give one of them, not both"])
    return parse_request({**options, **asked, **schema})


def _listed(question: object) -> object:
    return list(question) if isinstance(question, Sequence) else question


def _unfit(found: AiAnswer, problem: str) -> Failure:
    """The failure of an answer that satisfies the schema, but not the type."""
    facts = found.model_dump(mode="json", exclude={"text"}, exclude_none=True)
    message = f"the output does not fit the type asked for: {problem}"
    return Failure.of(FailureKind.INVALID_OUTPUT, message, output=kept_output(found.text), **facts)
