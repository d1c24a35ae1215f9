"""Restate: a service whose handler runs one durable step, retried by Restate; `PORT BASE_URL`.

The Restate server calls it over HTTP/2, served by hypercorn as Restate's documentation has it.
"""

from __future__ import annotations

import asyncio
import sys
from datetime import timedelta

import hypercorn.asyncio
import hypercorn.config
import restate

from benchmarks.peers.asking import BACKOFF_SECONDS, MAX_RETRIES, ask, make_client


async def main(port: str, base_url: str) -> None:
    """Serve until killed."""
    client = make_client(base_url)
    backoff = timedelta(seconds=BACKOFF_SECONDS)
    service = restate.Service("Ask")

    @service.handler("ask")
    async def ask_durably(context: restate.Context, prompt: str) -> str:
        async def call() -> str:
            return await ask(client, prompt)

        return await context.run_typed(
            "call",
            call,
            restate.RunOptions(
                max_attempts=MAX_RETRIES + 1,
                initial_retry_interval=backoff,
                retry_interval_factor=1.0,
                max_retry_interval=backoff,
            ),
        )

    config = hypercorn.config.Config()
    config.bind = [f"127.0.0.1:{port}"]
    config.loglevel = "CRITICAL"
    serving = asyncio.create_task(hypercorn.asyncio.serve(restate.app([service]), config))
    while True:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", int(port))
        except OSError:
            await asyncio.sleep(0.02)
            continue
        writer.close()
        break
    print("ready", flush=True)
    await serving


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
