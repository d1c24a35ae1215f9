"""Tools of MCP servers: the worker connects to them, and offers their tools beside its own.

The servers stand in a JSON file, as other programs write it:

    {"mcpServers": {
        "files": {"command": "mcp-server-files", "args": ["/srv/docs"]},
        "shop": {"url": "https://shop.example/mcp", "headers": {"Authorization": "Bearer ${SHOP_TOKEN}"},
                 "options": {"max_retries": 2, "requires_approval": true}}
    }}

A tool `read` of the server `files` is called `files__read`.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import parse_qsl, unquote, urlsplit

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    PrivateAttr,
    ValidationError,
    model_validator,
)

from tasquencer.ai.provider.redaction import Redactor, secret_values
from tasquencer.ai.provider.reply import nests_too_deeply
from tasquencer.ai.tool_calls import ToolOptions
from tasquencer.ai.tools import ToolContext, ToolError, ToolSource, as_result
from tasquencer.core.errors import TasquencerError, WrongSetting
from tasquencer.core.validation import keepable, problems_of
from tasquencer.core.wording import one_line

if TYPE_CHECKING:
    import mcp

__all__ = ["MCP_SERVERS", "McpServerFailed", "McpSettings", "McpTool", "mcp_tools", "read_servers"]

MCP_SERVERS = "TASQ_MCP_SERVERS"
"""The setting that names the file."""

_MOST_TOOLS = 128
_MOST_PAGES = 20
_DESCRIPTION_LENGTH = 4_000
_SCHEMA_BYTES = 64 * 1024
"""Limits for what a server says about its tools: all of it goes out with each request."""

_CONNECT_SECONDS = 30.0
_HARMLESS_HEADERS = frozenset({"accept", "accept-language", "content-type", "user-agent"})
_VARIABLE = re.compile(r"\$\{(\w+)\}")


class McpServerFailed(TasquencerError):
    """An MCP server cannot be used."""

    def __init__(self, name: str, problem: str) -> None:
        super().__init__(f"MCP server {name!r}: {problem}")


class McpSettings(BaseModel):
    """How one MCP server is reached.

    Attributes:
        command, args, env, cwd: A program that speaks MCP on its standard input and output.
        url, headers: A server that speaks streamable HTTP. `${NAME}` stands for an environment variable.
        options: How each call of its tools is carried out, see `ToolOptions`.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    command: str | None = None
    args: list[str] = Field(default_factory=list)
    env: dict[str, str] | None = None
    cwd: str | None = None
    url: str | None = None
    headers: dict[str, str] = Field(default_factory=dict)
    options: ToolOptions = ToolOptions()
    _secret_variables: tuple[str, ...] = PrivateAttr(default=())

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be recorded of them: see `docs/guides/tools.md`."""
        known = (
            *(value for name, value in self.headers.items() if name.lower() not in _HARMLESS_HEADERS),
            *secret_values(self.env or {}),
            *_secrets_in_url(self.url or ""),
            *self._secret_variables,
        )
        return tuple(secret for secret in known if secret)

    @model_validator(mode="after")
    def _is_reached_in_one_way(self) -> McpSettings:
        if (self.command is None) == (self.url is None):
            raise ValueError("needs either command or url")
        return self


def _secrets_in_url(url: str) -> list[str]:
    try:
        parts = urlsplit(url)
    except ValueError:  # the connection fails with it
        return []
    return [unquote(parts.password or ""), *secret_values(dict(parse_qsl(parts.query)))]


_Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9-]{1,32}$")]


class _File(BaseModel):
    mcpServers: dict[_Name, McpSettings]  # noqa: N815 (other programs' name)


def read_servers(environment: Mapping[str, str]) -> dict[str, McpSettings]:
    """The servers in the file that `TASQ_MCP_SERVERS` names; none if it names none.

    Raises:
        WrongSetting: there is no such file, or it is not as it should be.
    """
    name = environment.get(MCP_SERVERS)
    if not name:
        return {}
    try:
        text = Path(name).read_text("utf-8")
        whole = _File.model_validate_json(_with_variables(text, environment))
        used = {found[1]: environment[found[1]] for found in _VARIABLE.finditer(text)}
    except ValidationError as error:
        raise WrongSetting(MCP_SERVERS, f"{name!r}: {'; '.join(problems_of(error))}") from None
    except (OSError, ValueError) as error:
        raise WrongSetting(MCP_SERVERS, f"{name!r} cannot be read: {error}") from None
    for settings in whole.mcpServers.values():
        settings._secret_variables = tuple(secret_values(used))
    return whole.mcpServers


def _with_variables(text: str, environment: Mapping[str, str]) -> str:
    def value(found: re.Match[str]) -> str:
        if found[1] not in environment:
            raise ValueError(f"${{{found[1]}}} is not set")
        return json.dumps(environment[found[1]])[1:-1]

    return _VARIABLE.sub(value, text)


@asynccontextmanager
async def mcp_tools(servers: Mapping[str, McpSettings]) -> AsyncIterator[list[ToolSource]]:
    """The tools of these servers, which stay connected while the block runs.

    Raises:
        McpServerFailed: one of them cannot be reached or lists tools that cannot be used.
    """
    async with AsyncExitStack() as connections:
        tools: list[ToolSource] = []
        for name, settings in servers.items():
            server = await connections.enter_async_context(_Server(name, settings))
            tools += await server.tools()
        yield tools


class _Server:
    """A connection that is made anew when it has broken."""

    def __init__(self, name: str, settings: McpSettings) -> None:
        self.name = name
        self.settings = settings
        self._connecting = asyncio.Lock()
        self._connection: _Connection | None = None

    async def __aenter__(self) -> _Server:
        try:
            await self.client()
        except ImportError:
            raise McpServerFailed(self.name, "install 'tasquencer[mcp]'") from None
        except Exception as error:  # noqa: BLE001 - its text may hold secrets
            clean = Redactor.of(others=self.settings.secrets)
            raise McpServerFailed(self.name, clean(f"cannot be reached: {_cause(error)}")) from None
        return self

    async def __aexit__(self, *raised: object) -> None:
        await self.drop()

    async def client(self) -> mcp.Client:
        """The connected client."""
        async with self._connecting:
            if self._connection is None or self._connection.is_over:
                self._connection = _Connection(self.settings)
                await self._connection.open()
            return self._connection.client

    async def drop(self) -> None:
        """End the connection."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def tools(self) -> list[ToolSource]:
        """All tools of the server."""
        client = await self.client()
        tools: list[ToolSource] = []
        cursor: str | None = None
        for _ in range(_MOST_PAGES):
            listed = await client.list_tools(cursor=cursor)
            tools += [McpTool(self, one) for one in listed.tools]
            cursor = listed.next_cursor
            if cursor is None:
                break
        if len(tools) > _MOST_TOOLS:
            raise McpServerFailed(self.name, f"has {len(tools):,} tools, the limit is {_MOST_TOOLS}")
        return tools


class _Connection:
    """One connection, in a task of its own: it must be closed by the task that has opened it."""

    def __init__(self, settings: McpSettings) -> None:
        self._settings = settings
        self._opened: asyncio.Future[mcp.Client] = asyncio.get_running_loop().create_future()
        self._closing = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    @property
    def is_over(self) -> bool:
        return self._task is None or self._task.done()

    @property
    def client(self) -> mcp.Client:
        return self._opened.result()

    async def open(self) -> None:
        self._task = asyncio.create_task(self._keep(), name="mcp")
        await asyncio.wait_for(asyncio.shield(self._opened), _CONNECT_SECONDS)

    async def close(self) -> None:
        self._closing.set()
        if self._task is not None:
            await asyncio.wait([self._task], timeout=_CONNECT_SECONDS)
            self._task.cancel()

    async def _keep(self) -> None:
        try:
            async with _connected(self._settings) as client:
                self._opened.set_result(client)
                await self._closing.wait()
        except Exception as error:  # noqa: BLE001 - whoever waits for it gets it
            if not self._opened.done():
                self._opened.set_exception(error)


@asynccontextmanager
async def _connected(settings: McpSettings) -> AsyncIterator[mcp.Client]:
    import httpx2
    from mcp import Client, StdioServerParameters
    from mcp.client.streamable_http import streamable_http_client

    async with AsyncExitStack() as parts:
        if settings.url is None:
            program = StdioServerParameters(
                command=settings.command or "", args=settings.args, env=settings.env, cwd=settings.cwd
            )
            yield await parts.enter_async_context(Client(program))
        else:
            http = await parts.enter_async_context(
                httpx2.AsyncClient(headers=settings.headers, follow_redirects=False)
            )
            transport = streamable_http_client(settings.url, http_client=http)
            yield await parts.enter_async_context(Client(transport))


class McpTool:
    """A tool of an MCP server."""

    def __init__(self, server: _Server, listed: mcp.Tool) -> None:
        plain = re.sub(r"[^A-Za-z0-9_-]", "_", f"{server.name}__{listed.name}")
        self.name = plain[:64]
        self.options = server.settings.options
        self._server = server
        self._listed = listed.name
        self._description = (listed.description or listed.title or listed.name)[:_DESCRIPTION_LENGTH]
        self._parameters: dict[str, JsonValue] = listed.input_schema
        try:
            size = len(json.dumps(keepable(listed.input_schema)).encode())
        except ValueError as error:
            raise McpServerFailed(server.name, f"the schema of tool {self.name!r} {error}") from None
        if size > _SCHEMA_BYTES:
            raise McpServerFailed(
                server.name,
                f"the schema of tool {self.name!r} has {size:,} bytes, the limit is {_SCHEMA_BYTES:,}",
            )

    def schema(self) -> dict[str, JsonValue]:
        """See `ToolSource`."""
        return {"name": self.name, "description": self._description, "parameters": self._parameters}

    def problem_with(self, arguments: str) -> str | None:
        """See `ToolSource`. The server checks the arguments against its schema."""
        try:
            _object(arguments)
        except ToolError as error:
            return error.message
        return None

    def is_transient(self, error: Exception) -> bool:
        """See `ToolSource`."""
        return error.retry if isinstance(error, ToolError) else True

    async def call(self, arguments: str, context: ToolContext) -> JsonValue:
        """See `ToolSource`."""
        given = _object(arguments)
        try:
            client = await self._server.client()
            result = await client.call_tool(self._listed, given)
        except Exception as error:
            with contextlib.suppress(Exception):
                await self._server.drop()
            raise ConnectionError(f"MCP server {self._server.name!r}: {_cause(error)}") from error
        text = "\n".join(getattr(part, "text", f"[{part.type}]") for part in result.content)
        if result.is_error:
            raise ToolError(text or "the tool has failed")
        return as_result(text if result.structured_content is None else result.structured_content)


def _object(arguments: str) -> dict[str, Any]:
    if nests_too_deeply(arguments):
        raise ToolError("the arguments are nested too deeply")
    try:
        given = json.loads(arguments)
    except ValueError as error:
        raise ToolError(f"the arguments are no JSON: {error}") from None
    if not isinstance(given, dict):
        raise ToolError("the arguments must be a JSON object")
    return given


def _cause(error: BaseException) -> str:
    while isinstance(error, BaseExceptionGroup) and error.exceptions:
        error = error.exceptions[0]
    return one_line(f"{type(error).__name__}: {error}", 300)
