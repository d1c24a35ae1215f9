"""What a task hands to the ledger: transitions, with the domain records that belong to them."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ConfigDict, JsonValue
from pydantic_core import PydanticSerializationError

from tasquencer.core.work_item import Transition, WorkItem

__all__ = ["DomainRecord", "LedgerEntry", "cleaned", "cleaned_text"]


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
    """One transition to be written, with the work item as it is after it."""

    model_config = ConfigDict(frozen=True)

    transition: Transition
    work_item: WorkItem
    record: DomainRecord | None = None


def cleaned(entry: LedgerEntry) -> LedgerEntry:
    """The entry with U+FFFD in the place of what databases cannot hold: NUL and lone surrogates."""
    try:
        if "\\u0000" not in entry.model_dump_json():
            return entry
    except PydanticSerializationError:
        pass
    return LedgerEntry.model_validate(_cleaned_value(entry.model_dump()))


def cleaned_text(text: str) -> str:
    """The text with U+FFFD in the place of what a database cannot hold: NUL characters, lone surrogates."""
    return text.replace("\x00", "\ufffd").encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _cleaned_value(value: object) -> object:
    if isinstance(value, str):
        return cleaned_text(value)
    if isinstance(value, Mapping):
        return {_cleaned_value(key): _cleaned_value(part) for key, part in value.items()}
    if isinstance(value, list):
        return [_cleaned_value(part) for part in value]
    return value
