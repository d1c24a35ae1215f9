"""What providers and libraries say, made fit to be recorded: without secrets, as valid text.

Providers echo credentials ("Incorrect API key provided: sk-…"), and so do HTTP libraries (an illegal header's
value). What this module returns ends up in Temporal's history, in the ledger and in logs.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from openai import AsyncOpenAI

__all__ = ["REDACTED", "Redactor", "storable"]

REDACTED = "[redacted]"

_SHORTEST_SECRET = 8
"""Characters. Shorter keys are placeholders for local servers ("test", "ollama") and ordinary words.

So long, too, are the pieces of a key that are taken out: OpenAI masks a wrong key but for its first eight
characters and its last four."""

_UNSTORABLE = re.compile("[\x00\ud800-\udfff]")

_CREDENTIALS: tuple[tuple[re.Pattern[str], str], ...] = (
    (re.compile(r"\b(?:sk-|gsk_|xai-|hf_|AIza)[\w.*…-]+"), REDACTED),
    (
        re.compile(
            r"(?i)\b(bearer|basic)\s+(?!(?:tokens?|auth|authentication|authorization)\b)[^\s\"',;\\]+"
        ),
        rf"\1 {REDACTED}",
    ),
    (
        re.compile(
            r"(?i)\b(authorization|(?:x-)?api[-_ ]?key|access[-_]?token)"
            r"([\"']?\s*[:=]\s*[\"']?)(?!bearer\b|basic\b)[^\s\"',;&}\\]+"
        ),
        rf"\1\2{REDACTED}",
    ),
    (re.compile(r"(?<=://)[^/?#\s]+@"), f"{REDACTED}@"),
)

_SECRET_HEADER = re.compile(r"(?i)auth|key|token|secret|cookie")


def storable(text: str) -> str:
    """The text with NUL characters and lone surrogates as U+FFFD: neither fits into PostgreSQL or UTF-8."""
    return _UNSTORABLE.sub("\ufffd", text)


@dataclass(frozen=True)
class Redactor:
    """Removes from a text what must not be recorded: the given secrets, and what looks like a credential."""

    secrets: tuple[str, ...] = ()

    @classmethod
    def of(cls, client: AsyncOpenAI) -> Redactor:
        """Knows the client's API key and the credentials among its own headers and in its URL."""
        headers = client.default_headers
        named = [value for name, value in headers.items() if _SECRET_HEADER.search(name)]
        url = client.base_url
        basic = b64encode(f"{url.username}:{url.password}".encode()).decode() if url.password else ""
        secrets = [client.api_key, url.password, basic, *(one for one in named if isinstance(one, str))]
        return cls(tuple(_forms(secrets)))

    def __call__(self, text: str) -> str:
        """The text as it may be recorded. Cut it to length afterwards, or half a key may stay."""
        for secret in self.secrets:
            text = text.replace(secret, REDACTED)
        text = _without_pieces(text, self.secrets)
        for pattern, replacement in _CREDENTIALS:
            text = pattern.sub(replacement, text)
        return storable(text)


def _without_pieces(text: str, secrets: Iterable[str]) -> str:
    """The text without what is left of a secret that was cut or masked."""
    size = _SHORTEST_SECRET
    pieces = {secret[at : at + size] for secret in secrets for at in range(len(secret) - size + 1)}
    if not any(piece in text for piece in pieces):
        return text
    kept: list[str] = []
    begin = at = 0
    while at <= len(text) - size:
        if text[at : at + size] not in pieces:
            at += 1
            continue
        end = at + size
        while text[end - size + 1 : end + 1] in pieces:
            end += 1
        kept += [text[begin:at], REDACTED]
        begin = at = end
    return "".join([*kept, text[begin:]])


def _forms(secrets: Iterable[str]) -> Iterable[str]:
    """Each secret as it may turn up: as it is, in a URL, or in pieces if it has blanks (a faulty key).

    The longest come first, for one may contain another.
    """
    pieces = {piece for secret in secrets for piece in secret.split() if len(piece) >= _SHORTEST_SECRET}
    return sorted(pieces | {quote(piece, safe="") for piece in pieces}, key=len, reverse=True)
