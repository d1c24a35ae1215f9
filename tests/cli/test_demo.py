"""`tasq demo`, with a provider that follows a script in the place of the small model."""

from __future__ import annotations

import os
import re
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tasquencer.cli.application import find_worker
from tasquencer.cli.demo_parts import AnsweringModel, answering_model, worker_environment
from tasquencer.cli.errors import CommandFailed
from tasquencer.devkit.processes import answers
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.settings import Settings
from tests.cli.processes import Running, start
from tests.support.answers import ok, slow
from tests.support.provider import ScriptedProvider

SERVER = EmbeddedTemporal(address="127.0.0.1:7", namespace="default", ui_url="http://127.0.0.1:8", pid=1)


@pytest.fixture
async def provider() -> AsyncIterator[ScriptedProvider]:
    async with ScriptedProvider({"quick": [ok("Done.")]}, then=slow(pause_seconds=600)) as provider:
        yield provider


def environment(provider: ScriptedProvider, tmp_path: Path) -> dict[str, str]:
    ours = {"OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "test", "XDG_DATA_HOME": str(tmp_path)}
    return {**os.environ, **ours, "TMPDIR": str(tmp_path)}


def children_of(pid: int) -> set[int]:
    listed = subprocess.run(["ps", "-A", "-o", "ppid=,pid="], capture_output=True, text=True, check=True)
    pairs = [tuple(map(int, line.split())) for line in listed.stdout.splitlines()]
    return {child for parent, child in pairs if parent == pid}


def still_running(pids: set[int]) -> set[int]:
    listed = subprocess.run(["ps", "-A", "-o", "pid="], capture_output=True, text=True, check=True)
    return pids & {int(line) for line in listed.stdout.split()}


async def ui_port(running: Running) -> int:
    await running.says("Web UI at ")
    match = re.search(r"Web UI at http://127\.0\.0\.1:(\d+)", running.stderr)
    assert match is not None
    return int(match[1])


async def test_the_demo_shows_two_failures_and_the_answer_and_leaves_nothing(
    provider: ScriptedProvider, tmp_path: Path
) -> None:
    running = await start("demo", "--prompt", "quick", environment=environment(provider, tmp_path))
    port = await ui_port(running)
    children = children_of(running.process.pid)
    ended = await running.finish()
    assert ended.code == 0, ended.stderr
    assert ended.stdout.startswith("Done.\n")
    table = [" ".join(line.split()) for line in ended.stdout.splitlines()]
    assert any(re.match(r"first try failed none .* rate_limited: ", line) for line in table)
    assert any(
        re.match(r"retry 1 of 3 failed 2 s asked by the provider .* unreachable: ", line) for line in table
    )
    assert any(re.match(r"retry 2 of 3 completed 2 s backoff ", line) for line in table)
    assert table[-1].startswith("3 work items: 1 completed, 2 failed")
    assert "your provider at 127.0.0.1 (" in ended.stderr
    assert len(provider.requests) == 1
    assert children and not still_running(children)
    assert not await answers(port)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("how", [signal.SIGINT, signal.SIGTERM])
async def test_a_demo_that_is_stopped_leaves_nothing(
    provider: ScriptedProvider, tmp_path: Path, how: signal.Signals
) -> None:
    running = await start("demo", "--prompt", "never answered", environment=environment(provider, tmp_path))
    port = await ui_port(running)
    await running.says("first try failed")
    children = children_of(running.process.pid)
    running.process.send_signal(how)
    ended = await running.finish()
    assert ended.code == 130
    assert ended.stderr.endswith("stopped; nothing is left running\n")
    assert len(children) == 2 and not still_running(children)
    assert not await answers(port)


async def test_a_kept_demo_stays_until_ctrl_c_and_says_how_to_go_on(
    provider: ScriptedProvider, tmp_path: Path
) -> None:
    running = await start("demo", "--keep", "--prompt", "quick", environment=environment(provider, tmp_path))
    await running.says("Everything runs until Ctrl-C.")
    port = await ui_port(running)
    assert f"Web UI: http://127.0.0.1:{port}/namespaces/default/workflows/demo-" in running.stderr
    assert re.search(r"export TEMPORAL_ADDRESS=127\.0\.0\.1:\d+ TASQ_DATABASE_URL=sqlite", running.stderr)
    assert await answers(port)
    running.interrupt()
    ended = await running.finish()
    assert ended.code == 0, ended.stderr
    assert not await answers(port)
    assert (tmp_path / "tasquencer" / "demo" / "ledger.db").is_file()


async def test_a_worker_that_does_not_start_is_one_line_and_leaves_nothing(
    provider: ScriptedProvider, tmp_path: Path
) -> None:
    checkout = tmp_path / "checkout"
    (checkout / "workflows").mkdir(parents=True)
    (checkout / "workflows" / "ai_agent.py").touch()
    (checkout / "worker.py").write_text("raise SystemExit('this worker has had enough')")
    running = await start("demo", environment=environment(provider, tmp_path), folder=checkout)
    port = await ui_port(running)
    ended = await running.finish()
    assert ended.code == 1
    assert ended.stderr.endswith("error: the worker ended with status 1: this worker has had enough\n")
    assert not await answers(port)


def test_the_worker_is_found_in_this_folder_else_in_the_checkout(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkout = Path(__file__).parents[2]
    assert find_worker(tmp_path) == checkout / "worker.py"
    (tmp_path / "worker.py").touch()  # any other project's
    assert find_worker(tmp_path) == checkout / "worker.py"
    (tmp_path / "workflows").mkdir()
    (tmp_path / "workflows" / "ai_agent.py").touch()
    assert find_worker(tmp_path) == tmp_path / "worker.py"
    monkeypatch.setattr("tasquencer.__file__", "/nowhere/lib/site-packages/tasquencer/__init__.py")
    with pytest.raises(CommandFailed, match="the application is missing from /nowhere"):
        find_worker(tmp_path / "workflows")


def test_the_worker_of_the_demo_knows_nothing_of_the_user_s_temporal(tmp_path: Path) -> None:
    inherited = {
        "PATH": "/bin",
        "OPENAI_API_KEY": "theirs",
        "TEMPORAL_ADDRESS": "prod:7233",
        "TEMPORAL_API_KEY": "s3cret",
        "TEMPORAL_PROFILE": "prod",
        "TASQ_DATABASE_URL": "postgresql://prod",
        "TASQ_METRICS_ADDRESS": "127.0.0.1:9464",
    }
    model = AnsweringModel("m", None, "http://127.0.0.1:1/v1")
    settings = Settings(database_url="sqlite:///demo.db")
    variables = worker_environment(inherited, SERVER, settings, model, "http://127.0.0.1:2/v1", tmp_path)
    assert "prod" not in str(variables) and "s3cret" not in str(variables)
    assert variables["TEMPORAL_ADDRESS"] == "127.0.0.1:7"
    assert variables["TEMPORAL_CONFIG_FILE"] == str(tmp_path / "temporal.toml")
    assert variables["OPENAI_BASE_URL"] == "http://127.0.0.1:2/v1"
    assert (variables["OPENAI_API_KEY"], variables["PATH"]) == ("theirs", "/bin")
    assert "TASQ_METRICS_ADDRESS" not in variables


@pytest.mark.parametrize(
    ("variables", "base_url", "host"),
    [
        ({"OPENAI_API_KEY": "k"}, "https://api.openai.com/v1", "api.openai.com"),
        (
            {"OPENAI_BASE_URL": "http://me:s3cret@models.test/v1"},
            "http://me:s3cret@models.test/v1",
            "models.test",
        ),
    ],
)
async def test_the_user_s_provider_answers_where_there_is_one(
    variables: dict[str, str], base_url: str, host: str
) -> None:
    async with answering_model(variables) as model:
        assert (model.base_url, model.warning, model.options) == (base_url, None, {})
        assert host in model.name and "s3cret" not in model.name
