"""The yardstick of `benchmarks.sleepers`, in a module of its own: the workflow sandbox imports it anew."""

from __future__ import annotations

from datetime import timedelta

from temporalio import workflow

from benchmarks.bare import HEARTBEAT_TIMEOUT

__all__ = ["BareSleeper", "BareSleeperOutside"]


async def _ask_sleep_ask(seconds: float, prompt: str) -> str:
    answer = ""
    for calls in range(2):
        if calls:
            await workflow.sleep(seconds)
        answer = await workflow.execute_activity(
            "ask",
            prompt,
            result_type=str,
            start_to_close_timeout=timedelta(seconds=305),
            heartbeat_timeout=HEARTBEAT_TIMEOUT,
        )
    return answer


@workflow.defn(name="BareSleeper")
class BareSleeper:
    """A call, a sleep, a call."""

    @workflow.run
    async def run(self, seconds: float, prompt: str) -> str:
        return await _ask_sleep_ask(seconds, prompt)


@workflow.defn(name="BareSleeperOutside", sandboxed=False)
class BareSleeperOutside:
    """The same outside the sandbox, where AiAgentTask runs, too."""

    @workflow.run
    async def run(self, seconds: float, prompt: str) -> str:
        return await _ask_sleep_ask(seconds, prompt)
