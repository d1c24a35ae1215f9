"""The provider's settings: its key and address, proxies and certificate authorities."""

from __future__ import annotations

import importlib.util
import ipaddress
import re
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import httpx2

from tasquencer.ai.provider.prices import own_prices
from tasquencer.core.errors import WrongSetting
from tasquencer.settings import cleaned, key_problem

__all__ = [
    "DEFAULT_BASE_URL",
    "ProviderAddress",
    "is_azure",
    "is_local",
    "problems_in",
    "provider_address",
    "url_problem",
]

DEFAULT_BASE_URL = "https://api.openai.com/v1"

_NO_KEY = (
    "not set: every provider needs a key, except a model server on this machine, "
    "such as OPENAI_BASE_URL=http://127.0.0.1:11434/v1"
)

_ENDPOINTS = re.compile(r"/(chat/completions|completions|responses|embeddings|models)/?$")

_AZURE = (
    *(
        f".{service}.azure.{cloud}"
        for service in ("openai", "services.ai", "cognitiveservices")
        for cloud in ("com", "us", "cn")
    ),
    ".azure-api.net",
)
"""Ends of the host names where Azure serves OpenAI's models."""


@dataclass(frozen=True)
class ProviderAddress:
    """The provider's address.

    Attributes:
        base_url: The URL without a query.
        query: Added to every request, such as Azure's `api-version`.
    """

    base_url: str
    query: dict[str, str]

    @property
    def host(self) -> str:
        """The host's name."""
        return urlsplit(self.base_url).hostname or ""


def provider_address(environment: Mapping[str, str]) -> ProviderAddress:
    """Return the provider's address from `OPENAI_BASE_URL`. Raises `WrongSetting`."""
    url = cleaned(environment).get("OPENAI_BASE_URL", DEFAULT_BASE_URL)
    if problem := url_problem(url):
        raise WrongSetting("OPENAI_BASE_URL", problem)
    parts = urlsplit(url)
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    return ProviderAddress(parts._replace(query="").geturl(), query)


def url_problem(url: str) -> str | None:
    """What is wrong with a base URL; None if nothing is."""
    expected = "expected a URL such as https://models.example.org/v1 or http://127.0.0.1:11434/v1"
    try:
        parts = urlsplit(url)
        is_url = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
    except ValueError as error:
        return f"{error}; {expected}"
    if not is_url or re.search(r"[\s\"'<>{}$\\]", url) or not url.isprintable() or parts.fragment:
        return expected
    if found := _ENDPOINTS.search(parts.path):
        return f"ends in {found.group()!r}, which each request adds automatically: leave it out"
    return None


def is_local(host: str) -> bool:
    """Return whether a host is this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost" or host.endswith(".localhost")


def is_azure(host: str) -> bool:
    """Return whether a host belongs to Azure, in any of its clouds."""
    return host.endswith(_AZURE)


def problems_in(environment: Mapping[str, str]) -> list[WrongSetting]:
    """Return the problems with the provider's settings."""
    known = cleaned(environment)
    problems = []
    is_plain = False
    try:
        address = provider_address(known)
        is_plain = address.base_url.startswith("http://")
        if "OPENAI_API_KEY" not in known and not is_local(address.host):
            problems.append(WrongSetting("OPENAI_API_KEY", _NO_KEY))
    except WrongSetting as wrong:
        problems.append(wrong)
    if (key := known.get("OPENAI_API_KEY")) and (problem := key_problem(key)):
        problems.append(WrongSetting("OPENAI_API_KEY", problem))
    try:
        own_prices(known)
    except WrongSetting as wrong:
        problems.append(wrong)
    for name, value in known.items():
        problem = None
        if name in ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID"):
            problem = key_problem(value)
        elif name.upper() in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            problem = _proxy_problem(value)
        if problem is not None:
            problems.append(WrongSetting(name, problem))
    return problems + _certificate_problems(known, is_plain=is_plain)


def _proxy_problem(proxy: str) -> str | None:
    url = proxy if "://" in proxy else f"http://{proxy}"
    try:
        scheme = httpx2.Proxy(url).url.scheme
    except (ValueError, httpx2.InvalidURL):
        return "expected a proxy such as http://proxy.example.org:3128"
    if scheme in ("socks5", "socks5h") and importlib.util.find_spec("socksio") is None:
        return "a SOCKS proxy needs the package socksio: pip install socksio"
    return None


def _certificate_problems(known: Mapping[str, str], *, is_plain: bool) -> list[WrongSetting]:
    file, folder = known.get("SSL_CERT_FILE"), known.get("SSL_CERT_DIR")
    if file is not None:
        problem = _authority_problem(file)
        return [WrongSetting("SSL_CERT_FILE", problem)] if problem else []
    if folder is not None:
        is_folder = Path(folder).is_dir()
        return [] if is_folder else [WrongSetting("SSL_CERT_DIR", f"there is no folder {folder!r}")]
    if is_plain or _has_authorities():
        return []
    problem = (
        "not set, and this machine has no certificate authorities, so that no provider's certificate can be "
        "checked: install the package ca-certificates, or name a file of authorities here"
    )
    return [WrongSetting("SSL_CERT_FILE", problem)]


def _authority_problem(file: str) -> str | None:
    try:
        ssl.create_default_context(cafile=file)
    except ssl.SSLError:
        return f"{file!r} has no certificates in PEM format"
    except OSError as error:
        return f"cannot read {file!r}: {error.strerror}"
    return None


def _has_authorities() -> bool:
    if httpx2.create_ssl_context().cert_store_stats()["x509_ca"]:
        return True
    # The certificates in a folder are read when they are needed.
    folder = _authority_folder()
    return folder.is_dir() and any(folder.iterdir())


def _authority_folder() -> Path:
    return Path(ssl.get_default_verify_paths().openssl_capath)
