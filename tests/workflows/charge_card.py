"""A task that has nothing to do with AI, written against the package: charge a card, kindly."""

from __future__ import annotations

from datetime import timedelta

from temporalio import activity, workflow
from temporalio.exceptions import ApplicationError

from tasquencer import RetryRecipe
from tasquencer.temporal import Task


@activity.defn
async def charge(cents: int) -> str:
    """Charge through a terminal that is busy for small amounts and declines large ones."""
    if cents > 100_000:
        raise ApplicationError("declined by the bank", type="card_declined", non_retryable=True)
    if cents < 100:
        raise ApplicationError("the terminal is busy", type="terminal_busy")
    return f"charged {cents}"


@workflow.defn
class ChargeCard:
    def __init__(self) -> None:
        self._task = Task(recipe=RetryRecipe(max_retries=2, initial_interval=timedelta(minutes=1)))

    @workflow.run
    async def run(self, cents: int) -> str:
        async for work_item in self._task.attempts({"cents": cents}):
            async with work_item:
                receipt = await work_item.execute_activity(
                    charge, cents, start_to_close_timeout=timedelta(minutes=1)
                )
                work_item.complete(receipt)
        return str(self._task.result())
