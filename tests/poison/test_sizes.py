"""Requests, answers and results around the limits of Temporal: 2 MiB a payload, 4 MiB a workflow task."""

from __future__ import annotations

import asyncio
import json
from typing import Any
from uuid import uuid4

import pytest
from temporalio.client import WorkflowHandle, WorkflowUpdateFailedError
from temporalio.converter import PayloadConverter

from tasquencer.ai.answer import MAXIMUM_ANSWER_BYTES, AiAnswer
from tasquencer.ai.fan_out import MAXIMUM_CALLS_BYTES, MAXIMUM_FAN_OUT_BYTES, MOST_PROMPTS
from tasquencer.ai.request import MAXIMUM_REQUEST_BYTES
from tasquencer.core.carried import CarriedTask
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.core.policy import absorb_failures
from tasquencer.core.retry import RetryRecipe
from tasquencer.core.task_state import TaskState
from tasquencer.core.work_item import WorkItem
from tasquencer.temporal import data_converter
from tasquencer.temporal.headers import pack, unpack
from tests.poison.conftest import Ground
from tests.support.answers import Answer, ok, stall
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.provider import ProviderRequest
from tests.support.tasks import failure_of_task
from tests.unit.driving import NOON

TEMPORALS_PAYLOAD = 2 * 1024 * 1024


def script(request: ProviderRequest) -> Answer:
    """Answers with as many characters as the prompt begins with; a prompt `stall` waits for somebody else."""
    first = request.prompt.partition(" ")[0]
    return stall() if first == "stall" else ok("a" * int(first))


def asking(answer: int, prompt_bytes: int = 10) -> str:
    """Return a prompt of this size that gets an answer of this number of characters."""
    return f"{answer} ".ljust(prompt_bytes, "p")


LARGEST_ANSWER = MAXIMUM_ANSWER_BYTES - len(
    AiAnswer(
        text="",
        model="tiny-1",
        finish_reason="stop",
        provider_request_id="req_scripted",
        input_tokens=11,
        output_tokens=7,
        cost_usd=0.001,
    ).model_dump_json()
)


async def started(ground: Ground, handle: WorkflowHandle[Any, Any], lineage: str = "main") -> WorkItem:
    async def probe() -> WorkItem | None:
        found = await ground.tasks.work_items(handle)
        return next((item for item in found if item.lineage == lineage and item.state == "started"), None)

    return await eventually(probe, f"a work item of {lineage!r} that is started")


async def finished(handle: WorkflowHandle[Any, Any]) -> Any:
    return await asyncio.wait_for(handle.result(), PATIENCE_SECONDS)


async def test_the_largest_request_gets_the_largest_answer(ground: Ground) -> None:
    prompt = asking(LARGEST_ANSWER, MAXIMUM_REQUEST_BYTES - len('{"prompt":""}'))
    handle = await ground.tasks.start("AiAgentTask", {"prompt": prompt})
    result = await finished(handle)
    assert len(result["text"]) == LARGEST_ANSWER
    (item,) = await ground.tasks.work_items(handle)
    records = await ground.tasks.ledger.domain_records("ai_jobs", [item.id])
    assert records[item.id]["prompt"] == prompt
    assert records[item.id]["result"] == result["text"]


@pytest.mark.parametrize("over", [1, 200_000, 5_000_000])
async def test_an_answer_over_the_limit_fails_its_attempt(ground: Ground, over: int) -> None:
    handle = await ground.tasks.start("AiAgentTask", {"prompt": asking(LARGEST_ANSWER + over)})
    error = await asyncio.wait_for(failure_of_task(handle), PATIENCE_SECONDS)
    assert (error.type, error.details[0]["kind"]) == ("NotRetryable", "too_large")


async def test_the_largest_result_by_hand_completes_the_task(ground: Ground) -> None:
    handle = await ground.tasks.start("AiAgentTask", {"prompt": "stall ".ljust(1_500_000, "p")})
    item = await started(ground, handle)
    text = "t" * (MAXIMUM_ANSWER_BYTES - len(AiAnswer(text="").model_dump_json()))
    update = {"actor": "anna", "work_item_id": item.id, "result": {"text": text}}
    await asyncio.wait_for(handle.execute_update("complete_work_item", update), PATIENCE_SECONDS)
    assert (await finished(handle))["text"] == text


BY_HAND: list[tuple[str, dict[str, Any], str]] = [
    ("a result over the limit", {"result": {"text": "t" * MAXIMUM_ANSWER_BYTES}}, "result: has "),
    ("a result that is nested", {"result": json.loads("[" * 150 + "]" * 150)}, "result: must not be nested"),
    (
        "100,000 unknown facts",
        {"result": {"text": "t"} | {f"k{n}": 1 for n in range(40_000)}},
        "must not have more than",
    ),
    (
        "100,000 unknown fields",
        {"result": {"text": "t"}} | {f"k{n}": 1 for n in range(100_000)},
        "99,980 more",
    ),
    ("an id of a megabyte", {"result": {"text": "t"}, "work_item_id": "i" * 1_000_000}, "work_item_id: "),
    ("a name of a megabyte", {"result": {"text": "t", "k" * 1_000_000: 1}}, "kkk…: unknown field"),
]


@pytest.mark.parametrize(("fields", "says"), [row[1:] for row in BY_HAND], ids=[row[0] for row in BY_HAND])
async def test_an_update_that_is_too_much_is_refused_in_a_few_words_and_the_task_goes_on(
    ground: Ground, fields: dict[str, Any], says: str
) -> None:
    handle = await ground.tasks.start("AiAgentTask", {"prompt": "stall"})
    item = await started(ground, handle)
    update = {"actor": "anna", "work_item_id": item.id} | fields
    with pytest.raises(WorkflowUpdateFailedError) as caught:
        await asyncio.wait_for(handle.execute_update("complete_work_item", update), PATIENCE_SECONDS)
    said = str(caught.value.cause)
    assert said.startswith("InvalidRequest: ")
    assert says in said
    assert len(said) < 8_000
    await handle.execute_update(
        "complete_work_item", {"actor": "anna", "work_item_id": item.id, "result": {"text": "from a person"}}
    )
    assert (await finished(handle))["text"] == "from a person"


async def test_a_fan_out_omits_the_texts_for_which_its_result_has_no_room(ground: Ground) -> None:
    request = {"prompts": [asking(LARGEST_ANSWER), asking(900_000), asking(5)], "concurrency": 3}
    result = await finished(await ground.tasks.start("AiFanOutTask", request))
    assert [(one["omitted"], len(one["text"] or "")) for one in result["results"]] == [
        (True, 0),
        (False, 900_000),
        (False, 5),
    ]


@pytest.mark.parametrize("shared", [{"system": "s" * 300_000}, {"metadata": {"k": "v" * 300_000}}])
async def test_a_fan_out_whose_calls_would_be_too_much_for_one_workflow_task_is_refused(
    ground: Ground, shared: dict[str, Any]
) -> None:
    request = {"prompts": [asking(1)] * 20, "concurrency": 20} | shared
    handle = await ground.tasks.start("AiFanOutTask", request)
    error = await asyncio.wait_for(failure_of_task(handle), PATIENCE_SECONDS)
    assert error.type == "InvalidRequest"
    assert error.message.startswith("system, metadata, prompts: the calls have 6,0")


async def test_a_fan_out_at_that_limit_makes_all_its_calls_at_once(ground: Ground) -> None:
    request = {"prompts": [asking(1, 100)] * 40, "concurrency": 40, "system": "s" * 38_000}
    assert MAXIMUM_CALLS_BYTES * 0.95 < 40 * 38_000
    result = await finished(await ground.tasks.start("AiFanOutTask", request))
    assert result["completed"] == 40


@pytest.mark.parametrize(("draft", "rejections"), [(LARGEST_ANSWER, 1), (300_000, 3)])
async def test_a_conversation_about_drafts_that_grows_too_long_fails_the_task(
    ground: Ground, draft: int, rejections: int
) -> None:
    request = {"messages": [{"role": "user", "content": asking(draft)}]}
    handle = await ground.tasks.start("ReviewedDraft", request)
    for number in range(1, rejections + 1):
        item = await started(ground, handle, f"review-{number}")
        decision = {"decision": "reject", "comments": asking(draft, 20_000)}
        update = {"actor": "anna", "work_item_id": item.id, "result": decision}
        await asyncio.wait_for(handle.execute_update("complete_work_item", update), PATIENCE_SECONDS)
    error = await asyncio.wait_for(failure_of_task(handle), PATIENCE_SECONDS)
    assert error.type == "TaskFailed"
    assert "the conversation about the drafts is too long" in error.message
    assert len(error.message) < 1_000


async def test_the_largest_draft_can_be_approved(ground: Ground) -> None:
    handle = await ground.tasks.start("ReviewedDraft", {"prompt": asking(LARGEST_ANSWER)})
    item = await started(ground, handle, "review-1")
    update = {"actor": "anna", "work_item_id": item.id, "result": {"decision": "approve"}}
    await asyncio.wait_for(handle.execute_update("complete_work_item", update), PATIENCE_SECONDS)
    assert len((await finished(handle))["text"]) == LARGEST_ANSWER


def carried(prompts: list[str], max_retries: int) -> CarriedTask:
    """What a task carries along whose lineages are all in their last backoff, after long failures."""
    state = TaskState(
        task_id="t" * 200,
        run_id=str(uuid4()),
        task_type="AiFanOutTask",
        recipe=RetryRecipe(max_retries=max_retries),
        new_id=lambda *_: str(uuid4()),
        random=lambda *_: 0.5,
        policy=absorb_failures(),
    )
    gone = Failure.of(FailureKind.RATE_LIMITED, "m" * 2_000, retry_after_seconds=12.5, outcome_unknown=True)
    for number, prompt in enumerate(prompts, 1):
        state.begin({"prompt": prompt}, now=NOON, lineage=f"prompt-{number}")
    for _ in range(max_retries):
        for number in range(1, len(prompts) + 1):
            item = state.latest(f"prompt-{number}")
            state.start(item.id, now=NOON)
            state.fail(item.id, gone, now=NOON, worker="12345@" + "h" * 60)
    return state.carry()


@pytest.mark.parametrize(
    ("prompts", "max_retries", "size"),
    [(MOST_PROMPTS, 3, MAXIMUM_FAN_OUT_BYTES), (1, 1_000, MAXIMUM_REQUEST_BYTES)],
    ids=["a fan-out", "an agent task"],
)
def test_what_the_largest_task_carries_along_when_it_continues_as_new_fits_into_a_payload(
    prompts: int, max_retries: int, size: int
) -> None:
    # Texts that cannot be compressed to less than a half.
    texts = [uuid4().hex * (size // prompts // 32) for _ in range(prompts)]
    converter: PayloadConverter = data_converter.payload_converter
    whole = converter.to_payload(carried(texts, max_retries))
    assert len(whole.data) > TEMPORALS_PAYLOAD  # as it is, it would leave the task stuck
    packed = pack(whole)
    assert packed.ByteSize() < TEMPORALS_PAYLOAD
    assert unpack(packed) == whole
    assert unpack(whole) == whole  # of an earlier release
