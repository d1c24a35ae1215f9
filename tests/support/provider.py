"""A scripted AI provider: a real HTTP server that answers chat completions as a test tells it to.

    async with ScriptedProvider([status(503), ok("Hello")]) as provider:
        client = AsyncOpenAI(base_url=provider.base_url, api_key="test", max_retries=0)
        ...
    assert [request.status for request in provider.requests] == [503, 200]

The script is a list (one answer for each request), a mapping from the last user message to such a list, or
a callable from the request to an answer. It is also a program, for tests that kill processes:
`python -m tests.support.provider --script answers.json --log requests.jsonl`.
"""

from __future__ import annotations

import argparse
import asyncio
import inspect
import json
import time
from collections import deque
from collections.abc import Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

from tasquencer.devkit.http_server import Exchange, HttpRequest, HttpServer
from tests.support.answers import ANSWERS, Answer, ok, status
from tests.support.patience import PATIENCE_SECONDS
from tests.support.responses import RespondingExchange

__all__ = ["Choose", "ProviderRequest", "Script", "ScriptedProvider"]


@dataclass
class ProviderRequest:
    """One request as the provider saw it, and what became of its answer."""

    number: int
    """0 for the first."""
    at: datetime
    """When it was complete, UTC."""
    at_monotonic: float
    """The same on this machine's monotonic clock, in seconds."""
    method: str
    path: str
    headers: dict[str, str]
    """Names in lower case."""
    body: dict[str, Any]
    """The JSON body; empty if it was not a JSON object."""
    status: int | None = None
    """The status sent; None if none was."""
    complete: bool = False
    """Whether a whole answer left; false too for answers that are broken off by the script."""
    ended_at: datetime | None = None
    """When the provider was done with it, or the client left; None while it is open."""
    client_left: bool = False
    """Whether the client closed the connection before the answer was complete."""
    ended: asyncio.Event = field(default_factory=asyncio.Event, repr=False)

    @property
    def idempotency_key(self) -> str | None:
        return self.headers.get("idempotency-key")

    @property
    def authorization(self) -> str | None:
        return self.headers.get("authorization")

    @property
    def prompt(self) -> str:
        """The text of the last user message; empty if there is none."""
        messages = self.body.get("messages") or self.body.get("input")
        for message in reversed(messages if isinstance(messages, list) else []):
            if isinstance(message, dict) and message.get("role") == "user":
                content = message.get("content")
                return content if isinstance(content, str) else json.dumps(content)
        return ""


_RESPONSES = "/v1/responses"

Choose = Callable[[ProviderRequest], Answer | Awaitable[Answer]]
Script = Iterable[Answer] | Mapping[str, Iterable[Answer]] | Choose


class ScriptedProvider:
    """Serves a script at `base_url` while the `async with` block runs.

    Args:
        script: see the module's docstring.
        then: the answer once the script is spent (or for a prompt that has none). Without it such a
            request is answered 501 and the block ends with an AssertionError, for a request too many
            is what these tests look for.
        log: append one JSON line for each request and for each end of one to this file.
    """

    def __init__(self, script: Script = (), *, then: Answer | None = None, log: Path | None = None) -> None:
        self.requests: list[ProviderRequest] = []
        self.unexpected: list[ProviderRequest] = []
        self._choose = _chooser(script)
        self._then = then
        self._log = log
        self._server = HttpServer(self._handle)
        self._changed = asyncio.Condition()
        self._closing = False

    @property
    def base_url(self) -> str:
        """For `AsyncOpenAI(base_url=…)`."""
        return f"{self._server.origin}/v1"

    async def wait_for_requests(
        self, count: int, *, timeout_seconds: float = PATIENCE_SECONDS
    ) -> list[ProviderRequest]:
        """All requests, once there are at least `count`."""
        async with asyncio.timeout(timeout_seconds), self._changed:
            await self._changed.wait_for(lambda: len(self.requests) >= count)
        return self.requests

    async def wait_for_end(self, number: int) -> ProviderRequest:
        """The request with this number, once it has ended one way or the other."""
        await self.wait_for_requests(number + 1)
        async with asyncio.timeout(PATIENCE_SECONDS):
            await self.requests[number].ended.wait()
        return self.requests[number]

    async def __aenter__(self) -> ScriptedProvider:
        await self._server.__aenter__()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        await self._server.__aexit__(kind, error, trace)
        if self.unexpected and error is None:
            prompts = [request.prompt for request in self.unexpected]
            raise AssertionError(f"{len(prompts)} requests more than the script foresees: {prompts!r}")

    async def _handle(self, exchange: Exchange) -> None:
        request = exchange.request
        record = ProviderRequest(
            number=len(self.requests),
            at=datetime.now(UTC),
            at_monotonic=time.monotonic(),
            method=request.method,
            path=request.path,
            headers=dict(request.headers),
            body=_json_object(request.body),
        )
        self.requests.append(record)
        self._write_log(record, "request")
        async with self._changed:
            self._changed.notify_all()
        try:
            problem = _problem(request, record.body)
            if problem is not None:
                answer = status(
                    problem[0], {"error": {"message": problem[1], "type": "invalid_request_error"}}
                )
            else:
                answer = await self._next_answer(record)
            responding: Any = RespondingExchange(exchange) if request.path == _RESPONSES else exchange
            await answer.give(responding, record.body)
        except (asyncio.CancelledError, ConnectionError):
            record.client_left = not self._closing
            raise
        finally:
            record.status = exchange.status
            record.complete = exchange.complete
            record.ended_at = datetime.now(UTC)
            record.ended.set()
            self._write_log(record, "end")

    async def _next_answer(self, record: ProviderRequest) -> Answer:
        answer = await self._choose(record)
        if answer is None:
            answer = self._then
        if answer is None:
            self.unexpected.append(record)
            return status(501, {"error": {"message": "the provider's script is spent", "type": "script"}})
        return answer

    def _write_log(self, record: ProviderRequest, event: str) -> None:
        if self._log is None:
            return
        line = {
            "event": event,
            "number": record.number,
            "at": datetime.now(UTC).isoformat(),
            "at_monotonic": time.monotonic(),
            "path": record.path,
            "idempotency_key": record.idempotency_key,
            "prompt": record.prompt,
            "status": record.status,
            "complete": record.complete,
            "client_left": record.client_left,
        }
        with self._log.open("a") as file:
            file.write(json.dumps(line) + "\n")


def _chooser(script: Script) -> Callable[[ProviderRequest], Awaitable[Answer | None]]:
    if callable(script):

        async def ask(record: ProviderRequest) -> Answer | None:
            answer = script(record)
            return await answer if inspect.isawaitable(answer) else answer

        return ask
    by_prompt = (
        {key: deque(answers) for key, answers in script.items()} if isinstance(script, Mapping) else None
    )
    in_order = deque(() if isinstance(script, Mapping) else script)

    async def take(record: ProviderRequest) -> Answer | None:
        answers = in_order if by_prompt is None else by_prompt.get(record.prompt, in_order)
        return answers.popleft() if answers else None

    return take


def _problem(request: HttpRequest, body: dict[str, Any]) -> tuple[int, str] | None:
    """What a provider would refuse, as status and message."""
    if request.path not in ("/v1/chat/completions", _RESPONSES) or request.method != "POST":
        return 404, f"unknown request: {request.method} {request.path}"
    if not request.header("authorization"):
        return 401, "missing Authorization header"
    if not isinstance(body.get("model"), str) or not body["model"]:
        return 400, "field 'model' must be a text that is not empty"
    field = "input" if request.path == _RESPONSES else "messages"
    messages = body.get(field)
    if not isinstance(messages, list) or not messages:
        return 400, f"field {field!r} must be a list that is not empty"
    for message in messages:
        if isinstance(message, dict) and message.get("type", "message") != "message":
            continue  # of the Responses API: a tool call, or what it returned
        if not isinstance(message, dict) or "role" not in message:
            return 400, "every message needs a role"
        if not message.get("content") and not message.get("tool_calls"):
            return 400, "every message needs a content or tool calls"
    return None


def _json_object(body: bytes) -> dict[str, Any]:
    try:
        value = json.loads(body)
    except ValueError:
        return {}
    return value if isinstance(value, dict) else {}


async def _main() -> None:
    parser = argparse.ArgumentParser(description="Run a scripted provider until it is killed.")
    parser.add_argument("--script", type=Path, help='JSON list such as [{"answer": "status", "code": 503}]')
    parser.add_argument("--log", type=Path, help="append a JSON line for each request and each end")
    options = parser.parse_args()
    steps = json.loads(options.script.read_text()) if options.script else []
    answers = [ANSWERS[step.pop("answer")](**step) for step in steps]
    async with ScriptedProvider(answers, then=ok("done"), log=options.log) as provider:
        print(provider.base_url, flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_main())
