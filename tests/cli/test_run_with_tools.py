"""`tasq run --tool`: a real worker with tools, an approval by `tasq review`, and what people see."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

from temporalio.client import Client
from temporalio.worker import Worker

from tasquencer.ai import AiCalls, ToolError, tool
from tasquencer.ai.provider.client import make_client
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.sql import SqlLedger
from tasquencer.temporal import TasquencerPlugin
from tests.cli.processes import finish, on_a_terminal, start
from tests.support import answers
from tests.support.answers import Answer
from tests.support.provider import ScriptedProvider
from workflows.ai_agent import AiAgentTask

SCRIPT = [
    answers.tools(("search_order", {"number": 7})),
    answers.tools(("refund", {"number": 7})),
    answers.ok("Paid back."),
]


@asynccontextmanager
async def order_desk(
    server: EmbeddedTemporal, folder: Path, script: Sequence[Answer]
) -> AsyncIterator[dict[str, str]]:
    """The environment of `tasq`, while a worker with two tools runs."""
    closed = [True]

    @tool(retries=1, initial_interval=timedelta(0))
    def search_order(number: int) -> dict[str, int]:
        """Look an order up."""
        if closed:
            closed.clear()
            raise ToolError("the shop is closed", retry=True)
        return {"number": number}

    @tool(requires_approval=True)
    def refund(number: int) -> str:
        """Pay an order back."""
        return "49.00 paid back"

    queue, url = f"queue-{uuid4()}", f"sqlite:///{folder / 'ledger.db'}"
    async with (
        ScriptedProvider(script) as provider,
        make_client(api_key="key-of-the-tests", base_url=provider.base_url) as model,
    ):
        plugin = TasquencerPlugin(SqlLedger(url), calls=AiCalls(model, "m", tools=[search_order, refund]))
        client = await Client.connect(server.address, plugins=[plugin])
        async with Worker(client, task_queue=queue, workflows=[AiAgentTask]):
            yield {
                **os.environ,
                "TEMPORAL_ADDRESS": server.address,
                "TASQ_TASK_QUEUE": queue,
                "TASQ_DATABASE_URL": url,
            }


RUN = ("run", "My lamp is broken.", "--tool", "search_order", "--tool", "refund")


async def test_each_step_is_told_by_turn_and_tool(dev_server: EmbeddedTemporal, tmp_path: Path) -> None:
    async with order_desk(dev_server, tmp_path, SCRIPT) as environment:
        running = await start(*RUN, "--id", "desk", environment=environment)
        await running.says("turn 2 · tool refund · approval: waits for approval")
        approved = await finish("review", "desk", "--approve", "--yes", environment=environment)
        assert approved.code == 0, approved.stderr
        ran = await running.finish()
        shown = await finish("show", "desk", environment=environment)
        watched = await finish("watch", "desk", environment=environment)
    assert (ran.code, ran.stdout) == (0, "Paid back.\n")
    lines = watched.stderr.splitlines()
    for expected in (
        "turn 1: first try completed after ",
        "turn 1 · tool search_order: first try failed after ",
        "turn 1 · tool search_order: retry 1 completed after ",
        "turn 2 · tool refund · approval: first try completed after ",
        "turn 2 · tool refund: first try completed after ",
        "turn 3: first try completed after ",
    ):
        assert any(line.startswith(expected) for line in lines), watched.stderr
    assert any(line.endswith(": calls search_order") for line in lines)
    assert any(line.endswith(": 49.00 paid back") for line in lines)
    named = [line.split("  ")[0].strip() for line in shown.stdout.splitlines() if " try " in line]
    assert named[0] == "turn-1" and "refund/approval" in shown.stdout
    begins = [line[: len("   search_order")].rstrip() for line in shown.stdout.splitlines()]
    assert [begin for begin in begins if begin.strip() in ("turn-1", "search_order", "turn-2", "turn-3")] == [
        " turn-1",
        "   search_order",
        "   search_order",
        " turn-2",
        " turn-3",
    ]


async def test_a_terminal_gets_a_table_by_turn_and_tool(dev_server: EmbeddedTemporal, tmp_path: Path) -> None:
    script = [SCRIPT[0], answers.ok("It is a lamp.")]
    async with order_desk(dev_server, tmp_path, script) as environment:
        code, screen = await on_a_terminal(*RUN, environment=environment)
    assert code == 0, screen
    assert "turn-1" in screen and "  search_order" in screen and "turn-1/search_order" not in screen
    assert "calls search_order" in screen and '{"number": 7}' in screen
