"""What `tasq` prints, on terminals and pipes of all kinds."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from tasquencer.core.failure import Failure, FailureKind
from tasquencer.sql import SqlLedger
from tests.cli.processes import TASQ
from tests.cli.stories import Story

SAID = "naïve \x1b]0;owned\x07 \u202e ✗ 日本\nerror: forged"


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """With a ledger of many tasks, whose failures say what nobody may print."""
    url = f"sqlite:///{tmp_path / 'ledger.db'}"

    async def write() -> None:
        async with SqlLedger(url) as ledger:
            for number in range(60):
                story = Story(f"task-{number}-é").start(0).fail(1, Failure.of(FailureKind.REFUSED, SAID))
                await ledger.record(story.entries())

    asyncio.run(write())
    return {**os.environ, "TASQ_DATABASE_URL": url}


def run(environment: dict[str, str], *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run([TASQ, *arguments], env=environment, capture_output=True, timeout=60, check=False)


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "utf-8"])
def test_what_the_encoding_cannot_show_is_replaced(environment: dict[str, str], encoding: str) -> None:
    environment["PYTHONIOENCODING"] = encoding
    for arguments in (("list",), ("show", "task-1-é", "--transitions"), ("show", "é-unknown")):
        ran = run(environment, *arguments)
        assert b"Traceback" not in ran.stderr, ran.stderr
        assert b"\x1b" not in ran.stdout + ran.stderr
    ran = run(environment, "show", "task-1-é", "--json")
    shown = json.loads(ran.stdout.decode(encoding))
    assert shown["work_items"][0]["failure_message"] == " ".join(SAID.split())


def test_a_failure_cannot_print_a_line_of_its_own(environment: dict[str, str]) -> None:
    ran = run({**environment, "PYTHONIOENCODING": "utf-8"}, "list", "--limit", "1")
    assert "error: forged" in ran.stdout.decode()
    assert not any(line.startswith("error:") for line in ran.stdout.decode().splitlines())


@pytest.mark.parametrize("arguments", [("list", "--limit", "60"), ("list", "--limit", "60", "--json")])
def test_a_closed_pipe_ends_the_command_quietly(
    environment: dict[str, str], arguments: tuple[str, ...]
) -> None:
    ours, theirs = os.pipe()
    os.close(ours)
    with subprocess.Popen(
        [TASQ, *arguments], env=environment, stdout=theirs, stderr=subprocess.PIPE
    ) as process:
        os.close(theirs)
        _, said = process.communicate(timeout=60)
    assert (process.returncode, said) == (141, b"")
