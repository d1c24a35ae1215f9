"""A data converter of somebody's own, as `TASQ_DATA_CONVERTER` names it."""

from __future__ import annotations

from collections.abc import Sequence

from temporalio.api.common.v1 import Payload
from temporalio.converter import DataConverter, PayloadCodec

from tests.support.encryption import Encryption, encrypting_models

converter = encrypting_models()


class AnotherKey(PayloadCodec):
    """Cannot decrypt what `converter` has encrypted."""

    async def encode(self, payloads: Sequence[Payload]) -> list[Payload]:
        return await Encryption().encode(payloads)

    async def decode(self, payloads: Sequence[Payload]) -> list[Payload]:
        changed = [Payload(metadata=payload.metadata, data=payload.data[::-1]) for payload in payloads]
        return await Encryption().decode(changed)


def make() -> DataConverter:
    return converter


def of_another_key() -> DataConverter:
    return DataConverter(payload_codec=AnotherKey())


def nothing() -> str:
    return "no converter"
