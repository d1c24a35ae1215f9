"""Histories recorded by this and earlier releases replay on this one."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from temporalio import workflow
from temporalio.client import WorkflowHistory
from temporalio.worker import Replayer

from tasquencer.temporal import Task, TasquencerPlugin
from tasquencer.testing import InMemoryLedger
from tests.replay.save import HISTORIES, WORKFLOWS
from tests.replay.shapes import shapes

FILES = sorted(HISTORIES.glob("*.json"))


def test_there_is_a_history_of_each_shape() -> None:
    recorded = {path.name.split(".")[0] for path in FILES}
    assert recorded >= set(shapes()), "run `python -m tests.replay.save`"


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
async def test_a_recorded_history_replays(path: Path) -> None:
    replayer = Replayer(workflows=WORKFLOWS, plugins=[TasquencerPlugin(InMemoryLedger())])
    history = path.read_text()
    started = json.loads(history)["events"][0]["workflowExecutionStartedEventAttributes"]
    await replayer.replay_workflow(WorkflowHistory.from_json(started["workflowId"], history))


@workflow.defn(name="AiAgentTask")
class ForgetfulTask:
    """Does not record its work item before it calls: what the replay has to find."""

    def __init__(self) -> None:
        self._task = Task()

    @workflow.run
    async def run(self, raw: object = None) -> None:
        await workflow.sleep(1)


async def test_a_workflow_that_does_otherwise_is_found_out() -> None:
    replayer = Replayer(workflows=[ForgetfulTask], plugins=[TasquencerPlugin(InMemoryLedger())])
    path = HISTORIES / "first_try.0.json"
    with pytest.raises(workflow.NondeterminismError):
        await replayer.replay_workflow(WorkflowHistory.from_json(path.stem, path.read_text()))
