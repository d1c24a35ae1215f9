"""Text from outside in the Web UI, which renders Markdown and HTML: a real browser shows it as it is."""

from __future__ import annotations

from typing import Any
from uuid import uuid4

from temporalio import workflow
from temporalio.client import Client
from temporalio.worker import Worker

from tasquencer.core.display_text import markdown_line
from tasquencer.devkit.temporal_server import embedded_temporal
from tests.end_to_end.browser import WebUi, open_browser, require_browser
from tests.support.patience import eventually

SAID = (
    "see https://evil.example or ftp://evil.example, mailto:a@evil.example, [here](https://evil.example) "
    "<img src=https://evil.example/i.png> <form action=https://evil.example><input></form> "
    "<b>bold</b> **bold** _x_ ~~y~~ `z` | # ! &amp; rate_limited"
)


@workflow.defn(sandboxed=False)
class ShowsText:
    @workflow.run
    async def run(self, text: str) -> None:
        workflow.set_current_details(f"| heading |\n| --- |\n| {text} |\n\n{text}")
        await workflow.wait_condition(lambda: False)


async def test_the_web_ui_shows_text_from_outside_as_it_is() -> None:
    require_browser()
    async with embedded_temporal() as server:
        client = await Client.connect(server.address)
        async with (
            Worker(client, task_queue="text", workflows=[ShowsText]),
            open_browser() as page,
        ):
            text = markdown_line(SAID)
            task = await client.start_workflow(
                ShowsText.run, text, id=f"text-{uuid4()}", task_queue="text", static_summary=text
            )
            ui = WebUi(page, server, task)
            await ui.open("user-metadata")
            assert await ui.details_table() == [["heading"], [SAID]]
            assert await ui.summary() == SAID
            details = page.frame_locator("iframe").last
            for name in ("a", "img", "form", "input", "b", "strong", "em", "del", "code"):
                assert await details.locator(f"main {name}").count() == 0, name

            async def below() -> Any:
                return SAID in (await ui.details_text()).split("heading")[1]

            await eventually(below, "the text below the table")
            await task.terminate()


async def test_the_web_ui_would_render_it_otherwise() -> None:
    require_browser()
    async with embedded_temporal() as server:
        client = await Client.connect(server.address)
        async with Worker(client, task_queue="text", workflows=[ShowsText]), open_browser() as page:
            task = await client.start_workflow(
                ShowsText.run, SAID.replace("|", ""), id=f"text-{uuid4()}", task_queue="text"
            )
            await WebUi(page, server, task).open("user-metadata")
            details = page.frame_locator("iframe").last
            await details.locator("main form").first.wait_for(state="attached")
            assert await details.locator("main a").count() >= 1
            await task.terminate()
