"""Workflows of users that ask a model, as users write them."""

from __future__ import annotations

import asyncio
from datetime import timedelta
from typing import Any, Literal

from pydantic import BaseModel, field_validator
from temporalio import activity, workflow
from temporalio.exceptions import ApplicationError

with workflow.unsafe.imports_passed_through():
    from tasquencer import RetryRecipe, Task, ask, fail_fast
    from tasquencer.ai import ChatMessage, RetryOptions

SOON = RetryOptions(initial_interval_seconds=0.01)


class Label(BaseModel):
    urgent: bool
    team: str = "support"

    @field_validator("team")
    @classmethod
    def _known(cls, team: str) -> str:
        if team not in ("support", "billing"):
            raise ValueError("there is no such team")
        return team


@activity.defn
async def shout(text: str) -> str:
    return text.upper()


@workflow.defn
class Triage:
    """One question, in the sandbox."""

    @workflow.run
    async def run(self, text: str) -> dict[str, Any]:
        label = await ask(f"Is this urgent? {text}", output=Label, max_retries=3, retry=SOON)
        return {"urgent": label.urgent, "team": label.team}


@workflow.defn
class SideBySide:
    """Three questions side by side, after an activity of the workflow's own."""

    @workflow.run
    async def run(self, text: str) -> list[Any]:
        loud = await workflow.execute_activity(shout, text, start_to_close_timeout=timedelta(seconds=60))
        summary, label, numbers = await asyncio.gather(
            ask(f"summary of {loud}"),
            ask(f"label of {loud}", output=Label),
            ask([ChatMessage(role="user", content=f"numbers of {loud}")], output=list[int]),
        )
        return [summary, label.urgent, numbers]


@workflow.defn(sandboxed=False)
class Outside:
    """Outside of the sandbox, with a literal."""

    @workflow.run
    async def run(self, text: str) -> str:
        answer = await ask(text, output=Literal["yes", "no"], system="Be brief.", lineage="yes-or-no")
        return f"{answer}!"


@workflow.defn
class Forgiving:
    """Goes on after a question without an answer."""

    @workflow.run
    async def run(self, text: str) -> list[str]:
        try:
            await ask(text, max_retries=0)
        except ApplicationError as error:
            return [str(error.type), error.message, await ask("Again?")]
        return []


@workflow.defn
class WithTask:
    """A task of its own that asks as well."""

    def __init__(self) -> None:
        self._task = Task(recipe=RetryRecipe(max_retries=0), policy=fail_fast)

    @workflow.run
    async def run(self, text: str) -> list[Any]:
        first = await ask(text, retry=SOON)
        async for work_item in self._task.attempts({"text": first}):
            async with work_item:
                work_item.complete(
                    await work_item.execute_activity(
                        shout, first, start_to_close_timeout=timedelta(seconds=60)
                    )
                )
        return [self._task.result(), await ask("And now?")]


@workflow.defn
class Wrong:
    """Gives a field that is wrong."""

    @workflow.run
    async def run(self, fields: dict[str, Any]) -> str:
        return await ask("What?", **fields)


@workflow.defn
class InTime:
    """Gives a question a moment, and then asks another one."""

    @workflow.run
    async def run(self) -> str:
        try:
            async with asyncio.timeout(1):
                return await ask("slow")
        except TimeoutError:
            return await ask("quick")


@workflow.defn
class OverAndOver:
    """Continues as new by itself, and asks once in each run."""

    @workflow.run
    async def run(self, answers: list[str]) -> list[str]:
        answers.append(await ask(f"number {len(answers)}"))
        if len(answers) < 3:
            workflow.continue_as_new(answers)
        return answers


@workflow.defn
class OwnNames:
    """Has a query and an update under names that tasks use, and shows details of its own."""

    @workflow.run
    async def run(self) -> str:
        workflow.set_current_details("mine")
        answer = await ask("What?")
        return f"{answer} {workflow.get_current_details()}"

    @workflow.query
    def work_items(self) -> str:
        return "none of yours"


@workflow.defn
class Climbing:
    """Asks one model, and then another one."""

    @workflow.run
    async def run(self) -> bool:
        label = await ask(
            "Urgent?",
            output=Label,
            model="a:1",
            fallback_models=["b:1"],
            fallback_on=["rate_limited"],
            retry=SOON,
        )
        return label.urgent


WORKFLOWS = [Climbing, Triage, SideBySide, Outside, Forgiving, WithTask, Wrong, InTime, OverAndOver, OwnNames]
