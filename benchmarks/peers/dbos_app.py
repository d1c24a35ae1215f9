"""DBOS: a durable workflow with one step, retried by DBOS; `DATABASE_URL BASE_URL`.

A library in the worker's process: what starts its workflows is the application. Here that is a socket that
takes a prompt a line and gives a line with the answer, so that the client is another process, as it is for
the others.
"""

from __future__ import annotations

import asyncio
import sys

from dbos import DBOS, DBOSConfig

from benchmarks.peers.asking import BACKOFF_SECONDS, MAX_RETRIES, ask, make_client

CONNECTIONS = 50
"""More than tasks under way at once, so that none waits for one. DBOS's default is 20."""


async def main(database_url: str, base_url: str) -> None:
    """Serve until killed."""
    client = make_client(base_url)
    config: DBOSConfig = {
        "name": "peer",
        "system_database_url": database_url,
        "sys_db_pool_size": CONNECTIONS,
        "log_level": "CRITICAL",  # else it logs each failed try with its trace, which Temporal's may not, too
    }
    DBOS(config=config)

    @DBOS.step(
        retries_allowed=True,
        max_attempts=MAX_RETRIES + 1,
        interval_seconds=BACKOFF_SECONDS,
        backoff_rate=1.0,
    )
    async def call(prompt: str) -> str:
        return await ask(client, prompt)

    @DBOS.workflow()
    async def ask_durably(prompt: str) -> str:
        return await call(prompt)

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while line := await reader.readline():
            answer = await ask_durably(line.decode().strip())
            writer.write(f"{answer}\n".encode())
        writer.close()

    DBOS.launch()
    server = await asyncio.start_server(on_connection, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
