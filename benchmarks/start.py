"""`python -m benchmarks.start`: how long one waits at the start, each a process of its own.

`tasq --help`; a Python that does nothing, to compare; `python worker.py` until its ready line, with a server
on this machine and a ledger on SQLite that is there already; `make demo`, all of it (`--no-demo` leaves it
out). The first round is not counted: it warms the caches. The kinds take turns.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from statistics import median

from temporalio.api.workflowservice.v1 import GetSystemInfoRequest
from temporalio.client import Client

from benchmarks.figures import add_options, known, markdown, milliseconds, print_facts, save
from tasquencer.devkit.processes import ChildProcess
from tasquencer.devkit.temporal_server import embedded_temporal

READY = "tasq worker ready"
TOP = Path(__file__).parents[1]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.start", description=__doc__)
    add_options(parser, quick="1 round without the demo")
    parser.add_argument("--no-demo", action="store_true", help="leave `make demo` out")
    options = parser.parse_args()
    if options.quick:
        options.rounds, options.no_demo = 1, True
    asyncio.run(_run(options))


async def _run(options: argparse.Namespace) -> None:
    begin = time.monotonic()
    tasq = str(Path(sys.executable).with_name("tasq"))
    seconds: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory(prefix="tasquencer-bench-") as folder:
        async with embedded_temporal(ui=False) as temporal:
            client = await Client.connect(temporal.address)
            info = await client.workflow_service.get_system_info(GetSystemInfoRequest())
            told = known(info.server_version, load=f"{options.rounds} rounds, one process at a time")
            print_facts(told)
            environment = os.environ | {
                "TEMPORAL_ADDRESS": temporal.address,
                "TASQ_DATABASE_URL": f"sqlite:///{Path(folder) / 'ledger.db'}",
                "OPENAI_BASE_URL": "http://127.0.0.1:9/v1",
            }
            kinds: dict[str, Callable[[], float]] = {
                "python -c pass": partial(_whole, [sys.executable, "-c", "pass"]),
                "tasq --help": partial(_whole, [tasq, "--help"]),
                "tasq list --help": partial(_whole, [tasq, "list", "--help"]),
            }
            if not options.no_demo:
                kinds["make demo"] = partial(_whole, ["make", "--silent", "demo"])
            for turn in range(options.rounds + 1):
                for name, start in kinds.items():
                    took = await asyncio.to_thread(start)
                    seconds.setdefault(name, []).extend([took] if turn else [])
                took = await _worker_ready(environment)
                seconds.setdefault("python worker.py, until it polls", []).extend([took] if turn else [])
    rows = [
        [f"`{name}`", milliseconds(median(took)), f"{milliseconds(min(took))}–{milliseconds(max(took))}"]
        for name, took in seconds.items()
    ]
    table = markdown(["", "time", "(range)"], rows)
    print(table)
    print(f"\nTook {time.monotonic() - begin:.0f} s. Each figure is the median of its rounds.")
    save(options.json, told, {"start": table}, {"seconds": seconds})


def _whole(command: Sequence[str]) -> float:
    begin = time.perf_counter()
    done = subprocess.run(command, cwd=TOP, capture_output=True, check=False)
    seconds = time.perf_counter() - begin
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr.decode()}"
    return seconds


async def _worker_ready(environment: Mapping[str, str]) -> float:
    begin = time.perf_counter()
    worker = ChildProcess("the worker", [sys.executable, TOP / "worker.py"], environment=environment)

    async def is_ready() -> bool:
        return READY in worker.output()

    try:
        await worker.wait_ready(is_ready, timeout_seconds=60)
        return time.perf_counter() - begin
    finally:
        worker.kill()


if __name__ == "__main__":
    main()
