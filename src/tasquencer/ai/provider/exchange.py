"""One request to a provider, and its reply."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any, cast

import httpx2
import openai

from tasquencer.ai.job import AiJob
from tasquencer.ai.provider.body import ACCEPTED_ENCODING
from tasquencer.ai.provider.client import output_limit_field, read_reply
from tasquencer.ai.provider.directory import Endpoint, Endpoints
from tasquencer.ai.provider.reply import Reply
from tasquencer.ai.provider.requests import chat_body, responses_body
from tasquencer.core.failure import Failure

__all__ = ["CONNECT_LIMIT", "Providers", "Question"]

CONNECT_LIMIT = timedelta(seconds=10)
"""The time limit for the connection, which is shorter than that for the answer."""


@dataclass(frozen=True)
class Question:
    """What a model is asked once.

    Attributes:
        job: The conversation and its options.
        endpoint: The provider.
        model: The model's name there.
        work_item_id: Sent as `Idempotency-Key`.
        limit_seconds: How long the whole exchange may take. None: any time.
        tool_fields: Fields of the request that offer tools to the model.
    """

    job: AiJob
    endpoint: Endpoint
    model: str
    work_item_id: str
    limit_seconds: float | None
    tool_fields: Mapping[str, Any] = field(default_factory=dict)


class Providers(Endpoints):
    """All providers of a worker, and how they are asked."""

    async def exchange(self, question: Question) -> Reply | Failure:
        """Send one request and return the reply.

        Raises:
            Exception: of the client, if there is none.
        """
        job, endpoint, limit = question.job, question.endpoint, question.limit_seconds
        client, takes_schemas = endpoint.client, endpoint.takes_schemas
        offering = question.tool_fields
        if endpoint.api == "responses":
            path = "/responses"
            body = responses_body(job, question.model, offering, takes_schemas=takes_schemas)
        else:
            path, limit_field = "/chat/completions", output_limit_field(client.base_url, question.model)
            body = chat_body(job, question.model, limit_field, offering, takes_schemas=takes_schemas)
        connect = CONNECT_LIMIT.total_seconds()
        # Not `chat.completions.create`, which checks the body's types, a fifth of a call's CPU time.
        posting = client.post(
            path,
            body=body,
            options={
                "headers": {"Idempotency-Key": question.work_item_id, "Accept-Encoding": ACCEPTED_ENCODING},
                "timeout": httpx2.Timeout(limit, connect=connect if limit is None else min(connect, limit)),
                "security": {"bearer_auth": True},
            },
            cast_to=httpx2.Response,
            stream=True,
            stream_cls=openai.AsyncStream[object],
        )
        response = cast("httpx2.Response", await posting)
        async with contextlib.aclosing(response):
            return await read_reply(response)
