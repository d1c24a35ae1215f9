"""A work item that has ended never changes again: neither in the task, nor in the database."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest

from tasquencer.core.errors import IllegalTransition, TaskMisused
from tasquencer.core.policy import Counts, Verdict
from tasquencer.core.task_state import TaskState
from tasquencer.core.work_item import Transition
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.sql import SqlLedger
from tests.semantics.side_by_side import SideBySide, Work
from tests.support.tasks import tasks_on
from tests.unit.driving import NOON, after, rate_limited, refused, task

ENDS: dict[str, Callable[[TaskState], object]] = {
    "completed": lambda state: state.complete("w0", "done", now=after(1)),
    "failed": lambda state: state.fail("w0", refused(), now=after(1)),
    "canceled": lambda state: state.cancel("w0", now=after(1), reason="not wanted"),
}
CHANGES: dict[str, Callable[[TaskState], object]] = {
    "start": lambda state: state.start("w0", now=after(2)),
    "complete": lambda state: state.complete("w0", "another result", now=after(2)),
    "fail": lambda state: state.fail("w0", rate_limited(), now=after(2)),
    "cancel": lambda state: state.cancel("w0", now=after(2), reason="too late"),
}


def undecided(transition: Transition, counts: Counts) -> Verdict:
    return Verdict.CONTINUE


@pytest.mark.parametrize("end", ENDS)
def test_every_change_of_an_ended_work_item_is_refused_and_leaves_it_as_it_was(end: str) -> None:
    state = task(policy=undecided)
    state.begin("job", now=NOON)
    state.start("w0", now=NOON)
    ENDS[end](state)
    before = state.work_item("w0")
    state.take_entries()

    for change in CHANGES.values():
        with pytest.raises(IllegalTransition, match=f"it is {end} .a terminal work item is immutable"):
            change(state)
    with pytest.raises(TaskMisused, match="has ended, nothing can take its place"):
        state.replace("w0", now=after(2), reason="after a reset of the task")
    state.close(now=after(2), reason="the task ended")

    assert state.work_item("w0") == before
    assert state.take_entries() == []


async def test_the_database_refuses_to_change_the_work_items_of_a_task_that_has_run(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    """`tests/ledger/test_immutability.py` has every statement, on SQLite and on PostgreSQL."""
    file = tmp_path / "ledger.db"
    async with (
        SqlLedger(f"sqlite:///{file}") as ledger,
        tasks_on(dev_server.address, [SideBySide], [Work().work], ledger=ledger) as tasks,
    ):
        await tasks.run("SideBySide", ["answers"])
    with closing(sqlite3.connect(file)) as database:
        for statement in (
            "UPDATE work_items SET state = 'started', ended_at = NULL",
            "UPDATE work_items SET result = '\"another result\"'",
            "DELETE FROM work_items",
            "UPDATE work_item_transitions SET actor = 'somebody else'",
        ):
            with pytest.raises(sqlite3.IntegrityError, match="immutable"):
                database.execute(statement)
