"""What a task hands to the ledger: transitions, with the domain records that belong to them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from pydantic import AwareDatetime, BaseModel, ConfigDict, JsonValue
from pydantic_core import PydanticSerializationError

from tasquencer.core.work_item import Transition, WorkItem

__all__ = ["DomainRecord", "LedgerEntry", "cleaned", "cleaned_text"]


_M = TypeVar("_M", bound=BaseModel)

_IDS = {"id", "work_item_id", "task_id", "run_id", "lineage"}


class DomainRecord(BaseModel):
    """What the domain keeps about a work item, written in the transaction of its transition.

    Attributes:
        table: The domain table; it has a unique column `work_item_id`.
        values: The other columns.
    """

    model_config = ConfigDict(frozen=True)

    table: str
    values: Mapping[str, JsonValue]


class LedgerEntry(BaseModel):
    """One transition to be written, with the work item as it is after it.

    Attributes:
        offered: The ledger may leave the entry out where it holds otherwise: it is about a work item of a run
            that a reset has abandoned.
        as_of: When the workflow task began that has made the decision. Of two contradicting decisions the
            later one counts; one without a time replaces nothing.
    """

    model_config = ConfigDict(frozen=True)

    transition: Transition
    work_item: WorkItem
    record: DomainRecord | None = None
    offered: bool = False
    as_of: AwareDatetime | None = None


def cleaned(entry: LedgerEntry) -> LedgerEntry:
    """The entry with U+FFFD in the place of what databases cannot hold: NUL and lone surrogates.

    Ids stay as they are: two that differ must not become one.
    """
    try:
        if "\\u0000" not in entry.model_dump_json():
            return entry
    except PydanticSerializationError:
        pass
    found = LedgerEntry.model_validate(_cleaned_value(entry.model_dump()))
    return found.model_copy(
        update={
            "transition": _with_ids_of(entry.transition, found.transition),
            "work_item": _with_ids_of(entry.work_item, found.work_item),
        }
    )


def cleaned_text(text: str) -> str:
    """The text with U+FFFD in the place of what a database cannot hold: NUL characters, lone surrogates."""
    return text.replace("\x00", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _with_ids_of(before: _M, after: _M) -> _M:
    names = _IDS & type(before).model_fields.keys()
    return after.model_copy(update={name: getattr(before, name) for name in names})


def _cleaned_value(value: object) -> object:
    if isinstance(value, str):
        return cleaned_text(value)
    if isinstance(value, Mapping):
        return {_cleaned_value(key): _cleaned_value(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_cleaned_value(part) for part in value]
    return value
