"""The OpenAI client for AI calls, which sends each request once and limits the size of answers."""

from __future__ import annotations

import json
from collections.abc import Mapping
from http.cookiejar import CookieJar
from typing import Any

import httpx2
import openai

from tasquencer.ai.provider.body import read_body
from tasquencer.ai.provider.reply import Reply, ReplyEnd
from tasquencer.ai.provider.settings import is_azure, is_local, problems_in, provider_address
from tasquencer.core.errors import TasquencerError
from tasquencer.settings import cleaned

__all__ = [
    "MAXIMUM_BODY_BYTES",
    "MAXIMUM_ERROR_BYTES",
    "MissingApiKey",
    "client_from",
    "guard",
    "make_client",
    "output_limit_field",
    "read_reply",
]

MAXIMUM_BODY_BYTES = 8 * 1024 * 1024
"""Maximum bytes of an answer's body. A Temporal payload carries a quarter of it. Longer ones are cut off."""

MAXIMUM_ERROR_BYTES = 64 * 1024
"""Maximum bytes of an error's body."""


class MissingApiKey(TasquencerError):
    """No key is configured for a provider that needs one."""

    def __init__(self) -> None:
        super().__init__(
            "no API key: set OPENAI_API_KEY; or set OPENAI_BASE_URL to a model server on this machine, "
            "such as http://127.0.0.1:11434/v1, which needs none"
        )


def client_from(environment: Mapping[str, str]) -> openai.AsyncOpenAI:
    """Return the client that the environment describes. A server on this machine needs no key.

    Raises:
        MissingApiKey: `OPENAI_API_KEY` is missing, and the provider is on another machine.
        WrongSetting: another of the provider's settings cannot be used.
    """
    known = cleaned(environment)
    address = provider_address(known)
    key = known.get("OPENAI_API_KEY") or ("not-needed" if is_local(address.host) else None)
    if key is None:
        raise MissingApiKey
    for wrong in problems_in(known):
        raise wrong
    client = make_client(
        api_key=key,
        base_url=address.base_url,
        query=address.query,
        # Azure accepts a key in this header. Only its newer addresses also accept the usual header.
        headers={"api-key": key} if is_azure(address.host) else {},
    )
    # The client would use an empty setting as a name.
    client.organization = known.get("OPENAI_ORG_ID")
    client.project = known.get("OPENAI_PROJECT_ID")
    return client


def make_client(
    *,
    api_key: str | None = None,
    base_url: str | None = None,
    organization: str | None = None,
    query: Mapping[str, str] | None = None,
    headers: Mapping[str, str] | None = None,
) -> openai.AsyncOpenAI:
    """Return a client that sends each request once. Missing arguments come from the environment, as in
    `openai`.

    It never tries again (the task does, with a new work item), follows no redirect (that would be a second
    request), and reads at most `MAXIMUM_ERROR_BYTES` of an error.

    Args:
        query, headers: Added to every request.
    """
    http_client = openai.DefaultAsyncHttpxClient(follow_redirects=False)
    return guard(
        openai.AsyncOpenAI(
            api_key=api_key,
            base_url=base_url,
            organization=organization,
            max_retries=0,
            default_query=query,
            default_headers=headers,
            http_client=http_client,
        )
    )


def guard(client: openai.AsyncOpenAI) -> openai.AsyncOpenAI:
    """Make the client limit the size of errors and store no cookies. Return the same client.

    Cookies of one answer would be sent with the requests of other tasks. Cookies that the client already has
    stay.
    """
    http = client._client
    hooks = http.event_hooks
    if _raise_error_status not in hooks["response"]:
        http.event_hooks = hooks | {"response": [*hooks["response"], _raise_error_status]}
        http.cookies = _UnchangingCookies(http.cookies.jar)
    return client


class _UnchangingCookies(CookieJar):
    """Keeps its first cookies, and accepts none from answers."""

    def __init__(self, cookies: CookieJar) -> None:
        super().__init__()
        for cookie in cookies:
            self.set_cookie(cookie)

    def extract_cookies(self, response: Any, request: Any) -> None:
        """Do nothing."""


async def read_reply(response: httpx2.Response) -> Reply:
    """Read the answer with the received part of its body, up to the limit."""
    body, end = await read_body(response, MAXIMUM_BODY_BYTES)
    return Reply(response.status_code, _lowered(response.headers), body, end)


def output_limit_field(base_url: httpx2.URL, model: str) -> str:
    """Return the name of the request's field that limits the output. There are two, and servers differ.

    OpenAI has deprecated `max_tokens`, and its reasoning models refuse it with a 400. Many compatible servers
    support only `max_tokens`, and ignore or refuse `max_completion_tokens` (Ollama continues to the end of
    the
    context: ollama/ollama#7125; llama.cpp before ggml-org/llama.cpp#19831). So the name is
    `max_completion_tokens` for OpenAI and Azure and for a model with the plain name of an OpenAI reasoning
    model, else `max_tokens`.
    """
    at_openai = base_url.host.endswith("api.openai.com") or is_azure(base_url.host)
    reasoning = model.startswith(("o1", "o3", "o4", "gpt-5", "gpt-6"))
    return "max_completion_tokens" if at_openai or reasoning else "max_tokens"


async def _raise_error_status(response: httpx2.Response) -> None:
    """Hook: raises the OpenAI client's error for the status, but limits the size of the body."""
    if response.is_success:
        return
    body, end = await read_body(response, MAXIMUM_ERROR_BYTES)
    reply = Reply(response.status_code, _lowered(response.headers), body, end)
    raw = reply.text.strip()
    if end is ReplyEnd.ENCODED:
        raw = f"its explanation has the content encoding {reply.encoding!r}, which was not asked for"
    try:
        content: object = json.loads(raw, strict=False)
    except (ValueError, RecursionError):
        content = raw
    raise openai.APIStatusError(f"Error code: {response.status_code}", response=response, body=content)


def _lowered(headers: httpx2.Headers) -> dict[str, str]:
    return {name.lower(): value for name, value in headers.items()}
