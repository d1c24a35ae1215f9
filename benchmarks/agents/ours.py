"""The agent on `AiAgentTask`."""

from __future__ import annotations

from typing import Any

import openai
from temporalio.client import Client
from temporalio.worker import Worker

from tasquencer import TasquencerPlugin
from tasquencer.ai import AiCalls
from tasquencer.sql import SqlLedger
from workflows.ai_agent import AiAgentTask

WORKFLOW = "AiAgentTask"
INPUT: Any = {"prompt": "Look everything up.", "tools": ["look_up"], "max_turns": 20}


async def look_up(number: int) -> str:
    """Look a number up."""
    return f"{number} is fine"


async def worker(address: str, queue: str, ledger: str) -> Worker:
    """Return its worker."""
    calls = AiCalls(openai.AsyncOpenAI(max_retries=0), "instant", tools=[look_up])
    client = await Client.connect(address, plugins=[TasquencerPlugin(SqlLedger(ledger), calls=calls)])
    return Worker(client, task_queue=queue, workflows=[AiAgentTask])
