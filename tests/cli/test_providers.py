"""`tasq providers`: lists the providers, and asks each of them for a few tokens."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from pathlib import Path

from tests.support import answers
from tests.support.provider import ScriptedProvider

TASQ = Path(sys.executable).with_name("tasq")


async def tasq(folder: Path, default: str, *arguments: str) -> tuple[int | None, str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("OPENAI_", "TASQ_"))}
    program = await asyncio.create_subprocess_exec(
        TASQ,
        "providers",
        *arguments,
        env={
            **kept,
            "OPENAI_BASE_URL": default,
            "TASQ_MODEL": "tiny",
            "TASQ_PROVIDERS": str(folder / "providers.toml"),
        },
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    printed, complaints = await asyncio.wait_for(program.communicate(), 60)
    return program.returncode, printed.decode(), complaints.decode()


async def test_providers_are_listed_and_asked(tmp_path: Path) -> None:
    async with (
        ScriptedProvider(then=answers.ok("ok")) as good,
        ScriptedProvider(then=answers.status(401)) as wrong_key,
    ):
        (tmp_path / "providers.toml").write_text(
            f'[providers.other]\nbase_url = "{wrong_key.base_url}"\n'
            'default_model = "big"\napi = "responses"\n'
        )
        listed = await tasq(tmp_path, good.base_url)
        assert not good.requests
        checked = await tasq(tmp_path, good.base_url, "--check", "--json")

    assert listed[0] == 0, listed[2]
    first, second = listed[1].splitlines()
    assert first.startswith("default") and "tiny" in first
    assert second.startswith("other") and "responses" in second
    rows = json.loads(checked[1])
    assert rows[0]["check"] == "ok"
    assert rows[1]["check"].startswith("unauthorized: 401")
    assert checked[0] == 1
    assert "no answer from other" in checked[2]
    assert wrong_key.requests[0].path == "/v1/responses"


async def test_a_wrong_file_is_one_line_and_status_2(tmp_path: Path) -> None:
    (tmp_path / "providers.toml").write_text("[providers.x]\n")
    code, _, complaints = await tasq(tmp_path, "http://127.0.0.1:9/v1")

    assert code == 2
    assert "TASQ_PROVIDERS: providers.x.base_url: " in complaints
