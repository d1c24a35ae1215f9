"""The AI call: one work item, one activity, one request.

Nothing here tries again. Temporal runs the activity once (`maximum_attempts=1`), the OpenAI client sends its
request once (`max_retries=0`), and the task creates the next work item if there is one. An error becomes a
`Failure`, which `tasquencer.temporal.failures` passes to the workflow.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
import time
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from datetime import UTC, datetime, timedelta
from functools import partial
from types import TracebackType
from typing import Any, Self
from uuid import uuid4

import openai
from pydantic import JsonValue
from temporalio import activity

from tasquencer.ai.answer import AiAnswer
from tasquencer.ai.job import AiJob, ChatMessage
from tasquencer.ai.mcp import McpSettings, mcp_tools, read_servers
from tasquencer.ai.provider.answers import judge, unfit
from tasquencer.ai.provider.classify import classify
from tasquencer.ai.provider.client import client_from, guard
from tasquencer.ai.provider.directory import DEFAULT_PROVIDER, Endpoint, named_providers
from tasquencer.ai.provider.exchange import Providers, Question
from tasquencer.ai.provider.prices import Price, own_prices, price_list
from tasquencer.ai.provider.redaction import Redactor
from tasquencer.ai.provider.reply import Reply
from tasquencer.ai.provider.schemas import SchemaChecks
from tasquencer.ai.timeouts import call_limit
from tasquencer.ai.tools import ToolSource, by_name, checked, offered, tool_fields
from tasquencer.core.errors import TasquencerError
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.ledger.contract import Ledger
from tasquencer.settings import DEFAULT_MODEL, secrets_in
from tasquencer.temporal.failures import AI_CALL
from tasquencer.temporal.supervision import Supervision
from tasquencer.temporal.tool_activity import ToolActivity

__all__ = ["HEARTBEAT_INTERVAL", "AiCalls", "ClientRetries"]

HEARTBEAT_INTERVAL = timedelta(seconds=0.4)
"""Where the server does not push cancels, they reach an activity only in the answer to a heartbeat, so these
come often. The `max_heartbeat_throttle_interval` of the worker decides how many are really sent, so give it
the same interval."""

_QUICKLY_JUDGED = 64 * 1024
"""A body of at most this number of bytes is judged faster than a thread starts."""


class ClientRetries(TasquencerError):
    """The OpenAI client would repeat a request automatically, without a work item."""

    def __init__(self, max_retries: int) -> None:
        super().__init__(
            f"the OpenAI client must have max_retries=0, found {max_retries}: the task retries, each time "
            "with a new work item; use make_client() or AsyncOpenAI(max_retries=0)"
        )


def _without_a_place(endpoint: Endpoint) -> Failure:
    limit = f"the limit of {endpoint.concurrent_calls} calls to the provider {endpoint.name!r}"
    return Failure.of(FailureKind.NOT_PICKED_UP, f"{limit} left no place in time; nothing was sent")


class AiCalls:
    """The activity `generate`: give it to the plugin, `TasquencerPlugin(ledger, calls=AiCalls())`.

    Args:
        client: Must have `max_retries=0`. From now on it limits the size of errors and stores no cookies.
        None means the client that the environment describes (`OPENAI_API_KEY`, `OPENAI_BASE_URL`). It is
        created when the worker starts and closed when it has stopped.
        default_model: The model for jobs that name none. None: `TASQ_MODEL`, else `gpt-5-mini`.
        price: Returns US dollars for model, input and output tokens. The default is the file that
        `TASQ_PRICES` names, then the list of `genai-prices`. A cost that the provider reports counts first.
        heartbeat_interval: Time between two heartbeats of a call, at most a third of its heartbeat timeout.
            Where the server pushes cancels, it is always that third.
        tools: What models may call: functions with type hints and a docstring, see `tasquencer.ai.tool`.
        mcp_servers: Servers whose tools models may call, too, by name. None: those in the file that
            `TASQ_MCP_SERVERS` names, see `tasquencer.ai.mcp`.
        providers: Makes the worker's providers from the default one. Tests give another, see `ScriptedCalls`.

    Raises:
        ClientRetries: the client would retry.
        MissingApiKey, WrongSetting: on start, the environment describes no client.
    """

    def __init__(
        self,
        client: openai.AsyncOpenAI | None = None,
        default_model: str | None = None,
        price: Price | None = None,
        heartbeat_interval: timedelta = HEARTBEAT_INTERVAL,
        tools: Iterable[ToolSource | Callable[..., Any]] = (),
        mcp_servers: Mapping[str, McpSettings] | None = None,
        providers: Callable[[Endpoint], Providers] = Providers,
    ) -> None:
        if client is not None and client.max_retries != 0:
            raise ClientRetries(client.max_retries)
        self._given_client = client
        self._default_model = default_model or os.environ.get("TASQ_MODEL") or DEFAULT_MODEL
        self._given_price = price
        self._make_providers = providers
        self._supervision = Supervision(heartbeat_interval)
        self._schema_checks = SchemaChecks()
        self._tools = dict(by_name(tools))
        self._mcp_servers = mcp_servers
        self._other_secrets: list[str] = []
        self._tool_activity = ToolActivity(self._tools, self._redactor, self._supervision)
        self._closing = contextlib.AsyncExitStack()
        if client is not None:
            self._use(client)

    def _use(self, client: openai.AsyncOpenAI) -> None:
        price = self._given_price or price_list(str(client.base_url), own_prices(os.environ))
        self._providers = self._make_providers(
            Endpoint(DEFAULT_PROVIDER, guard(client), price, default_model=self._default_model)
        )

    def _redactor(self) -> Redactor:
        """Return what removes all secrets that the worker knows."""
        return self._providers.redactor(self._other_secrets)

    def check_in(self, ledger: Ledger) -> None:
        """Make calls only for work items that this ledger holds as started. The plugin calls this."""
        self._supervision.ledger = ledger

    @property
    def activities(self) -> list[Callable[..., Awaitable[Any]]]:
        """Return the activities for a worker."""
        return [self.generate, self._tool_activity.call_tool]

    def stops_within(self, grace_period: timedelta) -> None:
        """Set how long a call may still run after its worker began to stop. The plugin calls this."""
        self._supervision.grace_period = grace_period

    def cancels_are_pushed(self, pushed: bool) -> None:
        """Note whether the server pushes cancels, which makes most heartbeats needless."""
        self._supervision.pushed = pushed

    async def __aenter__(self) -> Self:
        self._other_secrets = secrets_in(os.environ)
        await self._closing.enter_async_context(self._schema_checks)
        await self._offer_tools_of_servers()
        if self._given_client is None:
            self._use(await self._closing.enter_async_context(client_from(os.environ)))
        for name, entry in named_providers(os.environ).items():
            price = self._given_price or price_list(entry.base_url, own_prices(os.environ))
            endpoint = self._providers.add(name, entry, os.environ, price)
            self._closing.push_async_callback(endpoint.client.close)
        return self

    async def _offer_tools_of_servers(self) -> None:
        servers = read_servers(os.environ) if self._mcp_servers is None else self._mcp_servers
        if not servers:
            return
        self._other_secrets += [secret for one in servers.values() for secret in one.secrets]
        theirs = await self._closing.enter_async_context(mcp_tools(servers))
        whole = by_name([*self._tools.values(), *theirs])
        added = whole.keys() - self._tools.keys()
        self._tools |= whole
        for name in added:
            self._closing.callback(self._tools.pop, name)

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._closing.aclose()

    @activity.defn(name=AI_CALL)
    async def generate(self, job: AiJob) -> AiAnswer:
        """Ask the model once. The activity's id is the work item's and is sent as `Idempotency-Key`.

        The request ends `CALL_MARGIN` before the activity's start-to-close timeout. A cancellation closes the
        connection immediately and propagates, so that Temporal records it correctly (a cancel, or the end of
        the worker's grace period as `WorkerShutdown`). A pause changes nothing, a reset is a failure.

        Raises:
            ApplicationError: of the failure's kind, with the `Failure` as its detail. `NotAllowed` for a
            caller whose work item is not started.
        """
        return await self._supervision.run(partial(self._attempt, job))

    async def _attempt(self, job: AiJob) -> AiAnswer | Failure:
        endpoint, model = self._providers.find(job.model)
        if model is None:
            problem = f"model: the provider {endpoint.name!r} has no default model, name one"
            return Failure.of(FailureKind.INVALID_REQUEST, problem)
        outcome = await self._asked(job, endpoint, model)
        if isinstance(outcome, Failure) and job.fallback_models:
            following, _ = self._providers.find(job.fallback_models[0])
            known: dict[str, JsonValue] = {"provider": endpoint.name, "next_provider": following.name}
            return outcome.model_copy(update={"details": outcome.details | known})
        return outcome

    async def _asked(self, job: AiJob, endpoint: Endpoint, model: str) -> AiAnswer | Failure:
        info = activity.info()
        try:
            tools = offered(job.tools or [], self._tools)
        except ValueError as unknown:
            return Failure.of(FailureKind.INVALID_REQUEST, str(unknown), model=model)
        limit = call_limit(info.start_to_close_timeout)
        seconds = limit.total_seconds() if limit is not None else None
        begin = time.monotonic()
        latency = None
        try:
            problem = await self._problem_of_schema(job)
            if problem is not None:
                return Failure.of(FailureKind.INVALID_REQUEST, problem, model=model)
            async with self._place(endpoint, seconds) as has_place:
                if has_place:
                    offering = tool_fields(job, tools) if tools else {}
                    question = Question(job, endpoint, model, info.activity_id, seconds, offering)
                    reply = await self._providers.exchange(question)
                else:
                    reply = _without_a_place(endpoint)
            latency = time.monotonic() - begin
            # The time until Temporal gives up on the activity, and a second for the transport.
            whole = info.start_to_close_timeout
            left = None if whole is None else max(1.0, whole.total_seconds() - latency - 1)
            if isinstance(reply, Failure):
                outcome: AiAnswer | Failure = reply
            else:
                outcome = await self._judge(reply, job, endpoint, model, left)
        except Exception as error:  # noqa: BLE001 - classified, and logged if it is a bug
            # Only now, because the client may just have fetched its key.
            clean = Redactor.of(endpoint.client, others=endpoint.secrets)
            outcome = classify(error, now=datetime.now(UTC), clean=clean, limit_seconds=seconds)
            if outcome.kind == FailureKind.UNEXPECTED:
                activity.logger.error("%s\n%s", outcome, clean("".join(traceback.format_exception(error))))
        latency = time.monotonic() - begin if latency is None else latency
        if isinstance(outcome, Failure):
            details = {"model": model, "latency_seconds": latency} | outcome.details
            return outcome.model_copy(update={"details": details})
        calls = outcome.tool_calls and checked(outcome.tool_calls, tools)
        return outcome.model_copy(update={"latency_seconds": latency, "tool_calls": calls})

    @property
    def endpoints(self) -> list[Endpoint]:
        """The providers, the default one first."""
        return self._providers.all()

    async def check(self, endpoint: Endpoint, seconds: float) -> str:
        """Ask the provider's default model for a few tokens: `ok`, or the failure in one line."""
        if endpoint.default_model is None:
            return "no default_model to ask"
        asked = AiJob(messages=[ChatMessage(role="user", content="Answer: ok")], max_output_tokens=16)
        try:
            async with asyncio.timeout(seconds):
                question = Question(asked, endpoint, endpoint.default_model, str(uuid4()), seconds)
                reply = await self._providers.exchange(question)
                if isinstance(reply, Reply):
                    outcome = await self._judge(reply, asked, endpoint, endpoint.default_model, seconds)
                else:
                    outcome = reply
        except Exception as error:  # noqa: BLE001 - classified
            clean = Redactor.of(endpoint.client, others=endpoint.secrets)
            outcome = classify(error, now=datetime.now(UTC), clean=clean, limit_seconds=seconds)
        # So few tokens may all be reasoning: then the text is empty, and the provider has answered.
        answered = isinstance(outcome, AiAnswer) or outcome.kind == FailureKind.INVALID_OUTPUT
        return "ok" if answered else str(outcome)

    async def _problem_of_schema(self, job: AiJob) -> str | None:
        if job.output_schema is None:
            return None
        problem = await self._schema_checks.problem_of_schema(job.output_schema)
        return None if problem is None else f"output_schema is not a usable JSON Schema: {problem}"

    @contextlib.asynccontextmanager
    async def _place(self, endpoint: Endpoint, seconds: float | None) -> AsyncIterator[bool]:
        """Limit the block to these seconds, the wait for a place included, and say whether there was one."""
        places = self._providers.places(endpoint)
        if places is None:
            async with asyncio.timeout(seconds):
                yield True
            return
        begin = time.monotonic()
        try:
            async with asyncio.timeout(seconds):
                await places.acquire()
        except TimeoutError:
            yield False
            return
        try:
            async with asyncio.timeout(None if seconds is None else begin + seconds - time.monotonic()):
                yield True
        finally:
            places.release()

    async def _judge(
        self, reply: Reply, job: AiJob, endpoint: Endpoint, model: str, seconds: float | None
    ) -> AiAnswer | Failure:
        clean = Redactor.of(endpoint.client, others=endpoint.secrets)
        judging = partial(
            judge,
            reply,
            asked_model=model,
            output_schema=job.output_schema,
            price=endpoint.price,
            clean=clean,
            now=datetime.now(UTC),
            offers_tools=bool(job.tools),
        )
        # Two megabytes of JSON would block every other call.
        outcome = judging() if len(reply.body) <= _QUICKLY_JUDGED else await asyncio.to_thread(judging)
        if job.output_schema is None or isinstance(outcome, Failure) or outcome.tool_calls:
            return outcome
        checks = self._schema_checks
        problem = await checks.problem_of_output(outcome.text, job.output_schema, seconds or math.inf)
        return outcome if problem is None else unfit(outcome, reply, problem, clean)
