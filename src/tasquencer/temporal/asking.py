"""`ask`: an AI call in one line, in any workflow of a worker whose plugin has `calls=`.

    label = await ask("Is this ticket urgent? " + text, output=Label, max_retries=5)

Each call is an independent lineage of the workflow's task. A workflow that makes no `Task` gets one with its
first call. It then keeps its own ways: a backoff never continues it as new.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from datetime import timedelta
from typing import Any, TypeVar, Unpack, overload

from pydantic import JsonValue, TypeAdapter

from tasquencer.ai.answer import AiAnswer, parse_answer
from tasquencer.ai.job import ChatMessage
from tasquencer.ai.ladder import kept_output
from tasquencer.ai.output import OutputType, output_type
from tasquencer.ai.request import AiAgentRequest, AskOptions, parse_request
from tasquencer.core.errors import InvalidRequest, TaskMisused
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.work_item import WorkItem
from tasquencer.temporal.independent import ASK
from tasquencer.temporal.model_call import answer, job_of
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

    Calls may run side by side with `asyncio.gather`. The JSON Schema of `output` goes to the provider, and an
    answer that does not fit is retried as `invalid_output`.

    Args:
        question: The prompt, or the messages of a conversation.
        output: What to return: `str`, a Pydantic model, or any type that Pydantic's `TypeAdapter` takes.
        lineage: Names the chain of attempts; unique in the workflow. None: `ask-1`, `ask-2-label` …, in the
            order of the calls.
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

    def result_of(_: WorkItem, result: JsonValue) -> JsonValue:
        given = parse_answer(result)
        try:
            wanted.read(AiAnswer.model_validate(given).text)
        except ValueError as problem:
            raise InvalidRequest([f"result.text: {problem}"]) from None
        return given

    seconds = request.deadline_seconds
    attempts, deadline = task.independent(
        request.job(),
        kind=ASK,
        lineage=name,
        recipe=request.recipe(),
        within=None if seconds is None else timedelta(seconds=seconds),
        result_of=result_of,
    )
    async for work_item in attempts:
        async with work_item:
            found = await answer(work_item, job_of(work_item), request, deadline)
            try:
                wanted.read(found.text)
            except ValueError as problem:
                work_item.fail(_unfit(found, str(problem)))
            else:
                work_item.complete(found)
    return wanted.read(AiAnswer.model_validate(task.independent_result(name)).text)


def _request(raw: object) -> AiAgentRequest:
    assert isinstance(raw, tuple)
    question: Question
    wanted: OutputType[Any]
    question, wanted, options = raw
    if taken := sorted({"prompt", "messages"} & options.keys()):
        raise InvalidRequest([f"{name}: give it to ask as its first argument" for name in taken])
    if options.get("tools") is not None:
        raise InvalidRequest(["tools: ask calls no tools; start an AiAgentTask for that"])
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
