"""The yardstick: the same AI call as people write it on plain Temporal, retried by Temporal itself."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import timedelta
from typing import Any

from temporalio import workflow
from temporalio.common import RetryPolicy

__all__ = ["BACKOFF", "HEARTBEAT_TIMEOUT", "MAX_RETRIES", "BareAsk", "BareFanOut"]

BACKOFF = timedelta(milliseconds=50)
MAX_RETRIES = 3
HEARTBEAT_TIMEOUT = timedelta(seconds=30)


async def _ask(prompt: str) -> str:
    answer: str = await workflow.execute_activity(
        "ask",
        prompt,
        result_type=str,
        start_to_close_timeout=timedelta(seconds=305),
        heartbeat_timeout=HEARTBEAT_TIMEOUT,
        retry_policy=RetryPolicy(
            initial_interval=BACKOFF, backoff_coefficient=1, maximum_attempts=MAX_RETRIES + 1
        ),
    )
    return answer


@workflow.defn(name="BareAsk")
class BareAsk:
    """A workflow with one activity. Input: the prompt. Result: the answer's text."""

    @workflow.run
    async def run(self, prompt: str) -> str:
        return await _ask(prompt)


@workflow.defn(name="BareFanOut")
class BareFanOut:
    """Runs many activities, some at a time. Input: prompts and concurrency. Result: the texts in order."""

    @workflow.run
    async def run(self, request: dict[str, Any]) -> list[str]:
        prompts: Sequence[str] = request["prompts"]
        texts = [""] * len(prompts)
        numbers = iter(range(len(prompts)))

        async def ask_some() -> None:
            for number in numbers:
                texts[number] = await _ask(prompts[number])

        await asyncio.gather(*(ask_some() for _ in range(request["concurrency"])))
        return texts
