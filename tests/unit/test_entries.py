"""What databases cannot hold is replaced before it is written."""

from __future__ import annotations

import pytest

from tasquencer.core.entries import DomainRecord, LedgerEntry, cleaned
from tasquencer.core.failure import Failure, FailureKind
from tests.unit.driving import NOON, failed, task


def entry_with(text: str) -> LedgerEntry:
    state = task(
        record_of=lambda item, recipe: DomainRecord(
            table="jobs", values={"list": [{"text": text}], "number": 1}
        )
    )
    state.begin({text: [text, 1, None]}, now=NOON)
    return state.take_entries()[0]


@pytest.mark.parametrize("text", ["plain", "Grüße 🎉", r"a literal \u0000 is only text", ""])
def test_ordinary_text_is_kept(text: str) -> None:
    entry = entry_with(text)

    assert cleaned(entry) == entry


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a\x00b", "a\ufffdb"),
        ("a\ud800b", "a\ufffdb"),
        ("\udc00", "\ufffd"),
        ("🎉\x00", "🎉\ufffd"),
    ],
)
def test_nul_and_lone_surrogates_are_replaced_everywhere(text: str, expected: str) -> None:
    found = cleaned(entry_with(text))

    assert found.work_item.payload == {expected: [expected, 1, None]}
    assert found.record is not None
    assert found.record.values == {"list": [{"text": expected}], "number": 1}
    assert cleaned(found) == found
    found.model_dump_json()


def test_everything_else_of_the_entry_stays_as_it_was() -> None:
    state = task()
    state.begin("job", now=NOON)
    failed(state, "w0", Failure.of(FailureKind.RATE_LIMITED, "a\x00b", retry_after_seconds=7, status=429))
    entry = state.take_entries()[2]

    found = cleaned(entry)

    assert found.transition == entry.transition
    assert found.work_item == entry.work_item.model_copy(
        update={
            "failure": Failure.of(FailureKind.RATE_LIMITED, "a\ufffdb", retry_after_seconds=7, status=429)
        }
    )
