"""Following a task reads the ledger and leaves the running workflow alone."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from uuid import uuid4

import openai
import pytest
import pytest_asyncio
from temporalio.client import Client, WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.worker import (
    HandleQueryInput,
    Interceptor,
    Worker,
    WorkflowInboundInterceptor,
    WorkflowInterceptorClassInput,
)

from activities import ACTIVITIES
from tasquencer.cli import following
from tasquencer.cli.errors import CommandFailed
from tasquencer.cli.following import Absence
from tasquencer.core.actions import TRY_AGAIN
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.sql import SqlLedger
from tasquencer.temporal import TasquencerPlugin
from tasquencer.temporal.ai_calls import AiCalls
from tests.cli.processes import finish, start, until
from tests.support.answers import Hold, ok, rate_limited, stall, status
from tests.support.provider import ScriptedProvider
from workflows import WORKFLOWS

pytestmark = pytest.mark.asyncio(loop_scope="module")

_queries = Counter[str]()


class CountsQueries(Interceptor):
    def workflow_interceptor_class(
        self,
        input: WorkflowInterceptorClassInput,  # noqa: A002 (the SDK's name)
    ) -> type[WorkflowInboundInterceptor]:
        return _Counting


class _Counting(WorkflowInboundInterceptor):
    async def handle_query(self, input: HandleQueryInput) -> Any:  # noqa: A002 (the SDK's name)
        _queries[input.query] += 1
        return await super().handle_query(input)


@dataclass
class Scene:
    """A worker of this process, which counts the queries that it answers."""

    environment: dict[str, str]
    hold: Hold = field(default_factory=Hold)
    hold_without_ledger: Hold = field(default_factory=Hold)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def scene(
    dev_server: EmbeddedTemporal, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Scene]:
    folder = tmp_path_factory.mktemp("following")
    (folder / "temporal.toml").touch()
    url, queue = f"sqlite:///{folder / 'ledger.db'}", f"following-{uuid4()}"
    hold, hold_without_ledger = Hold(), Hold()
    script = {
        "moons": [status(503), ok("Io, Europa.")],
        "held": [stall(hold, ok("at last"))],
        "lost sight of": [stall()],
        "without a ledger": [stall(hold_without_ledger, ok("an answer"))],
        "waits": [rate_limited("3000"), ok("done")],
    }
    async with (
        ScriptedProvider(script, then=ok("an answer")) as provider,
        openai.AsyncOpenAI(api_key="test", base_url=provider.base_url, max_retries=0) as model,
    ):
        plugin = TasquencerPlugin(SqlLedger(url), calls=AiCalls(model, "m"))
        client = await Client.connect(dev_server.address, plugins=[plugin])
        async with Worker(
            client,
            task_queue=queue,
            workflows=WORKFLOWS,
            activities=ACTIVITIES,
            interceptors=[CountsQueries()],
        ):
            environment = {
                **{name: value for name, value in os.environ.items() if not name.startswith("TEMPORAL_")},
                "TEMPORAL_ADDRESS": dev_server.address,
                "TEMPORAL_CONFIG_FILE": str(folder / "temporal.toml"),
                "TASQ_DATABASE_URL": url,
                "TASQ_TASK_QUEUE": queue,
            }
            yield Scene(environment, hold, hold_without_ledger)


@pytest.fixture(autouse=True)
def _count_from_zero() -> None:
    _queries.clear()


async def test_run_and_watch_send_no_query(scene: Scene) -> None:
    options = ("--id", "moons-unasked", "--initial-interval", "50m")
    running = await start("run", "moons", *options, environment=scene.environment)
    await running.says("retry 1 of 3 waits: 50 min backoff")
    hurried = await finish("retry-now", "moons-unasked", "--yes", environment=scene.environment)
    assert hurried.code == 0, hurried.stderr
    ran = await running.finish()
    assert (ran.code, ran.stdout) == (0, "Io, Europa.\n")
    assert "first try failed after" in ran.stderr
    watched = await finish("watch", "moons-unasked", environment=scene.environment)
    assert (watched.code, "retry 1 of 3 completed after" in watched.stderr) == (0, True)
    assert not _queries


async def test_the_current_work_item_is_found_without_a_query(scene: Scene) -> None:
    running = await start("run", "waits", "--id", "current-one", environment=scene.environment)
    await running.says("retry 1 of 3 waits")
    acted = await finish(
        "cancel", "current-one", "--work-item", "current", "--yes", environment=scene.environment
    )
    assert (acted.code, acted.stderr.endswith(" is canceled\n")) == (0, True), acted.stderr
    assert (await running.finish()).code == 1
    assert not _queries


async def test_the_time_before_a_worker_takes_a_task_is_not_the_ledgers_delay() -> None:
    absence = Absence()
    assert not any(absence.is_long(float(now), begun=False) for now in range(60))
    asked = [now for now in range(60, 70) if absence.is_long(float(now), begun=True)]
    assert asked == [65, 66, 67, 68, 69]
    assert not absence.is_due(70.9)
    assert absence.is_due(71.0)


class Refusing:
    """Stands in for a workflow handle: refuses the first updates as too early."""

    def __init__(self, times: int) -> None:
        self.left = times

    async def execute_update(self, *_: object) -> str:
        if not self.left:
            return "done"
        self.left -= 1
        raise WorkflowUpdateFailedError(ApplicationError("the task waits for a write", type=TRY_AGAIN))


async def test_an_update_that_came_too_early_is_sent_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(following, "_TRY_AGAIN_SECONDS", 0.01)
    handle: Any = Refusing(3)
    assert await following.send_update(handle, "retry_now", {}) == "done"


async def test_an_update_that_is_always_too_early_says_what_the_task_waits_for(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(following, "_TRY_AGAIN_SECONDS", 0.01)
    monkeypatch.setattr(following, "_ANSWER_SECONDS", 0.2)
    handle: Any = Refusing(10**6)
    with pytest.raises(CommandFailed, match=r"refused for 0.2 s: the task waits for a write"):
        await following.send_update(handle, "retry_now", {})


async def test_a_batch_shows_its_progress_and_its_pause_without_a_query(scene: Scene, tmp_path: Path) -> None:
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"prompt": "held"}\n{"prompt": "b"}\n{"prompt": "c"}\n')
    out = tmp_path / "r.jsonl"
    running = await start(
        "batch", str(prompts), "--id", "seen", "--out", str(out), environment=scene.environment
    )
    await until(lambda: "2 of 3" in running.stderr, lambda: running.stderr)
    paused = await finish(
        "batch", "pause", "seen", "--actor", "anna", "--reason", "lunch", environment=scene.environment
    )
    assert paused.code == 0, paused.stderr
    said = await finish("batch", "status", "seen", environment=scene.environment)
    assert "2 of 3 · paused by anna: lunch" in said.stdout
    await running.says("paused by anna: lunch")
    assert (await finish("batch", "resume", "seen", environment=scene.environment)).code == 0
    said = await finish("batch", "status", "seen", environment=scene.environment)
    assert "paused" not in said.stdout
    scene.hold.release()
    assert (await running.finish()).code == 0
    assert not _queries


async def test_a_task_that_the_ledger_does_not_have_is_asked_itself(scene: Scene, tmp_path: Path) -> None:
    elsewhere = {**scene.environment, "TASQ_DATABASE_URL": f"sqlite:///{tmp_path / 'other.db'}"}
    running = await start("run", "lost sight of", "--id", "elsewhere", environment=elsewhere)
    await running.says("is TASQ_DATABASE_URL the same as the worker's?")
    await running.says("first try")
    assert _queries["work_items"] >= 1
    assert not (tmp_path / "other.db").exists()
    running.interrupt()
    await running.finish()


async def test_a_ledger_that_cannot_be_reached_does_not_end_the_command(scene: Scene) -> None:
    nowhere = {**scene.environment, "TASQ_DATABASE_URL": "postgresql://tasq@127.0.0.1:1/tasq"}
    running = await start("run", "without a ledger", "--id", "without-ledger", environment=nowhere)
    await running.says("the ledger at postgresql://tasq@127.0.0.1:1/tasq is unavailable: ")
    scene.hold_without_ledger.release()
    ran = await running.finish()
    assert (ran.code, ran.stdout) == (0, "an answer\n"), ran.stderr
    assert "first try completed after" in ran.stderr


async def test_work_items_of_an_earlier_task_with_the_same_id_are_not_shown(scene: Scene) -> None:
    async with SqlLedger(scene.environment["TASQ_DATABASE_URL"]) as ledger:
        ran = await finish("run", "again", "--id", "again", environment=scene.environment)
        assert ran.code == 0
        (first,) = await ledger.work_items_of("again")
        client = await Client.connect(scene.environment["TEMPORAL_ADDRESS"])
        # `tasq watch` says each change that it sees. It sees only the end of a task that has ended.
        await client.execute_workflow(
            "AiAgentTask", {"prompt": "again"}, id="again", task_queue=scene.environment["TASQ_TASK_QUEUE"]
        )
        assert len(await ledger.work_items_of("again")) == 2
        watched = await finish("watch", "again", environment=scene.environment)
        assert watched.stderr.count("first try") == 1
        assert (await ledger.work_items_of("again"))[0] == first
