"""Clear errors for payloads that `tasq` cannot decode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Self

from temporalio.api.common.v1 import Payload
from temporalio.converter import (
    CompositePayloadConverter,
    DataConverter,
    PayloadCodec,
    SerializationContext,
    WithSerializationContext,
)

from tasquencer.cli.errors import CommandFailed, ExitCode
from tasquencer.settings import DATA_CONVERTER

__all__ = ["telling"]


def telling(converter: DataConverter) -> DataConverter:
    """Return the converter, with an error that ends the command for a payload that it cannot decode."""
    payload_converter = converter.payload_converter_class()
    known = None
    if isinstance(payload_converter, CompositePayloadConverter):
        known = frozenset(payload_converter.converters)
    return replace(converter, payload_codec=_Telling(converter.payload_codec, known))


class _Telling(PayloadCodec, WithSerializationContext):
    """Decodes with another codec, and raises `CommandFailed` if the result is still encoded.

    Args:
        inner: The user's codec, if there is one.
        known: The encodings that the payload converter reads. None if they are not known.
    """

    def __init__(self, inner: PayloadCodec | None, known: frozenset[bytes] | None) -> None:
        self._inner = inner
        self._known = known

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return list(payloads) if self._inner is None else await self._inner.encode(payloads)

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        decoded = list(payloads)
        if self._inner is not None:
            try:
                decoded = await self._inner.decode(payloads)
            except Exception as error:
                problem = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
                raise CommandFailed(
                    f"the codec of {DATA_CONVERTER} cannot decode a payload: {problem}", ExitCode.UNREACHABLE
                ) from error
        for payload in decoded:
            encoding = payload.metadata.get("encoding", b"")
            if self._known is not None and encoding not in self._known:
                raise CommandFailed(
                    f"cannot decode a payload with the encoding {encoding.decode(errors='replace')!r}: set "
                    f"{DATA_CONVERTER}=module:attribute to the data converter of the worker's client",
                    ExitCode.UNREACHABLE,
                )
        return decoded

    def with_context(self, context: SerializationContext) -> Self:
        inner: Any = self._inner
        if isinstance(inner, WithSerializationContext):
            inner = inner.with_context(context)
        return type(self)(inner, self._known)
