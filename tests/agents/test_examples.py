"""The examples run as the documentation says, and `tasq show` then tells every attempt."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tests.support.answers import ok, rate_limited, tool_call
from tests.support.provider import ScriptedProvider

EXAMPLES = Path(__file__).parents[2] / "examples"


async def run(*arguments: str | Path, environment: dict[str, str], folder: Path) -> str:
    process = await asyncio.create_subprocess_exec(
        *map(str, arguments),
        cwd=folder,
        env=os.environ | environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    async with asyncio.timeout(120):
        output, _ = await process.communicate()
    assert process.returncode == 0, output.decode()
    return output.decode()


@pytest.mark.parametrize("example", sorted(one.parent.name for one in EXAMPLES.glob("*/forecast.py")))
async def test_an_example_runs(dev_server: EmbeddedTemporal, example: str, tmp_path: Path) -> None:
    script = [rate_limited("1"), tool_call("weather", {"city": "Oslo"}), ok("Sunny in Oslo.")]
    async with ScriptedProvider(script) as provider:
        environment = {
            "OPENAI_API_KEY": "sk-of-the-test",
            "OPENAI_BASE_URL": provider.base_url,
            "TEMPORAL_ADDRESS": dev_server.address,
            "TASQ_DATABASE_URL": f"sqlite:///{tmp_path / 'attempts.db'}",
            "COLUMNS": "160",
        }
        file = EXAMPLES / example / "forecast.py"
        said = await run(sys.executable, file, environment=environment, folder=tmp_path)
        assert "Sunny in Oslo." in said
        task_id = said.split("tasq show ")[1].split()[0]
        tasq = Path(sys.executable).parent / "tasq"
        shown = await run(tasq, "show", task_id, environment=environment, folder=tmp_path)
    for text in ("model turn 1", "rate_limited", "tool weather", "model turn 2"):
        assert text in shown, shown
    assert len(provider.requests) == 3
