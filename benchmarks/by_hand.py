"""The usual hand-written way to keep attempts: a row before the AI call, and its end after the call.

There are two variants: the writes happen inside the AI activity, around the call, or each write is its own
activity, so that the workflow knows that the row exists. The database is SQLite, as durable as the ledger's,
and one thread writes to it.
"""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TypeVar

from temporalio import activity, workflow

from benchmarks.bare import HEARTBEAT_TIMEOUT

__all__ = ["AskBetweenActivities", "AskInActivity", "ByHand"]

T = TypeVar("T")

_PATIENCE = timedelta(seconds=305)
_TABLE = (
    "CREATE TABLE IF NOT EXISTS attempts (id TEXT PRIMARY KEY, prompt TEXT NOT NULL, status TEXT NOT NULL, "
    "started_at TEXT NOT NULL, ended_at TEXT, answer TEXT)"
)


class ByHand:
    """The activities. `ask` makes the call."""

    def __init__(self, file: Path, ask: Callable[[str], object]) -> None:
        self._ask = ask
        self._thread = ThreadPoolExecutor(1)
        self._connection = sqlite3.connect(file, check_same_thread=False, isolation_level=None)
        self._connection.execute("PRAGMA journal_mode = WAL")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._connection.execute(_TABLE)

    @activity.defn(name="ask_and_record")
    async def ask_and_record(self, prompt: str) -> str:
        """The call, with its row before and after."""
        row = f"{activity.info().workflow_id}/{activity.info().attempt}"
        await self._start(row, prompt)
        answer: str = await self._ask(prompt)  # type: ignore[misc]
        await self._end(row, answer)
        return answer

    @activity.defn(name="record_start")
    async def record_start(self, prompt: str) -> str:
        """The row before the call; its id."""
        row = f"{activity.info().workflow_id}"
        await self._start(row, prompt)
        return row

    @activity.defn(name="record_end")
    async def record_end(self, row: str, answer: str) -> None:
        """The row's end."""
        await self._end(row, answer)

    async def _start(self, row: str, prompt: str) -> None:
        values = row, prompt, datetime.now(UTC).isoformat()
        await self._write("INSERT INTO attempts VALUES (?, ?, 'started', ?, NULL, NULL)", values)

    async def _end(self, row: str, answer: str) -> None:
        values = datetime.now(UTC).isoformat(), answer, row
        change = "UPDATE attempts SET status = 'completed', ended_at = ?, answer = ? WHERE id = ?"
        await self._write(change, values)

    async def _write(self, statement: str, values: tuple[str, ...]) -> None:
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._thread, self._connection.execute, statement, values)


@workflow.defn(name="AskInActivity")
class AskInActivity:
    """One activity, which writes its own row. Input: the prompt. Result: the answer's text."""

    @workflow.run
    async def run(self, prompt: str) -> str:
        answer: str = await workflow.execute_activity(
            "ask_and_record",
            prompt,
            result_type=str,
            start_to_close_timeout=_PATIENCE,
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
        )
        return answer


@workflow.defn(name="AskBetweenActivities")
class AskBetweenActivities:
    """An activity for the row, one for the call, one for the row's end."""

    @workflow.run
    async def run(self, prompt: str) -> str:
        row = await workflow.execute_activity("record_start", prompt, start_to_close_timeout=_PATIENCE)
        answer: str = await workflow.execute_activity(
            "ask",
            prompt,
            result_type=str,
            start_to_close_timeout=_PATIENCE,
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
        )
        await workflow.execute_activity("record_end", args=[row, answer], start_to_close_timeout=_PATIENCE)
        return answer
