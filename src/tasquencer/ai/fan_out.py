"""A fan-out: many prompts in one task. Its request, policy and result."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    SerializerFunctionWrapHandler,
    model_serializer,
    model_validator,
)

from tasquencer.ai.answer import MAXIMUM_ANSWER_BYTES, AiAnswer, output_in
from tasquencer.ai.job import MAXIMUM_CONVERSATION_BYTES, AiJob, ChatMessage
from tasquencer.ai.request import MOST_REQUEST_VALUES, AgentOptions, limit_attempts
from tasquencer.ai.tool_calls import is_turn
from tasquencer.ai.usage import Usage, total_usage
from tasquencer.core.errors import InvalidRequest
from tasquencer.core.lineage import Group
from tasquencer.core.named_policy import NamedPolicy, policy_by_name
from tasquencer.core.validation import FilledText, Whole, limit_size, validated
from tasquencer.core.work_item import WorkItem, WorkItemState

__all__ = [
    "MAXIMUM_CALLS_BYTES",
    "MAXIMUM_FAN_OUT_BYTES",
    "MOST_PROMPTS",
    "MOST_WORK_ITEMS",
    "AiFanOutRequest",
    "AiFanOutResult",
    "PromptFailure",
    "PromptResult",
    "lineage_of",
    "parse_fan_out",
]

MOST_PROMPTS = 500
"""Maximum prompts of one fan-out."""

MOST_WORK_ITEMS = 2_000
"""Maximum prompts times tries of one fan-out, which carries all its work items when it continues as new."""

MAXIMUM_FAN_OUT_BYTES = 768 * 1024
"""Maximum bytes of a fan-out's request as JSON. The rest of a Temporal payload is for its carried state."""

MAXIMUM_CALLS_BYTES = 1_536 * 1024
"""Maximum bytes of all calls of a fan-out as JSON, each with `system` and `metadata`. One workflow task may
schedule all of them, and Temporal terminates a workflow that schedules more than 4 MiB in one."""


class AiFanOutRequest(AgentOptions):
    """The input of a fan-out: many prompts, each with its own attempts, under one policy.

    The options of an AI agent task (see `tasquencer.ai.AiAgentRequest`) apply to each prompt, and the
    deadline to the whole task. With tools each prompt is a conversation of its own.

    Attributes:
        prompts: The prompts to answer, 1 to 500. `max_retries` + 1 times their number must not exceed 2,000.
        concurrency: How many AI calls and tool calls may run at the same time, together.
        policy: When the task completes or fails: a name, or an object such as
            `{"name": "absorb_failures", "fraction": 0.1}`.
    """

    prompts: Annotated[list[FilledText], Field(min_length=1, max_length=MOST_PROMPTS)]
    concurrency: Annotated[Whole, Field(ge=1, le=MOST_PROMPTS)] = 10
    policy: Annotated[NamedPolicy, BeforeValidator(policy_by_name)] = NamedPolicy()

    @model_validator(mode="after")
    def _stays_within_a_task(self) -> Self:
        if (most := len(self.prompts) * (self.max_retries + 1)) > MOST_WORK_ITEMS:
            raise ValueError(
                f"prompts, max_retries: could make {most:,} work items, the limit is {MOST_WORK_ITEMS:,}"
            )
        if problem := self.policy.problem_with(len(self.prompts)):
            raise ValueError(f"policy.successes: {problem}")
        return self

    def jobs(self) -> list[AiJob]:
        """The payload of each prompt's work items."""
        return [self.job_of([ChatMessage(role="user", content=prompt)]) for prompt in self.prompts]


def lineage_of(index: int) -> str:
    """The lineage of the prompt with this index, from 0: `prompt-1`, `prompt-2` …"""
    return f"prompt-{index + 1}"


class PromptFailure(BaseModel):
    """The reason why a prompt has no answer."""

    model_config = ConfigDict(frozen=True)

    kind: str
    message: str


class PromptResult(Usage):
    """The outcome of one prompt.

    Attributes:
        state: The state of its last work item, or with tools of its conversation.
        text: None if there is no answer, or if it is `omitted`.
        omitted: True if there is an answer, but all answers together are too large for one result. The
        ledger has it.
        work_item_id: Its last work item; that of the answer if it has one.
        attempts: Its number of work items. With tools also those of tool calls and approvals.
        input_tokens, output_tokens, cost_usd: Those of the answer.
        failure: The failure of the last work item, if it failed, or why the conversation has ended.
        turns: How many times the model was asked, retries left out. There is no such field without tools.
        total: Tokens and cost of all attempts of all turns. There is no such field without tools.
    """

    model_config = ConfigDict(frozen=True)

    state: WorkItemState
    text: str | None = None
    output: JsonValue = None
    omitted: bool = False
    model: str | None = None
    finish_reason: str | None = None
    work_item_id: str
    attempts: int
    failure: PromptFailure | None = None
    turns: int | None = None
    total: Usage | None = None

    @model_serializer(mode="wrap")
    def _without_what_it_has_not(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        whole: dict[str, Any] = serialize(self)
        for name in ("output", "turns", "total"):
            if whole[name] is None:
                del whole[name]
        return whole


class AiFanOutResult(BaseModel):
    """The result of a fan-out.

    Attributes:
        results: In the order of the prompts.
        completed, failed, canceled: The number of prompts in each state.
        total: Tokens and cost of all attempts, failed ones included.
    """

    model_config = ConfigDict(frozen=True)

    results: list[PromptResult]
    completed: int
    failed: int
    canceled: int
    total: Usage | None = None

    @classmethod
    def of(
        cls,
        work_items: Sequence[WorkItem],
        prompts: int,
        *,
        reads_output: bool = False,
        groups: Mapping[str, Group] | None = None,
    ) -> AiFanOutResult:
        """Make the result from the task's work items. Texts that exceed a payload's size are omitted.

        Args:
            work_items: All of the task, oldest first.
            prompts: The number of prompts.
            reads_output: The text of each answer is JSON.
            groups: The conversations of a fan-out with tools, by name, and how they have ended.
        """
        of_prompts = defaultdict[str, list[WorkItem]](list)
        for item in work_items:
            of_prompts[item.lineage.partition("/")[0]].append(item)
        room = MAXIMUM_ANSWER_BYTES
        results = []
        for index in range(prompts):
            name = lineage_of(index)
            group = (groups or {}).get(name)
            result = _result(of_prompts[name], group, reads_output=reads_output)
            size = len(result.model_dump_json().encode())
            if size > room - (prompts - index) * _SPARE and result.text is not None:
                result = result.model_copy(update={"text": None, "output": None, "omitted": True})
                size = len(result.model_dump_json().encode())
            room -= size
            results.append(result)
        states = [result.state for result in results]
        return cls(
            results=results,
            completed=states.count(WorkItemState.COMPLETED),
            failed=states.count(WorkItemState.FAILED),
            canceled=states.count(WorkItemState.CANCELED),
            total=total_usage(work_items),
        )


_SPARE = 1_000
"""Bytes reserved for the facts about each prompt other than its answer."""


def _result(items: Sequence[WorkItem], group: Group | None, *, reads_output: bool) -> PromptResult:
    last, facts = items[-1], dict[str, Any]()
    state = last.state
    if group is not None:
        state = group.state or last.state
        last = [item for item in items if group.last in (None, item.lineage)][-1]
        turns = [item for item in items if is_turn(item)]
        facts = {"turns": len({item.lineage for item in turns}), "total": total_usage(turns)}
    if state is WorkItemState.COMPLETED:
        if not isinstance(last.result, dict) or "text" not in last.result:  # it was too large to carry along
            facts["omitted"] = True
        else:
            known = PromptResult.model_fields.keys() - facts.keys()
            answer = AiAnswer.model_validate(last.result).model_dump()
            facts |= {name: value for name, value in answer.items() if name in known}
            facts["output"] = output_in(answer["text"]) if reads_output else None
    elif (failure := group.failure if group is not None and group.failure else last.failure) is not None:
        facts["failure"] = PromptFailure(kind=failure.kind, message=failure.message[:200])
    return PromptResult(state=state, work_item_id=last.id, attempts=len(items), **facts)


def parse_fan_out(raw: object) -> AiFanOutRequest:
    """Read the request from a fan-out's raw input.

    Raises:
        InvalidRequest: names each wrong field, and the size and its limit if it is too large.
    """
    request = validated(AiFanOutRequest, raw, '{"prompts": ["…", "…"]}', MOST_REQUEST_VALUES)
    limit_size(request, "prompts", MAXIMUM_FAN_OUT_BYTES)
    limit_attempts(request)
    asked = len(request.model_dump_json(include={"prompts"}).encode())
    size = asked + _shared(request) * len(request.prompts)
    most = MAXIMUM_CALLS_BYTES if request.tools is None else MAXIMUM_CONVERSATION_BYTES
    if size > most:
        said = f"the calls have {size:,} bytes, because each has system and metadata"
        with_tools = "" if request.tools is None else " with tools"
        raise InvalidRequest([f"system, metadata, prompts: {said}; the limit{with_tools} is {most:,}"])
    return request


def _shared(request: AiFanOutRequest) -> int:
    """Return the bytes that are added to each prompt."""
    job = request.job_of([ChatMessage(role="user", content="-")])
    return len(job.model_dump_json(exclude_defaults=True).encode())
