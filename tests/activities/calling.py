"""Runs the activity `generate` against a server of the test's, outside of Temporal."""

from __future__ import annotations

import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from typing import Any, Literal

from pydantic import JsonValue
from temporalio.exceptions import ApplicationError
from temporalio.testing import ActivityEnvironment

from tasquencer.ai.answer import AiAnswer
from tasquencer.ai.job import AiJob, ChatMessage
from tasquencer.ai.provider.client import make_client
from tasquencer.ai.provider.directory import Endpoint
from tasquencer.ai.provider.exchange import Providers
from tasquencer.ai.provider.prices import Price
from tasquencer.ai.timeouts import CALL_MARGIN
from tasquencer.core.failure import Failure
from tasquencer.temporal.ai_calls import AiCalls
from tests.support.patience import PATIENCE_SECONDS

Api = Literal["chat", "responses"]


class Interface:
    """Which of a provider's two interfaces the calls use."""

    api: Api = "chat"


KEY = "sk-test-0123456789abcdef"
WORK_ITEM = "wi-1"
MODEL = "tiny-1"
SHORT_SECONDS = 10.0
"""A limit for calls that come to it. A busy machine has sent the request before."""


def job(prompt: str = "Say hello", **fields: Any) -> AiJob:
    return AiJob(messages=[ChatMessage(role="user", content=prompt)], **fields)


def schema(**properties: JsonValue) -> dict[str, JsonValue]:
    return {"type": "object", "properties": properties, "required": list(properties)}


def free(model: str, input_tokens: int, output_tokens: int) -> float | None:
    """Has no price for anything."""
    return None


@asynccontextmanager
async def activities_for(
    base_url: str, *, key: str = KEY, price: Price | None = free
) -> AsyncIterator[AiCalls]:
    async with (
        make_client(api_key=key, base_url=base_url) as client,
        AiCalls(client, MODEL, price, providers=_providers) as calls,
    ):
        yield calls


def _providers(default: Endpoint) -> Providers:
    return Providers(replace(default, api=Interface.api))


def environment(limit_seconds: float = PATIENCE_SECONDS, **info: Any) -> ActivityEnvironment:
    """Gives each call this long."""
    env = ActivityEnvironment()
    known: dict[str, Any] = {
        "activity_id": WORK_ITEM,
        "start_to_close_timeout": timedelta(seconds=limit_seconds) + CALL_MARGIN,
        "heartbeat_timeout": timedelta(seconds=30),
    }
    env.info = dataclasses.replace(env.info, **(known | info))
    return env


async def answer_of(base_url: str, asked: AiJob | None = None, **options: Any) -> AiAnswer:
    async with activities_for(base_url, **options) as activities:
        return await environment().run(activities.generate, asked or job())


async def error_of(
    base_url: str, asked: AiJob | None = None, *, limit_seconds: float = PATIENCE_SECONDS, **options: Any
) -> ApplicationError:
    """The error that the call ends with; no error is an AssertionError."""
    async with activities_for(base_url, **options) as activities:
        try:
            answer = await environment(limit_seconds).run(activities.generate, asked or job())
        except ApplicationError as error:
            return error
    raise AssertionError(f"the call did not fail but answered {answer!r}")


async def failure_of(base_url: str, asked: AiJob | None = None, **options: Any) -> Failure:
    error = await error_of(base_url, asked, **options)
    return Failure.model_validate(error.details[0])
