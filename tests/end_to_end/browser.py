"""Temporal's Web UI, looked at with a real browser: the Chromium or Chrome of this machine."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from playwright.async_api import Page, async_playwright
from temporalio.client import WorkflowHandle

from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tests.support.patience import PATIENCE_SECONDS, eventually

__all__ = ["NoBrowser", "WebUi", "find_browser", "open_browser", "require_browser"]

_PROGRAMS = ("chromium", "chromium-browser", "google-chrome")
_FLAGS = (
    "--no-sandbox",  # as root it does not start with one; and it looks at nothing but our own pages
    "--disable-gpu",
    # It is not to speak to anybody but the Web UI.
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-quic",
    "--disable-sync",
    "--no-first-run",
)
_PATIENCE = PATIENCE_SECONDS * 1000


class NoBrowser(Exception):
    """This machine has no browser that the tests can drive."""

    def __init__(self) -> None:
        super().__init__(
            f"the browser test needs one of {', '.join(_PROGRAMS)}: `make browser` installs Debian's"
        )


def find_browser() -> str:
    """Path of the browser. Raises `NoBrowser`."""
    for program in _PROGRAMS:
        if (found := shutil.which(program)) is not None:
            return found
    raise NoBrowser


def require_browser() -> None:
    """Skip the test with the reason if there is no browser; in CI, where a gap would go unseen, fail it."""
    try:
        find_browser()
    except NoBrowser as missing:
        if os.environ.get("CI"):
            pytest.fail(str(missing))
        pytest.skip(str(missing))


@asynccontextmanager
async def open_browser(*, width: int = 1400, height: int = 900) -> AsyncIterator[Page]:
    """A page in a headless browser with a new, empty profile. Raises `NoBrowser`."""
    program = find_browser()
    async with async_playwright() as playwright:
        browser = await playwright.chromium.launch(
            executable_path=program, args=list(_FLAGS), timeout=_PATIENCE
        )
        try:
            page = await browser.new_page(viewport={"width": width, "height": height})
            page.set_default_timeout(_PATIENCE)
            yield page
        finally:
            await browser.close()


class WebUi:
    """What a person sees of one task in Temporal's Web UI, version 2.54."""

    def __init__(self, page: Page, server: EmbeddedTemporal, task: WorkflowHandle[Any, Any]) -> None:
        self._page = page
        self._address = (
            f"{server.ui_url}/namespaces/{server.namespace}/workflows/{task.id}/{task.first_execution_run_id}"
        )

    async def open(self, tab: str) -> None:
        """Go to a tab of the task's page: `timeline`, `history`, `user-metadata` …"""
        await self._page.goto(f"{self._address}/{tab}")

    async def status(self) -> str:
        """The task's status, as it stands beside its id."""
        return (await self._page.get_by_test_id("execution-status").first.inner_text()).strip()

    async def summary(self) -> str:
        """The task's summary; the tab must be `user-metadata`. Markdown is rendered in a frame of its own."""
        return (await self._page.frame_locator("iframe").first.locator("main").inner_text()).strip()

    async def details_table(self) -> list[list[str]]:
        """The cells of the table in the current details, line by line; the tab must be `user-metadata`."""
        rows = self._page.frame_locator("iframe").last.locator("table tr")
        await rows.first.wait_for()
        return [
            [_lines(cell) for cell in await rows.nth(number).locator("th, td").all_inner_texts()]
            for number in range(await rows.count())
        ]

    async def details_text(self) -> str:
        """All text of the current details; the tab must be `user-metadata`."""
        return await self._page.frame_locator("iframe").last.locator("body").inner_text()

    async def timeline(self, *awaited: str) -> list[str]:
        """What stands in the rows of the timeline, from bottom to top, once there are rows with these texts;
        the tab must be `timeline`."""
        rows = self._page.locator("li button")
        for text in awaited:
            await rows.filter(has_text=text).first.wait_for()
        texts = [_plain(text) for text in await rows.all_inner_texts()]
        return [text for text in texts if text]

    async def events(self) -> list[str]:
        """The rows of the event history, oldest first; the tab must be `history`."""
        rows = self._page.get_by_test_id("event-summary-row")
        await rows.filter(has_text="Workflow Execution Started").wait_for()
        return [_plain(row) for row in reversed(await rows.all_inner_texts())]

    async def error_type_of_event(self, event_id: int) -> str:
        """The line of the failure's type, once one has opened the event and scrolled down to it."""
        await self.open(f"history/events/{event_id}")
        lines = self._page.get_by_label("Failure", exact=True).locator(".cm-line")
        await lines.first.wait_for()
        heading = lines.filter(has_text="applicationFailureInfo")

        async def scrolled_to() -> str | None:
            # What is out of sight is not in the page.
            await lines.last.scroll_into_view_if_needed()
            if await heading.count() != 1:
                return None
            return _plain(await heading.locator("xpath=following-sibling::*[1]").inner_text())

        return await eventually(scrolled_to, f"event {event_id} shows the type of its failure")


def _plain(text: str) -> str:
    return " ".join(text.split())


def _lines(text: str) -> str:
    return "\n".join(_plain(line) for line in text.splitlines())
