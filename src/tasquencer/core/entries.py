"""The entries that a task writes to the ledger: transitions, with their domain records."""

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
    """A domain's own record of a work item, written in the same transaction as the transition.

    Attributes:
        table: The domain table, which has a unique column `work_item_id`.
        values: The other columns.
    """

    model_config = ConfigDict(frozen=True)

    table: str
    values: Mapping[str, JsonValue]


class LedgerEntry(BaseModel):
    """One transition to write, with the work item as it is after the transition.

    Attributes:
        offered: True for a work item of a run that a reset has abandoned. The ledger skips such an entry
        if it contradicts what the ledger holds.
        as_of: When the workflow task that made the decision began. If two decisions contradict each other,
        the later one counts. A decision without this time replaces nothing.
    """

    model_config = ConfigDict(frozen=True)

    transition: Transition
    work_item: WorkItem
    record: DomainRecord | None = None
    offered: bool = False
    as_of: AwareDatetime | None = None


def cleaned(entry: LedgerEntry) -> LedgerEntry:
    """Return the entry with U+FFFD for each character that databases cannot hold: NUL and lone surrogates.

    Ids stay as they are, because two different ids must not become the same.
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
    """Return the text with U+FFFD for each character that a database cannot hold: NUL and lone surrogates."""
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
