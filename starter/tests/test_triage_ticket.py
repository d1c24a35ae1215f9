"""The task on a real Temporal server, with a ledger in memory and a model that follows a script."""

import asyncio
import shutil
import sys
from pathlib import Path

from temporalio import activity
from temporalio.testing import WorkflowEnvironment
from temporalio.worker import Worker

from activities import ACTIVITIES
from tasquencer import Failure, FailureKind, TasquencerPlugin, WorkItem, WorkItemFilter
from tasquencer.ai import AiAnswer, AiJob
from tasquencer.temporal import as_application_error
from tasquencer.testing import InMemoryLedger
from workflows import WORKFLOWS


class ScriptedModel:
    """Gives these answers and failures, in this order."""

    def __init__(self, *script: AiAnswer | Failure) -> None:
        self._script = list(script)

    @activity.defn(name="generate")
    async def generate(self, job: AiJob) -> AiAnswer:
        step = self._script.pop(0)
        if isinstance(step, Failure):
            raise as_application_error(step)
        return step


def temporal_command() -> str | None:
    """Return the path of the `temporal` command. Without one the SDK downloads a server."""
    beside_python = Path(sys.executable).with_name("temporal")
    return str(beside_python) if beside_python.exists() else shutil.which("temporal")


async def triage(text: str, model: ScriptedModel) -> tuple[dict[str, str], list[WorkItem]]:
    """Run the task. Return its result and its work items."""
    ledger = InMemoryLedger()
    async with (
        await WorkflowEnvironment.start_local(
            plugins=[TasquencerPlugin(ledger)], dev_server_existing_path=temporal_command()
        ) as temporal,
        Worker(
            temporal.client,
            task_queue="test",
            workflows=WORKFLOWS,
            activities=[model.generate, *ACTIVITIES],
        ),
    ):
        result = await temporal.client.execute_workflow("TriageTicket", text, id="ticket", task_queue="test")
        return result, await ledger.work_items(WorkItemFilter(task_id="ticket", oldest_first=True))


def test_a_failed_attempt_stays_and_the_next_one_files_the_ticket() -> None:
    busy = Failure.of(FailureKind.RATE_LIMITED, "429 from the provider")
    model = ScriptedModel(busy, AiAnswer(text='{"team": "billing"}'))

    result, work_items = asyncio.run(triage("My invoice is wrong.", model))

    assert result["team"] == "billing"
    assert [(item.lineage, item.attempt, item.state) for item in work_items] == [
        ("choose", 0, "failed"),
        ("choose", 1, "completed"),
        ("file", 0, "completed"),
    ]
