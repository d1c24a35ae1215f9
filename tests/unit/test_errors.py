"""The tree of errors and what each of them says."""

from __future__ import annotations

import inspect
import re

import pytest

from tasquencer.core import errors
from tasquencer.core.errors import (
    BookkeepingRefused,
    IllegalTransition,
    InvalidRequest,
    LedgerConflict,
    LedgerUnavailable,
    SchemaMismatch,
    TasquencerError,
    TemporalUnreachable,
    TooManyWorkItems,
    UnknownWorkItem,
)
from tasquencer.core.work_item import WorkItemState

CLASSES = {name: kind for name, kind in inspect.getmembers(errors, inspect.isclass) if name in errors.__all__}


def test_all_errors_have_one_root() -> None:
    assert all(issubclass(kind, TasquencerError) for kind in CLASSES.values())
    assert TasquencerError.__base__ is Exception


def test_the_tree_in_the_docstring_is_the_tree_in_the_code() -> None:
    drawn: dict[str, str] = {}
    path: list[str] = []
    for line in (errors.__doc__ or "").splitlines():
        match = re.match(r"^    ((?:[│ ]   )*)(?:[├└]── )?([A-Z]\w+)", line)
        if match is None:
            continue
        depth = len(match[1]) // 4 + ("── " in line)
        path[depth:] = [match[2]]
        if depth:
            drawn[match[2]] = path[depth - 1]

    coded = {
        name: kind.__bases__[0].__name__ for name, kind in CLASSES.items() if kind is not TasquencerError
    }
    assert drawn == coded


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (InvalidRequest(["a: wrong", "b: missing"]), "a: wrong; b: missing"),
        (
            IllegalTransition("w1", WorkItemState.INITIALIZED, WorkItemState.COMPLETED),
            "work item 'w1' cannot become completed: it is initialized",
        ),
        (
            IllegalTransition("w1", WorkItemState.FAILED, WorkItemState.STARTED),
            "work item 'w1' cannot become started: it is failed (a terminal work item is immutable)",
        ),
        (
            IllegalTransition("w1", None, WorkItemState.STARTED),
            "work item 'w1' cannot become started: it does not exist",
        ),
        (UnknownWorkItem("w1", "t1"), "task 't1' has no work item 'w1'"),
        (
            TooManyWorkItems("main", 3),
            (
                "lineage 'main' already has its 4 work items (max_retries=3): "
                "the hook must not ask for another attempt"
            ),
        ),
        (BookkeepingRefused("it is failed"), "it is failed (the task pauses; nothing is lost)"),
        (
            TemporalUnreachable("localhost:7233", "refused"),
            (
                "cannot reach Temporal at localhost:7233: refused "
                "(set TEMPORAL_ADDRESS, or start a server with `temporal server start-dev`)"
            ),
        ),
        (
            LedgerConflict("w1", "it is failed"),
            "the ledger refuses the entry for work item 'w1': it is failed",
        ),
        (LedgerUnavailable("db", "no disk"), "the ledger at db is unavailable: no disk"),
        (
            SchemaMismatch("db", None, "0002", "run this"),
            "the ledger at db has no schema, this release needs '0002': run this",
        ),
        (
            SchemaMismatch("db", "0001", "0002", "run this"),
            "the ledger at db has schema '0001', this release needs '0002': run this",
        ),
    ],
)
def test_an_error_says_what_was_expected_and_what_was_found(error: TasquencerError, message: str) -> None:
    assert str(error) == message
