"""The progress of a batch, in a line."""

from __future__ import annotations

from typing import Any

import pytest

from tasquencer.batch.rows import BatchPause, BatchProgress
from tasquencer.cli.batch_progress import Pace, progress_line


def progress(**told: Any) -> BatchProgress:
    nothing = dict.fromkeys(
        ("completed", "failed", "canceled", "running", "input_tokens", "output_tokens"), 0
    )
    return BatchProgress.model_validate({"rows": 5000, "cost_usd": None, **nothing, **told})


@pytest.mark.parametrize(
    ("told", "retrying", "pace", "line"),
    [
        ({}, 0, None, "0 of 5,000"),
        (
            {
                "completed": 1197,
                "failed": 3,
                "input_tokens": 9000,
                "output_tokens": 100,
                "cost_usd": 0.0212345,
            },
            2,
            40.0,
            (
                "1,200 of 5,000 · 3 failed · 2 retrying · 40/s · 9,000 tokens in, 100 out · $0.0212 · "
                "1 min 35 s left"
            ),
        ),
        ({"completed": 4990, "canceled": 10}, 0, 1.0, "5,000 of 5,000 · 10 canceled · 1.0/s"),
        (
            {"paused": BatchPause(actor="anna", reason="lunch")},
            0,
            2.0,
            "0 of 5,000 · paused by anna: lunch · 2.0/s",
        ),
        (
            {"paused": BatchPause(actor="a\x1b[2J")},
            0,
            0.0,
            "0 of 5,000 · paused by a\N{REPLACEMENT CHARACTER}[2J",
        ),
    ],
)
def test_a_line_says_what_there_is_to_say(
    told: dict[str, Any], retrying: int, pace: float | None, line: str
) -> None:
    assert progress_line(progress(**told), retrying, pace) == line


def test_the_pace_is_that_of_the_last_minute() -> None:
    pace = Pace()
    assert pace.rows_per_second() is None
    pace.see(0, 0)
    assert pace.rows_per_second() is None
    pace.see(10, 100)
    assert pace.rows_per_second() == 10
    for second in range(11, 100):
        pace.see(second, 100 + second - 10)
    assert pace.rows_per_second() == 1
