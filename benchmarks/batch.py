"""`python -m benchmarks.batch`: a batch beside a plain client loop that starts as many tasks at once.

Both sides take turns, round by round. A round of the batch begins with its rows in the ledger and ends with
the result of the workflow. Then whole files with `tasq batch`, from the check of the file to the written
results, ever larger ones: what grows with the size, and what must not. At last, what `tasq batch` needs to
check and send a very large file.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any
from uuid import uuid4

from temporalio.client import WorkflowHandle

from benchmarks.figures import add_options, known, markdown, milliseconds, positive, print_facts, save, spread
from benchmarks.measure import TASK_QUEUE, Bench, running
from benchmarks.processes import cpu_seconds, memory_bytes
from benchmarks.provider import waiting
from tasquencer.batch.rows import BatchRow
from tasquencer.batch.store import Batch
from tasquencer.sql import SqlLedger

AIM = 0.8
LOOP, BATCH = "client loop", "AiBatchTask"
_SHOWN_SECONDS = 30.0
_SENT_AT_ONCE = 500


@dataclass(frozen=True)
class Round:
    """What one round of one side took; the CPU times of the whole round, in seconds."""

    prompts: int
    seconds: float
    client_cpu: float
    worker_cpu: float
    server_cpu: float

    @property
    def prompts_per_second(self) -> float:
        return self.prompts / self.seconds


@dataclass(frozen=True)
class Memory:
    """The memory of the processes at one time, in bytes; the client's: the most up to then."""

    after_seconds: float
    client: int
    worker: int
    server: int


@dataclass(frozen=True)
class Whole:
    """What a file took from end to end.

    Attributes:
        events: Of the history of each run of the batch's workflow.
    """

    lines: int
    seconds: float
    worker_cpu: float
    server_cpu: float
    events: Sequence[int]
    memory: Sequence[Memory]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.batch",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_options(parser, quick="1 round of 100 prompts, files of 100 and 200 lines")
    parser.add_argument("--prompts", type=positive, default=1_000, help="of a round (1000)")
    parser.add_argument(
        "--sizes", type=_sizes, default="1000,10000", help="lines of the whole files (1000,10000)"
    )
    parser.add_argument("--lines", type=positive, default=200_000, help="of the very large file (200000)")
    parser.add_argument("--concurrency", type=positive, default=50, help="tasks at once (50)")
    parser.add_argument(
        "--milliseconds", type=int, default=100, help="the provider takes for an answer (100)"
    )
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.prompts, options.sizes, options.lines = 1, 100, [100, 200], 2_000
    asyncio.run(_run(options))


def _sizes(text: str) -> list[int]:
    return [positive(size) for size in text.split(",")]


async def _run(options: argparse.Namespace) -> None:
    begin = time.monotonic()
    async with running({}) as bench:
        load = f"{options.rounds} rounds of {options.prompts:,} prompts, {options.concurrency} at once"
        load += f", a provider that takes {options.milliseconds} ms"
        told = known(await bench.server_version(), load=load)
        print_facts(told)
        sides = await _compare(bench, options)
        beside = _comparison_table(sides)
        print(f"\n{beside}\n", flush=True)
        ratio = median(_ratios(sides))
        print(f"{BATCH} / {LOOP}: {ratio:.2f} (aim: {AIM:.2f}, {'reached' if ratio >= AIM else 'missed'})")
        wholes = [await _whole_file(bench, lines, options) for lines in options.sizes]
        growth = _growth_table(wholes)
        print(f"\n{growth}\n", flush=True)
        sent = await _large_file(bench, options.lines)
        print(sent)
    print(f"\nTook {time.monotonic() - begin:.0f} s. Each figure is the median of its rounds.")
    save(
        options.json,
        told,
        {"batch": beside, "batch-growth": growth, "batch-sent": sent},
        {
            "sides": {name: [asdict(one) for one in own] for name, own in sides.items()},
            "wholes": [asdict(one) for one in wholes],
        },
    )


async def _compare(bench: Bench, options: argparse.Namespace) -> dict[str, list[Round]]:
    await _loop(bench, max(100, options.prompts // 10), options)  # warm-up
    sides: dict[str, Callable[..., Awaitable[Round]]] = {LOOP: _loop, BATCH: _batch}
    found: dict[str, list[Round]] = {name: [] for name in sides}
    for turn in range(options.rounds):
        for name, side in list(sides.items())[:: -1 if turn % 2 else 1]:
            done = await side(bench, options.prompts, options)
            found[name].append(done)
            print(f"{turn + 1}. {name:<12} {done.prompts_per_second:7.1f} prompts/s", flush=True)
    return found


def _ratios(sides: dict[str, list[Round]]) -> list[float]:
    return [
        batch.prompts_per_second / loop.prompts_per_second
        for loop, batch in zip(sides[LOOP], sides[BATCH], strict=True)
    ]


def _comparison_table(sides: dict[str, list[Round]]) -> str:
    rows = []
    for name, own in sides.items():
        speeds = [one.prompts_per_second for one in own]
        ratios = _ratios(sides) if name == BATCH else [1.0]
        rows.append(
            [
                name,
                f"{median(speeds):.1f}",
                spread(speeds, 1),
                f"{median(ratios):.2f}",
                spread(ratios),
                milliseconds(median(one.client_cpu / one.prompts for one in own)),
                milliseconds(median(one.worker_cpu / one.prompts for one in own)),
                milliseconds(median(one.server_cpu / one.prompts for one in own)),
            ]
        )
    header = ["", "prompts/s", "(range)", "ratio", "(range)", "client CPU", "worker CPU", "server CPU"]
    return markdown(header, rows)


def _growth_table(wholes: Sequence[Whole]) -> str:
    rows = [
        [
            f"{one.lines:,}",
            f"{one.seconds:.0f} s",
            f"{one.lines / one.seconds:.1f}",
            milliseconds(one.worker_cpu / one.lines),
            milliseconds(one.server_cpu / one.lines),
            f"{max(memory.client for memory in one.memory) / 2**20:.0f} MiB",
            " → ".join(f"{one.memory[place].worker / 2**20:.0f}" for place in (0, -1)) + " MiB",
            f"{len(one.events):,}",
            f"{max(one.events):,}",
        ]
        for one in wholes
    ]
    header = ["lines", "from end to end", "lines/s", "worker CPU a line", "server CPU a line", "client, most"]
    return markdown([*header, "worker", "runs", "events of a run, most"], rows)


async def _measured(bench: Bench, prompts: int, work: Awaitable[Any]) -> Round:
    pids = (bench.worker_pid, bench.server_pid)
    before = [cpu_seconds(pid) for pid in pids]
    own, begin = time.process_time(), time.perf_counter()
    await work
    seconds, client = time.perf_counter() - begin, time.process_time() - own
    worker, server = (cpu_seconds(pid) - was for pid, was in zip(pids, before, strict=True))
    return Round(prompts, seconds, client, worker, server)


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

    async def work() -> None:
        handle: WorkflowHandle[Any, Any] = await bench.client.start_workflow(
            BATCH, {"concurrency": options.concurrency}, id=batch_id, task_queue=TASK_QUEUE
        )
        result = await handle.result()
        assert result["completed"] == prompts, result

    return await _measured(bench, prompts, work())


async def _events_of_runs(bench: Bench, workflow_id: str) -> list[int]:
    found = []
    run_id: str | None = (await bench.client.get_workflow_handle(workflow_id).describe()).run_id
    while run_id:
        handle = bench.client.get_workflow_handle(workflow_id, run_id=run_id)
        found.append((await handle.describe()).history_length)
        first = await anext(handle.fetch_history_events(page_size=1))
        run_id = first.workflow_execution_started_event_attributes.continued_execution_run_id
    return found


async def _large_file(bench: Bench, lines: int) -> str:
    """Check and send a large file; nobody serves the queue, so that only the client works."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "large.jsonl"
        size = _write_file(file, [f"Summarize document {number}. " + "word " * 60 for number in range(lines)])
        ledger = f"sqlite:///{folder}/ledger.db"
        begin = time.perf_counter()
        process = await _tasq(bench, ledger, "nobody", "batch", file, "--detach")
        memory = await _watched(bench, process, every_seconds=0.2)
        took = time.perf_counter() - begin
    most = max(one.client for one in memory) / 2**20
    sent = f"{lines:,} lines ({size:.0f} MB) checked and sent in {took:.1f} s"
    return f"{sent}, by a client of at most {most:.0f} MiB"


async def _whole_file(bench: Bench, lines: int, options: argparse.Namespace) -> Whole:
    """Carry a file out, with the memory of client and worker over time."""
    with tempfile.TemporaryDirectory() as folder:
        file, out = Path(folder) / "whole.jsonl", Path(folder) / "results.jsonl"
        batch_id = f"whole-{uuid4().hex[:8]}"
        names = [waiting(options.milliseconds, f"{batch_id} {number}") for number in range(lines)]
        _write_file(file, names)
        ledger = f"sqlite:///{bench.ledger}"
        asked: list[str | Path] = ["--id", batch_id, "--out", out, "--concurrency", f"{options.concurrency}"]
        memory: list[Memory] = []

        async def carry_out() -> None:
            process = await _tasq(bench, ledger, TASK_QUEUE, "batch", file, *asked)
            memory.extend(await _watched(bench, process, every_seconds=max(1.0, lines / 3000)))

        done = await _measured(bench, lines, carry_out())
        with out.open() as results:
            ids = [json.loads(line)["id"] for line in results]
        assert ids == [f"row {number}" for number in range(lines)], "a result is missing or misplaced"
        events = await _events_of_runs(bench, batch_id)
    return Whole(lines, done.seconds, done.worker_cpu, done.server_cpu, events, memory)


async def _watched(
    bench: Bench, process: asyncio.subprocess.Process, *, every_seconds: float
) -> list[Memory]:
    """The memory of all, until the client has ended; it must end well."""
    memory: list[Memory] = []
    ending = asyncio.create_task(process.wait())
    begin = shown = time.perf_counter()
    while not ending.done():
        now = time.perf_counter()
        try:
            sizes = [memory_bytes(process.pid, most=True)]
        except (OSError, IndexError):  # it has just ended
            break
        sizes += [memory_bytes(pid) for pid in (bench.worker_pid, bench.server_pid)]
        memory.append(Memory(now - begin, *sizes))
        if now - shown >= _SHOWN_SECONDS:
            shown = now
            client, worker, server = (size // 2**20 for size in sizes)
            told = f"client {client} MiB, worker {worker} MiB, server {server} MiB"
            print(f"{now - begin:7.0f} s   {told}", flush=True)
        await asyncio.wait({ending}, timeout=every_seconds)
    assert await ending == 0, f"tasq batch ended with {process.returncode}"
    return memory


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


if __name__ == "__main__":
    main()
