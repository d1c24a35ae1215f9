"""What the demo runs beside Temporal: the model that answers, and the worker."""

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
    """Who answers, and how the demo asks it.

    Attributes:
        name: What the demo calls it.
        warning: What a person must know about its answers.
        base_url: Of its OpenAI-compatible API.
        environment: What the worker needs in addition to reach it.
        options: Fields of the demo's request.
    """

    name: str
    warning: str | None
    base_url: str
    environment: Mapping[str, str] = field(default_factory=dict)
    options: Mapping[str, JsonValue] = field(default_factory=dict)


@asynccontextmanager
async def answering_model(environment: Mapping[str, str]) -> AsyncIterator[AnsweringModel]:
    """The user's provider where the environment names one, else a tiny model on this machine."""
    if environment.get("OPENAI_API_KEY") or environment.get("OPENAI_BASE_URL"):
        base_url = environment.get("OPENAI_BASE_URL") or _OPENAI
        host = urlsplit(base_url).hostname  # not the whole URL, which may hold a password
        yield AnsweringModel(f"your provider at {host} (the faults are ours, not its)", None, base_url)
        return
    async with local_model() as model:
        yield AnsweringModel(
            name=f"{model.model_name}, on this machine",
            warning=(
                "The model is tiny (135 million parameters): it shows that everything works, but do not "
                "trust what it says. Set OPENAI_API_KEY or OPENAI_BASE_URL to ask a better one."
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
    """The worker's environment: the user's, but connected to the demo's parts and to nothing else.

    Args:
        inherited: The user's.
        base_url: Where the worker asks the model: the fault proxy.
        folder: For an empty Temporal profile, in place of the user's.
    """
    profile = folder / "temporal.toml"
    profile.touch()
    ours = {
        "TEMPORAL_ADDRESS": server.address,
        "TEMPORAL_NAMESPACE": server.namespace,
        "TEMPORAL_CONFIG_FILE": str(profile),
        "TASQ_DATABASE_URL": settings.database_url,
        "TASQ_TASK_QUEUE": settings.task_queue,
        "TASQ_GRACE_PERIOD": "1",  # whoever stops the demo does not want the answer any more
        "OPENAI_BASE_URL": base_url,
        # A proxy of the environment must not see what stays on this machine.
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
    """The worker, once it polls."""
    worker = ChildProcess("the worker", [sys.executable, program], environment=environment)

    async def ready() -> bool:
        return _READY in worker.output()

    try:
        await worker.wait_ready(ready, timeout_seconds=_START_SECONDS)
        yield worker
    finally:
        await worker.stop(grace_seconds=_STOP_SECONDS)
