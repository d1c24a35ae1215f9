"""A reader who follows docs/tutorial.md in an empty folder sees what it says."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tests.readme.documents import DOCS, Block, blocks_of
from tests.support import answers
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.provider import ScriptedProvider

TUTORIAL = DOCS / "tutorial.md"
OURS = ("OPENAI_", "PYTEST_", "TASQ_", "TEMPORAL_")


class Reader:
    """Somebody with an empty folder, a Temporal server, a provider, and a terminal for the worker."""

    def __init__(self, folder: Path, server: EmbeddedTemporal, provider: ScriptedProvider) -> None:
        self._folder = folder
        inherited = {name: value for name, value in os.environ.items() if not name.startswith(OURS)}
        self._environment = {
            **inherited,
            "COLUMNS": "200",
            "NO_PROXY": "127.0.0.1,localhost",
            "OPENAI_BASE_URL": provider.base_url,
            "PATH": f"{Path(sys.executable).parent}:{inherited['PATH']}",
            "TASQ_MODEL": "scripted",
            "TEMPORAL_ADDRESS": server.address,
            "TEMPORAL_CONFIG_FILE": str(folder / "temporal.toml"),
        }
        (folder / "temporal.toml").touch()
        self._worker: asyncio.subprocess.Process | None = None

    def saves(self, block: Block) -> None:
        (self._folder / block.title).write_text(block.code)

    async def types(self, block: Block) -> str:
        """Type the lines of a block, one after the other, and return what they print."""
        printed = []
        for line in block.code.strip().splitlines():
            if setting := re.fullmatch(r"export (\w+)=(.*)", line):
                self._environment[setting[1]] = setting[2]
                continue
            shell = await self._shell(line)
            output, _ = await asyncio.wait_for(shell.communicate(), PATIENCE_SECONDS)
            assert shell.returncode == 0, f"{line}\n{output.decode()}"
            printed.append(output.decode())
        return "".join(printed)

    async def sees(self, block: Block, *expected: str) -> None:
        """Type a block, again and again, until it prints what is expected."""
        printed = ""

        async def there() -> bool:
            nonlocal printed
            printed = await self.types(block)
            return all(text in printed for text in expected)

        await eventually(there, f"{block} prints {expected}")

    async def starts_the_worker(self, block: Block) -> None:
        (line,) = block.code.strip().splitlines()
        self._worker = await self._shell(line.replace("sk-…", "sk-of-the-reader"))
        assert self._worker.stdout is not None
        printed = await asyncio.wait_for(self._worker.stdout.readline(), PATIENCE_SECONDS)
        assert printed == b"The worker is ready.\n"

    async def presses(self, key: signal.Signals) -> None:
        """Press Ctrl-C or Ctrl-\\ in the worker's terminal."""
        assert self._worker is not None
        os.killpg(self._worker.pid, key)
        await asyncio.wait_for(self._worker.wait(), PATIENCE_SECONDS)

    async def leaves(self) -> None:
        if self._worker is not None and self._worker.returncode is None:
            await self.presses(signal.SIGKILL)

    async def _shell(self, line: str) -> asyncio.subprocess.Process:
        return await asyncio.create_subprocess_shell(
            line,
            cwd=self._folder,
            env=self._environment,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            start_new_session=True,
        )


@pytest.fixture
async def reader(dev_server: EmbeddedTemporal, tmp_path: Path) -> AsyncIterator[Reader]:
    async with ScriptedProvider(then=answers.ok('{"urgent": false, "team": "billing"}')) as provider:
        somebody = Reader(tmp_path, dev_server, provider)
        try:
            yield somebody
        finally:
            await somebody.leaves()


async def test_the_tutorial_works_from_an_empty_folder(reader: Reader) -> None:
    steps = iter(blocks_of(TUTORIAL))

    def step(title: str) -> Block:
        block = next(steps)
        assert block.title == title
        return block

    step("set up")  # the packages are here
    reader.saves(step("triage.py"))
    reader.saves(step("test_triage.py"))
    assert "1 passed" in await reader.types(step("test"))

    step("terminal 1")  # the server is here
    await reader.starts_the_worker(step("terminal 2"))
    assert '"team":"billing"' in (await reader.types(step("terminal 3"))).replace(" ", "")
    assert "completed" in await reader.types(step("terminal 3"))

    await reader.presses(signal.SIGINT)
    await reader.starts_the_worker(step("terminal 2, after Ctrl-C"))
    started, looked = step("terminal 3").code.strip().splitlines()
    await reader.types(Block(TUTORIAL, 0, "sh", "", started))
    await reader.sees(Block(TUTORIAL, 0, "sh", "", looked), "unreachable", "retry 1", "initialized")

    await reader.presses(signal.SIGQUIT)
    await reader.sees(step("terminal 3, after Ctrl-\\ in terminal 2"), "unreachable")

    await reader.starts_the_worker(step("terminal 2"))
    assert '"team":"billing"' in (await reader.types(step("terminal 3"))).replace(" ", "")
    shown = await reader.types(step("terminal 3"))
    assert "ticket-1" in shown
    assert shown.count("unreachable") == 2  # in `show` and in `list`
    step("")  # tests/readme runs the SQL
    assert next(steps, None) is None
