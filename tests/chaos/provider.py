"""The AI provider of a run, as a process of its own: `python -m tests.chaos.provider --seed 7 …`.

The seed, the prompt and the number of requests with it so far decide how a request is answered. Each request
makes two lines in the log, on arrival and at its end, written at once: what this process knew survives it.
On arrival it looks in the ledger, by a way of its own, what that knows of the work item.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import sqlite3
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import asyncpg

from tasquencer.devkit.http_server import Exchange, HttpServer
from tests.stories.story import Given
from tests.support import answers
from tests.support.answers import Answer

__all__ = ["Glance", "Log", "glance_at", "random_answer"]

_LOG = "SELECT next_state FROM work_item_transitions WHERE work_item_id = {} ORDER BY sequence"


class Log:
    """An append-only file of JSON lines; each is with the kernel before the call returns."""

    def __init__(self, file: Path) -> None:
        self._descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)

    def write(self, **facts: Any) -> None:
        os.write(self._descriptor, json.dumps(facts).encode() + b"\n")


class Glance(ABC):
    """Looks what the ledger knows of a work item."""

    @abstractmethod
    async def states(self, work_item_id: str) -> Sequence[str] | None:
        """Its states so far; None: nobody could look."""


class _SqliteGlance(Glance):
    def __init__(self, file: str) -> None:
        self._file = file
        self._connection: sqlite3.Connection | None = None

    async def states(self, work_item_id: str) -> Sequence[str] | None:
        try:
            if self._connection is None:
                self._connection = sqlite3.connect(
                    f"file:{self._file}?mode=ro", uri=True, isolation_level=None
                )
            return [row[0] for row in self._connection.execute(_LOG.format("?"), [work_item_id])]
        except sqlite3.Error:
            self._connection = None
            return None


class _PostgresGlance(Glance):
    def __init__(self, url: str) -> None:
        self._url = url
        self._connection: asyncpg.Connection | None = None
        self._turn = asyncio.Lock()

    async def states(self, work_item_id: str) -> Sequence[str] | None:
        async with self._turn:
            try:
                if self._connection is None:
                    self._connection = await asyncpg.connect(self._url, timeout=2)
                rows = await self._connection.fetch(_LOG.format("$1"), work_item_id, timeout=2)
            except (OSError, TimeoutError, asyncpg.PostgresError, asyncpg.InterfaceError):
                if self._connection is not None:
                    self._connection.terminate()
                self._connection = None
                return None
            return [row[0] for row in rows]


def glance_at(ledger: str) -> Glance:
    """Looks into a SQLite file, or into the database at a PostgreSQL URL."""
    return _PostgresGlance(ledger) if ledger.startswith("postgresql:") else _SqliteGlance(ledger)


def random_answer(dice: random.Random, text: str) -> tuple[Answer, Given]:
    """An answer and what it means."""
    asked = dice.choice([None, 1.0, 2.0])
    names = ["ok", "slow", "late", "stall", "rate_limited", "status 500", "status 400", "reset", "closed"]
    (name,) = dice.choices(names, [30, 8, 22, 5, 8, 8, 2, 5, 3])
    good = answers.ok(text)
    makers: dict[str, tuple[Answer, Given]] = {
        "ok": (good, Given(name, None, text)),
        "slow": (answers.slow(text, pause_seconds=dice.choice([0.05, 0.15])), Given(name, None, text)),
        "late": (_late(dice.uniform(0.2, 2.5), good), Given(name, None, text)),
        "stall": (answers.stall(), Given(name, "timed_out", endless=True)),
        "rate_limited": (
            answers.rate_limited(None if asked is None else str(asked)),
            Given(name, "rate_limited", retry_after=asked),
        ),
        "status 500": (answers.status(500), Given(name, "provider_error")),
        "status 400": (answers.status(400), Given(name, "invalid_request")),
        "reset": (answers.reset(), Given(name, "unreachable")),
        "closed": (answers.closed(), Given(name, "unreachable")),
    }
    return makers[name]


def _late(seconds: float, then: Answer) -> Answer:
    async def give(exchange: Exchange, body: Any) -> None:
        await asyncio.sleep(seconds)
        await then.give(exchange, body)

    return Answer("late", give)


class _Provider:
    def __init__(self, seed: str, log: Log, glance: Glance) -> None:
        self._seed = seed
        self._log = log
        self._glance = glance
        self._asked: Counter[str] = Counter()
        self._number = 0

    async def handle(self, exchange: Exchange) -> None:
        """Answer one request, and log it."""
        at = time.time()
        self._number += 1
        number = self._number
        body = json.loads(exchange.request.body)
        prompt = body["messages"][-1]["content"]
        key = exchange.request.header("idempotency-key")
        self._asked[prompt] += 1
        dice = random.Random(f"{self._seed}/{prompt}/{self._asked[prompt]}")
        answer, given = random_answer(dice, f"answer {self._asked[prompt]} to {prompt}")
        held = await self._glance.states(key or "")
        self._log.write(number=number, key=key, prompt=prompt, at=at, given=asdict(given), held=held)
        how = "broken off"
        try:
            await answer.give(exchange, body)
            how = "answered" if exchange.complete else how
        except (asyncio.CancelledError, ConnectionError):
            how = "the client left"
            raise
        finally:
            self._log.write(number=number, ended_at=time.time(), how=how)


async def _serve(seed: str, log: Path, ledger: str) -> None:
    async with HttpServer(_Provider(seed, Log(log), glance_at(ledger)).handle) as server:
        print(server.port, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", required=True)
    parser.add_argument("--log", type=Path, required=True)
    parser.add_argument("--ledger", required=True, help="a SQLite file, or the URL of a PostgreSQL database")
    options = parser.parse_args()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(options.seed, options.log, options.ledger))
