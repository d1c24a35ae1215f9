"""Takes a picture of a task in the Web UI: `python -m tests.end_to_end.screenshot docs/images/web-ui.png`."""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from pathlib import Path

from tasquencer.devkit.temporal_server import embedded_temporal
from tasquencer.settings import DEFAULT_TASK_QUEUE
from tests.end_to_end.browser import WebUi, open_browser
from tests.end_to_end.stage import Stage
from tests.support.answers import Answer, ok, rate_limited, reset
from tests.support.provider import ProviderRequest, ScriptedProvider

_PROMPT = "Name three moons of Jupiter."
_SCRIPT = [rate_limited("3"), reset(), ok("Io, Europa and Ganymede.")]
_CALL_SECONDS = 1.0
"""So that the calls can be seen beside the waits."""


async def main() -> None:
    parser = argparse.ArgumentParser(description="Take a picture of a finished task with two failures.")
    parser.add_argument("file", type=Path, help="the PNG file to write")
    file: Path = parser.parse_args().file

    async def answer(request: ProviderRequest) -> Answer:
        await asyncio.sleep(_CALL_SECONDS)
        return _SCRIPT[request.number]

    with tempfile.TemporaryDirectory() as folder:
        async with embedded_temporal(ui=True) as server, ScriptedProvider(answer) as provider:
            stage = await Stage.on(server, provider, Path(folder) / "stage", task_queue=DEFAULT_TASK_QUEUE)
            async with stage.worker(), open_browser(width=1400, height=960) as page:
                task = await stage.start(_PROMPT, task_id="ai-agent-1a2b3c4d")
                await task.result()
                ui = WebUi(page, server, task)
                await ui.open("timeline")
                await ui.timeline("first try", "retry 2 of 3")
                await page.wait_for_load_state("networkidle")
                await page.screenshot(path=file, animations="disabled")
    print(f"{file}: {file.stat().st_size // 1024} kB")


if __name__ == "__main__":
    asyncio.run(main())
