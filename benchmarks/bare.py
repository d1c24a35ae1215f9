"""The yardstick: the same AI call as people write it on plain Temporal, retried by Temporal itself."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow
from temporalio.common import RetryPolicy

__all__ = ["BACKOFF", "HEARTBEAT_TIMEOUT", "MAX_RETRIES", "BareAsk"]

BACKOFF = timedelta(milliseconds=50)
MAX_RETRIES = 3
HEARTBEAT_TIMEOUT = timedelta(seconds=30)


@workflow.defn(name="BareAsk")
class BareAsk:
    """A workflow with one activity. Input: the prompt. Result: the answer's text."""

    @workflow.run
    async def run(self, prompt: str) -> str:
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
