"""A worker of the foreign application and of the shipped agent, which dies like `tests.chaos.shapes.worker`.

`python -m tests.chaos.foreign.worker FOLDER NAME` takes what else it needs from the environment.
"""

from __future__ import annotations

import asyncio
import os
import sys
import time
from datetime import timedelta
from pathlib import Path
from random import Random
from typing import Any

from temporalio import activity
from temporalio.client import Client
from temporalio.exceptions import ApplicationError
from temporalio.worker import Worker

from tasquencer.ai import AiCalls, ToolContext, ToolError, tool
from tasquencer.ai.provider.client import make_client
from tasquencer.temporal import TasquencerPlugin
from tasquencer.temporal.observed_attempt import Attempt
from tests.chaos.foreign.application import SEEN, TAKEN, Call, Mixed
from tests.chaos.provider import Glance, Log, glance_at
from tests.chaos.shapes.worker import QUEUE, READY, Mortal, MortalLedger
from tests.support.stalls import allow_stalls
from workflows.ai_agent import AiAgentTask
from workflows.reconcile_ledger import ReconcileLedger

__all__ = ["ADOPTED", "OBSERVED", "RETRIES"]

OBSERVED = ("seen_*",)
ADOPTED = ("taken_*",)

RETRIES = 3
"""Of the agents' model turns and tool calls."""

_BEAT_SECONDS = 0.2


class Effects:
    """What activities and tools do. Each execution is noted when it begins."""

    def __init__(self, mortal: Mortal, log: Log, glance: Glance) -> None:
        self._mortal = mortal
        self._log = log
        self._glance = glance
        self.client: Client | None = None

    @activity.defn(name=SEEN)
    async def seen(self, call: Call) -> dict[str, Any]:
        """An activity that is observed."""
        assert self.client is not None
        return await self._work(call, Attempt.of(activity.info(), self.client).id)

    @activity.defn(name=TAKEN)
    async def taken(self, call: Call) -> dict[str, Any]:
        """An activity that is adopted."""
        return await self._work(call, activity.info().activity_id)

    async def _work(self, call: Call, work_item_id: str) -> dict[str, Any]:
        info = activity.info()
        await self._note(work_item_id, str(info.workflow_id), call.activity, info.attempt)
        end = time.monotonic() + call.ms / 1000
        while (left := end - time.monotonic()) > 0:
            activity.heartbeat()
            await asyncio.sleep(min(left, _BEAT_SECONDS))
        if info.attempt <= call.fails:
            raise ApplicationError("as planned", type="Planned")
        return {"by": work_item_id}

    @tool(retries=RETRIES, initial_interval=timedelta(seconds=0.1))
    async def steady(self, context: ToolContext) -> str:
        """Fail rarely."""
        return await self._use("steady", context, odds_of_failure=0.1)

    @tool(retries=RETRIES, initial_interval=timedelta(seconds=0.1))
    async def shaky(self, context: ToolContext) -> str:
        """Fail often."""
        return await self._use("shaky", context, odds_of_failure=0.5)

    async def _use(self, name: str, context: ToolContext, odds_of_failure: float) -> str:
        await self._note(context.work_item_id, context.task_id, name, context.attempt + 1)
        dice = Random(context.work_item_id)
        await asyncio.sleep(dice.uniform(0, 0.6))
        if dice.random() < odds_of_failure:
            raise ToolError("as planned", retry=dice.random() < 0.8)
        return "done"

    async def _note(self, work_item_id: str, task_id: str, what: str, number: int) -> None:
        held = await self._glance.states(work_item_id)
        activity_id = activity.info().activity_id
        facts = {"task": task_id, "what": what, "activity": activity_id, "attempt": number, "held": held}
        self._log.write(key=work_item_id, **facts)
        self._mortal.moment("request")


async def _run(folder: Path, name: str) -> None:
    mortal = Mortal(folder, name)
    effects = Effects(mortal, Log(folder / "executions.jsonl"), glance_at(os.environ["SHAPES_GLANCE"]))
    async with (
        MortalLedger(os.environ["SHAPES_LEDGER"], mortal) as ledger,
        make_client(api_key="key-of-the-tests", base_url=os.environ["FOREIGN_PROVIDER"]) as model,
    ):
        plugin = TasquencerPlugin(
            ledger,
            calls=AiCalls(model, "tiny-1", tools=[effects.steady, effects.shaky]),
            observe_activities=OBSERVED,
            observe_on_outage="wait",  # so that no attempt may be missing
            adopt_activities=ADOPTED,
        )
        effects.client = client = await Client.connect(os.environ["SHAPES_TEMPORAL"], plugins=[plugin])
        async with Worker(
            client,
            task_queue=QUEUE,
            workflows=[Mixed, AiAgentTask, ReconcileLedger],
            activities=[effects.seen, effects.taken],
            max_cached_workflows=int(os.environ["SHAPES_CACHE"]),
            max_concurrent_activities=100,
            max_heartbeat_throttle_interval=timedelta(milliseconds=50),
            sticky_queue_schedule_to_start_timeout=timedelta(seconds=1),
        ):
            print(READY, flush=True)
            await asyncio.Event().wait()


if __name__ == "__main__":
    allow_stalls()
    asyncio.run(_run(Path(sys.argv[1]), sys.argv[2]))
