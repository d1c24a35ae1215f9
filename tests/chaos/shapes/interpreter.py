"""The one workflow that carries out any `Program`, and the child workflow that it may start."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Sequence
from datetime import timedelta
from typing import Any

from pydantic import JsonValue
from temporalio import workflow
from temporalio.exceptions import ApplicationError, FailureError, is_cancelled_exception

with workflow.unsafe.imports_passed_through():
    from tasquencer.core.hooks import NextAttempt, StateChange, retry_by_recipe
    from tasquencer.core.policy import (
        TaskPolicy,
        absorb_failures,
        fail_fast,
        require_successes,
        until_exhausted,
    )
    from tasquencer.core.retry import RetryRecipe
    from tasquencer.core.work_item import WorkItemState
    from tasquencer.temporal import ActiveWorkItem, Task
    from tests.chaos.shapes.program import Program, Statement, read_program

__all__ = ["AnyShape", "ShapeChild", "policy_of"]

_SHORT = timedelta(seconds=20)
_LONGEST_BACKOFF_SECONDS = 0.4


def _first_of(group: BaseException) -> BaseException:
    return _first_of(group.exceptions[0]) if isinstance(group, BaseExceptionGroup) else group


def policy_of(program: Program) -> TaskPolicy:
    """The program's policy."""
    name, argument = program.policy
    match name:
        case "fail_fast":
            return fail_fast
        case "absorb":
            return absorb_failures(None if argument is None else int(argument))
        case "require":
            return require_successes(int(argument or 1))
    return until_exhausted


def _hook(name: str) -> Callable[[StateChange], NextAttempt | None]:
    def payload(change: StateChange) -> NextAttempt | None:
        following = retry_by_recipe(change)
        if following is None:
            return None
        old = change.work_item.payload
        assert isinstance(old, dict)
        return NextAttempt({**old, "after": change.work_item.attempt}, following.delay)

    def stop(change: StateChange) -> NextAttempt | None:
        return retry_by_recipe(change) if change.work_item.attempt == 0 else None

    return {"payload": payload, "stop": stop}.get(name, retry_by_recipe)


@workflow.defn
class ShapeChild:
    """Sleeps, and may fail."""

    @workflow.run
    async def run(self, ms: int, fails: bool) -> int:
        await workflow.sleep(ms / 1000)
        if fails:
            raise ApplicationError("the child fails as planned", type="child_failed")
        return ms


@workflow.defn
class AnyShape:
    """Carries out a program."""

    @workflow.init
    def __init__(self, raw: dict[str, Any]) -> None:
        self._program = program = read_program(raw)
        self._task = Task(
            recipe=RetryRecipe(
                max_retries=program.retries,
                initial_interval=timedelta(seconds=program.backoff),
                maximum_interval=timedelta(seconds=max(program.backoff, _LONGEST_BACKOFF_SECONDS)),
            ),
            policy=policy_of(program),
            on_work_item_state_changed=_hook(program.hook),
            concurrency=program.concurrency,
        )
        self._signaled = False
        self._spawned: list[asyncio.Task[None]] = []

    @workflow.signal
    def change_mind(self) -> None:
        """What the statement `signal` looks for."""
        self._signaled = True

    @workflow.update
    async def visit(self, lineage: str) -> str:
        """Carry out a lineage beside the body."""
        await self._do_lineage(lineage, [], "loop")
        return lineage

    @workflow.run
    async def run(self, raw: dict[str, Any]) -> int:
        await self._all(self._program.body)
        await asyncio.gather(*self._spawned)
        self._task.check()
        return sum(item.state is WorkItemState.COMPLETED for item in self._task.work_items)

    async def _all(self, body: Sequence[Statement]) -> None:
        for name, *arguments in body:
            step: Callable[..., Awaitable[None]] = getattr(self, f"_do_{name}")
            await step(*arguments)

    async def _do_lineage(self, name: str, inside: Sequence[Statement], leave: str) -> None:
        async for item in self._task.attempts({"lineage": name}, lineage=name):
            async with item:
                await self._work(item, name, inside)
                if leave == "return":
                    return
            if leave == "break":
                break

    async def _work(self, item: ActiveWorkItem, lineage: str, inside: Sequence[Statement]) -> None:
        for name, *arguments in inside:
            if name == "outcome":
                await item.outcome(within=timedelta(milliseconds=arguments[0]))
                return
            await self._all([[name, *arguments, *([False] if name == "child" else [])]])
        attempt = self._program.attempt(lineage, item.attempt)
        told: JsonValue = await item.execute_activity(
            "work",
            {"lineage": lineage, "attempt": item.attempt, "how": attempt.how, "ms": attempt.ms},
            start_to_close_timeout=timedelta(seconds=self._program.call_seconds),
            heartbeat_timeout=timedelta(seconds=self._program.call_seconds),
        )
        item.complete(told)

    async def _do_gather(self, bodies: Sequence[Sequence[Statement]]) -> None:
        await asyncio.gather(*(self._all(body) for body in bodies))

    async def _do_gather_exceptions(self, bodies: Sequence[Sequence[Statement]]) -> None:
        for came in await asyncio.gather(*(self._all(body) for body in bodies), return_exceptions=True):
            if isinstance(came, Exception) and not isinstance(came, FailureError):
                raise came

    async def _do_group(self, bodies: Sequence[Sequence[Statement]]) -> None:
        try:
            async with asyncio.TaskGroup() as group:
                for body in bodies:
                    group.create_task(self._all(body))
        except ExceptionGroup as several:
            failures, others = several.split(FailureError)
            if failures is None or others is not None:
                raise
            raise _first_of(failures) from None

    async def _do_first(self, bodies: Sequence[Sequence[Statement]], others: str) -> None:
        tasks = [asyncio.create_task(self._all(body)) for body in bodies]
        done, pending = await workflow.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        for one in pending:
            if others == "cancel":
                one.cancel()
        if others != "leave":
            await asyncio.gather(*pending, return_exceptions=True)
        for one in done:
            await one

    async def _do_spawn(self, body: Sequence[Statement], how: str) -> None:
        task = asyncio.create_task(self._all(body))
        if how == "await":
            self._spawned.append(task)

    async def _do_timeout(self, ms: int, body: Sequence[Statement]) -> None:
        try:
            async with asyncio.timeout(ms / 1000):
                await self._all(body)
        except TimeoutError:
            return

    async def _do_swallow(self, body: Sequence[Statement], then: Sequence[Statement]) -> None:
        try:
            await self._all(body)
        except (asyncio.CancelledError, FailureError) as error:
            if not is_cancelled_exception(error):
                raise
            await self._all(then)

    async def _do_saga(self, body: Sequence[Statement], compensation: Sequence[Statement]) -> None:
        try:
            await self._all(body)
        except (asyncio.CancelledError, FailureError):
            await self._all(compensation)
            raise

    async def _do_signal(self, ms: int, then: Sequence[Statement], other: Sequence[Statement]) -> None:
        with contextlib.suppress(TimeoutError):
            await workflow.wait_condition(lambda: self._signaled, timeout=ms / 1000)
        await self._all(then if self._signaled else other)

    async def _do_child(self, ms: int, fails: bool) -> None:
        await workflow.execute_child_workflow(
            ShapeChild.run, args=[ms, fails], id=f"{workflow.info().workflow_id}/{workflow.uuid4()}"
        )

    async def _do_local(self, ms: int) -> None:
        await workflow.execute_local_activity("note", ms, start_to_close_timeout=_SHORT)

    async def _do_sleep(self, ms: int) -> None:
        await workflow.sleep(ms / 1000)
