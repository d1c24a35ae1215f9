"""Workflows of users that ask a model which calls tools."""

from __future__ import annotations

from datetime import timedelta
from typing import Any

from pydantic import BaseModel
from temporalio import activity, workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from tasquencer import Task, ask, fail_fast
    from tasquencer.ai import RetryOptions

AT_ONCE = RetryOptions(initial_interval_seconds=0)


class Parcel(BaseModel):
    order: int
    late: bool


@activity.defn
async def note(text: str) -> str:
    return text


@workflow.defn
class WhereIs:
    """One question with tools and a typed answer, in the sandbox."""

    @workflow.run
    async def run(self, options: dict[str, Any]) -> dict[str, Any]:
        parcel = await ask("Where is order 7?", output=Parcel, retry=AT_ONCE, **options)
        return {"order": parcel.order, "late": parcel.late}


@workflow.defn
class Persistent:
    """Asks again after a question without an answer."""

    @workflow.run
    async def run(self, options: dict[str, Any]) -> list[str]:
        try:
            await ask("Where is order 7?", retry=AT_ONCE, **options)
        except ApplicationError as error:
            return [str(error.type), error.message, await ask("Again?")]
        return []


@workflow.defn
class Clerk:
    """A task of its own, strict about failures, that asks two questions with tools and does some work."""

    def __init__(self) -> None:
        self._task = Task(policy=fail_fast)

    @workflow.run
    async def run(self, options: dict[str, Any]) -> list[str]:
        first = await ask("Where is order 7?", retry=AT_ONCE, **options)
        second = await ask("And order 8?", retry=AT_ONCE, **options)
        async for work_item in self._task.attempts("note"):
            async with work_item:
                work_item.complete(
                    await work_item.execute_activity(
                        note,
                        f"{first} {second}",
                        task_queue=f"{workflow.info().task_queue}-notes",
                        start_to_close_timeout=timedelta(seconds=60),
                    )
                )
        return [first, second, str(self._task.result())]


WORKFLOWS = [WhereIs, Persistent, Clerk]
