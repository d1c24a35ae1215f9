"""What a provider sends does not fill the worker's memory, however much it is."""

from __future__ import annotations

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from tasquencer.devkit.temporal_server import EmbeddedTemporal
from tests.end_to_end.stage import Stage
from tests.poison.wire import bomb, endless, head, nested, streaming
from tests.support.answers import Answer, ok, raw
from tests.support.patience import PATIENCE_SECONDS
from tests.support.provider import ProviderRequest, ScriptedProvider

MOST_GROWTH = 100 * 2**20
AT_ONCE = 3
"""Calls of each kind at the same time."""


async def a_hundred_megabytes() -> AsyncIterator[bytes]:
    for _ in range(100):
        yield b"x" * 2**20


async def text_without_end() -> AsyncIterator[bytes]:
    yield b'{"choices": [{"message": {"content": "'
    while True:
        yield b"x" * 65_536


@cache
def poison() -> dict[str, tuple[Answer, str]]:
    """Make the answers. They take a second and hundreds of megabytes."""
    gzipped = bomb(1, 256)  # a quarter of a megabyte that makes a quarter of a gigabyte
    return {
        # what is sent, and the kind of failure
        "100 MB": (streaming(200, a_hundred_megabytes), "too_large"),
        "100 MB with their length": (
            streaming(200, a_hundred_megabytes, content_length=str(100 * 2**20)),
            "too_large",
        ),
        "100 MB as an error": (streaming(500, a_hundred_megabytes), "provider_error"),
        "a text without end": (streaming(200, text_without_end), "too_large"),
        "an error without end": (streaming(429, text_without_end), "rate_limited"),
        "headers without end": (endless(b"HTTP/1.1 200 OK\r\n", b"x: y\r\n" * 10_000), "provider_error"),
        "interim answers without end": (
            endless(b"", b"HTTP/1.1 103 Early Hints\r\n\r\n" * 1_000),
            "timed_out",
        ),
        "blanks that drip": (endless(head(), b" " * 1_000, 0.05), "timed_out"),
        "gzip": (raw(gzipped, headers={"content-encoding": "gzip"}), "too_large"),
        "gzip in gzip": (raw(bomb(2, 256), headers={"content-encoding": "gzip, gzip"}), "provider_error"),
        "gzip as an error": (raw(gzipped, code=503, headers={"content-encoding": "gzip"}), "provider_error"),
        "nothing, packed four times": (
            raw(nested(4, 20_000_000), headers={"content-encoding": "gzip, gzip, gzip, gzip"}),
            "provider_error",
        ),
        "millions of lists": (raw(b'{"choices": [' + b"[]," * 2_000_000 + b"1]}"), "provider_error"),
        "millions of texts": (raw(b'{"choices": [' + b'"ab",' * 1_200_000 + b"1]}"), "provider_error"),
    }


def script(request: ProviderRequest) -> Answer:
    return poison()[request.prompt][0] if request.prompt in poison() else ok("Hi")


def peak_bytes(pid: int) -> int:
    """The most memory that the process has had since it was last forgotten."""
    (line,) = [
        line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if line.startswith("VmHWM:")
    ]
    return int(line.split()[1]) * 1024


def forget_peak(pid: int) -> None:
    with contextlib.suppress(OSError):  # where that is not allowed, the peak of the start counts too
        Path(f"/proc/{pid}/clear_refs").write_text("5")


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
async def test_no_answer_makes_the_worker_s_memory_grow_by_a_hundred_megabytes(
    dev_server: EmbeddedTemporal, tmp_path: Path
) -> None:
    async with ScriptedProvider(script) as provider:
        stage = await Stage.on(dev_server, provider, tmp_path)
        async with stage.worker() as worker:
            for task in [await stage.start("warm up") for _ in range(AT_ONCE)]:
                await task.result()
            forget_peak(worker.pid)
            before = peak_bytes(worker.pid)
            grown: dict[str, int] = {}
            for name, (_, kind) in poison().items():
                limit = 1 if kind == "timed_out" else PATIENCE_SECONDS
                options: dict[str, Any] = {"max_retries": 0, "attempt_timeout_seconds": limit}
                tasks = [await stage.start(name, **options) for _ in range(AT_ONCE)]
                ends = await asyncio.gather(*(task.result() for task in tasks), return_exceptions=True)
                for end in ends:
                    assert isinstance(end, Exception), name
                    assert f" {kind}: " in str(end.__cause__), name
                grown[name] = peak_bytes(worker.pid) - before
                assert grown[name] < MOST_GROWTH, grown
            print({name: f"{size / 2**20:.0f} MiB" for name, size in grown.items()})
            assert (await (await stage.start("and on")).result())["text"] == "Hi"
