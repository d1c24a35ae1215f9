"""An AI provider that answers at once, as a process of its own: `python -m benchmarks.provider`.

It must never be the bottleneck, so it knows only what the benchmark needs: chat completions on connections
that stay open. The first requests with a prompt that begins with `fail N ` are answered 500, N times; every
other request gets the same short answer, one that begins with `wait N ` N milliseconds later. `GET /` gives
the counts so far.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from collections import Counter

__all__ = ["failing", "waiting"]


def failing(times: int, name: str) -> str:
    """A prompt that the provider fails this often before it answers; each name counts on its own."""
    return f"fail {times} {name}" if times else f"answer {name}"


def waiting(milliseconds: int, name: str) -> str:
    """Return a prompt that the provider answers after this delay."""
    return f"wait {milliseconds} {name}"


def _response(status: str, body: object) -> bytes:
    content = json.dumps(body).encode()
    head = f"HTTP/1.1 {status}\r\ncontent-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    return head.encode() + content


_ANSWER = _response(
    "200 OK",
    {
        "id": "chatcmpl-1",
        "object": "chat.completion",
        "created": 1,
        "model": "instant",
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": "Forty-two."}}
        ],
        "usage": {"prompt_tokens": 12, "completion_tokens": 4, "total_tokens": 16},
    },
)
_FAILURE = _response(
    "500 Internal Server Error", {"error": {"message": "try again", "type": "server_error", "code": None}}
)


class _Connection(asyncio.Protocol):
    def __init__(
        self, counts: Counter[str], seen: Counter[str], arrivals: dict[str, list[float]] | None
    ) -> None:
        self._counts = counts
        self._seen = seen
        self._arrivals = arrivals
        self._received = bytearray()
        self._transport: asyncio.WriteTransport | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.WriteTransport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        assert self._transport is not None
        self._received += data
        while (end := self._received.find(b"\r\n\r\n") + 4) > 3:
            head = bytes(self._received[:end]).lower()
            _, _, length = head.partition(b"\r\ncontent-length:")
            whole = end + (int(length.partition(b"\r\n")[0]) if length else 0)
            if len(self._received) < whole:
                return
            body = bytes(self._received[end:whole])
            del self._received[:whole]
            if not body:
                self._transport.write(_response("200 OK", self._told()))
                continue
            prompt: str = json.loads(body)["messages"][-1]["content"]
            answer = self._answer(prompt)
            word, number, *_ = prompt.split(" ")
            if word == "wait":
                loop = asyncio.get_running_loop()
                loop.call_later(int(number) / 1000, self._transport.write, answer)
            else:
                self._transport.write(answer)

    def _told(self) -> dict[str, object]:
        told: dict[str, object] = dict(self._counts)
        if self._arrivals is not None:
            told["arrivals"] = dict(self._arrivals)
            self._arrivals.clear()
        return told

    def _answer(self, prompt: str) -> bytes:
        word, times, *_ = prompt.split(" ")
        if word == "fail":
            if self._arrivals is not None:
                self._arrivals.setdefault(prompt, []).append(time.time())
            self._seen[prompt] += 1
            if self._seen[prompt] <= int(times):
                self._counts["failed"] += 1
                return _FAILURE
            del self._seen[prompt]
        self._counts["answered"] += 1
        return _ANSWER


async def _serve() -> None:
    counts, seen = Counter(answered=0, failed=0), Counter[str]()
    arrivals: dict[str, list[float]] | None = {} if "--arrivals" in sys.argv[1:] else None
    server = await asyncio.get_running_loop().create_server(
        lambda: _Connection(counts, seen, arrivals), "127.0.0.1", 0
    )
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    sys.exit(asyncio.run(_serve()))
