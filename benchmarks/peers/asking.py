"""What both peers do: the AI call of the benchmark, sent once. Needs nothing of ours."""

from __future__ import annotations

import openai

__all__ = ["BACKOFF_SECONDS", "MAX_RETRIES", "ask", "make_client"]

BACKOFF_SECONDS = 0.05
MAX_RETRIES = 3


def make_client(base_url: str) -> openai.AsyncOpenAI:
    """A client that sends each request once."""
    return openai.AsyncOpenAI(api_key="not-needed", base_url=base_url, max_retries=0)


async def ask(client: openai.AsyncOpenAI, prompt: str) -> str:
    """The answer's text; raises what the client raises."""
    completion = await client.chat.completions.create(
        model="instant", messages=[{"role": "user", "content": prompt}]
    )
    return completion.choices[0].message.content or ""
