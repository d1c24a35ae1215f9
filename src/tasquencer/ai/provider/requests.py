"""The body of a request to a provider: what a job asks for, in the words of the provider's API."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

from tasquencer.ai.job import AiJob
from tasquencer.ai.strict_schema import strict_form

__all__ = ["chat_body"]

_SCHEMA_NAME = "output"


def chat_body(
    job: AiJob, model: str, limit_field: str, tools: Mapping[str, Any] = MappingProxyType({})
) -> dict[str, Any]:
    """The body of a request to `/chat/completions`.

    Args:
        job: What is asked for.
        model: The model's name, as the provider knows it.
        limit_field: The name of the field that caps the output.
        tools: The fields that offer tools.
    """
    body: dict[str, Any] = {
        **(job.extra_body or {}),
        "model": model,
        "messages": [message.as_sent() for message in job.messages],
        "stream": False,  # some gateways stream unless they are asked not to
    }
    given = {
        "temperature": job.temperature,
        limit_field: job.max_output_tokens,
        "top_p": job.top_p,
        "seed": job.seed,
        "stop": job.stop,
        "reasoning_effort": job.reasoning_effort,
    }
    body |= {name: value for name, value in given.items() if value is not None}
    if job.output_schema is not None:
        strict = strict_form(job.output_schema)
        schema = {
            "name": _SCHEMA_NAME,
            "schema": job.output_schema if strict is None else strict,
            "strict": strict is not None,
        }
        body["response_format"] = {"type": "json_schema", "json_schema": schema}
    return {**body, **tools}
