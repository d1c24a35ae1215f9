"""The model of the agents: calls two tools for a number of turns, then answers. A process of its own."""

from __future__ import annotations

import asyncio
import json
from typing import Any

from tasquencer.devkit.http_server import Exchange, HttpServer

__all__ = ["TOOLS_A_TURN", "TURNS"]

TURNS = 10
TOOLS_A_TURN = 2


def completion(body: dict[str, Any]) -> dict[str, Any]:
    """Two tool calls, or the answer after the last turn."""
    turn = sum(message["role"] == "assistant" for message in body["messages"])
    message: dict[str, Any] = {"role": "assistant", "content": None}
    if turn < TURNS:
        message["tool_calls"] = [
            {
                "id": f"call_{turn}_{number}",
                "type": "function",
                "function": {"name": "look_up", "arguments": json.dumps({"number": number})},
            }
            for number in range(TOOLS_A_TURN)
        ]
    else:
        message["content"] = "Done."
    reason = "tool_calls" if turn < TURNS else "stop"
    return {
        "id": f"chatcmpl-{turn}",
        "object": "chat.completion",
        "created": 1,
        "model": "instant",
        "choices": [{"index": 0, "finish_reason": reason, "message": message}],
        "usage": {"prompt_tokens": 100, "completion_tokens": 20, "total_tokens": 120},
    }


async def answer(exchange: Exchange) -> None:
    content = json.dumps(completion(json.loads(exchange.request.body))).encode()
    await exchange.respond(200, [("content-type", "application/json")], content)


async def serve() -> None:
    async with HttpServer(answer) as server:
        print(f"serving {server.origin}/v1", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(serve())
