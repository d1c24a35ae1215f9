"""The example `examples/ask` runs as its page says, and its questions fail and succeed on their own."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import sys
from pathlib import Path

from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tests.end_to_end.stage import Stage
from tests.support import answers
from tests.support.patience import PATIENCE_SECONDS
from tests.support.provider import ProviderRequest, ScriptedProvider

EXAMPLE = Path(__file__).resolve().parents[2] / "examples/ask"
QUESTIONS = {
    "Who takes this ticket": [
        answers.rate_limited("0"),
        answers.ok("I think billing."),
        answers.ok('{"team": "billing", "urgent": true}'),
    ],
    "Which language": [answers.ok('{"output": "English"}')],
    "Summarize": [answers.ok("The invoice is wrong.")],
}


async def test_the_example_answers_three_questions_and_each_attempt_is_kept(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    left = {begin: list(steps) for begin, steps in QUESTIONS.items()}

    def answer(request: ProviderRequest) -> answers.Answer:
        asked = request.body["messages"][0]["content"]  # a retry may quote the answer before it
        return left[next(begin for begin in left if asked.startswith(begin))].pop(0)

    async with ScriptedProvider(answer) as provider:
        stage = await Stage.on(dev_server, provider, tmp_path)
        (command,) = [
            line for line in (EXAMPLE / "README.md").read_text().splitlines() if "python examples/" in line
        ]
        words = command.split(" ", 3)
        assert words[1] == "python"
        program = await asyncio.create_subprocess_exec(
            sys.executable,
            EXAMPLE / "ticket.py",
            words[3].strip('"'),
            env=stage.environment(),
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )
        printed, complaints = await asyncio.wait_for(program.communicate(), PATIENCE_SECONDS)

    assert program.returncode == 0, complaints.decode()
    result = json.loads(printed.decode().replace("'", '"').replace("True", "true"))
    assert result == {
        "team": "billing",
        "urgent": True,
        "language": "English",
        "summary": "The invoice is wrong.",
    }
    with sqlite3.connect(stage.ledger_file) as ledger:
        rows = ledger.execute(
            "SELECT lineage, attempt, coalesce(failure_kind, state) FROM work_items ORDER BY lineage, attempt"
        ).fetchall()
    assert rows == [
        ("ask-1-label", 0, "rate_limited"),
        ("ask-1-label", 1, "invalid_output"),
        ("ask-1-label", 2, "completed"),
        ("ask-2", 0, "completed"),
        ("ask-3", 0, "completed"),
    ]
