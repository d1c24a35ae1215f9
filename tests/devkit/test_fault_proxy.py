from __future__ import annotations

import asyncio
from time import monotonic

import httpx2
import openai
import pytest
from openai import AsyncOpenAI

from tasquencer.devkit.fault_proxy import (
    Delay,
    DroppedConnection,
    Fault,
    ServerError,
    TooManyRequests,
    fault_proxy,
)
from tasquencer.devkit.http_server import Exchange, HttpServer
from tests.support.answers import ok, stall, status, truncated
from tests.support.patience import PATIENCE_SECONDS
from tests.support.provider import ScriptedProvider


def client_of(base_url: str) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=base_url, api_key="sk-secret", max_retries=0, timeout=PATIENCE_SECONDS)


async def ask(client: AsyncOpenAI) -> str | None:
    completion = await client.chat.completions.create(
        model="m",
        messages=[{"role": "user", "content": "x"}],
        extra_headers={"Idempotency-Key": "item-7"},
    )
    return completion.choices[0].message.content


async def test_each_fault_is_spent_on_one_request_and_the_rest_passes_through() -> None:
    faults: list[Fault] = [TooManyRequests(retry_after_seconds=2), DroppedConnection(), ServerError(503)]
    async with (
        ScriptedProvider([ok("one"), ok("two")]) as provider,
        fault_proxy(provider.base_url, faults=faults) as proxy,
        client_of(proxy.base_url) as client,
    ):
        with pytest.raises(openai.RateLimitError) as limited:
            await ask(client)
        with pytest.raises(openai.APIConnectionError):
            await ask(client)
        with pytest.raises(openai.InternalServerError):
            await ask(client)
        assert [await ask(client), await ask(client)] == ["one", "two"]

    assert limited.value.response.headers["retry-after"] == "2"
    assert len(provider.requests) == 2
    assert [request.fault for request in proxy.requests] == [*faults, None, None]
    assert [request.status for request in proxy.requests] == [429, None, 503, 200, 200]


async def test_a_dropped_connection_is_a_real_reset() -> None:
    async with fault_proxy("http://127.0.0.1:1/v1", faults=[DroppedConnection()]) as proxy:
        port = httpx2.URL(proxy.base_url).port
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\n\r\n{}")
        with pytest.raises(ConnectionResetError):
            await reader.read()
        writer.close()


async def test_headers_and_body_reach_the_upstream_unchanged_and_no_key_is_kept() -> None:
    seen: list[Exchange] = []

    async def upstream(exchange: Exchange) -> None:
        seen.append(exchange)
        await exchange.respond(
            200, [("x-request-id", "req_1"), ("set-cookie", "a=1"), ("set-cookie", "b=2")], b"{}"
        )

    async with (
        HttpServer(upstream) as server,
        fault_proxy(f"{server.origin}/api/v1/") as proxy,
        httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client,
    ):
        answer = await client.post(
            f"{proxy.base_url}/chat/completions?a=%2F",
            content=b'{"x":  1}',
            headers={"authorization": "Bearer sk-secret", "idempotency-key": "item-7", "user-agent": "me"},
        )

    request = seen[0].request
    assert request.target == "/api/v1/chat/completions?a=%2F"
    assert request.body == b'{"x":  1}'
    assert request.header("authorization") == "Bearer sk-secret"
    assert request.header("idempotency-key") == "item-7"
    assert request.header("user-agent") == "me"
    assert request.header("host") == server.origin.removeprefix("http://")
    assert answer.headers["x-request-id"] == "req_1"
    assert answer.headers.get_list("set-cookie") == ["a=1", "b=2"]
    assert proxy.requests[0].idempotency_key == "item-7"
    assert "sk-secret" not in repr(proxy.requests)


async def test_a_stream_passes_piece_by_piece() -> None:
    release = asyncio.Event()

    async def upstream(exchange: Exchange) -> None:
        await exchange.start(200, [("content-type", "text/event-stream")])
        await exchange.send(b"first")
        await release.wait()
        await exchange.send(b"second")
        await exchange.finish()

    async with (
        HttpServer(upstream) as server,
        fault_proxy(server.origin) as proxy,
        httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client,
        client.stream("POST", f"{proxy.base_url}/v1/chat/completions", content=b"{}") as answer,
    ):
        parts = answer.aiter_raw()
        assert await anext(parts) == b"first"
        release.set()
        assert await anext(parts) == b"second"


async def test_health_checks_spend_no_fault() -> None:
    async def upstream(exchange: Exchange) -> None:
        await exchange.respond(200, [], b"fine")

    async with (
        HttpServer(upstream) as server,
        fault_proxy(server.origin, faults=[ServerError(500)]) as proxy,
        httpx2.AsyncClient(trust_env=False, timeout=PATIENCE_SECONDS) as client,
    ):
        assert (await client.get(f"{proxy.base_url}/health")).text == "fine"
        assert (await client.post(f"{proxy.base_url}/x")).status_code == 500
        assert (await client.post(f"{proxy.base_url}/x")).text == "fine"


async def test_a_delay_comes_before_the_real_answer() -> None:
    async with (
        ScriptedProvider([ok("late")]) as provider,
        fault_proxy(provider.base_url, faults=[Delay(0.2)]) as proxy,
        client_of(proxy.base_url) as client,
    ):
        started = monotonic()
        assert await ask(client) == "late"
        assert monotonic() - started >= 0.2


async def test_a_client_that_leaves_ends_the_upstream_request_too() -> None:
    async with (
        ScriptedProvider([stall()]) as provider,
        fault_proxy(provider.base_url) as proxy,
        client_of(proxy.base_url) as client,
    ):
        asking = asyncio.create_task(ask(client))
        await provider.wait_for_requests(1)
        asking.cancel()
        assert (await provider.wait_for_end(0)).client_left


async def test_the_upstreams_own_errors_pass_unchanged() -> None:
    async with (
        ScriptedProvider([status(401), truncated()]) as provider,
        fault_proxy(provider.base_url) as proxy,
        client_of(proxy.base_url) as client,
    ):
        with pytest.raises(openai.AuthenticationError):
            await ask(client)
        with pytest.raises(openai.APIConnectionError):
            await ask(client)


async def test_an_upstream_out_of_reach_is_reported_as_bad_gateway() -> None:
    async with (
        fault_proxy("http://127.0.0.1:1/v1") as proxy,
        client_of(proxy.base_url) as client,
    ):
        with pytest.raises(openai.InternalServerError, match=r"fault proxy cannot reach 127\.0\.0\.1"):
            await ask(client)
        assert proxy.requests[0].status == 502
