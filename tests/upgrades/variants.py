"""One small task, `Letter`, as successive releases of somebody's code have it.

The first release writes the letter. The next one looks the address up before: as a patch, or carelessly.
"""

from __future__ import annotations

from datetime import timedelta

from temporalio import activity, workflow

from tasquencer import RetryRecipe
from tasquencer.ai.answer import AiAnswer
from tasquencer.ai.job import AiJob, ChatMessage
from tasquencer.temporal import Task

__all__ = ["PATCH", "Careless", "First", "Patched", "Renamed", "look_up"]

PATCH = "look-the-address-up"
_RECIPE = RetryRecipe(max_retries=1, initial_interval=timedelta(hours=1))
"""A task in its backoff stays there until somebody wakes it."""

_LIMIT = timedelta(minutes=1)


@activity.defn
async def look_up(name: str) -> str:
    """An address."""
    return f"{name}, Main Street 1"


async def _address() -> str:
    return await workflow.execute_activity(look_up, "Anna", start_to_close_timeout=_LIMIT)


async def _write(lineage: str = "letter") -> str:
    task = Task(recipe=_RECIPE)
    job = AiJob(messages=[ChatMessage(role="user", content=f"Write the {lineage}.")])
    async for work_item in task.attempts(job, lineage=lineage):
        async with work_item:
            answer = await work_item.execute_activity(
                "generate", job, start_to_close_timeout=_LIMIT, heartbeat_timeout=_LIMIT, result_type=AiAnswer
            )
            work_item.complete(answer)
    return AiAnswer.model_validate(task.result(lineage)).text


@workflow.defn(name="Letter", sandboxed=False)
class First:
    """As it was."""

    @workflow.run
    async def run(self) -> list[str]:
        return [await _write()]


@workflow.defn(name="Letter", sandboxed=False)
class Patched:
    """The correct change: a task that has begun without an address continues without one."""

    @workflow.run
    async def run(self) -> list[str]:
        address = [await _address()] if workflow.patched(PATCH) else []
        return [*address, await _write()]


@workflow.defn(name="Letter", sandboxed=False)
class Careless:
    """As it must not be changed where tasks are under way."""

    @workflow.run
    async def run(self) -> list[str]:
        return [await _address(), await _write()]


@workflow.defn(name="Letter", sandboxed=False)
class Renamed:
    """Also wrong, but with the same commands in the same order: replaying does not find it."""

    @workflow.run
    async def run(self) -> list[str]:
        return [await _write("note")]
