"""`python -m benchmarks.agents`: an agent of ten turns with two tool calls each, on three integrations.

The same model, the same server, one run. The sides take turns. Only ours keeps a ledger. `make bench-agents`
runs it in the environment of the frameworks.
"""

from __future__ import annotations

import argparse
import asyncio
import importlib
import os
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from statistics import median
from uuid import uuid4

from temporalio.api.workflowservice.v1 import GetSystemInfoRequest
from temporalio.client import Client

from benchmarks.agents.provider import TOOLS_A_TURN, TURNS
from benchmarks.figures import add_options, known, markdown, milliseconds, print_facts, save
from benchmarks.processes import cpu_seconds, module_running
from tasquencer.devkit.temporal_server import embedded_temporal

SIDES = {
    "AiAgentTask": "benchmarks.agents.ours",
    "Pydantic AI": "benchmarks.agents.pydantic_ai_agent",
    "OpenAI Agents": "benchmarks.agents.openai_agent",
}
QUEUE = "benchmark"
AT_ONCE = 4


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.agents", description=__doc__)
    add_options(parser, quick="1 round of 1 agent")
    parser.add_argument("--agents", type=int, default=12, help="agents of a round (default: 12)")
    parser.add_argument("--worker", nargs=3, metavar=("MODULE", "ADDRESS", "LEDGER"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        asyncio.run(_work(*options.worker))
        return
    if options.quick:
        options.rounds, options.agents = 1, 1
    asyncio.run(_run(options))


async def _work(module: str, address: str, ledger: str) -> None:
    worker = await importlib.import_module(module).worker(address, QUEUE, ledger)
    async with worker:
        print("works", flush=True)
        await asyncio.Event().wait()


async def _run(options: argparse.Namespace) -> None:
    begin = time.monotonic()
    measured: dict[str, dict[str, list[float]]] = defaultdict(lambda: defaultdict(list))
    with tempfile.TemporaryDirectory(prefix="tasquencer-bench-") as folder:
        async with (
            embedded_temporal(ui=False) as temporal,
            module_running("the model", "benchmarks.agents.provider") as model,
        ):
            base_url = model.output().split()[-1]
            os.environ.update({"OPENAI_BASE_URL": base_url, "OPENAI_API_KEY": "benchmark"})
            client = await Client.connect(temporal.address)
            info = await client.workflow_service.get_system_info(GetSystemInfoRequest())
            load = f"{options.rounds} rounds, {options.agents} agents a round, {AT_ONCE} at the same time"
            told = known(info.server_version, load=load)
            print_facts(told)
            for number in range(options.rounds):
                for side, module in SIDES.items():
                    ledger = f"sqlite:///{Path(folder) / f'{number}.db'}"
                    arguments = ["--worker", module, temporal.address, ledger]
                    async with module_running("the worker", "benchmarks.agents", *arguments) as worker:
                        await _round(client, worker.pid, module, options.agents, measured[side])
    rows = [
        [
            side,
            milliseconds(median(found["cpu"])),
            milliseconds(median(found["latency"])),
            f"{median(found['events']):.1f}",
            f"{median(found['bytes']):,.0f}",
        ]
        for side, found in measured.items()
    ]
    heads = ["for each turn with two tool calls", "worker CPU", "time", "events", "bytes of history"]
    table = markdown(heads, rows)
    print(table)
    print(f"\nTook {time.monotonic() - begin:.0f} s. Each figure is the median of its rounds.")
    save(options.json, told, {"agents": table}, {"sides": measured})


async def _round(
    client: Client, pid: int, module: str, agents: int, measured: dict[str, list[float]]
) -> None:
    side = importlib.import_module(module)
    places = asyncio.Semaphore(AT_ONCE)

    async def run() -> str:
        task_id = f"agent-{uuid4()}"
        async with places:
            await client.execute_workflow(side.WORKFLOW, side.INPUT, id=task_id, task_queue=QUEUE)
        return task_id

    await run()  # the first one warms the caches
    before, begin = cpu_seconds(pid), time.monotonic()
    ids = await asyncio.gather(*(run() for _ in range(agents)))
    turns = agents * TURNS
    measured["cpu"].append((cpu_seconds(pid) - before) / turns)
    measured["latency"].append((time.monotonic() - begin) / turns * min(agents, AT_ONCE))
    history = await client.get_workflow_handle(ids[-1]).fetch_history()
    measured["events"].append(len(history.events) / TURNS)
    measured["bytes"].append(sum(event.ByteSize() for event in history.events) / TURNS)
    assert TOOLS_A_TURN == 2, "the table's head says so"


if __name__ == "__main__":
    main()
