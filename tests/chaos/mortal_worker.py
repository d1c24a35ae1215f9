"""The real worker with a will: it dies or stops at the moment that a file names.

`python -m tests.chaos.mortal_worker` runs `worker.py` with its options and settings. It also looks for wills
(`tests.chaos.wills`) in the folder `CHAOS_WILLS`. The will `die`, `after failed`, 0.2 seconds kills the
process 0.2 s after it has committed entries in which a work item failed. With `pause` it stops (SIGSTOP)
until another process continues it. The moments are `tests.chaos.plan.MOMENTS`:

- `before STATE`, `after STATE`: around the commit of entries in which a work item comes to that state;
- `before settled`, `after settled`: around the settlement of forgotten work items;
- `request`, `response`: when the request is sent, when its answer begins to arrive;
- `continue-as-new`: when a task continues in a new run.

Each deed is noted in the file `CHAOS_DEEDS` before it is done. While the file `CHAOS_DISK_FULL` exists, the
SQLite ledger may not grow.
"""

from __future__ import annotations

import contextlib
import os
import signal
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn
from unittest.mock import patch

import httpx2
import openai
import sqlalchemy as sa

import worker
from tasquencer.ai.provider import client as provider_client
from tasquencer.ai.provider.client import make_client
from tasquencer.cli.worker_options import run_program
from tasquencer.core.entries import LedgerEntry
from tasquencer.ledger.contract import Settlement
from tasquencer.sql import SqlLedger
from tasquencer.temporal.scope import TaskScope
from tests.chaos.wills import Deeds, Will, Wills

__all__: list[str] = []


def _moment(name: str) -> None:
    """Do what a will says of this moment."""
    will = _wills.take(name)
    if will is None:
        return
    if will.later_seconds:
        threading.Timer(will.later_seconds, _act, [will]).start()
    else:
        _act(will)


def _act(will: Will) -> None:
    _deeds.write(will, will.what)
    if will.what == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    # To this thread: so nothing of it runs before the whole process has stopped.
    signal.pthread_kill(threading.get_ident(), signal.SIGSTOP)
    _deeds.write(will, "continue")


@contextlib.contextmanager
def _moments_around(entries: Sequence[LedgerEntry]) -> Iterator[None]:
    states = sorted({entry.transition.next_state.value for entry in entries})
    for state in states:
        _moment(f"before {state}")
    yield
    for state in states:
        _moment(f"after {state}")


class _MortalLedger(SqlLedger):
    def __init__(self, database_url: str) -> None:
        super().__init__(database_url)
        if database_url.startswith("sqlite"):
            engine = self._database._engine  # type: ignore[attr-defined] # there is no other way to fill it
            sa.event.listen(engine, "begin", _limit_size)

    async def record(self, entries: Sequence[LedgerEntry]) -> None:
        with _moments_around(entries):
            await super().record(entries)

    async def record_and_find_open(
        self, entries: Sequence[LedgerEntry], task_id: str, run_id: str
    ) -> frozenset[str]:
        with _moments_around(entries):
            return await super().record_and_find_open(entries, task_id, run_id)

    async def settle(self, settlement: Settlement) -> list[str]:
        _moment("before settled")
        settled = await super().settle(settlement)
        _moment("after settled")
        return settled


def _limit_size(connection: sa.Connection) -> None:
    # SQLite takes the least page count that holds what there is: the file cannot grow.
    pages = 1 if _disk_full.exists() else 2**31
    connection.exec_driver_sql(f"PRAGMA max_page_count = {pages}")


def _mortal_client(**options: Any) -> openai.AsyncOpenAI:
    client = make_client(**options)
    hooks = client._client.event_hooks

    async def request(_: httpx2.Request) -> None:
        _moment("request")

    async def response(_: httpx2.Response) -> None:
        _moment("response")

    client._client.event_hooks = {
        "request": [*hooks["request"], request],
        "response": [response, *hooks["response"]],
    }
    return client


_continue_as_new = TaskScope.continue_as_new


def _mortal_continue_as_new(scope: TaskScope) -> NoReturn:
    _moment("continue-as-new")
    _continue_as_new(scope)


if __name__ == "__main__":
    _wills, _deeds = Wills(Path(os.environ["CHAOS_WILLS"])), Deeds(Path(os.environ["CHAOS_DEEDS"]))
    _disk_full = Path(os.environ["CHAOS_DISK_FULL"])
    with (
        patch.object(worker, "SqlLedger", _MortalLedger),
        patch.object(provider_client, "make_client", _mortal_client),
        patch.object(TaskScope, "continue_as_new", _mortal_continue_as_new),
    ):
        run_program(worker.main)
