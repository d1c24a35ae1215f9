"""Batches: any number of prompts, each a task of its own, started a few at a time under one policy.

The prompts are the rows of a batch. They rest in the ledger's database (`tasquencer.batch_store`), the
workflow `AiBatchTask` takes them from there, and `tasquencer.batch_window` decides what it does next.
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
"""Tasks of a batch that are under way at once."""

LONGEST_BATCH_ID = 100
LONGEST_ROW_ID = 150
"""Characters. Together they are the id of a row's task, of which Temporal keeps 255 in an SQL database."""


class RowState(StrEnum):
    """Where a row of a batch stands."""

    PENDING = "pending"
    """Nothing is known of its end: it has not begun, or its task is under way."""
    COMPLETED = "completed"
    """Its task has an answer."""
    FAILED = "failed"
    """Its task ended without one."""
    CANCELED = "canceled"
    """Its task was canceled, or the batch ended before it began."""


class BatchRow(BaseModel):
    """A row as its task is to be started.

    Attributes:
        position: Its place in the batch, from 0.
        row_id: Its name in the batch; unique there.
        request: The fields of `AiAgentRequest`.
        size: Bytes of the request as JSON, about; 0 where nobody has counted.
    """

    model_config = ConfigDict(frozen=True)

    position: int
    row_id: str
    request: dict[str, Any]
    size: int = 0


class OpenRow(BaseModel):
    """A row whose task is under way.

    Attributes:
        found: The task was there before the batch could start it: one that the batch has left when it was
            terminated, or somebody else's.
    """

    model_config = ConfigDict(frozen=True)

    position: int
    row_id: str
    found: bool = False


ID_TAKEN = "IdTaken"
"""The failure of a row whose id belongs to a task of another request."""


class RowFailure(BaseModel):
    """Why a row has no answer.

    Attributes:
        type: Of its task's failure: `RetriesExhausted`, `NotRetryable` …; `Canceled`, `Terminated` or
            `TimedOut`; `ID_TAKEN` if another request has a task with the row's id.
        kind: Of the last attempt's failure, where there was one.
        message: In one line.
    """

    model_config = ConfigDict(frozen=True)

    type: str
    kind: str | None = None
    message: str = ""


class RowOutcome(Usage):
    """How a row's task ended. Its answer is in the ledger, by the work item's id.

    Attributes:
        number: 1 for the first row of the batch that ended, and so on; 0 while nobody has counted it.
        ended_at: When the batch learned of it.
        input_tokens, output_tokens, cost_usd: Of all attempts, as far as the end of the task reports them.
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
    """How many rows of a batch are in each state, and what the answers took.

    Attributes:
        ended: The highest number of a row that has ended.
        cost_usd: Of the answers whose price is known; None if none is.
    """

    model_config = ConfigDict(frozen=True)

    pending: int = 0
    completed: int = 0
    failed: int = 0
    canceled: int = 0
    ended: int = 0


class BatchPause(RequestModel):
    """Who has paused a batch, and why."""

    actor: FilledText
    reason: str | None = None


class CarriedBatch(BaseModel):
    """What a run of the workflow hands on to the next one."""

    model_config = ConfigDict(frozen=True)

    counts: BatchCounts
    cursor: int
    open: list[OpenRow]
    unrecorded: list[RowOutcome] = []
    paused: BatchPause | None = None
    last_failure: str | None = None


class AiBatchRequest(RequestModel):
    """The input of the workflow `AiBatchTask`, whose rows are in the ledger under the workflow's id.

    Attributes:
        concurrency: How many tasks may be under way at once.
        policy: When the batch completes or fails: a name, or an object such as
            `{"name": "absorb_failures", "fraction": 0.1}`.
        carried: The workflow's own, when it continues as new.
    """

    concurrency: Annotated[Whole, Field(ge=1, le=MOST_AT_ONCE)] = 50
    policy: Annotated[NamedPolicy, BeforeValidator(policy_by_name)] = NamedPolicy()
    carried: CarriedBatch | None = None


class BatchProgress(UsageSum):
    """What the query `progress` answers.

    Attributes:
        rows: Of the whole batch.
        running: Rows whose task is under way.
        input_tokens, output_tokens, cost_usd: Of all attempts of the rows that have ended.
        paused: None while it goes on.
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
        """Rows that have ended, however."""
        return self.completed + self.failed + self.canceled


class AiBatchResult(UsageSum):
    """The result of a batch; the answers are in the ledger."""

    model_config = ConfigDict(frozen=True)

    rows: int
    completed: int
    failed: int
    canceled: int


def parse_batch(raw: object) -> AiBatchRequest:
    """The workflow's raw input; none means the defaults. Raises `InvalidRequest`, naming each wrong field."""
    return validated(AiBatchRequest, {} if raw is None else raw, example='{"concurrency": 50}')


class _PauseRequest(RequestModel):
    actor: ActorName
    reason: Reason | None = None


def parse_pause(raw: object) -> BatchPause:
    """The argument of `pause` and `resume`. Raises `InvalidRequest`, naming each wrong field."""
    asked = validated(_PauseRequest, raw, example='{"actor": "anna", "reason": "…"}')
    return BatchPause(actor=asked.actor, reason=asked.reason)


def task_id_of(batch_id: str, row_id: str) -> str:
    """The id of a row's task."""
    return f"{batch_id}/{row_id}"


def check_batch_id(batch_id: str) -> None:
    """Raise `InvalidRequest` for what cannot be a batch's id."""
    _check_id("id", batch_id, LONGEST_BATCH_ID)
    if "/" in batch_id:
        raise InvalidRequest(["id: must not contain a slash: it stands between batch and row"])


def _check_id(field: str, value: str, longest: int) -> None:
    if not value.strip() or not value.isprintable():
        raise InvalidRequest([f"{field}: must be printable text, and not empty"])
    if len(value) > longest:
        raise InvalidRequest([f"{field}: has {len(value):,} characters, the limit is {longest}"])


_OF_THE_LINE = ("id", "failure")
"""What a line may have beside the request. `failure` is what a file of failures says: that is input again."""


def parse_line(line: bytes, number: int) -> tuple[str, dict[str, JsonValue]]:
    """The row's id and request in a line of JSON.

    Args:
        line: UTF-8.
        number: Of the line, from 1: a row without id is named after it, `line-17`.

    Raises:
        InvalidRequest: it is no JSON object, or its id is none, or it has the format of OpenAI's Batch API
            and asks for what a task cannot carry out.
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
    raise ValueError(f"{name} is no JSON")


def merged(defaults: Mapping[str, Any], request: Mapping[str, Any]) -> dict[str, Any]:
    """The request, with the defaults for what it does not say; `retry` and `metadata` field by field.

    A null says nothing.
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
    """The row's request as its task reads it. Raises `InvalidRequest`, naming each wrong field."""
    return parse_request(merged(defaults, request))
