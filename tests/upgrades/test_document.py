"""The commands in docs/guides/upgrading.md exist, and its check of running tasks does what it says."""

from __future__ import annotations

import asyncio
import re
import shlex
import subprocess
from pathlib import Path
from typing import Any

import pytest
from temporalio import workflow
from temporalio.worker import Replayer

from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal import TasquencerPlugin
from tasquencer.testing import InMemoryLedger
from tests.support.calls import GONE
from tests.support.patience import eventually
from tests.support.tasks import executable
from tests.upgrades.test_patching import Releases, in_backoff, start, wake
from tests.upgrades.variants import Careless, First, Patched

DOCUMENT = (Path(__file__).resolve().parents[2] / "docs/guides/upgrading.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", DOCUMENT, flags=re.MULTILINE | re.DOTALL)


COMMANDS = [
    line
    for block in blocks("sh")
    for line in block.replace("\\\n", " ").splitlines()
    if line.startswith("temporal ")
]


def printed(*command: str) -> str:
    """What the `temporal` command prints."""
    program = [executable("temporal"), *command]
    return subprocess.run(program, capture_output=True, text=True, check=True).stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_the_temporal_command_has_these_options(command: str) -> None:
    words = shlex.split(command.partition(" > ")[0])
    options = [word for word in words if word.startswith("--")]
    names = words[1 : words.index(options[0])]
    described = printed(*names, "--help") + printed("options")
    assert [option for option in options if f"{option} " not in described] == []


async def run_check(block: str, **names: Any) -> None:
    """Run a block of Python as if it were the body of an asynchronous function."""
    body = "".join(f"    {line}\n" if line else "\n" for line in block.splitlines())
    scope: dict[str, Any] = dict(names)
    exec(f"async def check():\n{body}    return replayer\n", scope)
    await scope["check"]()


async def test_the_check_finds_what_would_stand_still_among_the_running_tasks(
    dev_server: EmbeddedTemporal, request: pytest.FixtureRequest
) -> None:
    (check,) = [block for block in blocks("python") if "list_workflows" in block]
    queue = f"upgrade-{request.node.name}"
    running = f"ExecutionStatus = 'Running' AND TaskQueue = '{queue}'"
    check = check.replace("ExecutionStatus = 'Running' AND WorkflowType = 'AiAgentTask'", running)
    assert running in check
    async with Releases(dev_server, request.node.name).worker(First, GONE) as tasks:
        handle = await start(tasks)
        await in_backoff(tasks, handle)

        async def is_listed() -> bool:
            return (await tasks.client.count_workflows(running)).count == 1

        await eventually(is_listed, "the task is listed")
        await run_check(check, client=tasks.client, WORKFLOWS=[Patched])
        with pytest.raises(workflow.NondeterminismError):
            await run_check(check, client=tasks.client, WORKFLOWS=[Careless])
        await wake(handle)
        await handle.result()


async def test_a_history_in_a_file_replays_and_is_found_out(
    dev_server: EmbeddedTemporal, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    (command,) = [command for command in COMMANDS if command.startswith("temporal workflow show")]
    (reading,) = [block for block in blocks("python") if "from_json" in block]
    async with Releases(dev_server, request.node.name).worker(First) as tasks:
        handle = await start(tasks)
        await handle.result()
    words = shlex.split(command.partition(" > ")[0].replace("letter-to-anna", handle.id))
    address = ["--address", dev_server.address]
    shown = await asyncio.to_thread(printed, *words[1:], *address)
    file = tmp_path / "letter.json"
    file.write_text(shown)
    reading = reading.replace('"letter-to-anna"', repr(handle.id)).replace(
        '"letter-to-anna.json"', repr(str(file))
    )

    def replayer(code: type) -> Replayer:
        return Replayer(workflows=[code], plugins=[TasquencerPlugin(InMemoryLedger())])

    await run_check(reading, replayer=replayer(Patched))
    with pytest.raises(workflow.NondeterminismError):
        await run_check(reading, replayer=replayer(Careless))
