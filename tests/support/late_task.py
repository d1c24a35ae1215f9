"""A task that sleeps before it begins its first work item."""

from __future__ import annotations

import asyncio

from temporalio import workflow

from tasquencer.temporal import Task

__all__ = ["LateTask"]


@workflow.defn(sandboxed=False)
class LateTask:
    def __init__(self) -> None:
        self._task = Task()

    @workflow.run
    async def run(self, raw: object = None) -> None:
        await asyncio.sleep(0.5)
        async for work_item in self._task.attempts("work"):
            async with work_item:
                await asyncio.sleep(3600)
                work_item.complete("done")
