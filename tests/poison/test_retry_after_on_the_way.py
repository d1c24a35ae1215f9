"""Retry-After in odd forms, from the provider's header to the delay of the next work item."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime

import pytest

from tests.poison.conftest import Ground
from tests.poison.wire import head, sending
from tests.support.answers import Answer, ok
from tests.support.patience import PATIENCE_SECONDS, eventually
from tests.support.provider import ProviderRequest
from tests.support.tasks import Tasks, history, timers

IN_AN_HOUR = "<a date in an hour>"

WAITS: dict[str, tuple[Sequence[str], float]] = {
    # the headers, and the seconds until the next work item; the backoff is 0.1 s
    "NaN": (["retry-after: nan"], 0.1),
    "infinite": (["retry-after: inf"], 0.1),
    "negative": (["retry-after: -5"], 0.1),
    "beyond belief": (["retry-after: 1e308"], 0.1),
    "a past date": (["retry-after: Wed, 21 Oct 2015 07:28:00 GMT"], 0.1),
    "a date beyond belief": (["retry-after: Fri, 31 Dec 9999 23:59:59 GMT"], 0.1),
    "no date": (["retry-after: Mon, 32 Foo 2026 25:61:61 GMT"], 0.1),
    "empty": (["retry-after: "], 0.1),
    "odd milliseconds": (["retry-after-ms: nan"], 0.1),
    "negative milliseconds": (["retry-after-ms: -1", "retry-after: 0.2"], 0.2),
    "milliseconds beyond belief": (["retry-after-ms: 1e300", "retry-after: 0.2"], 0.2),
    "milliseconds first": (["retry-after: 3000", "retry-after-ms: 300"], 0.3),
    "twice": (["retry-after: 1", "retry-after: 2"], 0.1),  # read as one: "1, 2"
    "twice the same": (["Retry-After: 1", "RETRY-AFTER: 1"], 0.1),
    "ten years": (["retry-after: 315360000"], 315_360_000.0),
    "in an hour": ([f"retry-after: {IN_AN_HOUR}"], 3_600.0),
}


ASKED: set[str] = set()


def script(request: ProviderRequest) -> Answer:
    """The headers of the case that the prompt names, and then an answer."""
    if request.prompt in ASKED:
        return ok("Hi")
    ASKED.add(request.prompt)
    date = format_datetime(datetime.now(UTC) + timedelta(hours=1), usegmt=True)
    lines = [line.replace(IN_AN_HOUR, date).encode() for line in WAITS[request.prompt][0]]
    return sending(head("429 Slow Down", *lines, b"content-length: 0"))


async def waited(tasks: Tasks, case: str) -> tuple[float, str, list[float]]:
    """Delay and reason of the second work item of a task, and the seconds that its timer really got."""
    handle = await tasks.start("AiAgentTask", {"prompt": case, "retry": {"initial_interval_seconds": 0.1}})

    async def sleeping() -> list[float]:
        return timers(await history(handle))

    slept = await eventually(sleeping, f"the timer of {case!r}")
    _, item = await tasks.work_items(handle)
    if item.delay_seconds < 1:
        assert (await asyncio.wait_for(handle.result(), PATIENCE_SECONDS))["attempts"] == 2
    else:
        await handle.terminate()
    return item.delay_seconds, item.delay_reason, slept


async def test_the_next_work_item_waits_as_long_as_was_asked_in_a_form_that_can_be_read(
    ground: Ground,
) -> None:
    found = await asyncio.gather(*(waited(ground.tasks, case) for case in WAITS))
    for (case, (_, expected)), (delay, reason, slept) in zip(WAITS.items(), found, strict=True):
        assert delay == pytest.approx(expected, abs=60 if expected == 3_600 else 0.001), case
        assert reason == ("backoff" if expected == 0.1 else "retry_after"), case
        assert slept == [pytest.approx(delay, abs=0.001)], case
