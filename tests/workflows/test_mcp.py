"""Tools of MCP servers: real servers, over standard input and over HTTP, beside the worker's own tools."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from uuid import uuid4

import pytest
from temporalio.client import Client
from temporalio.worker import Worker

from tasquencer.ai import AiCalls
from tasquencer.ai.mcp import McpServerFailed, McpSettings, mcp_tools, read_servers
from tasquencer.ai.provider.client import make_client
from tasquencer.ai.tool_calls import ToolOptions
from tasquencer.ai.tools import ToolContext, ToolError
from tasquencer.core.errors import WrongSetting
from tasquencer.devkit.processes import ChildProcess
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.temporal import TasquencerPlugin
from tasquencer.testing import InMemoryLedger
from tests.support import answers
from tests.support.patience import eventually
from tests.support.provider import ScriptedProvider
from workflows.ai_agent import AiAgentTask

SERVER = '''
import os, sys
from mcp.server import MCPServer

server = MCPServer("shop")

@server.tool()
def look_up(number: int) -> dict[str, int]:
    """Look an order up."""
    if number == 13:
        os._exit(1)
    if number < 0:
        raise ValueError("no such order")
    return {"number": number, "pid": os.getpid()}

if __name__ == "__main__":
    if len(sys.argv) > 1:
        server.run("streamable-http", host="127.0.0.1", port=int(sys.argv[1]))
    else:
        server.run("stdio")
'''
CONTEXT = ToolContext(task_id="t", work_item_id="w", attempt=0, idempotency_key="k")


@pytest.fixture
def program(tmp_path: Path) -> Path:
    file = tmp_path / "shop.py"
    file.write_text(SERVER)
    return file


def by_stdio(program: Path) -> McpSettings:
    return McpSettings(command=sys.executable, args=[str(program)])


@asynccontextmanager
async def by_http(program: Path) -> AsyncIterator[McpSettings]:
    server = ChildProcess("MCP server", [sys.executable, str(program), "0"])  # 0: any port that is free
    try:

        async def port() -> str | None:
            if server.exit_status is not None:
                pytest.fail(f"the MCP server ended: {server.output()}")
            found = re.search(r"running on http://127\.0\.0\.1:(\d+)", server.output())
            return found and found[1]

        said = await eventually(port, "the MCP server to say its port")
        yield McpSettings(url=f"http://127.0.0.1:{said}/mcp", headers={"x-who": "tests"})
    finally:
        await server.stop()


@pytest.mark.parametrize("way", ["stdio", "http"])
async def test_a_tool_of_a_server_is_called(program: Path, way: str) -> None:
    async with by_http(program) as http:
        settings = http if way == "http" else by_stdio(program)
        async with mcp_tools({"shop": settings}) as tools:
            (one,) = tools
            assert one.name == "shop__look_up"
            schema = one.schema()
            assert schema["description"] == "Look an order up."
            assert "number" in str(schema["parameters"])
            found = await one.call('{"number": 7}', CONTEXT)
            assert isinstance(found, dict) and found["number"] == 7
            with pytest.raises(ToolError, match="Error executing tool look_up"):
                await one.call('{"number": -1}', CONTEXT)


async def test_a_server_that_dies_is_started_again(program: Path) -> None:
    async with mcp_tools({"shop": by_stdio(program)}) as (one,):
        first = await one.call('{"number": 7}', CONTEXT)
        with pytest.raises(ConnectionError) as caught:
            await one.call('{"number": 13}', CONTEXT)
        assert one.is_transient(caught.value)

        second = await one.call('{"number": 7}', CONTEXT)
    assert isinstance(first, dict) and isinstance(second, dict)
    assert first["pid"] != second["pid"]


async def test_each_call_is_a_work_item_with_the_server_s_options(
    dev_server: EmbeddedTemporal, program: Path
) -> None:
    ledger, queue = InMemoryLedger(), f"queue-{uuid4()}"
    options = ToolOptions(max_retries=1, initial_interval_seconds=0)
    shop = by_stdio(program).model_copy(update={"options": options})
    script = [answers.tools(("shop__look_up", {"number": 13})), answers.ok("Sorry.")]
    async with (
        ScriptedProvider(script) as provider,
        make_client(api_key="key-of-the-tests", base_url=provider.base_url) as model,
    ):
        calls = AiCalls(model, "tiny-1", mcp_servers={"shop": shop})
        client = await Client.connect(dev_server.address, plugins=[TasquencerPlugin(ledger, calls=calls)])
        async with Worker(client, task_queue=queue, workflows=[AiAgentTask]):
            request = {"prompt": "?", "tools": ["shop__look_up"]}
            result = await client.execute_workflow("AiAgentTask", request, id=queue, task_queue=queue)
    assert result["text"] == "Sorry."
    items = await ledger.work_items(WorkItemFilter(task_id=queue, oldest_first=True))
    called = [item for item in items if item.lineage == "turn-1/shop__look_up"]
    assert [(item.attempt, item.failure and item.failure.kind) for item in called] == [
        (0, "tool_failed"),
        (1, "tool_failed"),
    ]


@pytest.mark.parametrize("way", ["stdio", "http"])
async def test_an_agent_uses_the_tools_of_a_server(
    dev_server: EmbeddedTemporal, program: Path, way: str
) -> None:
    ledger, queue = InMemoryLedger(), f"queue-{uuid4()}"

    async def read(page: int) -> str:
        """Read a page."""
        return f"page {page}"

    script = [
        answers.tools(("shop__look_up", {"number": 7}), ("read", {"page": 1})),
        answers.tools(("shop__look_up", {"number": -1}), ("shop__look_up", {"number": "seven"})),
        answers.ok("Done."),
    ]
    async with (
        by_http(program) as http,
        ScriptedProvider(script) as provider,
        make_client(api_key="key-of-the-tests", base_url=provider.base_url) as model,
    ):
        shop = http if way == "http" else by_stdio(program)
        calls = AiCalls(model, "tiny-1", tools=[read], mcp_servers={"shop": shop})
        client = await Client.connect(dev_server.address, plugins=[TasquencerPlugin(ledger, calls=calls)])
        async with Worker(client, task_queue=queue, workflows=[AiAgentTask]):
            request = {"prompt": "?", "tools": ["shop__look_up", "read"]}
            result = await client.execute_workflow("AiAgentTask", request, id=queue, task_queue=queue)
        offered = [one["function"]["name"] for one in provider.requests[0].body["tools"]]
        heard = [one["content"] for one in provider.requests[2].body["messages"] if one["role"] == "tool"]
    items = await ledger.work_items(WorkItemFilter(task_id=queue, oldest_first=True))
    ends = {item.lineage: (item.state.value, item.failure and item.failure.kind) for item in items}
    assert ends == {
        "turn-1": ("completed", None),
        "turn-1/shop__look_up": ("completed", None),
        "turn-1/read": ("completed", None),
        "turn-2": ("completed", None),
        "turn-2/shop__look_up": ("failed", "tool_failed"),
        "turn-2/shop__look_up-2": ("failed", "tool_failed"),
        "turn-3": ("completed", None),
    }
    (found,) = [item.result for item in items if item.lineage == "turn-1/shop__look_up"]
    assert isinstance(found, dict) and found["number"] == 7
    assert (offered, result["text"], result["turns"]) == (["shop__look_up", "read"], "Done.", 3)
    assert [json.loads(heard[0])["number"], heard[1]] == [7, "page 1"]
    assert all(said.startswith("The call failed: ") for said in heard[2:])


async def test_a_server_that_cannot_be_started_is_named() -> None:
    with pytest.raises(McpServerFailed, match="'shop': cannot be reached"):
        async with mcp_tools({"shop": McpSettings(command="/no/such/program")}):
            pass


def test_the_file_is_the_one_that_other_programs_write(tmp_path: Path) -> None:
    file = tmp_path / "servers.json"
    servers = {
        "files": {"command": "serve", "args": ["/srv"]},
        "shop": {
            "url": "http://127.0.0.1:1/mcp",
            "headers": {"Authorization": "Bearer ${SHOP_TOKEN}"},
            "options": {"requires_approval": True},
        },
    }
    file.write_text(json.dumps({"mcpServers": servers}))
    found = read_servers({"TASQ_MCP_SERVERS": str(file), "SHOP_TOKEN": 'a"b'})
    assert found["files"].args == ["/srv"]
    assert found["shop"].headers == {"Authorization": 'Bearer a"b'}
    assert found["shop"].options.requires_approval


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "cannot be read"),
        ("{", "Invalid JSON"),
        ('{"mcpServers": {"a": {}}}', "needs either command or url"),
        ('{"mcpServers": {"a b": {"url": "http://127.0.0.1"}}}', "mcpServers.a b"),
        ('{"mcpServers": {"a": {"url": "${NOT_SET}"}}}', r"\$\{NOT_SET\} is not set"),
    ],
)
def test_a_wrong_file_is_explained(tmp_path: Path, content: str | None, said: str) -> None:
    file = tmp_path / "servers.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(WrongSetting, match=said):
        read_servers({"TASQ_MCP_SERVERS": str(file)})


def test_without_the_setting_there_are_no_servers() -> None:
    assert read_servers({}) == {}
