"""A payload codec that encrypts, and a look at every payload of a history."""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterator, Sequence
from itertools import count

from google.protobuf.message import Message
from temporalio.api.common.v1 import Payload
from temporalio.api.history.v1 import HistoryEvent
from temporalio.converter import DataConverter, PayloadCodec

from tasquencer.temporal import data_converter

_KEY = b"only for tests"
ENCRYPTED = b"binary/encrypted"


class Encryption(PayloadCodec):
    """A stream cipher with a nonce and a tag, of the standard library alone."""

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return [
            Payload(metadata={"encoding": ENCRYPTED}, data=_encrypt(payload.SerializeToString()))
            for payload in payloads
        ]

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        for payload in payloads:
            if payload.metadata.get("encoding") != ENCRYPTED:
                raise ValueError(f"not encrypted: {payload}")
        return [Payload.FromString(_decrypt(payload.data)) for payload in payloads]


encrypting = DataConverter(payload_codec=Encryption())
"""The SDK's payload converter with the codec."""


def encrypting_models() -> DataConverter:
    """Our payload converter with the codec."""
    return DataConverter(
        payload_converter_class=data_converter.payload_converter_class, payload_codec=Encryption()
    )


def _key_stream(nonce: bytes) -> Iterator[int]:
    for block in count():
        yield from hashlib.sha256(_KEY + nonce + block.to_bytes(8)).digest()


def _mixed(data: bytes, nonce: bytes) -> bytes:
    return bytes(a ^ b for a, b in zip(data, _key_stream(nonce), strict=False))


def _encrypt(data: bytes) -> bytes:
    nonce = secrets.token_bytes(12)
    hidden = _mixed(data, nonce)
    return nonce + hmac.digest(_KEY, nonce + hidden, "sha256") + hidden


def _decrypt(data: bytes) -> bytes:
    nonce, tag, hidden = data[:12], data[12:44], data[44:]
    if not hmac.compare_digest(tag, hmac.digest(_KEY, nonce + hidden, "sha256")):
        raise ValueError("the tag does not fit: another key, or changed data")
    return _mixed(hidden, nonce)


def payloads_in(event: HistoryEvent) -> list[tuple[str, Payload]]:
    """Every payload of the event with the path to it, without what the SDK itself never encodes.

    Those are search attributes, and what its core notes in a marker: the name of a patch or a local activity.
    """
    of_core = (".details[data].payloads", ".details[patch-data].payloads")
    return [(path, payload) for path, payload in _walk(event, "") if not path.endswith(of_core)]


def _walk(message: Message, path: str) -> Iterator[tuple[str, Payload]]:
    if isinstance(message, Payload):
        yield path, message
        return
    for field, value in message.ListFields():
        if field.name == "search_attributes" or field.message_type is None:
            continue
        here = f"{path}.{field.name}"
        if field.message_type.GetOptions().map_entry:
            if field.message_type.fields_by_name["value"].message_type is not None:
                for key in value:
                    yield from _walk(value[key], f"{here}[{key}]")
        elif isinstance(value, Message):
            yield from _walk(value, here)
        else:
            for part in value:
                yield from _walk(part, here)
