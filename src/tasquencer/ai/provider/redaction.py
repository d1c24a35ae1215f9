"""What providers and libraries say, made fit to be recorded: without secrets, as valid text.

Providers echo credentials ("Incorrect API key provided: sk-…"), and so do HTTP libraries (an illegal header's
value). What this module returns ends up in Temporal's history, in the ledger and in logs.
"""

from __future__ import annotations

import re
from base64 import b64encode
from collections.abc import Iterator, Sequence, Set
from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING

from tasquencer.core.entries import cleaned_text

if TYPE_CHECKING:
    from openai import AsyncOpenAI

__all__ = ["REDACTED", "Redactor"]

REDACTED = "[redacted]"

_SHORTEST_SECRET = 8
"""Characters. Shorter keys are placeholders for local servers ("test", "ollama") and ordinary words.

So long, too, are the pieces of a key that are taken out: OpenAI masks a wrong key but for its first eight
characters and its last four."""

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


_ESCAPE = re.compile(
    r"%(?P<percent>[0-9A-Fa-f]{2})|\\{1,4}(?:u00|x)(?P<json>[0-9A-Fa-f]{2})"
    r"|&#(?:(?P<decimal>\d{2,3})|[xX](?P<entity>[0-9A-Fa-f]{2}));"
)
"""A character in an encoding of single characters: percent, JSON's `\\u`, Python's `\\x`, HTML."""

_ENCODINGS = 2
"""How often a text may be encoded that way, one in another."""


@dataclass(frozen=True)
class Redactor:
    """Removes from a text what must not be recorded: the given secrets, and what looks like a credential.

    A secret is also recognized cut or masked, and in base64, hexadecimal, and with any of its characters
    escaped.
    """

    secrets: tuple[str, ...] = ()

    @classmethod
    def of(cls, client: AsyncOpenAI, others: Sequence[str] = ()) -> Redactor:
        """Knows the client's API key and the credentials among its own headers and in its URL."""
        headers = client.default_headers
        named = [value for name, value in headers.items() if _SECRET_HEADER.search(name)]
        url = client.base_url
        basic = b64encode(f"{url.username}:{url.password}".encode()).decode() if url.password else ""
        secrets = [
            client.api_key,
            url.password,
            basic,
            *(one for one in named if isinstance(one, str)),
            *others,
        ]
        return _redactor(tuple(secrets))

    def __call__(self, text: str) -> str:
        """The text as it may be recorded. Cut it to length afterwards, or half a key may stay."""
        if _ESCAPE.search(text):
            text = _without_pieces(text, self._pieces, *_unescaped(text))
        text = _without_pieces(text, self._pieces, text, range(len(text) + 1))
        for pattern, replacement in _CREDENTIALS:
            text = pattern.sub(replacement, text)
        return cleaned_text(text)

    @cached_property
    def _pieces(self) -> frozenset[str]:
        """All parts of the secrets, in all forms, that have the length of the shortest secret."""
        size = _SHORTEST_SECRET
        forms = {form for secret in self.secrets for form in _forms(secret)}
        return frozenset(form[at : at + size] for form in forms for at in range(len(form) - size + 1))


@lru_cache(maxsize=16)
def _redactor(secrets: tuple[str, ...]) -> Redactor:
    """A redactor for these secrets; those with blanks (a faulty key) are taken apart."""
    pieces = (piece for secret in secrets for piece in secret.split())
    return Redactor(tuple(dict.fromkeys(piece for piece in pieces if len(piece) >= _SHORTEST_SECRET)))


def _forms(secret: str) -> Iterator[str]:
    """The secret as it is, in hexadecimal, and in base64 at any place of a longer text."""
    raw = secret.encode(errors="replace")
    yield secret
    yield from (raw.hex(), raw.hex().upper(), raw.hex(" "), raw.hex(" ").upper())
    for before in range(3):
        encoded = b64encode(bytes(before) + raw).decode()
        # The characters at both ends also depend on what is before and after the secret.
        own = encoded[before + (before > 0) : (before + len(raw)) * 8 // 6]
        yield from (own, own.replace("+", "-").replace("/", "_"))


def _without_pieces(text: str, pieces: Set[str], plain: str, begins: Sequence[int]) -> str:
    """The text without the secrets, whole, cut or masked.

    Args:
        plain: Where to look for them: the text, or the text without escapes.
        begins: Where in the text each character of `plain` begins, and the text's length.
    """
    size = _SHORTEST_SECRET
    kept: list[str] = []
    begin = at = 0
    while at <= len(plain) - size:
        if plain[at : at + size] not in pieces:
            at += 1
            continue
        end = at + size
        while plain[end - size + 1 : end + 1] in pieces:
            end += 1
        kept += [text[begins[begin] : begins[at]], REDACTED]
        begin = at = end
    return "".join([*kept, text[begins[begin] :]]) if kept else text


def _unescaped(text: str) -> tuple[str, Sequence[int]]:
    """The text with escaped characters as themselves, and where in the text each of its characters begins."""
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
