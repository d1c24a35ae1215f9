"""A tool that returns or raises a secret of its worker: neither the history nor the ledger keeps it."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from temporalio.client import Client
from temporalio.worker import Worker

from tasquencer.ai import AiCalls, ToolError
from tasquencer.ai.mcp import McpServerFailed, McpSettings, mcp_tools, read_servers
from tasquencer.ai.provider.client import make_client
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.ledger.contract import WorkItemFilter
from tasquencer.settings import secrets_in
from tasquencer.temporal import TasquencerPlugin
from tasquencer.testing import InMemoryLedger
from tests.secrets.search import found_in
from tests.support import answers
from tests.support.provider import ScriptedProvider
from workflows.ai_agent import AiAgentTask

DEFAULT_KEY = "zqX7-wvKp2/Lm9+Rt4Yb8Nc3=Hd6jF5"
SECRETS = {
    "OTHER_KEY": "oT9-hErK3y/8Vn2+Qw5Xc7",
    "OTHER_TENANT": "tEn4nT.7Jk2Pz8Rm5Wv",
    "SHOP_TOKEN": "sH0p.T0k3n_4Gd8Lf6Bq",
    "TEMPORAL_API_KEY": "tmprl.eyJz8Kq4Vw.Xn7Lb2",
}
DATABASE_PASSWORD = "pW-8f!3k@Zr5:Qm2/x"
ALL = [DEFAULT_KEY, *SECRETS.values(), DATABASE_PASSWORD]

SHOP = '''
import os
from mcp.server import MCPServer

server = MCPServer("shop")

@server.tool()
def leak(fails: bool) -> dict[str, str]:
    """Return the token, or raise it."""
    if fails:
        raise ValueError("refused: " + os.environ["TOKEN_OF_THE_SHOP"])
    return {"url": "/orders?token=" + os.environ["TOKEN_OF_THE_SHOP"] + "&page=2"}

server.run("stdio")
'''
PROVIDERS = """
[providers.other]
base_url = "http://127.0.0.1:9/v1"
api_key_env = "OTHER_KEY"
headers_env = { X-Tenant = "OTHER_TENANT" }
"""


def leak() -> dict[str, Any]:
    """Return everything."""
    return {"env": [f"is {secret} so" for secret in ALL], DEFAULT_KEY: "a name", "order": 7}


def fail() -> None:
    """Say everything."""
    raise ToolError("cannot: " + " ".join(ALL))


def crash() -> None:
    """Break with everything."""
    raise RuntimeError(json.dumps(ALL))


@pytest.fixture
def worker_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "shop.py").write_text(SHOP)
    (tmp_path / "providers.toml").write_text(PROVIDERS)
    shop = {
        "command": sys.executable,
        "args": [str(tmp_path / "shop.py")],
        "env": {"TOKEN_OF_THE_SHOP": "${SHOP_TOKEN}"},
    }
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": {"shop": shop}}))
    for name, value in SECRETS.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("TASQ_PROVIDERS", str(tmp_path / "providers.toml"))
    monkeypatch.setenv("TASQ_MCP_SERVERS", str(tmp_path / "mcp.json"))
    password = "pW-8f!3k%40Zr5%3AQm2%2Fx"
    monkeypatch.setenv("TASQ_DATABASE_URL", f"postgresql://tasquencer:{password}@127.0.0.1/tasquencer")


@pytest.mark.usefixtures("worker_environment")
async def test_no_secret_of_the_worker_leaves_a_tool(dev_server: EmbeddedTemporal) -> None:
    script = [
        answers.tools(
            ("leak", {}),
            ("fail", {}),
            ("crash", {}),
            ("shop__leak", {"fails": False}),
            ("shop__leak", {"fails": True}),
        ),
        answers.ok("Done."),
    ]
    ledger, queue = InMemoryLedger(), f"queue-{uuid4()}"
    async with (
        ScriptedProvider(script) as provider,
        make_client(api_key=DEFAULT_KEY, base_url=provider.base_url) as model,
    ):
        calls = AiCalls(model, "tiny-1", tools=[leak, fail, crash])
        client = await Client.connect(dev_server.address, plugins=[TasquencerPlugin(ledger, calls=calls)])
        async with Worker(client, task_queue=queue, workflows=[AiAgentTask]):
            request = {"prompt": "?", "tools": ["leak", "fail", "crash", "shop__leak"]}
            handle = await client.start_workflow("AiAgentTask", request, id=queue, task_queue=queue)
            await handle.result()
            events = [event.SerializeToString() async for event in handle.fetch_history_events()]
        read = provider.requests[1].body["messages"][2:]
    items = await ledger.work_items(WorkItemFilter(task_id=queue, oldest_first=True))
    assert found_in(b"".join(events), ALL) == []
    assert found_in("".join(item.model_dump_json() for item in items), ALL) == []
    assert found_in(json.dumps(read), ALL) == []
    leaked, said, broke, shop, refused = (message["content"] for message in read)
    assert json.loads(leaked) == {"env": ["is [redacted] so"] * len(ALL), "[redacted]": "a name", "order": 7}
    assert said == "The call failed: cannot: " + " ".join(["[redacted]"] * len(ALL))
    assert broke.startswith("The call failed: RuntimeError: [")
    assert json.loads(shop) == {"url": "/orders?token=[redacted]&page=2"}
    assert "refused" not in refused or "refused: [redacted]" in refused


def test_the_secrets_of_an_mcp_server_are_known(tmp_path: Path) -> None:
    settings = McpSettings(
        url="http://anna:pass%20word-1@127.0.0.1/mcp?api_key=in-the-query&page=2",
        headers={"X-Tenant": "of-a-header", "Accept": "application/json"},
        env={"SHOP_PASSWORD": "of-a-variable", "HOME": "/home/anna"},
    )
    assert settings.secrets == ("of-a-header", "of-a-variable", "pass word-1", "in-the-query")
    server = {"command": "serve", "args": ["--token", "${SHOP_TOKEN}", "${HOME}"]}
    (tmp_path / "mcp.json").write_text(json.dumps({"mcpServers": {"shop": server}}))
    environment = {
        "TASQ_MCP_SERVERS": str(tmp_path / "mcp.json"),
        "SHOP_TOKEN": "of-the-file",
        "HOME": "/srv",
    }
    assert read_servers(environment)["shop"].secrets == ("of-the-file",)


def test_the_secrets_of_the_settings_are_known() -> None:
    known = {"TASQ_DATABASE_URL": "postgresql://u:p%40ss@[::1]/db", "TEMPORAL_API_KEY": "key"}
    assert secrets_in(known) == ["p@ss", "key", ""]
    assert secrets_in({"TASQ_DATABASE_URL": "postgresql://[::1/db"}) == ["", "", ""]


async def test_a_server_that_cannot_be_reached_is_named_without_its_secrets() -> None:
    token = SECRETS["SHOP_TOKEN"]
    settings = McpSettings(command=f"/no/such/{token}", env={"SHOP_TOKEN": token, "PATH": os.environ["PATH"]})
    with pytest.raises(McpServerFailed) as caught:
        async with mcp_tools({"shop": settings}):
            pass
    assert found_in(str(caught.value), [token]) == []
    assert caught.value.__cause__ is None
