"""Many prompts in one task: what a fan-out is asked, under which policy, and what it answers."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from typing import Annotated, Any, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from tasquencer.ai.answer import MAXIMUM_ANSWER_BYTES, AiAnswer
from tasquencer.ai.job import AiJob, ChatMessage
from tasquencer.ai.request import MOST_REQUEST_VALUES, CallOptions
from tasquencer.ai.usage import Usage, total_usage
from tasquencer.core.errors import InvalidRequest
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
"""Prompts of one fan-out."""

MOST_WORK_ITEMS = 2_000
"""Prompts times tries of one fan-out: all its work items travel along when it continues as new."""

MAXIMUM_FAN_OUT_BYTES = 768 * 1024
"""Bytes of a fan-out's request as JSON; what it carries along needs the rest of a Temporal payload."""

MAXIMUM_CALLS_BYTES = 1_536 * 1024
"""Bytes of all calls of a fan-out as JSON; each has `system` and `metadata`. All may be scheduled at once,
and Temporal terminates a workflow that schedules more than 4 MiB at once."""


class AiFanOutRequest(CallOptions):
    """The input of a fan-out: many prompts, each with attempts of its own, under one policy.

    The options of an AI agent task (see `tasquencer.ai.AiAgentRequest`) hold for each prompt, the
    deadline for the whole task.

    Attributes:
        prompts: What to answer, 1 to 500; `max_retries` + 1 times their number must not exceed 2,000.
        concurrency: How many AI calls may be under way at once.
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
        """What the work items of each prompt have to do."""
        return [self.job_of([ChatMessage(role="user", content=prompt)]) for prompt in self.prompts]


def lineage_of(index: int) -> str:
    """The lineage of the prompt with this index, from 0: `prompt-1`, `prompt-2` …"""
    return f"prompt-{index + 1}"


class PromptFailure(BaseModel):
    """Why a prompt has no answer."""

    model_config = ConfigDict(frozen=True)

    kind: str
    message: str


class PromptResult(Usage):
    """What became of one prompt.

    Attributes:
        state: Of its last work item.
        text: None if there is no answer, or if it is `omitted`.
        omitted: There is an answer, but all of them together are too large for one result: the ledger has it.
        attempts: How many work items it took.
        input_tokens, output_tokens, cost_usd: Of the answer.
        failure: Of the last work item, if that failed.
    """

    model_config = ConfigDict(frozen=True)

    state: WorkItemState
    text: str | None = None
    omitted: bool = False
    model: str | None = None
    finish_reason: str | None = None
    work_item_id: str
    attempts: int
    failure: PromptFailure | None = None


class AiFanOutResult(BaseModel):
    """The result of a fan-out.

    Attributes:
        results: In the order of the prompts.
        completed, failed, canceled: How many prompts ended so.
        total: Tokens and cost of all attempts, failed ones included.
    """

    model_config = ConfigDict(frozen=True)

    results: list[PromptResult]
    completed: int
    failed: int
    canceled: int
    total: Usage | None = None

    @classmethod
    def of(cls, work_items: Sequence[WorkItem], prompts: int) -> AiFanOutResult:
        """The result that the task's work items give; texts beyond what a payload carries are omitted."""
        lineages = defaultdict[str, list[WorkItem]](list)
        for item in work_items:
            lineages[item.lineage].append(item)
        room = MAXIMUM_ANSWER_BYTES
        results = []
        for index in range(prompts):
            items = lineages[lineage_of(index)]
            result = _result(items[-1], len(items))
            size = len(result.model_dump_json().encode())
            if size > room - (prompts - index) * _SPARE and result.text is not None:
                result = result.model_copy(update={"text": None, "omitted": True})
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
"""Bytes kept for what is said of each prompt besides its answer."""


def _result(item: WorkItem, attempts: int) -> PromptResult:
    facts: dict[str, Any] = {}
    if item.state is WorkItemState.COMPLETED:
        if not isinstance(item.result, dict) or "text" not in item.result:  # it was too large to travel along
            facts = {"omitted": True}
        else:
            known = PromptResult.model_fields.keys()
            answer = AiAnswer.model_validate(item.result).model_dump()
            facts = {name: value for name, value in answer.items() if name in known}
    elif item.failure is not None:
        facts["failure"] = PromptFailure(kind=item.failure.kind, message=item.failure.message[:200])
    return PromptResult(state=item.state, work_item_id=item.id, attempts=attempts, **facts)


def parse_fan_out(raw: object) -> AiFanOutRequest:
    """The request in a fan-out's raw input.

    Raises:
        InvalidRequest: names each wrong field, and the size and its limit where it is too large.
    """
    request = validated(AiFanOutRequest, raw, '{"prompts": ["…", "…"]}', MOST_REQUEST_VALUES)
    limit_size(request, "prompts", MAXIMUM_FAN_OUT_BYTES)
    asked = len(request.model_dump_json(include={"prompts"}).encode())
    size = asked + _shared(request) * len(request.prompts)
    if size > MAXIMUM_CALLS_BYTES:
        said = f"the calls have {size:,} bytes, for system and metadata go along with each prompt"
        raise InvalidRequest([f"system, metadata, prompts: {said}; the limit is {MAXIMUM_CALLS_BYTES:,}"])
    return request


def _shared(request: AiFanOutRequest) -> int:
    """Bytes that go along with each prompt."""
    job = request.job_of([ChatMessage(role="user", content="-")])
    return len(job.model_dump_json(exclude_defaults=True).encode())
