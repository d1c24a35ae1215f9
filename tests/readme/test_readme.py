"""The code on the first pages that people read works, word for word."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
from temporalio import activity
from temporalio.client import Client

from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tests.end_to_end.stage import Stage
from tests.readme.documents import DOCS, ROOT, blocks_of
from tests.support import answers
from tests.support.patience import PATIENCE_SECONDS
from tests.support.provider import ScriptedProvider
from tests.support.tasks import tasks_on_skipped_time

QUESTION = "Name three moons of Jupiter."
FIRST_PAGES = [ROOT / "README.md", DOCS / "quickstart.md", DOCS / "guides/writing-tasks.md"]
LEDGER = DOCS / "reference/ledger.md"


def code(language: str, *pages: Path) -> list[str]:
    """The fenced blocks in this language on these pages."""
    return [block.code for page in pages for block in blocks_of(page) if block.language == language]


def the_block(language: str, containing: str) -> str:
    """The only block that contains the text."""
    (block,) = [block for block in code(language, *FIRST_PAGES) if containing in block]
    return block


def the_file(name: str) -> str:
    """The file of this name in the README."""
    (block,) = [block for block in blocks_of(ROOT / "README.md") if block.title == name]
    return block.code


@pytest.fixture(scope="module")
async def readers_terminal(dev_server: EmbeddedTemporal, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A reader who has a server, a worker and a terminal."""
    folder = tmp_path_factory.mktemp("reader")
    async with ScriptedProvider(then=answers.ok("Io, Europa, Ganymede")) as provider:
        stage = await Stage.on(dev_server, provider, folder, task_queue="ai-agent")
        async with stage.worker():
            yield stage


async def typed(stage: Stage, command: str) -> str:
    """What the shell prints for the command, with the environment of the reader."""
    environment = stage.environment()
    environment["PATH"] = f"{Path(sys.executable).parent}:{environment['PATH']}"
    shell = await asyncio.create_subprocess_shell(
        command,
        cwd=ROOT,
        env=environment,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, complaints = await asyncio.wait_for(shell.communicate(), timeout=PATIENCE_SECONDS)
    assert shell.returncode == 0, complaints.decode()
    return printed.decode()


async def test_the_task_of_the_three_terminals_gives_its_answer(readers_terminal: Stage) -> None:
    *_, command = the_block("sh", 'tasq run "Name').strip().splitlines()
    command = command.replace(".venv/bin/tasq", "tasq")
    assert await typed(readers_terminal, command) == "Io, Europa, Ganymede\n"


async def test_the_task_from_the_temporal_command_line_completes(readers_terminal: Stage) -> None:
    command = the_block("sh", "temporal workflow start").strip()
    started = json.loads(await typed(readers_terminal, f"{command} --output json"))
    result = await readers_terminal.client.get_workflow_handle(started["workflowId"]).result()
    assert result["text"] == "Io, Europa, Ganymede"


async def test_the_task_from_python_completes(
    readers_terminal: Stage, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    connect = Client.connect

    async def connect_here(address: str) -> Client:
        assert address == "localhost:7233"
        return await connect(readers_terminal.server.address)

    monkeypatch.setattr(Client, "connect", connect_here)
    names: dict[str, Any] = {}
    body = textwrap.indent(the_block("python", "moons-of-jupiter"), "    ")
    exec(f"async def example():\n{body}", names)
    await names["example"]()
    assert capsys.readouterr().out.startswith("Io, Europa, Ganymede 1 ")


async def test_the_sql_of_the_documents_runs_on_the_ledger(readers_terminal: Stage) -> None:
    await typed(readers_terminal, f'tasq run "{QUESTION}"')
    statements = [
        *code("sql", ROOT / "README.md"),
        *(
            statement
            for statement in "\n".join(code("sql", LEDGER)).split(";")
            if statement.strip() and "PostgreSQL" not in statement
        ),
    ]
    with sqlite3.connect(readers_terminal.ledger_file) as ledger:
        for statement in statements:
            ledger.execute(statement).fetchall()
    assert len(statements) >= 3


@activity.defn
async def charge(cents: int) -> str:
    """The activity that the README's task calls."""
    return f"charged {cents}"


async def test_the_readme_s_own_task_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "charge_card_of_the_readme.py").write_text(the_block("python", "class ChargeCard"))
    monkeypatch.syspath_prepend(tmp_path)
    from charge_card_of_the_readme import ChargeCard  # type: ignore[import-not-found]

    async with tasks_on_skipped_time([ChargeCard], [charge]) as tasks:
        result, _ = await tasks.run("ChargeCard", 500)
    assert result == "charged 500"


async def test_the_readme_s_question_is_asked_as_pasted(readers_terminal: Stage, tmp_path: Path) -> None:
    (tmp_path / "my_task.py").write_text(the_file("my_task.py"))
    async with ScriptedProvider([answers.ok("Yes!"), answers.ok('{"urgent": true}')]) as provider:
        settings = {"OPENAI_BASE_URL": provider.base_url, "OPENAI_API_KEY": "sk-of-the-reader"}
        program = await asyncio.create_subprocess_exec(
            sys.executable,
            "my_task.py",
            cwd=tmp_path,
            env=readers_terminal.environment(settings),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        printed, complaints = await asyncio.wait_for(program.communicate(), timeout=120)

    assert program.returncode == 0, complaints.decode()
    assert printed.decode() == "True\n"
    with sqlite3.connect(tmp_path / "ledger.db") as ledger:
        rows = ledger.execute("SELECT lineage, failure_kind FROM work_items ORDER BY attempt").fetchall()
    assert rows == [("ask-1-label", "invalid_output"), ("ask-1-label", None)]


def test_the_test_of_the_readme_passes_as_pasted(tmp_path: Path) -> None:
    for name in ("my_task.py", "test_my_task.py"):
        (tmp_path / name).write_text(the_file(name))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "PYTEST_"))}
    run = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-c", "/dev/null", "--rootdir", tmp_path, tmp_path],
        cwd=tmp_path,
        env={**kept, "PATH": f"{Path(sys.executable).parent}:{kept['PATH']}"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "1 passed" in run.stdout, run.stdout[-5000:]
