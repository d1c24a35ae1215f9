"""Removes secrets from the texts of providers and libraries, so that they are safe to record.

Providers repeat credentials ("Incorrect API key provided: sk-…"), and so do HTTP libraries (the value of an
illegal header). The texts go to Temporal's history, the ledger and logs.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from tasquencer.core.entries import cleaned_text

if TYPE_CHECKING:
    from openai import AsyncOpenAI
    from pydantic import JsonValue

__all__ = ["REDACTED", "Redactor", "secret_values"]

REDACTED = "[redacted]"

_SHORTEST_SECRET = 8
"""Characters. Shorter keys are placeholders for local servers ("test", "ollama") and ordinary words.

Removed pieces of a key have this length, too. OpenAI masks a wrong key except its first eight characters and
its last four."""

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

_SECRET_NAME = re.compile(r"(?i)auth|key|token|secret|cookie|passw|credential")


_ESCAPE = re.compile(
    r"%(?P<percent>[0-9A-Fa-f]{2})|\\{1,4}(?:u00|x)(?P<json>[0-9A-Fa-f]{2})"
    r"|&#(?:(?P<decimal>\d{2,3})|[xX](?P<entity>[0-9A-Fa-f]{2}));"
)
"""An escaped character: percent, JSON's `\\u`, Python's `\\x`, HTML."""

_ENCODINGS = 2
"""How many such encodings may be nested."""


@dataclass(frozen=True)
class Redactor:
    """Removes from a text the given secrets, and parts that look like credentials.

    It also recognizes a secret that is cut or masked, in base64 or hexadecimal, or has escaped characters.
    """

    secrets: tuple[str, ...] = ()

    @classmethod
    def of(cls, *clients: AsyncOpenAI, others: Iterable[str] = ()) -> Redactor:
        """Return a redactor for the clients' API keys, credentials in their headers and URLs, and others."""
        return _redactor((*(secret for client in clients for secret in _secrets_of(client)), *others))

    def __call__(self, text: str) -> str:
        """Return the text without secrets. Cut it to length afterwards, or half a key may remain."""
        text = self.without_secrets(text)
        for pattern, replacement in _CREDENTIALS:
            text = pattern.sub(replacement, text)
        return cleaned_text(text)

    def without_secrets(self, text: str) -> str:
        """Return the text without the given secrets. Parts that only look like credentials stay."""
        if _ESCAPE.search(text):
            text = self._without_pieces(text, *_unescaped(text))
        return self._without_pieces(text, text, range(len(text) + 1))

    def json_without_secrets(self, value: JsonValue) -> JsonValue:
        """Return the JSON with all its names and texts `without_secrets`."""
        if isinstance(value, str):
            return self.without_secrets(value)
        if isinstance(value, list):
            return [self.json_without_secrets(part) for part in value]
        if isinstance(value, dict):
            parts = value.items()
            return {self.without_secrets(name): self.json_without_secrets(part) for name, part in parts}
        return value

    def _without_pieces(self, text: str, plain: str, begins: Sequence[int]) -> str:
        """Return the text without the secrets, even cut or masked ones.

        Args:
            plain: The text to search: the text itself, or the text without escapes.
            begins: The position in the text of each character of `plain`, and the text's length.
        """
        pieces, halves, size, half = self._pieces, self._halves, _SHORTEST_SECRET, _SHORTEST_SECRET // 2
        kept: list[str] = []
        begin = 0
        # A piece covers one of these blocks, wherever it begins. To look for blocks is ten times faster.
        for block in range(0, len(plain), half):
            if plain[block : block + half] not in halves:
                continue
            for at in range(max(begin, block - half), block + 1):
                if plain[at : at + size] in pieces:
                    end = at + size
                    while plain[end - size + 1 : end + 1] in pieces:
                        end += 1
                    kept += [text[begins[begin] : begins[at]], REDACTED]
                    begin = end
                    break
        return "".join([*kept, text[begins[begin] :]]) if kept else text

    @cached_property
    def _halves(self) -> frozenset[str]:
        """Return all halves of the pieces."""
        half = _SHORTEST_SECRET // 2
        return frozenset(piece[at : at + half] for piece in self._pieces for at in range(half + 1))

    @cached_property
    def _pieces(self) -> frozenset[str]:
        """Return all parts of the secrets, in all forms, with the length of the shortest secret."""
        size = _SHORTEST_SECRET
        forms = {form for secret in self.secrets for form in _forms(secret)}
        return frozenset(form[at : at + size] for form in forms for at in range(len(form) - size + 1))


def secret_values(named: Mapping[str, object]) -> list[str]:
    """Return the values whose names say that they are secret, such as `X-Api-Key` or `SHOP_TOKEN`."""
    return [value for name, value in named.items() if _SECRET_NAME.search(name) and isinstance(value, str)]


def _secrets_of(client: AsyncOpenAI) -> list[str]:
    url = client.base_url
    basic = b64encode(f"{url.username}:{url.password}".encode()).decode() if url.password else ""
    return [client.api_key, url.password, basic, *secret_values(client.default_headers)]


@lru_cache(maxsize=16)
def _redactor(secrets: tuple[str, ...]) -> Redactor:
    """Return a redactor for these secrets. A secret with blanks (a faulty key) is split."""
    pieces = (piece for secret in secrets for piece in secret.split())
    return Redactor(tuple(dict.fromkeys(piece for piece in pieces if len(piece) >= _SHORTEST_SECRET)))


def _forms(secret: str) -> Iterator[str]:
    """Return the secret itself, in hexadecimal, and in base64 at any place of a longer text."""
    raw = secret.encode(errors="replace")
    yield secret
    yield from (raw.hex(), raw.hex().upper(), raw.hex(" "), raw.hex(" ").upper())
    for before in range(3):
        encoded = b64encode(bytes(before) + raw).decode()
        # The characters at both ends also depend on the text around the secret.
        own = encoded[before + (before > 0) : (before + len(raw)) * 8 // 6]
        yield from (own, own.replace("+", "-").replace("/", "_"))


def _unescaped(text: str) -> tuple[str, Sequence[int]]:
    """Return the text without escapes, and the position in the text of each of its characters."""
    begins: Sequence[int] = range(len(text) + 1)
    for _ in range(_ENCODINGS):
        if not _ESCAPE.search(text):
            break
        plain: list[str] = []
        places: list[int] = []
        at = 0
        for escape in _ESCAPE.finditer(text):
            plain.append(text[at : escape.start()])
            places += begins[at : escape.start()]
            named = escape["percent"] or escape["json"] or escape["entity"]
            plain.append(chr(int(named, 16) if named else int(escape["decimal"])))
            places.append(begins[escape.start()])
            at = escape.end()
        plain.append(text[at:])
        places += begins[at:]
        text, begins = "".join(plain), places
    return text, begins
