"""Batches: any number of prompts, each its own task, started a few at a time under one policy.

The prompts are the rows of a batch. The ledger's database holds them (`tasquencer.batch.store`). The workflow
`AiBatchTask` reads them from there, and `tasquencer.batch.window` decides its next steps.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from enum import StrEnum
from typing import Annotated, Any

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, Field, JsonValue

from tasquencer.ai.request import AiAgentRequest, parse_request
from tasquencer.ai.usage import Usage, UsageSum
from tasquencer.batch.openai_input import is_openai_line, request_in
from tasquencer.core.errors import InvalidRequest
from tasquencer.core.named_policy import NamedPolicy, policy_by_name
from tasquencer.core.validation import ActorName, FilledText, Reason, RequestModel, Whole, validated

__all__ = [
    "ID_TAKEN",
    "LONGEST_BATCH_ID",
    "LONGEST_ROW_ID",
    "MOST_AT_ONCE",
    "AiBatchRequest",
    "AiBatchResult",
    "BatchCounts",
    "BatchPause",
    "BatchProgress",
    "BatchRow",
    "CarriedBatch",
    "OpenRow",
    "RowFailure",
    "RowOutcome",
    "RowState",
    "check_batch_id",
    "check_row",
    "merged",
    "parse_batch",
    "parse_line",
    "parse_pause",
    "task_id_of",
]

MOST_AT_ONCE = 1_000
"""Tasks of a batch that run at the same time."""

LONGEST_BATCH_ID = 100
LONGEST_ROW_ID = 150
"""Characters. Together they form the id of a row's task. On an SQL database Temporal allows 255."""


class RowState(StrEnum):
    """The state of a row of a batch."""

    PENDING = "pending"
    """It has not begun, or its task is running."""
    COMPLETED = "completed"
    """Its task has an answer."""
    FAILED = "failed"
    """Its task ended without one."""
    CANCELED = "canceled"
    """Its task was canceled, or the batch ended before it began."""


class BatchRow(BaseModel):
    """A row whose task can be started.

    Attributes:
        position: Its place in the batch, from 0.
        row_id: Its name, unique in the batch.
        request: The fields of `AiAgentRequest`.
        size: The approximate bytes of the request as JSON. 0 if unknown.
    """

    model_config = ConfigDict(frozen=True)

    position: int
    row_id: str
    request: dict[str, Any]
    size: int = 0


class OpenRow(BaseModel):
    """A row whose task is running.

    Attributes:
        found: True if the task existed before the batch could start it. The batch left it when it was
        terminated, or another program started it.
    """

    model_config = ConfigDict(frozen=True)

    position: int
    row_id: str
    found: bool = False


ID_TAKEN = "IdTaken"
"""The failure of a row whose id belongs to a task that the batch has not started, or of another request."""


class RowFailure(BaseModel):
    """Why a row has no answer.

    Attributes:
        type: The type of its task's failure, such as `RetriesExhausted` or `NotRetryable`, or `Canceled`,
        `Terminated` or `TimedOut`. `ID_TAKEN` if another request has a task with the row's id.
        kind: The kind of the last attempt's failure, if there was one.
        message: In one line.
    """

    model_config = ConfigDict(frozen=True)

    type: str
    kind: str | None = None
    message: str = ""


class RowOutcome(Usage):
    """How a row's task ended. Its answer is in the ledger, by the work item's id.

    Attributes:
        number: 1 for the first row of the batch that ended, and so on. 0 until it is counted.
        ended_at: When the batch learned of its end.
        input_tokens, output_tokens, cost_usd: Totals of all attempts that the end of the task reports.
    """

    model_config = ConfigDict(frozen=True)

    position: int
    row_id: str
    state: RowState
    number: int = 0
    ended_at: AwareDatetime | None = None
    work_item_id: str | None = None
    attempts: int | None = None
    failure: RowFailure | None = None


class BatchCounts(UsageSum):
    """How many rows of a batch are in each state, and the tokens and cost of the answers.

    Attributes:
        ended: The highest number of a row that has ended.
        cost_usd: The total of the answers whose price is known. None if no price is known.
    """

    model_config = ConfigDict(frozen=True)

    pending: int = 0
    completed: int = 0
    failed: int = 0
    canceled: int = 0
    ended: int = 0


class BatchPause(RequestModel):
    """The person who paused a batch, and the reason."""

    actor: FilledText
    reason: str | None = None


class CarriedBatch(BaseModel):
    """The state that a run of the workflow passes to the next one.

    Attributes:
        run_id: The run that passes it on; None: of an earlier release, which did not say.
    """

    model_config = ConfigDict(frozen=True)

    run_id: str | None = None
    counts: BatchCounts
    cursor: int
    open: list[OpenRow]
    unrecorded: list[RowOutcome] = []
    paused: BatchPause | None = None
    last_failure: str | None = None


class AiBatchRequest(RequestModel):
    """The input of the workflow `AiBatchTask`, whose rows are in the ledger under the workflow's id.

    Attributes:
        concurrency: How many tasks may run at the same time.
        policy: When the batch completes or fails: a name, or an object such as
            `{"name": "absorb_failures", "fraction": 0.1}`.
        carried: Set by the workflow itself when it continues as new.
    """

    concurrency: Annotated[Whole, Field(ge=1, le=MOST_AT_ONCE)] = 50
    policy: Annotated[NamedPolicy, BeforeValidator(policy_by_name)] = NamedPolicy()
    carried: CarriedBatch | None = None


class BatchProgress(UsageSum):
    """The answer of the query `progress`.

    Attributes:
        rows: The number of rows of the whole batch.
        running: Rows whose task is running.
        input_tokens, output_tokens, cost_usd: Totals of all attempts of the rows that have ended.
        paused: None if the batch is not paused.
    """

    model_config = ConfigDict(frozen=True)

    rows: int
    completed: int
    failed: int
    canceled: int
    running: int
    paused: BatchPause | None = None

    @property
    def ended(self) -> int:
        """The number of rows that have ended, in any state."""
        return self.completed + self.failed + self.canceled


class AiBatchResult(UsageSum):
    """The result of a batch. The answers are in the ledger."""

    model_config = ConfigDict(frozen=True)

    rows: int
    completed: int
    failed: int
    canceled: int


def parse_batch(raw: object) -> AiBatchRequest:
    """Read the workflow's raw input. None means the defaults. `InvalidRequest` names each wrong field."""
    return validated(AiBatchRequest, {} if raw is None else raw, example='{"concurrency": 50}')


class _PauseRequest(RequestModel):
    actor: ActorName
    reason: Reason | None = None


def parse_pause(raw: object) -> BatchPause:
    """Read the argument of `pause` and `resume`. Raises `InvalidRequest`, naming each wrong field."""
    asked = validated(_PauseRequest, raw, example='{"actor": "anna", "reason": "…"}')
    return BatchPause(actor=asked.actor, reason=asked.reason)


def task_id_of(batch_id: str, row_id: str) -> str:
    """Return the id of a row's task."""
    return f"{batch_id}/{row_id}"


def check_batch_id(batch_id: str) -> None:
    """Raise `InvalidRequest` if the text cannot be a batch's id."""
    _check_id("id", batch_id, LONGEST_BATCH_ID)
    if "/" in batch_id:
        raise InvalidRequest(["id: must not contain a slash, which separates batch and row"])


def _check_id(field: str, value: str, longest: int) -> None:
    if not value.strip() or not value.isprintable():
        raise InvalidRequest([f"{field}: must be printable text, and not empty"])
    if len(value) > longest:
        raise InvalidRequest([f"{field}: has {len(value):,} characters, the limit is {longest}"])


_OF_THE_LINE = ("id", "failure")
"""Further fields of a line. A file of failures has the field `failure` and can be an input again."""


def parse_line(line: bytes, number: int) -> tuple[str, dict[str, JsonValue]]:
    """Read a row's id and request from a line of JSON.

    Args:
        line: UTF-8.
        number: The number of the line, from 1. A row without id is named after it, such as `line-17`.

    Raises:
        InvalidRequest: the line is not a JSON object, its id is not valid, or it has the format of OpenAI's
        Batch API and asks for something that a task does not support.
    """
    try:
        raw = json.loads(line.decode(), parse_constant=_no_constant)
    except UnicodeDecodeError:
        raise InvalidRequest(["is not UTF-8 text"]) from None
    except (ValueError, RecursionError) as error:
        told = str(error) if not isinstance(error, RecursionError) else "nested too deeply"
        raise InvalidRequest([f"is not JSON: {told.splitlines()[0]}"]) from None
    if not isinstance(raw, dict):
        raise InvalidRequest(['must be one JSON object such as {"id": "1", "prompt": "…"}'])
    is_openai = is_openai_line(raw)
    found = raw.get("custom_id" if is_openai else "id")
    if found is None:
        found = f"line-{number}"
    if isinstance(found, int) and not isinstance(found, bool):
        found = str(found)
    if not isinstance(found, str):
        raise InvalidRequest(["id: must be text or a whole number"])
    _check_id("id", found, LONGEST_ROW_ID)
    if is_openai:
        return found, request_in(raw)
    return found, {name: value for name, value in raw.items() if name not in _OF_THE_LINE}


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not JSON")


def merged(defaults: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """Return the request with the defaults for missing fields. `retry` and `metadata` merge field by field.

    A null counts as missing.
    """
    request = {name: value for name, value in request.items() if value is not None}
    if isinstance(request.get("retry"), Mapping):
        request["retry"] = {name: value for name, value in request["retry"].items() if value is not None}
    whole = {**defaults, **request}
    for name in ("retry", "metadata"):
        ours, theirs = defaults.get(name), request.get(name)
        if isinstance(ours, Mapping) and isinstance(theirs, Mapping):
            whole[name] = {**ours, **theirs}
    return whole


def check_row(defaults: Mapping[str, Any], request: Mapping[str, Any]) -> AiAgentRequest:
    """Check the row's request as its task will. Raises `InvalidRequest`, naming each wrong field."""
    return parse_request(merged(defaults, request))
