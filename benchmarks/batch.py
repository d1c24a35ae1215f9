"""`python -m benchmarks.batch`: a batch beside a plain client loop that starts as many tasks at once.

Both sides take turns, round by round. A round of the batch begins with its rows in the ledger and ends with
the result of the workflow. Then: how many events each run of the batch's workflow had, and what `tasq batch`
takes to check and send a large file. With `--whole` it carries a file out from end to end.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from temporalio.client import WorkflowHandle

from benchmarks.measure import TASK_QUEUE, Bench, running
from benchmarks.processes import cpu_seconds
from benchmarks.provider import waiting
from tasquencer.batch import BatchRow
from tasquencer.batch_store import Batch
from tasquencer.sql import SqlLedger

_AIM = 0.8
_SAMPLE_SECONDS = 1.0
_SHOWN_SECONDS = 15.0
_SENT_AT_ONCE = 500


@dataclass(frozen=True)
class Round:
    """What one round of one side took; the CPU times in seconds, the memory in MB."""

    prompts: int
    seconds: float
    client_cpu: float
    worker_cpu: float
    server_cpu: float
    worker_megabytes: list[float]

    def __str__(self) -> str:
        rate = self.prompts / self.seconds
        memory = self.worker_megabytes
        return (
            f"{rate:7.1f} prompts/s   CPU of client {self.client_cpu:.1f} s, worker {self.worker_cpu:.1f} s, "
            f"server {self.server_cpu:.1f} s   worker {memory[0]:.0f} → {memory[-1]:.0f} MB, "
            f"most {max(memory):.0f} MB"
        )


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.batch", description=__doc__)
    parser.add_argument("--prompts", type=int, default=1_000, help="of a round (1000)")
    parser.add_argument("--rounds", type=int, default=3, help="of each side (3)")
    parser.add_argument("--concurrency", type=int, default=50, help="tasks at once (50)")
    parser.add_argument("--milliseconds", type=int, default=0, help="the provider takes for an answer (0)")
    parser.add_argument("--lines", type=int, default=200_000, help="of the large file; 0: none (200000)")
    parser.add_argument("--whole", type=int, default=0, help="lines of a file to carry out with `tasq batch`")
    asyncio.run(_run(parser.parse_args()))


async def _run(options: argparse.Namespace) -> None:
    async with running({}) as bench:
        ratios = []
        await _loop(bench, max(100, options.prompts // 10), options)  # warm-up
        for turn in range(options.rounds):
            sides: list[tuple[str, Callable[..., Any]]] = [("loop", _loop), ("batch", _batch)]
            rates = {}
            for name, side in sides if turn % 2 == 0 else reversed(sides):
                done = await side(bench, options.prompts, options)
                rates[name] = done.prompts / done.seconds
                print(f"{turn + 1}. {name:5} {done}", flush=True)
            ratios.append(rates["batch"] / rates["loop"])
        if ratios:
            ratio = median(ratios)
            verdict = "reached" if ratio >= _AIM else "missed"
            print(f"\nbatch / loop: {ratio:.2f} (aim: {_AIM:.2f}, {verdict})", flush=True)
        if options.lines:
            await _large_file(bench, options.lines)
        if options.whole:
            await _whole_file(bench, options)


async def _measured(bench: Bench, prompts: int, work: Any) -> Round:
    pids = (bench.worker_pid, bench.server_pid)
    before = [cpu_seconds(pid) for pid in pids]
    own = time.process_time()
    memory = [_megabytes(bench.worker_pid)]

    async def sample() -> None:
        while True:
            await asyncio.sleep(_SAMPLE_SECONDS)
            memory.append(_megabytes(bench.worker_pid))

    sampling = asyncio.create_task(sample())
    begin = time.perf_counter()
    await work
    seconds = time.perf_counter() - begin
    sampling.cancel()
    client = time.process_time() - own
    worker, server = (cpu_seconds(pid) - was for pid, was in zip(pids, before, strict=True))
    return Round(prompts, seconds, client, worker, server, [*memory, _megabytes(bench.worker_pid)])


async def _loop(bench: Bench, prompts: int, options: argparse.Namespace) -> Round:
    name, numbers = uuid4().hex, iter(range(prompts))

    async def run_some() -> None:
        for number in numbers:
            await bench.client.execute_workflow(
                "AiAgentTask",
                {"prompt": waiting(options.milliseconds, f"{name} {number}")},
                id=f"{name}-{number}",
                task_queue=TASK_QUEUE,
            )

    return await _measured(bench, prompts, asyncio.gather(*(run_some() for _ in range(options.concurrency))))


async def _batch(bench: Bench, prompts: int, options: argparse.Namespace) -> Round:
    batch_id = uuid4().hex
    async with SqlLedger(f"sqlite:///{bench.ledger}") as ledger:
        now = datetime.now(UTC)
        await ledger.batches.create(
            Batch(id=batch_id, digest="benchmark", rows=prompts, defaults={}, created_at=now)
        )
        for first in range(0, prompts, _SENT_AT_ONCE):
            rows = [
                BatchRow(
                    position=number,
                    row_id=f"{number}",
                    request={"prompt": waiting(options.milliseconds, f"{batch_id} {number}")},
                )
                for number in range(first, min(first + _SENT_AT_ONCE, prompts))
            ]
            await ledger.batches.fill(batch_id, rows)
        await ledger.batches.filled(batch_id)
    handle: WorkflowHandle[Any, Any] | None = None

    async def work() -> None:
        nonlocal handle
        handle = await bench.client.start_workflow(
            "AiBatchTask", {"concurrency": options.concurrency}, id=batch_id, task_queue=TASK_QUEUE
        )
        result = await handle.result()
        assert result["completed"] == prompts, result

    done = await _measured(bench, prompts, work())
    assert handle is not None
    events = await _events_of_runs(bench, batch_id)
    runs = f"history of {len(events)} runs: at most {max(events):,} events"
    print(f"   {runs}, {sum(events) / prompts:.1f} a prompt")
    return done


async def _events_of_runs(bench: Bench, workflow_id: str) -> list[int]:
    found = []
    run_id: str | None = (await bench.client.get_workflow_handle(workflow_id).describe()).run_id
    while run_id:
        handle = bench.client.get_workflow_handle(workflow_id, run_id=run_id)
        found.append((await handle.describe()).history_length)
        first = await anext(handle.fetch_history_events(page_size=1))
        run_id = first.workflow_execution_started_event_attributes.continued_execution_run_id
    return found


async def _large_file(bench: Bench, lines: int) -> None:
    """Check and send a large file; nobody serves the queue, so that only the client works."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "large.jsonl"
        size = _write_file(file, [f"Summarize document {number}. " + "word " * 60 for number in range(lines)])
        ledger = f"sqlite:///{folder}/ledger.db"
        begin = time.perf_counter()
        process = await _tasq(bench, ledger, "nobody", "batch", file, "--detach")
        peak = 0.0
        while process.returncode is None:
            peak = max(peak, _megabytes(process.pid, "VmHWM"))
            await asyncio.wait({asyncio.create_task(process.wait())}, timeout=0.2)
        took = time.perf_counter() - begin
        assert process.returncode == 0
        print(f"\n{lines:,} lines ({size:.0f} MB) checked and sent in {took:.1f} s")
        print(f"client: at most {peak:.0f} MB")


async def _whole_file(bench: Bench, options: argparse.Namespace) -> None:
    """Carry a file out, with the memory of client and worker over time."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "whole.jsonl", Path(folder) / "results.jsonl"
        names = [waiting(options.milliseconds, f"whole {number}") for number in range(options.whole)]
        _write_file(file, names)
        ledger = f"sqlite:///{bench.ledger}"
        batch_id = f"whole-{uuid4().hex[:8]}"
        asked: list[str | Path] = ["--id", batch_id, "--out", out, "--concurrency", f"{options.concurrency}"]
        begin = shown = time.perf_counter()
        process = await _tasq(bench, ledger, TASK_QUEUE, "batch", file, *asked)
        while process.returncode is None:
            await asyncio.wait({asyncio.create_task(process.wait())}, timeout=1)
            if time.perf_counter() - shown >= _SHOWN_SECONDS:
                shown = time.perf_counter()
                client, worker = _megabytes(process.pid), _megabytes(bench.worker_pid)
                print(f"{shown - begin:7.0f} s   client {client:.0f} MB, worker {worker:.0f} MB", flush=True)
        took = time.perf_counter() - begin
        assert process.returncode == 0
        with out.open() as results:
            ids = [json.loads(line)["id"] for line in results]
        assert ids == [f"row {number}" for number in range(options.whole)], "a result is missing or misplaced"
        events = await _events_of_runs(bench, batch_id)
        print(f"{options.whole:,} lines carried out in {took:.0f} s, {options.whole / took:.1f} a second")
        print(f"history of {len(events)} runs: at most {max(events):,} events")


def _write_file(file: Path, prompts: Sequence[str]) -> float:
    """Megabytes of the file."""
    with file.open("w") as to:
        for number, prompt in enumerate(prompts):
            to.write(json.dumps({"id": f"row {number}", "prompt": prompt}) + "\n")
    return file.stat().st_size / 1e6


async def _tasq(bench: Bench, ledger: str, queue: str, *arguments: str | Path) -> asyncio.subprocess.Process:
    environment = {
        **os.environ,
        "TASQ_DATABASE_URL": ledger,
        "TASQ_TASK_QUEUE": queue,
        "TEMPORAL_ADDRESS": bench.client.service_client.config.target_host,
    }
    tasq = Path(sys.executable).with_name("tasq")
    return await asyncio.create_subprocess_exec(
        tasq, *arguments, env=environment, stdout=asyncio.subprocess.DEVNULL
    )


def _megabytes(pid: int, field: str = "VmRSS") -> float:
    """Memory of a process; 0 where it has ended or there is no /proc to ask."""
    try:
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith(f"{field}:"):
                return int(line.split()[1]) / 1024
    except OSError:
        pass
    return 0.0


if __name__ == "__main__":
    main()
