"""The order desk runs with one command, and shows each attempt."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.support.patience import PATIENCE_SECONDS

ROOT = Path(__file__).parents[2]


async def test_the_order_desk_runs_and_shows_each_attempt() -> None:
    program = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "examples.agent.order_desk",
        cwd=ROOT,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    printed, _ = await asyncio.wait_for(program.communicate(), 2 * PATIENCE_SECONDS)
    text = printed.decode()
    assert program.returncode == 0, text
    assert "I have paid the 49.00 back." in text
    for expected in (
        "rate_limited: 429",
        "tool_failed: ConnectionError",
        "refund/approval",
        "approve · given by anna",
        "calls refund",
        "invalid_output",
        "'refunded': 49.0",
        "9 work items: 6 completed, 3 failed",
    ):
        assert expected in text, text
