"""Parts of the demo: the model that answers, and the worker."""

from __future__ import annotations

import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import JsonValue

from tasquencer.devkit.local_model import local_model
from tasquencer.devkit.processes import ChildProcess
from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tasquencer.settings import Settings

__all__ = ["AnsweringModel", "answering_model", "running_worker", "worker_environment"]

_OPENAI = "https://api.openai.com/v1"
_READY = "tasq worker ready"
_START_SECONDS = 60.0
_STOP_SECONDS = 5.0


@dataclass(frozen=True)
class AnsweringModel:
    """The model that answers the demo.

    Attributes:
        name: Its name in the demo's output.
        warning: A warning about its answers.
        base_url: The base URL of its OpenAI-compatible API.
        environment: Further variables that the worker needs to reach it.
        options: Fields of the demo's request.
    """

    name: str
    warning: str | None
    base_url: str
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, JsonValue] = field(default_factory=dict)


@asynccontextmanager
async def answering_model(environment: Mapping[str, str]) -> AsyncIterator[AnsweringModel]:
    """The user's provider if the environment names one, else a tiny model on this machine."""
    if environment.get("OPENAI_API_KEY") or environment.get("OPENAI_BASE_URL"):
        base_url = environment.get("OPENAI_BASE_URL") or _OPENAI
        host = urlsplit(base_url).hostname  # not the whole URL, which may contain a password
        yield AnsweringModel(f"your provider at {host} (the demo adds the faults)", None, base_url)
        return
    async with local_model() as model:
        yield AnsweringModel(
            name=f"{model.model_name}, on this machine",
            warning=(
                "The model is tiny (135 million parameters). It shows that everything works, but do not "
                "trust its answers. Set OPENAI_API_KEY or OPENAI_BASE_URL to ask a better one."
            ),
            base_url=model.base_url,
            environment={"OPENAI_API_KEY": "local", "TASQ_MODEL": model.model_name},
            options={"temperature": 0, "max_output_tokens": 120},
        )


def worker_environment(
    inherited: Mapping[str, str],
    server: EmbeddedTemporal,
    settings: Settings,
    model: AnsweringModel,
    base_url: str,
    folder: Path,
) -> dict[str, str]:
    """Return the worker's environment: the user's, connected only to the demo's parts.

    Args:
        inherited: The user's environment.
        base_url: The fault proxy, where the worker asks the model.
        folder: A folder for an empty Temporal profile, instead of the user's.
    """
    profile = folder / "temporal.toml"
    profile.touch()
    ours = {
        "TEMPORAL_ADDRESS": server.address,
        "TEMPORAL_NAMESPACE": server.namespace,
        "TEMPORAL_CONFIG_FILE": str(profile),
        "TASQ_DATABASE_URL": settings.database_url,
        "TASQ_TASK_QUEUE": settings.task_queue,
        "TASQ_GRACE_PERIOD": "1",  # a person who stops the demo no longer wants the answer
        "OPENAI_BASE_URL": base_url,
        # Connections within this machine must not use a proxy of the environment.
        "NO_PROXY": "127.0.0.1,localhost",
        "no_proxy": "127.0.0.1,localhost",
    }
    kept = {
        name: value
        for name, value in inherited.items()
        if not name.startswith("TEMPORAL_") and name != "TASQ_METRICS_ADDRESS"
    }
    return kept | ours | dict(model.environment)


@asynccontextmanager
async def running_worker(program: Path, environment: Mapping[str, str]) -> AsyncIterator[ChildProcess]:
    """Start the worker and return when it polls."""
    worker = ChildProcess("the worker", [sys.executable, program], environment=environment)

    async def ready() -> bool:
        return _READY in worker.output()

    try:
        await worker.wait_ready(ready, timeout_seconds=_START_SECONDS)
        yield worker
    finally:
        await worker.stop(grace_seconds=_STOP_SECONDS)
