"""Workflows of users that ask a model."""

from __future__ import annotations

import asyncio
from typing import Any

from temporalio import workflow
from temporalio.exceptions import ApplicationError

from tasquencer import Task, ask

__all__ = ["AskingSideBySide", "AskingTask", "AskingWithTask"]


def _question(request: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    return request["prompt"], {name: value for name, value in request.items() if name != "prompt"}


@workflow.defn(sandboxed=False)
class AskingTask:
    """One question, and if it gets no answer another one."""

    @workflow.run
    async def run(self, request: dict[str, Any]) -> str:
        """Ask."""
        prompt, options = _question(request)
        try:
            return await ask(prompt, **options)
        except ApplicationError:
            return await ask("And now?")


@workflow.defn(sandboxed=False)
class AskingSideBySide:
    """Two questions side by side, and then a third one with a type."""

    @workflow.run
    async def run(self, request: dict[str, Any]) -> list[Any]:
        """Ask."""
        prompt, options = _question(request)
        both = await asyncio.gather(ask(prompt, **options), ask(prompt, **options))
        return [*both, await ask(prompt, output=int, **options)]


@workflow.defn(sandboxed=False)
class AskingWithTask:
    """Two questions in a task of its own, which continues as new."""

    def __init__(self) -> None:
        self._task = Task()

    @workflow.run
    async def run(self, request: dict[str, Any]) -> list[str]:
        """Ask."""
        prompt, options = _question(request)
        return [await ask(prompt, **options), await ask(prompt, **options)]
