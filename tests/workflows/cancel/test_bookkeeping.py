"""Cancelling a task while its record is being written, or cannot be."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

import pytest
from temporalio.client import WorkflowExecutionStatus

from tasquencer.core.work_item import WorkItemState
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.temporal import writing
from tests.support import answers
from tests.support.answers import Answer
from tests.support.held_ledgers import FallingLedger, HeldLedger, leading_to
from tests.support.patience import eventually
from tests.workflows.cancel.scene import (
    ASK,
    LONG_BACKOFF,
    NO_BACKOFF,
    NO_RETRY,
    begins_at_most,
    cancel,
    closed_in_time,
    ends_canceled,
    scene,
)

INITIALIZED = WorkItemState.INITIALIZED
STARTED = WorkItemState.STARTED
COMPLETED = WorkItemState.COMPLETED
FAILED = WorkItemState.FAILED
CANCELED = WorkItemState.CANCELED


# During the bookkeeping


HOLDS = {"a moment": 0.0, "long": 1.0}
"""For how many seconds a write is held after the cancel. A call may begin only after a moment.

A write of half a second is slow: the task looks for news after it.
"""


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("committed", [False, True], ids=["before the commit", "after the commit"])
@pytest.mark.parametrize("attempt", [0, 1], ids=["first try", "retry"])
async def test_while_the_start_is_recorded(
    dev_server: EmbeddedTemporal, attempt: int, committed: bool, hold: str
) -> None:
    ledger = HeldLedger(leading_to(STARTED, attempt), committed=committed)
    script = [answers.status(503)] * attempt + [answers.stall()]
    async with scene(dev_server, script, ledger) as now:
        handle = await now.tasks.start("AiAgentTask", NO_BACKOFF)
        await ledger.gate.wait_until_reached()
        await cancel(handle)
        await now.nothing_begins(attempt, within=HOLDS[hold])
        released = datetime.now(UTC)
        ledger.gate.open()
        await ends_canceled(handle)
        items = await now.work_items(handle)
        await begins_at_most(now, attempt, 0 if HOLDS[hold] else 1, released)
    assert [item.state for item in items] == [FAILED] * attempt + [CANCELED]


@dataclass(frozen=True)
class Outcome:
    """What the call comes to whose record is held, and what its work items come to."""

    answer: Callable[[], Answer]
    request: Mapping[str, object]
    held: WorkItemState
    expected: Sequence[Sequence[WorkItemState]]


OUTCOMES = {
    "an answer": Outcome(answers.ok, ASK, COMPLETED, [[COMPLETED]]),
    "a failure and a long backoff": Outcome(
        lambda: answers.status(503), LONG_BACKOFF, FAILED, [[FAILED], [FAILED, CANCELED]]
    ),
    "a failure and no backoff": Outcome(
        lambda: answers.status(503), NO_BACKOFF, FAILED, [[FAILED], [FAILED, CANCELED]]
    ),
    "the last failure": Outcome(lambda: answers.status(503), NO_RETRY, FAILED, [[FAILED]]),
}


@pytest.mark.parametrize("hold", HOLDS)
@pytest.mark.parametrize("committed", [False, True], ids=["before the commit", "after the commit"])
@pytest.mark.parametrize("outcome", OUTCOMES)
async def test_while_the_outcome_is_recorded(
    dev_server: EmbeddedTemporal, outcome: str, committed: bool, hold: str
) -> None:
    plan = OUTCOMES[outcome]
    ledger = HeldLedger(leading_to(plan.held), committed=committed)
    async with scene(dev_server, [plan.answer(), answers.stall()], ledger) as now:
        handle = await now.tasks.start("AiAgentTask", plan.request)
        await ledger.gate.wait_until_reached()
        await cancel(handle)
        await now.nothing_begins(1, within=HOLDS[hold])
        released = datetime.now(UTC)
        ledger.gate.open()
        await ends_canceled(handle)
        items = await now.work_items(handle)
        may_begin = plan.request is NO_BACKOFF and not HOLDS[hold]
        await begins_at_most(now, 1, 1 if may_begin else 0, released)
    assert [item.state for item in items] in plan.expected
    assert now.requests[0].complete


# While the ledger is down


@pytest.fixture
def _timers_come_early(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries that are more than 0.3 s apart are timers on the server: the third pause and all later ones."""
    monkeypatch.setattr(writing, "LOCAL_RETRY_THRESHOLD", timedelta(seconds=0.3))


@pytest.mark.usefixtures("_timers_come_early")
@pytest.mark.parametrize("outage", [2, 4], ids=["short", "long"])
@pytest.mark.parametrize(
    ("state", "attempt", "request_", "expected"),
    [
        pytest.param(INITIALIZED, 0, ASK, [[CANCELED]], id="at the first record"),
        pytest.param(STARTED, 1, NO_BACKOFF, [[FAILED, CANCELED]], id="at the start of a retry"),
        pytest.param(FAILED, 0, NO_BACKOFF, [[FAILED], [FAILED, CANCELED]], id="at a failure"),
        pytest.param(FAILED, 0, LONG_BACKOFF, [[FAILED], [FAILED, CANCELED]], id="before a long backoff"),
    ],
)
async def test_while_the_ledger_is_down(
    dev_server: EmbeddedTemporal,
    state: WorkItemState,
    attempt: int,
    request_: Mapping[str, object],
    expected: Sequence[Sequence[WorkItemState]],
    outage: int,
) -> None:
    """A short outage is waited for within the workflow task, a long one by timers on the server."""
    ledger = FallingLedger(leading_to(state, attempt))
    requests = 0 if state is INITIALIZED else 1
    script = [answers.status(503)] * requests + [answers.stall()]
    async with scene(dev_server, script, ledger) as now:
        handle = await now.tasks.start("AiAgentTask", request_)

        async def refused() -> bool:
            return ledger.refused >= outage

        await eventually(refused, f"the ledger to refuse {outage} times")
        await cancel(handle)
        assert (await handle.describe()).status is WorkflowExecutionStatus.RUNNING
        repaired = datetime.now(UTC)
        ledger.repair()
        await ends_canceled(handle)
        items = await now.work_items(handle)
        # The next try of a short outage is due within a second of the cancel, within the workflow task.
        await begins_at_most(now, requests, 1 if outage == 2 else 0, repaired)
    assert [item.state for item in items] in expected


async def test_in_the_call_while_the_ledger_is_down(dev_server: EmbeddedTemporal) -> None:
    """The connection does not wait for the ledger, the end of the task does."""
    ledger = FallingLedger(leading_to(CANCELED))
    async with scene(dev_server, [answers.stall()], ledger) as now:
        handle = await now.tasks.start("AiAgentTask", ASK)
        await now.provider.wait_for_requests(1)
        asked = await cancel(handle)
        await closed_in_time(now.provider, 0, asked)

        async def refused() -> bool:
            return ledger.refused >= 3

        await eventually(refused, "the ledger to refuse")
        assert [item.state for item in await now.work_items(handle)] == [STARTED]
        ledger.repair()
        await ends_canceled(handle)
        assert [item.state for item in await now.work_items(handle)] == [CANCELED]
        await now.nothing_begins(1)
