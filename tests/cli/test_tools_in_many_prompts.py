"""`tasq fan-out` and `tasq batch` with tools: a real server, the stock worker, and a real MCP server."""

from __future__ import annotations

import json
import os
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tasquencer.cli.application import find_worker
from tasquencer.cli.demo_parts import AnsweringModel, running_worker, worker_environment
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.settings import Settings
from tests.cli.processes import Finished, finish
from tests.support.answers import Answer, ok, tools
from tests.support.patience import eventually
from tests.support.provider import ScriptedProvider

SHOP = '''
from mcp.server import MCPServer

server = MCPServer("shop")

@server.tool()
def look_up(of: str) -> str:
    """Look it up."""
    return f"found {of}"

@server.tool()
def pay_back(of: str) -> str:
    """Pay back."""
    return f"paid {of}"

server.run("stdio")
'''


def answer(request: Any) -> Answer:
    """Call the tool once, and then repeat what it has said."""
    messages, (offered,) = request.body["messages"], request.body["tools"]
    if messages[-1]["role"] != "tool":
        return tools((offered["function"]["name"], {"of": messages[-1]["content"]}))
    return ok(json.loads(messages[-1]["content"])["result"])


class Stock:
    """A `tasq` beside a stock worker whose tools are those of an MCP server."""

    def __init__(self, environment: dict[str, str]) -> None:
        self._environment = environment

    async def tasq(self, *arguments: str | Path) -> Finished:
        return await finish(*map(str, arguments), environment=self._environment)


@pytest_asyncio.fixture(scope="module", loop_scope="session")
async def stock(
    dev_server: EmbeddedTemporal, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Stock]:
    folder = tmp_path_factory.mktemp("tools")
    (folder / "shop.py").write_text(SHOP)
    shop: dict[str, Any] = {"command": sys.executable, "args": [str(folder / "shop.py")]}
    till = {**shop, "options": {"requires_approval": True}}
    (folder / "servers.json").write_text(json.dumps({"mcpServers": {"shop": shop, "till": till}}))
    settings = Settings(database_url=f"sqlite:///{folder / 'ledger.db'}", task_queue="cli-tools")
    async with ScriptedProvider(answer) as provider:
        keys = {"OPENAI_API_KEY": "test", "TASQ_MODEL": "m"}
        model = AnsweringModel("scripted", None, provider.base_url, keys)
        variables = worker_environment(os.environ, dev_server, settings, model, provider.base_url, folder)
        variables["TASQ_MCP_SERVERS"] = str(folder / "servers.json")
        async with running_worker(find_worker(Path.cwd()), variables):
            yield Stock(variables)


async def test_each_line_of_a_batch_may_use_tools(stock: Stock, tmp_path: Path) -> None:
    prompts, out = tmp_path / "prompts.jsonl", tmp_path / "results.jsonl"
    prompts.write_text('{"id": "a", "prompt": "one"}\n{"id": "b", "prompt": "two", "max_turns": 1}\n')
    ran = await stock.tasq("batch", prompts, "--out", out, "--tool", "shop__look_up", "--id", "tooled")
    assert ran.code == 0, ran.stderr
    (found,) = (json.loads(line) for line in out.read_text().splitlines())
    assert (found["id"], found["text"], found["attempts"]) == ("a", "found one", 2)
    assert found["total"]["input_tokens"] > found["input_tokens"] > 0
    (lost,) = (json.loads(line) for line in (tmp_path / "results.failed.jsonl").read_text().splitlines())
    assert (lost["id"], lost["max_turns"], lost["failure"]["type"]) == ("b", 1, "TaskFailed")
    shown = await stock.tasq("show", "tooled/a")
    assert "  shop__look_up" in shown.stdout and "calls shop__look_up" in shown.stdout


async def test_a_line_may_name_its_own_tools(stock: Stock, tmp_path: Path) -> None:
    prompts, out = tmp_path / "own.jsonl", tmp_path / "own.out.jsonl"
    prompts.write_text('{"prompt": "three", "tools": ["shop__look_up"]}\n')
    ran = await stock.tasq("batch", prompts, "--out", out)
    assert ran.code == 0, ran.stderr
    assert json.loads(out.read_text())["text"] == "found three"


async def test_a_fan_out_may_use_tools_and_shows_them(stock: Stock, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\ntwo\n")
    ran = await stock.tasq("fan-out", prompts, "--tool", "shop__look_up", "--id", "fanned", "--json")
    assert ran.code == 0, ran.stderr
    assert [found["text"] for found in json.loads(ran.stdout)["results"]] == ["found one", "found two"]
    shown = await stock.tasq("show", "fanned")
    for part in (
        "prompt-1/turn-1",
        "  shop__look_up",
        "calls shop__look_up",
        "prompt-2/turn-2",
    ):
        assert part in shown.stdout
    assert shown.stdout.index("prompt-1/turn-2") < shown.stdout.index("prompt-2/turn-1")
    refused = await stock.tasq("fan-out", prompts, "--max-turns", "2")
    assert (refused.code, refused.stderr.splitlines()[0]) == (2, "error: --max-turns: only with tools")


async def test_a_person_approves_a_call_of_one_prompt(stock: Stock, tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("one\n")
    ran = await stock.tasq("fan-out", prompts, "--tool", "till__pay_back", "--id", "paid-back", "--detach")
    assert ran.code == 0, ran.stderr

    async def waits() -> bool:
        return "till__pay_back" in (await stock.tasq("review")).stdout

    await eventually(waits, "an approval that waits")
    decided = await stock.tasq("review", "paid-back", "--approve", "--yes", "--actor", "anna")
    assert decided.code == 0, decided.stderr
    watched = await stock.tasq("watch", "paid-back", "--json")
    assert json.loads(watched.stdout)["results"][0]["text"] == "paid one"
    shown = await stock.tasq("show", "paid-back")
    assert "  till__pay_back/approval" in shown.stdout and "given by anna" in shown.stdout
