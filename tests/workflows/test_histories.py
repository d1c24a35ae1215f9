"""The ledger beside the histories: what was lost is written again, what differs is found."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, closing, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from temporalio import workflow
from temporalio.api.common.v1 import WorkflowExecution
from temporalio.api.workflowservice.v1 import DeleteWorkflowExecutionRequest
from temporalio.client import WorkflowFailureError, WorkflowHandle
from temporalio.service import RPCError, RPCStatusCode

from tasquencer import DomainRecord, RetryRecipe, WorkItem, WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal, embedded_temporal
from tasquencer.sql import SqlLedger, upgrade
from tasquencer.temporal import Task
from tasquencer.temporal.histories import Histories
from tasquencer.temporal.projection import Rebuilt, Verified, rebuild, verify
from tasquencer.temporal.reconciling import Reconciler
from tasquencer.testing import InMemoryLedger
from tests.support.calls import GONE, SLOW_DOWN, WRONG_KEY, Hang, ScriptedCalls
from tests.support.patience import eventually
from tests.support.tasks import Tasks, comes_to, tasks_on
from tests.workflows.test_reset import reset
from workflows.ai_agent import AiAgentTask
from workflows.ai_fan_out import AiFanOutTask
from workflows.reviewed_draft import ReviewedDraft

Handle = WorkflowHandle[Any, Any]
WORKFLOWS: list[type] = [AiAgentTask, AiFanOutTask, ReviewedDraft]
AT_ONCE = {"initial_interval_seconds": 0}

# What a worker alone knows: the times of a lost workflow task, and who carried out what did not fail.
_ROWS = {
    "work_items": "SELECT id, task_id, run_id, task_type, lineage, attempt, state, payload, result, failure, "
    "delay_seconds, delay_reason, not_before, created_at, started_at, ended_at FROM work_items ORDER BY id",
    "transitions": "SELECT work_item_id, sequence, previous_state, next_state, at, actor, reason "
    "FROM work_item_transitions ORDER BY work_item_id, sequence",
    "ai_jobs": "SELECT * FROM ai_jobs ORDER BY work_item_id",
}


@dataclass(frozen=True)
class Archive:
    """A ledger in a file, the tasks that wrote it, and their histories."""

    tasks: Tasks
    file: Path

    def rows(self, file: Path | None = None) -> dict[str, list[tuple[Any, ...]]]:
        """Everything that a ledger holds."""
        with closing(sqlite3.connect(file or self.file)) as database:
            return {name: database.execute(query).fetchall() for name, query in _ROWS.items()}

    def tamper(self, *statements: str) -> None:
        """Change the ledger as no program of ours could."""
        with closing(sqlite3.connect(self.file)) as database:
            triggers = database.execute(
                "SELECT name, sql FROM sqlite_master WHERE type = 'trigger'"
            ).fetchall()
            for name, _ in triggers:
                database.execute(f"DROP TRIGGER {name}")
            for statement in statements:
                database.execute(statement)
            for _, sql in triggers:
                database.execute(sql)
            database.commit()

    async def verified(self, handle: Handle, workflows: list[type] = WORKFLOWS) -> Verified:
        told = await Histories(self.tasks.client, workflows).read(handle.id)
        assert told is not None
        return await verify(told, self.tasks.ledger)

    async def listed(self, handle: Handle) -> set[str | None]:
        """The runs of the task that Temporal lists."""
        runs = self.tasks.client.list_workflows(f"WorkflowId = '{handle.id}'")
        return {run.run_id async for run in runs}

    async def all_listed(self, handle: Handle) -> None:
        """Return when Temporal lists all runs of the task."""
        known = {item.run_id for item in await self.tasks.work_items(handle)}

        async def are_listed() -> bool:
            return known <= await self.listed(handle)

        await eventually(are_listed, "Temporal to list all runs")

    async def agrees(self, handle: Handle) -> None:
        await self.all_listed(handle)
        found = await self.verified(handle)
        assert (found.differences, found.gaps) == ([], [])
        assert found.work_items > 0

    async def rebuilt(
        self, *handles: Handle, workflows: list[type] = WORKFLOWS
    ) -> tuple[list[Rebuilt], Path]:
        """Rebuild an empty ledger from the histories of these tasks."""
        file = self.file.with_name(f"{uuid4()}.db")
        async with SqlLedger(f"sqlite:///{file}") as ledger:
            histories = Histories(self.tasks.client, workflows)
            done = []
            for handle in handles:
                told = await histories.read(handle.id)
                assert told is not None
                done.append(await rebuild(told, ledger))
        return done, file


@asynccontextmanager
async def archive(
    server: str, folder: Path, *script: Any, more: type | None = None
) -> AsyncIterator[Archive]:
    file = folder / "ledger.db"
    await upgrade(f"sqlite:///{file}")
    workflows = [*WORKFLOWS, *([more] if more else [])]
    calls = ScriptedCalls(*script)
    ledger = SqlLedger(f"sqlite:///{file}")
    async with tasks_on(server, workflows, [calls.generate], ledger=ledger) as tasks:
        yield Archive(tasks, file)


async def ended(handle: Handle) -> None:
    with suppress(WorkflowFailureError):
        await handle.result()


async def in_state(tasks: Tasks, handle: Handle, state: WorkItemState) -> WorkItem:
    async def probe() -> WorkItem | None:
        items = await tasks.work_items(handle)
        return items[-1] if items and items[-1].state is state else None

    return await eventually(probe, f"a work item that is {state}")


# Tasks of every kind


async def retried(tasks: Tasks) -> Handle:
    handle = await tasks.start("AiAgentTask", {"prompt": "?", "retry": AT_ONCE | {"jitter": 0.5}})
    await ended(handle)
    return handle


async def fanned_out(tasks: Tasks) -> Handle:
    request = {"prompts": ["a", "b", "c", "d"], "concurrency": 2, "max_retries": 1, "retry": AT_ONCE}
    handle = await tasks.start("AiFanOutTask", request)
    await ended(handle)
    return handle


async def canceled(tasks: Tasks) -> Handle:
    handle = await tasks.start("AiAgentTask", {"prompt": "?"})
    await in_state(tasks, handle, WorkItemState.STARTED)
    await handle.cancel()
    await ended(handle)
    return handle


async def acted_on(tasks: Tasks) -> Handle:
    handle = await tasks.start("AiAgentTask", {"prompt": "?", "retry": {"initial_interval_seconds": 600}})
    await in_state(tasks, handle, WorkItemState.INITIALIZED)
    await handle.execute_update("retry_now", {"actor": "anna", "reason": "it is back"})
    item = await in_state(tasks, handle, WorkItemState.STARTED)
    answer = {"work_item_id": item.id, "actor": "ben", "result": {"text": "from a person"}}
    await handle.execute_update("complete_work_item", answer)
    await ended(handle)
    return handle


async def reviewed(tasks: Tasks) -> Handle:
    handle = await tasks.start("ReviewedDraft", {"prompt": "?", "reminder_seconds": 3600})
    for decision in ({"decision": "reject", "comments": "Shorter."}, {"decision": "approve"}):

        async def waiting() -> WorkItem | None:
            items = [item for item in await tasks.work_items(handle) if item.lineage.startswith("review")]
            last = items[-1] if items else None
            return last if last and last.state is WorkItemState.STARTED else None

        item = await eventually(waiting, "a review")
        payload = {"work_item_id": item.id, "actor": "anna", "result": decision}
        await handle.execute_update("complete_work_item", payload)
    await ended(handle)
    return handle


async def was_reset(tasks: Tasks) -> Handle:
    """To the backoff, and then to the begin."""
    handle = await tasks.start("AiAgentTask", {"prompt": "?", "retry": {"initial_interval_seconds": 0.2}})
    await handle.result()
    again = await reset(tasks, handle, lambda event: event.HasField("timer_fired_event_attributes"))
    await again.result()
    anew = await reset(tasks, handle, lambda event: event.event_id == 1)
    await anew.result()
    return tasks.client.get_workflow_handle(handle.id)


KINDS: dict[str, tuple[list[Any], Callable[[Tasks], Awaitable[Handle]]]] = {
    "retried": ([SLOW_DOWN, GONE], retried),
    "failed": ([GONE, WRONG_KEY], retried),
    "fanned out": ([GONE, GONE, GONE, WRONG_KEY], fanned_out),
    "canceled": ([Hang()], canceled),
    "acted on": ([GONE, Hang()], acted_on),
    "reviewed": ([], reviewed),
    "reset": ([GONE], was_reset),
}


@pytest.mark.parametrize("kind", KINDS)
async def test_an_emptied_ledger_is_rebuilt_as_it_was(
    dev_server: EmbeddedTemporal, tmp_path: Path, kind: str
) -> None:
    script, run = KINDS[kind]
    async with archive(dev_server.address, tmp_path, *script) as kept:
        handle = await run(kept.tasks)
        await kept.agrees(handle)
        ((done,), file) = await kept.rebuilt(handle)
        rows = kept.rows()
        assert kept.rows(file) == rows
        assert (done.refused, done.gaps) == ([], [])
        assert sorted(done.work_items) == [row[0] for row in rows["work_items"]]
        assert done.transitions == len(rows["transitions"])


async def test_a_chain_of_runs_is_rebuilt_as_it_was(tmp_path: Path) -> None:
    often = {"limit.historyCount.suggestContinueAsNew": 60}
    async with (
        embedded_temporal(ui=False, dynamic_config=often) as server,
        archive(server.address, tmp_path, *[GONE] * 12) as kept,
    ):
        request = {"prompt": "?", "max_retries": 12, "retry": AT_ONCE}
        _, handle = await kept.tasks.run("AiAgentTask", request)
        assert len({item.run_id for item in await kept.tasks.work_items(handle)}) > 1
        await kept.agrees(handle)
        ((done,), file) = await kept.rebuilt(handle)
        assert kept.rows(file) == kept.rows()
        assert len(done.work_items) == 13


async def test_a_chain_whose_first_run_is_gone_says_so(tmp_path: Path) -> None:
    quickly = {
        "limit.historyCount.suggestContinueAsNew": 60,
        # The server deletes a run only after its queues have noted how far they are.
        "history.transferProcessorUpdateAckInterval": "1s",
        "history.visibilityProcessorUpdateAckInterval": "1s",
    }
    async with (
        embedded_temporal(ui=False, dynamic_config=quickly) as server,
        archive(server.address, tmp_path, *[GONE] * 12) as kept,
    ):
        request = {"prompt": "?", "max_retries": 12, "retry": AT_ONCE}
        _, handle = await kept.tasks.run("AiAgentTask", request)
        await kept.all_listed(handle)
        first = handle.first_execution_run_id or ""
        run = WorkflowExecution(workflow_id=handle.id, run_id=first)
        await kept.tasks.client.workflow_service.delete_workflow_execution(
            DeleteWorkflowExecutionRequest(namespace="default", workflow_execution=run)
        )

        async def is_gone() -> bool:
            try:
                await kept.tasks.client.get_workflow_handle(handle.id, run_id=first).describe()
            except RPCError as error:
                gone = error.status is RPCStatusCode.NOT_FOUND
                return gone and first not in await kept.listed(handle)
            return False

        await eventually(is_gone, "the first run to be deleted")
        ((done,), _) = await kept.rebuilt(handle)
        (gap, *more) = done.gaps
        assert gap.startswith(f"the history of run {first}, which continued as run ")
        assert gap.endswith("is gone")
        assert more == []
        assert done.work_items  # those that began later
        assert all("it does not exist" in refusal for refusal in done.refused)


# Adding to what is there


async def test_a_ledger_from_an_old_backup_gets_what_it_lacks_and_keeps_the_rest(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    async with archive(dev_server.address, tmp_path, SLOW_DOWN, GONE) as kept:
        handle = await retried(kept.tasks)
        before = kept.rows()
        last = (await kept.tasks.work_items(handle))[-1].id
        kept.tamper(
            f"DELETE FROM work_item_transitions WHERE work_item_id = '{last}' AND sequence > 0",
            f"UPDATE work_items SET state = 'initialized', result = NULL, started_at = NULL, ended_at = NULL "
            f"WHERE id = '{last}'",
            f"UPDATE ai_jobs SET status = 'pending' WHERE work_item_id = '{last}'",
        )
        told = await Histories(kept.tasks.client, WORKFLOWS).read(handle.id)
        assert told is not None
        done = await rebuild(told, kept.tasks.ledger)
        assert (done.work_items, done.transitions, done.refused) == ([], 2, [])
        assert kept.rows() == before
        again = await rebuild(told, kept.tasks.ledger)
        assert (again.work_items, again.transitions, again.refused) == ([], 0, [])


async def test_what_the_ledger_holds_otherwise_is_told_and_not_changed(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    async with archive(dev_server.address, tmp_path) as kept:
        handle = await retried(kept.tasks)
        (item,) = await kept.tasks.work_items(handle)
        kept.tamper(
            "UPDATE work_item_transitions SET next_state = 'canceled' WHERE sequence = 2",
            "UPDATE work_items SET state = 'canceled'",
        )
        before = kept.rows()
        told = await Histories(kept.tasks.client, WORKFLOWS).read(handle.id)
        assert told is not None
        done = await rebuild(told, kept.tasks.ledger)
        assert done.refused == [
            f"work item {item.id}: its transition 2 is canceled, the entry says completed"
        ]
        assert kept.rows() == before


# What differs


EXTRA_ROW = (
    "INSERT INTO work_items (id, task_id, run_id, task_type, lineage, attempt, state, delay_seconds, "
    "delay_reason, not_before, created_at) SELECT 'extra', task_id, run_id, task_type, 'extra', 0, "
    "'initialized', 0, 'first_try', not_before, created_at FROM work_items WHERE id = '{id}'"
)
PLANTED = {
    "a missing row": (
        [
            "DELETE FROM ai_jobs WHERE work_item_id = '{id}'",
            "DELETE FROM work_item_transitions WHERE work_item_id = '{id}'",
            "DELETE FROM work_items WHERE id = '{id}'",
        ],
        "is missing in the ledger",
    ),
    "a changed text": (
        ["UPDATE work_items SET result = replace(result, '42', '43') WHERE id = '{id}'"],
        "result is {'input_tokens': 3, 'output_tokens': 1, 'cost_usd': 0.0004, 'text': '43'",
    ),
    "a changed cost": (
        ["UPDATE ai_jobs SET cost_usd = 0 WHERE work_item_id = '{id}'"],
        "ai_jobs.cost_usd is 0.0 in the ledger, 0.0004 in the history",
    ),
    "a changed reason": (
        ["UPDATE work_item_transitions SET actor = 'eve' WHERE work_item_id = '{id}' AND sequence = 1"],
        "actor of transition 1 (started) is 'eve' in the ledger, 'task' in the history",
    ),
    "a missing transition": (
        ["DELETE FROM work_item_transitions WHERE work_item_id = '{id}' AND sequence = 2"],
        "went initialized → started → completed, in the ledger initialized → started",
    ),
    "a missing AI job": (["DELETE FROM ai_jobs WHERE work_item_id = '{id}'"], "has no row in ai_jobs"),
    "an open row too many": (
        [EXTRA_ROW],
        "is initialized in the ledger, the histories know nothing of it",
    ),
}


@pytest.mark.parametrize("planted", PLANTED)
async def test_each_difference_is_found(dev_server: EmbeddedTemporal, tmp_path: Path, planted: str) -> None:
    statements, problem = PLANTED[planted]
    async with archive(dev_server.address, tmp_path, GONE) as kept:
        handle = await retried(kept.tasks)
        last = (await kept.tasks.work_items(handle))[-1].id
        kept.tamper(*(statement.format(id=last) for statement in statements))
        found = await kept.verified(handle)
    (difference,) = found.differences
    assert difference.problem.startswith(problem)
    assert difference.work_item_id == ("extra" if planted == "an open row too many" else last)


async def test_tasks_under_way_agree_at_every_moment(dev_server: EmbeddedTemporal, tmp_path: Path) -> None:
    async with archive(dev_server.address, tmp_path, *[GONE] * 30) as kept:
        request = {"prompt": "?", "max_retries": 30, "retry": AT_ONCE}
        handle = await kept.tasks.start("AiAgentTask", request)
        ending = asyncio.create_task(handle.result())
        looks = 0
        while not ending.done():
            found = await kept.verified(handle)
            assert found.differences == []
            looks += 1
        await ending
        assert looks > 2
        await kept.agrees(handle)


async def test_a_task_under_way_can_be_rebuilt_and_goes_on(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    async with archive(dev_server.address, tmp_path, GONE) as kept:
        handle = await kept.tasks.start(
            "AiAgentTask", {"prompt": "?", "retry": {"initial_interval_seconds": 600}}
        )
        await comes_to(handle, "timer_started_event_attributes")
        await kept.agrees(handle)
        before = kept.rows()
        kept.tamper("DELETE FROM ai_jobs", "DELETE FROM work_item_transitions", "DELETE FROM work_items")
        told = await Histories(kept.tasks.client, WORKFLOWS).read(handle.id)
        assert told is not None and told.under_way
        await rebuild(told, kept.tasks.ledger)
        assert kept.rows() == before
        await handle.execute_update("retry_now", {"actor": "anna"})
        await handle.result()
        await kept.agrees(handle)


async def test_what_the_reconciler_settled_is_no_difference(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    async with archive(dev_server.address, tmp_path, Hang()) as kept:
        handle = await kept.tasks.start("AiAgentTask", {"prompt": "?"})
        await comes_to(handle, "activity_task_scheduled_event_attributes")
        await handle.terminate()
        _, settled = await Reconciler(kept.tasks.client, kept.tasks.ledger, grace=timedelta(0)).page()
        assert len(settled) == 1
        await kept.agrees(handle)


# Tasks of other people


def invoice(item: WorkItem, recipe: RetryRecipe) -> DomainRecord:
    return DomainRecord(table="invoices", values={"status": item.state.value})


@workflow.defn
class SandboxedTask:
    """In the sandbox, with a domain table of its own."""

    @workflow.run
    async def run(self) -> Any:
        task = Task(record=invoice)
        async for work_item in task.attempts({"cents": 5}):
            async with work_item:
                work_item.complete("paid")
        return task.result()


async def test_a_task_of_one_s_own_is_read_in_the_sandbox_and_its_domain_table_left_out(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    async with tasks_on(dev_server.address, [SandboxedTask], []) as tasks:
        _, handle = await tasks.run("SandboxedTask")
        histories = Histories(tasks.client, [SandboxedTask])
        told = await histories.read(handle.id)
        assert told is not None
        found = await verify(told, tasks.ledger)
        assert (found.work_items, found.differences, found.gaps) == (1, [], [])
        async with SqlLedger(f"sqlite:///{tmp_path / 'ledger.db'}") as ledger:
            done = await rebuild(told, ledger)
            assert (len(done.work_items), done.refused) == (1, [])
            assert done.gaps == ["the ledger has no domain table 'invoices': its rows are left out"]
        foreign = await Histories(tasks.client, WORKFLOWS).read(handle.id)
        assert foreign is not None
        (gap,) = foreign.gaps
        assert gap.endswith("is of type 'SandboxedTask': name its class with --workflow")


@workflow.defn(name="AiAgentTask", sandboxed=False)
class ChangedTask:
    """What a task must not become while others of its kind are under way."""

    @workflow.run
    async def run(self, raw: object = None) -> None:
        await workflow.sleep(1)


async def test_a_history_that_does_not_replay_is_a_gap(dev_server: EmbeddedTemporal, tmp_path: Path) -> None:
    async with archive(dev_server.address, tmp_path) as kept:
        handle = await retried(kept.tasks)
        found = await kept.verified(handle, [ChangedTask])
    (gap,) = found.gaps
    assert "does not replay on this code" in gap


async def test_a_task_that_temporal_does_not_know_has_no_history(dev_server: EmbeddedTemporal) -> None:
    async with tasks_on(dev_server.address, WORKFLOWS, [], ledger=InMemoryLedger()) as tasks:
        assert await Histories(tasks.client, WORKFLOWS).read("nobody") is None


async def test_tasks_are_listed_by_type_and_time(dev_server: EmbeddedTemporal, tmp_path: Path) -> None:
    async with archive(dev_server.address, tmp_path) as kept:
        handles = [await retried(kept.tasks) for _ in range(3)]
        histories = Histories(kept.tasks.client, WORKFLOWS)
        start = (await handles[1].describe()).start_time

        async def listed() -> list[str] | None:
            ids = await histories.task_ids(start, 100)
            return ids if handles[2].id in ids and handles[1].id in ids else None

        ids = await eventually(listed, "the tasks to be listed")
        assert handles[0].id not in ids
        assert len(await histories.task_ids(None, 2)) == 2
