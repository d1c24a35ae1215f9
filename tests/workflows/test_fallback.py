"""From one provider to the next, on the real dev server: two real HTTP servers in the providers' places."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from temporalio.client import Client
from temporalio.worker import Worker

from tasquencer.ai import AiCalls
from tasquencer.ai.provider.client import make_client
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.sql import SqlLedger
from tasquencer.temporal import TasquencerPlugin
from tests.support import answers
from tests.support.answers import Answer
from tests.support.provider import ScriptedProvider
from tests.support.tasks import failure_of_task, history, timers
from workflows.ai_agent import AiAgentTask

KEY, OTHER_KEY = "key-of-the-first", "key-of-the-other"

OTHER = """
[providers.other]
base_url = "{base_url}"
api_key_env = "OTHER_KEY"
"""

ROWS = """
select w.lineage, w.attempt, w.state, w.failure_kind, w.delay_reason, w.delay_seconds, j.model, j.status
from work_items w join ai_jobs j on j.work_item_id = w.id order by w.lineage, w.attempt
"""


def search() -> str:
    """Look the order up."""
    return "on its way"


@dataclass(frozen=True)
class Ended:
    """A task that has ended, and what the two providers were asked."""

    result: Any
    rows: list[tuple[Any, ...]]
    first: list[Any]
    other: list[Any]
    timers: list[float]


def _asked(provider: ScriptedProvider) -> list[tuple[str | None, Any]]:
    return [(request.authorization, request.body["model"]) for request in provider.requests]


@pytest.fixture
def run_task(dev_server: EmbeddedTemporal, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    async def run(first: Sequence[Answer], other: Sequence[Answer], **fields: Any) -> Ended:
        url, queue = f"sqlite:///{tmp_path / 'ledger.db'}", f"queue-{uuid4()}"
        async with ScriptedProvider(first) as one, ScriptedProvider(other) as two:
            providers = tmp_path / "providers.toml"
            providers.write_text(OTHER.format(base_url=two.base_url))
            monkeypatch.setenv("TASQ_PROVIDERS", str(providers))
            monkeypatch.setenv("OTHER_KEY", OTHER_KEY)
            async with make_client(api_key=KEY, base_url=one.base_url) as model:
                calls = AiCalls(model, "small", tools=[search])
                plugin = TasquencerPlugin(SqlLedger(url), calls=calls)
                client = await Client.connect(dev_server.address, plugins=[plugin])
                async with Worker(client, task_queue=queue, workflows=[AiAgentTask]):
                    request = {"prompt": "Why?", "fallback_models": ["other:big"]} | fields
                    handle = await client.start_workflow("AiAgentTask", request, id=queue, task_queue=queue)
                    if fields.get("max_retries") == 0:
                        result: Any = await failure_of_task(handle)
                    else:
                        result = await handle.result()
                    slept = timers(await history(handle))
            with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as connection:
                rows = list(connection.execute(ROWS))
            keys = [sent.idempotency_key for sent in (*one.requests, *two.requests)]
            assert len(set(keys)) == len(keys) == len(rows)
            return Ended(result, rows, _asked(one), _asked(two), slept)

    return run


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (answers.refusal(), "refused"),
        (answers.content_filter(), "refused"),
        (answers.rate_limited("3000"), "rate_limited"),
        (answers.insufficient_quota(), "quota_exceeded"),
    ],
    ids=["refusal", "content filter", "rate limit", "quota"],
)
async def test_what_one_provider_refuses_the_next_one_answers(
    run_task: Any, refusal: Answer, kind: str
) -> None:
    ended = await run_task([refusal], [answers.ok("Because.")])
    assert (ended.result["text"], ended.result["attempts"]) == ("Because.", 2)
    assert ended.rows == [
        ("main", 0, "failed", kind, "first_try", 0.0, "small", "failed"),
        ("main", 1, "completed", None, "fallback", 0.0, ended.result["model"], "completed"),
    ]
    assert ended.first == [(f"Bearer {KEY}", "small")]
    assert ended.other == [(f"Bearer {OTHER_KEY}", "big")]
    assert ended.timers == []


async def test_a_turn_of_an_agent_falls_back_and_the_next_turn_asks_the_first_model_again(
    run_task: Any,
) -> None:
    first = [answers.refusal(), answers.ok("It is on its way.")]
    ended = await run_task(first, [answers.tools(("search", {}))], tools=["search"])
    assert ended.result["text"] == "It is on its way."
    assert [row[:5] for row in ended.rows] == [
        ("turn-1", 0, "failed", "refused", "first_try"),
        ("turn-1", 1, "completed", None, "fallback"),
        ("turn-2", 0, "completed", None, "first_try"),
    ]
    assert [model for _, model in ended.first] == ["small", "small"]
    assert [model for _, model in ended.other] == ["big"]


async def test_a_fallback_takes_one_of_the_retries(run_task: Any) -> None:
    ended = await run_task([answers.refusal()], [answers.ok()], max_retries=0)
    assert ended.result.type == "NotRetryable"
    assert [row[2:4] for row in ended.rows] == [("failed", "refused")]
    assert ended.other == []
