"""An order desk: an agent that looks orders up, and pays them back if a person approves.

    python -m examples.agent.order_desk

Temporal, the worker, a scripted model and the ledger all run on this machine, and end with the program. Each
model turn, each attempt at a tool and the approval is a work item; the table at the end shows them. The
answer is a JSON object. The model's first one is plain text: the next attempt says what was wrong with it.
"""

from __future__ import annotations

import asyncio
import os
import sys
import tempfile
from datetime import timedelta
from pathlib import Path
from typing import Any

import openai
from temporalio.client import Client, WorkflowHandle
from temporalio.worker import Worker

from tasquencer import TasquencerPlugin
from tasquencer.ai import AiCalls, ToolContext, ToolError, tool
from tasquencer.devkit.scripted_model import Refused, Reply, ToolUse, scripted_model
from tasquencer.devkit.temporal_server import embedded_temporal
from tasquencer.sql import SqlLedger
from workflows.ai_agent import AiAgentTask

ORDERS = {7: {"item": "a lamp", "paid": 49.0, "state": "broken on arrival"}}
_shop_is_down = [True]


@tool(retries=3, retry_on=(ConnectionError,))
async def search_order(number: int) -> dict[str, Any]:
    """Look an order up by its number."""
    if _shop_is_down:
        _shop_is_down.clear()
        raise ConnectionError("the shop does not answer")
    if number not in ORDERS:
        raise ToolError(f"there is no order {number}")
    return ORDERS[number]


@tool(requires_approval=True, approval_timeout=timedelta(hours=8))
async def refund(number: int, amount: float, context: ToolContext) -> str:
    """Pay an order back."""
    # A payment service takes the key, so that a second attempt does not pay twice.
    return f"{amount:.2f} paid back for order {number} ({context.idempotency_key})"


SCRIPT: list[Reply] = [
    Refused(429, {"retry-after": "1"}),
    [ToolUse("search_order", {"number": 7})],
    [ToolUse("refund", {"number": 7, "amount": 49.0})],
    "I have paid the 49.00 back.",
    '{"order": 7, "refunded": 49.0, "reply": "Order 7 arrived broken. I have paid the 49.00 back."}',
]

REQUEST = {
    "system": "You are the order desk. Look orders up before you answer. Pay back what arrived broken.",
    "prompt": "My lamp, order 7, arrived broken. Can I have my money back?",
    "tools": ["search_order", "refund"],
    "output_schema": {
        "type": "object",
        "properties": {
            "order": {"type": "integer"},
            "refunded": {"type": "number"},
            "reply": {"type": "string"},
        },
        "required": ["order", "refunded", "reply"],
    },
}


async def approve(task: WorkflowHandle[Any, Any]) -> None:
    """Wait for the refund to ask for its approval, and ask the person at the terminal."""
    while True:
        for item in await task.query("work_items"):
            if item["lineage"].endswith("/approval") and item["state"] == "started":
                break
        else:
            await asyncio.sleep(0.1)
            continue
        print("refund(number=7, amount=49.0) waits for an approval; elsewhere: `tasq review`")
        decision: dict[str, str] = {"decision": "approve"}
        if sys.stdin.isatty() and (await asyncio.to_thread(input, "approve? [Y/n] ")).lower() == "n":
            decision = {"decision": "reject", "comments": "Offer a new lamp instead."}
        await task.execute_update(
            "complete_work_item", {"work_item_id": item["id"], "actor": "anna", "result": decision}
        )
        return


async def main() -> None:
    """Run the order desk once."""
    with tempfile.TemporaryDirectory() as folder:
        database = f"sqlite:///{Path(folder) / 'ledger.db'}"
        async with embedded_temporal(ui=False) as server, scripted_model(SCRIPT) as model:
            provider = openai.AsyncOpenAI(api_key="none", base_url=model.base_url, max_retries=0)
            calls = AiCalls(provider, "scripted", tools=[search_order, refund])
            plugin = TasquencerPlugin(SqlLedger(database), calls=calls)
            client = await Client.connect(server.address, plugins=[plugin])
            async with provider, Worker(client, task_queue="order-desk", workflows=[AiAgentTask]):
                task = await client.start_workflow(
                    "AiAgentTask", REQUEST, id="order-desk-1", task_queue="order-desk"
                )
                await approve(task)
                result = await task.result()
            print(f"\n{result['output']['reply']}\n{result['output']}\n", flush=True)
            tasq = Path(sys.executable).with_name("tasq")
            environment = os.environ | {"TASQ_DATABASE_URL": database, "TEMPORAL_ADDRESS": server.address}
            program = await asyncio.create_subprocess_exec(tasq, "show", "order-desk-1", env=environment)
            await program.wait()


if __name__ == "__main__":
    asyncio.run(main())
