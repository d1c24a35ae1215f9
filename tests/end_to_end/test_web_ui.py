"""What a person sees of a task in Temporal's Web UI, while it waits and after its end."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tasquencer.core.work_item import WorkItemState
from tasquencer.devkit.temporal_server import embedded_temporal
from tests.end_to_end.browser import WebUi, open_browser, require_browser
from tests.end_to_end.stage import Stage
from tests.support.answers import ok, rate_limited, reset
from tests.support.provider import ScriptedProvider
from tests.support.tasks import OF_A_SLOW_WRITE

PROMPT = "Name three moons of Jupiter."
ASKED_SECONDS = 600
"""How long the provider asks to wait. An operator ends this wait once the browser has seen it."""
ASKED = "10 min"

FIRST_TRY = ["first try", "✗ failed: rate_limited", "none"]
HEADER = ["attempt", "state", "delay", "took"]


@pytest.fixture
async def stage(tmp_path: Path) -> AsyncIterator[Stage]:
    """With the Web UI, and two failures before the answer."""
    require_browser()
    script = [rate_limited(str(ASKED_SECONDS)), reset(), ok("Io, Europa and Ganymede.")]
    async with embedded_temporal(ui=True) as server, ScriptedProvider(script) as provider:
        yield await Stage.on(server, provider, tmp_path)


@pytest.mark.browser
async def test_the_web_ui_tells_the_story_of_a_task(stage: Stage) -> None:
    async with stage.worker(), open_browser() as page:
        await page.goto(f"{stage.server.ui_url}/namespaces/{stage.server.namespace}/workflows")
        task = await stage.start(PROMPT)
        ui = WebUi(page, stage.server, task)
        waiting = await stage.work_item(task, 1, WorkItemState.INITIALIZED)

        # During the backoff.
        await ui.open("user-metadata")
        rows = await ui.details_table()
        timeline_of_backoff = await _timeline(ui, "first try", "asked by the provider")
        assert rows[0] == HEADER
        assert _beginnings(rows[1:]) == [
            FIRST_TRY,
            [
                "retry 1 of 3",
                f"… waits until {waiting.not_before:%Y-%m-%d %H:%M:%S} UTC",
                f"{ASKED} asked by the provider",
            ],
        ]
        assert "generate • first try" in timeline_of_backoff
        assert f"{ASKED} asked by the provider after rate_limited" in timeline_of_backoff
        assert await ui.status() == "RUNNING"

        await task.execute_update("retry_now", {"actor": "anna"})
        await task.result()

        # After the end.
        await ui.open("user-metadata")
        rows = await ui.details_table()
        assert await ui.summary() == PROMPT
        assert rows[0] == HEADER
        first, second, third = _beginnings(rows[1:])
        assert [first, second[:2], third] == [
            FIRST_TRY,
            ["retry 1 of 3", "✗ failed: unreachable"],
            ["retry 2 of 3", "✓ completed", "2 s backoff"],
        ]
        assert re.fullmatch(r"([\d.]+ (s|min) )+ended by an operator", second[2])
        assert all(took.endswith("s") for *_, took in rows[1:])
        assert not set("|*\\") & set(await ui.details_text()), "raw Markdown"
        assert await ui.status() == "COMPLETED"

        bookkeeping = ("record", OF_A_SLOW_WRITE)
        timeline = await _timeline(ui, "first try", "retry 2 of 3")
        assert [text for text in timeline if not any(word in text for word in bookkeeping)] == [
            "generate • first try",
            f"{ASKED} asked by the provider after rate_limited",
            "retry_now",
            "generate • retry 1 of 3",
            "2 s backoff after unreachable",
            "generate • retry 2 of 3",
        ]

        await ui.open("history")
        events = await ui.events()
        assert [text.split(" Failure Message ")[1] for text in events if "Activity Task Failed" in text] == [
            f"429 from the provider: Rate limit reached (asks to wait {ASKED})",
            "the connection to the provider broke: it was reset",
        ]
        summaries = [text.split(" Summary ")[1] for text in events if " Summary " in text]
        assert [text for text in summaries if text != OF_A_SLOW_WRITE] == [
            PROMPT,
            "first try started",
            "first try",
            f"first try failed: rate_limited; retry 1 of 3 waits {ASKED}",
            *[f"{ASKED} asked by the provider after rate_limited"] * 2,  # the timer starts and is canceled
            "retry 1 of 3 started",
            "retry 1 of 3",
            "retry 1 of 3 failed: unreachable; retry 2 of 3 waits 2 s",
            "2 s backoff after unreachable",
            "retry 2 of 3 started",
            "retry 2 of 3",
            "retry 2 of 3 completed",
        ]
        failed = [int(text.split()[0]) for text in events if "Activity Task Failed" in text]
        assert [await ui.error_type_of_event(number) for number in failed] == [
            '"type": "rate_limited",',
            '"type": "unreachable",',
        ]


async def _timeline(ui: WebUi, *awaited: str) -> list[str]:
    await ui.open("timeline")
    return await ui.timeline(*awaited)


def _beginnings(rows: list[list[str]]) -> list[list[str]]:
    """Attempt, state and delay of each row, without what the provider said in its own words."""
    return [[attempt, state.splitlines()[0], delay] for attempt, state, delay, _ in rows]


def test_without_a_browser_the_test_is_skipped_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.delenv("CI", raising=False)

    with pytest.raises(pytest.skip.Exception, match="chromium"):
        require_browser()


def test_without_a_browser_ci_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    monkeypatch.setenv("CI", "true")

    with pytest.raises(pytest.fail.Exception, match="chromium"):
        require_browser()
