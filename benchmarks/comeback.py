"""`python -m benchmarks.comeback`: how many requests a provider gets when it is back after an outage.

Tasks are started together and meet a provider that answers 503 for a while, with waits of 0.5 s, 1 s … 8 s
until it answers. Temporal's dev server, a ledger on SQLite, the worker a process of its own; each jitter in
turn.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from bisect import bisect_left
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from temporalio.client import Client

from tasquencer.devkit.http_server import Exchange, HttpServer
from tasquencer.devkit.processes import ChildProcess
from tasquencer.devkit.temporal_server import embedded_temporal
from tasquencer.settings import DEFAULT_TASK_QUEUE
from tasquencer.sql import upgrade
from tasquencer.temporal import data_converter

__all__ = ["Comeback", "Provider"]

_RETRY = {"initial_interval_seconds": 0.5, "maximum_interval_seconds": 8}
_AT_ONCE = 50
_JSON = (("content-type", "application/json"),)
_WORKER = Path(__file__).resolve().parents[1] / "worker.py"


@dataclass
class Provider:
    """Answers 503 until it is back; notes when each request came."""

    is_back: bool = False
    came: list[float] = field(default_factory=list)

    async def __call__(self, exchange: Exchange) -> None:
        self.came.append(time.monotonic())
        if not self.is_back:
            await exchange.respond(503, _JSON, b'{"error": {"message": "down"}}')
            return
        message = {"role": "assistant", "content": "Forty-two."}
        answer = {
            "id": "chatcmpl-1",
            "object": "chat.completion",
            "created": 1,
            "model": json.loads(exchange.request.body)["model"],
            "choices": [{"index": 0, "finish_reason": "stop", "message": message}],
            "usage": {"prompt_tokens": 12, "completion_tokens": 4, "total_tokens": 16},
        }
        await exchange.respond(200, _JSON, json.dumps(answer).encode())


@dataclass(frozen=True)
class Comeback:
    """The requests after the return, in seconds since then, oldest first."""

    jitter: float
    before: int
    came: list[float]

    def most_within(self, seconds: float) -> int:
        """The most requests in any such span."""
        return max(bisect_left(self.came, at + seconds) - first for first, at in enumerate(self.came))

    def histogram(self, width: float = 0.1) -> list[int]:
        """How many came in each span of this width."""
        counts = Counter(int(at / width) for at in self.came)
        return [counts[number] for number in range(max(counts) + 1)]

    def row(self) -> str:
        """As a row of the table."""
        spans = self.histogram()
        busy = sum(1 for count in spans if count)
        return (
            f"| {self.jitter:g} | {self.before:,} | {max(spans)} | {self.most_within(1)} "
            f"| {busy} of {len(spans)} | {self.came[-1]:.1f} s |"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.comeback", description=__doc__)
    parser.add_argument("--tasks", type=int, default=500, help="tasks started together (500)")
    parser.add_argument("--down", type=float, default=60, help="seconds that the provider is down (60)")
    parser.add_argument("--jitter", type=float, action="append", help="may be repeated (0 and 0.5)")
    options = parser.parse_args()
    asyncio.run(_run(options.tasks, options.down, options.jitter or [0.0, 0.5]))


async def _run(tasks: int, down: float, jitters: list[float]) -> None:
    found = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        url = f"sqlite:///{folder / 'ledger.db'}"
        await upgrade(url)
        provider = Provider()
        async with HttpServer(provider) as http, embedded_temporal(ui=False) as server:
            environment = os.environ | {
                "OPENAI_API_KEY": "not-needed",
                "OPENAI_BASE_URL": f"http://127.0.0.1:{http.port}/v1",
                "TASQ_DATABASE_URL": url,
                "TEMPORAL_ADDRESS": server.address,
            }
            process = ChildProcess(
                "the worker", [sys.executable, _WORKER, "--log-level", "ERROR"], environment=environment
            )
            try:

                async def is_ready() -> bool:
                    return "tasq worker ready" in process.output()

                await process.wait_ready(is_ready, timeout_seconds=60)
                client = await Client.connect(server.address, data_converter=data_converter)
                for jitter in jitters:
                    found.append(await _comeback(client, provider, tasks, down, jitter))
                    print(f"jitter {jitter:g}: {found[-1].histogram()}", flush=True)
            finally:
                process.kill()
    print(
        "| `jitter` | requests before | most in 0.1 s | most in 1 s | tenths with one | all answered after |"
    )
    print("| --- | --- | --- | --- | --- | --- |")
    for one in found:
        print(one.row())


async def _comeback(client: Client, provider: Provider, tasks: int, down: float, jitter: float) -> Comeback:
    provider.is_back, provider.came = False, []
    slots = asyncio.Semaphore(_AT_ONCE)
    begin = time.monotonic()

    async def start(number: int) -> Any:
        async with slots:
            return await client.start_workflow(
                "AiAgentTask",
                {"prompt": "?", "max_retries": 100, "retry": _RETRY | {"jitter": jitter}},
                id=f"comeback-{jitter}-{number}",
                task_queue=DEFAULT_TASK_QUEUE,
            )

    handles = await asyncio.gather(*(start(number) for number in range(tasks)))
    print(f"{tasks} tasks started in {time.monotonic() - begin:.1f} s", flush=True)
    await asyncio.sleep(max(0.0, begin + down - time.monotonic()))
    provider.is_back = True
    back_at = time.monotonic()
    await asyncio.gather(*(handle.result() for handle in handles))
    after = [at - back_at for at in provider.came if at >= back_at]
    return Comeback(jitter, len(provider.came) - len(after), after)


if __name__ == "__main__":
    main()
