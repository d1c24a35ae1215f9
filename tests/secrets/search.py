"""Looks for secrets in what was kept: whole, in pieces, and written in other ways."""

from __future__ import annotations

import base64
from collections.abc import Iterable
from urllib.parse import quote

__all__ = ["found_in"]

_PIECE = 8
"""Characters of a secret that must not be kept in a row."""


def found_in(kept: bytes | str, secrets: Iterable[str]) -> list[str]:
    """The pieces of the secrets that stand in it."""
    blob = kept.encode(errors="replace") if isinstance(kept, str) else kept
    return [piece.decode() for secret in secrets for piece in _pieces(secret) if piece in blob]


def _pieces(secret: str) -> list[bytes]:
    forms = [secret.encode(), quote(secret, safe="").encode()]
    for before in range(3):  # base64 reads three bytes at once: a secret looks different in each place
        written = base64.b64encode(b"\x00" * before + secret.encode())
        forms.append(written.rstrip(b"=")[4 * (before > 0) : -4])
    return [form[at : at + _PIECE] for form in forms for at in range(max(1, len(form) - _PIECE + 1))]
