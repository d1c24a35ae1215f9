"""The real worker, with a will: it dies at the moment that somebody has written down for it.

`python -m tests.chaos.mortal_worker` runs `worker.py` with its options and settings. Besides, it watches the
file `CHAOS_WILL`: `{"moment": "after failed", "later_seconds": 0.2}` kills the process 0.2 s after it has
committed a batch in which a work item failed. The moments are `tests.chaos.plan.MOMENTS`:

- `before STATE`, `after STATE`: around the commit of a batch in which a work item comes to that state;
- `before settled`, `after settled`: around the settlement of what a task has forgotten;
- `request`, `response`: as the request leaves, as its answer begins to arrive;
- `continue-as-new`: as a task goes on in a new run.

While the file `CHAOS_DISK_FULL` exists, the SQLite ledger may not grow. Its last deed is a line in the
file `CHAOS_DEATHS`.
"""

from __future__ import annotations

import json
import os
import signal
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import httpx2
import openai
import sqlalchemy as sa
import typer

import worker
from activities.client import make_client
from tasquencer.entries import LedgerEntry
from tasquencer.ledger import Settlement
from tasquencer.sql import SqlLedger
from tasquencer.temporal.scope import TaskScope
from tests.chaos.provider import Log

__all__: list[str] = []


class _Will:
    def __init__(self, file: Path, deaths: Path) -> None:
        self._file = file
        self._deaths = Log(deaths)
        self._lock = threading.Lock()

    def moment(self, name: str) -> None:
        """Die if this is the moment."""
        if not self._file.exists():
            return
        with self._lock:
            try:
                will = json.loads(self._file.read_text())
            except (OSError, ValueError):
                return
            if will["moment"] != name:
                return
            self._file.unlink()
        later = float(will["later_seconds"])
        if later:
            threading.Timer(later, self._die, [name]).start()
        else:
            self._die(name)

    def _die(self, name: str) -> None:
        self._deaths.write(pid=os.getpid(), moment=name, at=time.time())
        os.kill(os.getpid(), signal.SIGKILL)


class _MortalLedger(SqlLedger):
    def __init__(self, database_url: str) -> None:
        super().__init__(database_url)
        if database_url.startswith("sqlite"):
            engine = self._database._engine  # type: ignore[attr-defined] # there is no other way to fill it
            sa.event.listen(engine, "begin", _limit_size)

    async def record(self, entries: Sequence[LedgerEntry]) -> None:
        states = {entry.transition.next_state.value for entry in entries}
        for state in sorted(states):
            _will.moment(f"before {state}")
        await super().record(entries)
        for state in sorted(states):
            _will.moment(f"after {state}")

    async def settle(self, settlement: Settlement) -> list[str]:
        _will.moment("before settled")
        settled = await super().settle(settlement)
        _will.moment("after settled")
        return settled


def _limit_size(connection: sa.Connection) -> None:
    # SQLite takes the least page count that holds what there is: the file cannot grow.
    pages = 1 if _disk_full.exists() else 2**31
    connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")


def _mortal_client(**options: Any) -> openai.AsyncOpenAI:
    client = make_client(**options)
    hooks = client._client.event_hooks

    async def request(_: httpx2.Request) -> None:
        _will.moment("request")

    async def response(_: httpx2.Response) -> None:
        _will.moment("response")

    client._client.event_hooks = {
        "request": [*hooks["request"], request],
        "response": [response, *hooks["response"]],
    }
    return client


_continue_as_new = TaskScope.continue_as_new


def _mortal_continue_as_new(scope: TaskScope) -> NoReturn:
    _will.moment("continue-as-new")
    _continue_as_new(scope)


if __name__ == "__main__":
    _will = _Will(Path(os.environ["CHAOS_WILL"]), Path(os.environ["CHAOS_DEATHS"]))
    _disk_full = Path(os.environ["CHAOS_DISK_FULL"])
    with (
        patch.object(worker, "SqlLedger", _MortalLedger),
        patch.object(worker, "make_client", _mortal_client),
        patch.object(TaskScope, "continue_as_new", _mortal_continue_as_new),
    ):
        typer.run(worker.main)
