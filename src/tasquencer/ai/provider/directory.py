"""The providers that a file names (`TASQ_PROVIDERS`), and which one answers for a model.

    [providers.anthropic]
    base_url = "https://api.anthropic.com/v1"
    api_key_env = "ANTHROPIC_API_KEY"
    default_model = "claude-sonnet-4-5"

A model is then written `anthropic:claude-sonnet-4-5`, or `anthropic:` for the provider's default one. A model
without a provider's name before it is the default provider's, which `OPENAI_BASE_URL` and `OPENAI_API_KEY`
describe.
"""

from __future__ import annotations

import asyncio
import re
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import openai
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from tasquencer.ai.provider.client import guard, make_client
from tasquencer.ai.provider.prices import Price
from tasquencer.ai.provider.redaction import Redactor
from tasquencer.ai.provider.settings import is_azure, is_local, url_problem
from tasquencer.core.errors import WrongSetting
from tasquencer.core.validation import problems_of
from tasquencer.settings import cleaned, key_problem

__all__ = [
    "DEFAULT_PROVIDER",
    "Endpoint",
    "Endpoints",
    "ProviderEntry",
    "named_providers",
    "provider_problems",
]

DEFAULT_PROVIDER = "default"
"""The name of the provider that the environment describes."""

_SETTING = "TASQ_PROVIDERS"
_NAME = re.compile(r"[a-z0-9][a-z0-9_-]{0,49}")
_MOST_PROVIDERS = 100

_WITHOUT_SCHEMAS = ("api.anthropic.com", "api.deepseek.com")
"""Hosts that ignore or refuse a JSON Schema: there it becomes an instruction."""

_Environment = Annotated[str, Field(pattern=r"^[A-Za-z_][A-Za-z0-9_]{0,199}$")]


class ProviderEntry(BaseModel):
    """A provider in the file.

    Attributes:
        base_url: As for `OPENAI_BASE_URL`.
        api_key_env: The environment variable with the key. None: the server needs none.
        default_model: For `NAME:` without a model.
        headers_env: Further headers, and the environment variables with their values.
        api: Whether it takes chat completions or responses.
        concurrent_calls: How many calls one worker makes at the same time; None: no limit of its own.
        structured_output: Whether it takes a JSON Schema; otherwise the schema becomes an instruction. None:
            it does, unless it is one of a few that are known not to.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    base_url: str
    api_key_env: _Environment | None = None
    default_model: Annotated[str, Field(min_length=1, max_length=200)] | None = None
    headers_env: dict[str, _Environment] = Field(default_factory=dict)
    api: Literal["chat", "responses"] = "chat"
    concurrent_calls: Annotated[int, Field(ge=1, le=1_000_000)] | None = None
    structured_output: bool | None = None


@dataclass(frozen=True)
class Endpoint:
    """A provider as a call uses it."""

    name: str
    client: openai.AsyncOpenAI
    price: Price
    api: Literal["chat", "responses"] = "chat"
    default_model: str | None = None
    structured_output: bool | None = None
    concurrent_calls: int | None = None
    secrets: tuple[str, ...] = field(default=(), repr=False)

    @property
    def takes_schemas(self) -> bool:
        """Return whether the provider takes a JSON Schema."""
        if self.structured_output is not None:
            return self.structured_output
        return self.client.base_url.host not in _WITHOUT_SCHEMAS


class Endpoints:
    """All providers of a worker.

    Args:
        default: Answers for models without a provider's name before them.
    """

    def __init__(self, default: Endpoint) -> None:
        self.default = default
        self._named: dict[str, Endpoint] = {}
        self._places: dict[str, asyncio.Semaphore] = {}

    def add(self, name: str, entry: ProviderEntry, environment: Mapping[str, str], price: Price) -> Endpoint:
        """Add a provider of the file, with a client of its own."""
        known = cleaned(environment)
        key = known.get(entry.api_key_env) if entry.api_key_env else None
        headers = {header: known.get(variable, "") for header, variable in entry.headers_env.items()}
        if key and is_azure(_host(entry.base_url)):
            headers["api-key"] = key
        client = guard(make_client(api_key=key or "not-needed", base_url=entry.base_url, headers=headers))
        client.organization = client.project = None  # those of the environment are the default provider's
        endpoint = Endpoint(
            name=name,
            client=client,
            price=price,
            api=entry.api,
            default_model=entry.default_model,
            structured_output=entry.structured_output,
            concurrent_calls=entry.concurrent_calls,
            secrets=tuple(headers.values()),
        )
        self._named[name] = endpoint
        if entry.concurrent_calls is not None:
            self._places[name] = asyncio.Semaphore(entry.concurrent_calls)
        return endpoint

    def find(self, model: str | None) -> tuple[Endpoint, str | None]:
        """The provider for a model as a request names it, and the model's name there."""
        prefix, colon, rest = (model or "").partition(":")
        endpoint = self._named.get(prefix) if colon else None
        if endpoint is None:
            return self.default, model or self.default.default_model
        return endpoint, rest or endpoint.default_model

    def all(self) -> list[Endpoint]:
        """The default provider, and those of the file."""
        return [self.default, *self._named.values()]

    def redactor(self, others: Iterable[str] = ()) -> Redactor:
        """What removes the secrets of all providers from a text, and others."""
        secrets = [secret for one in self.all() for secret in one.secrets]
        return Redactor.of(*(one.client for one in self.all()), others=[*secrets, *others])

    def places(self, endpoint: Endpoint) -> asyncio.Semaphore | None:
        """The places for calls of this provider; None: there is no limit."""
        return self._places.get(endpoint.name)


def _host(base_url: str) -> str:
    """The host of a base URL."""
    return re.sub(r"^\w+://([^/:?#]*).*", r"\1", base_url)


def named_providers(environment: Mapping[str, str]) -> dict[str, ProviderEntry]:
    """The providers of the file that `TASQ_PROVIDERS` names, by name. Raises `WrongSetting`."""
    file = cleaned(environment).get(_SETTING)
    if file is None:
        return {}
    try:
        content = tomllib.loads(Path(file).read_text(encoding="utf-8"))
    except OSError as error:
        raise WrongSetting(_SETTING, f"cannot read {file!r}: {error.strerror}") from None
    except ValueError as error:  # not UTF-8, or not TOML
        raise WrongSetting(_SETTING, f"{file!r} is not TOML: {error}") from None
    return _File.read(content)


def provider_problems(environment: Mapping[str, str]) -> list[WrongSetting]:
    """What is wrong with the file of providers and with the variables that it names."""
    known = cleaned(environment)
    try:
        entries = named_providers(known)
    except WrongSetting as wrong:
        return [wrong]
    problems = []
    for name, entry in entries.items():
        variables = [*entry.headers_env.values(), *([entry.api_key_env] if entry.api_key_env else [])]
        for variable in variables:
            if variable not in known:
                problems.append(
                    WrongSetting(variable, f"not set; the provider {name!r} in {_SETTING} names it")
                )
            elif variable == entry.api_key_env and (problem := key_problem(known[variable])):
                problems.append(WrongSetting(variable, problem))
        if entry.api_key_env is None and not is_local(_host(entry.base_url)):
            problems.append(WrongSetting(_SETTING, f"providers.{name}.api_key_env: required"))
    return problems


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    providers: dict[str, ProviderEntry]

    @classmethod
    def read(cls, content: Mapping[str, object]) -> dict[str, ProviderEntry]:
        try:
            entries = cls.model_validate(content).providers
        except ValidationError as error:
            raise WrongSetting(_SETTING, "; ".join(problems_of(error))) from None
        if len(entries) > _MOST_PROVIDERS:
            raise WrongSetting(_SETTING, f"has more than {_MOST_PROVIDERS} providers")
        for name, entry in entries.items():
            if not _NAME.fullmatch(name) or name == DEFAULT_PROVIDER:
                expected = "expected lower case letters, digits, - and _, and not 'default'"
                raise WrongSetting(_SETTING, f"providers.{name[:50]}: {expected}")
            if problem := url_problem(entry.base_url):
                raise WrongSetting(_SETTING, f"providers.{name}.base_url: {problem}")
        return entries
