"""What providers and libraries say, made fit to be recorded: without secrets, as valid text.

Providers echo credentials ("Incorrect API key provided: sk-…"), and so do HTTP libraries (an illegal header's
value). What this module returns ends up in Temporal's history, in the ledger and in logs.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from urllib.parse import quote

from openai import AsyncOpenAI

__all__ = ["REDACTED", "Redactor", "storable"]

REDACTED = "[redacted]"

_SHORTEST_SECRET = 8
"""Characters. Shorter keys are placeholders for local servers ("test", "ollama") and ordinary words."""

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
    (re.compile(r"(?<=://)[^/\s@]+@"), f"{REDACTED}@"),
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
        """Knows the client's API key and the credentials among its own headers."""
        headers = client.default_headers
        named = [value for name, value in headers.items() if _SECRET_HEADER.search(name)]
        return cls(tuple(_forms([client.api_key, *(value for value in named if isinstance(value, str))])))

    def __call__(self, text: str) -> str:
        """The text as it may be recorded. Cut it to length afterwards, or half a key may stay."""
        for secret in self.secrets:
            text = text.replace(secret, REDACTED)
        for pattern, replacement in _CREDENTIALS:
            text = pattern.sub(replacement, text)
        return storable(text)


def _forms(secrets: Iterable[str]) -> Iterable[str]:
    """Each secret as it may turn up: as it is, in a URL, or in pieces if it has blanks (a faulty key).

    The longest come first, for one may contain another.
    """
    pieces = {piece for secret in secrets for piece in secret.split() if len(piece) >= _SHORTEST_SECRET}
    return sorted(pieces | {quote(piece, safe="") for piece in pieces}, key=len, reverse=True)
