"""How payloads are written: plain JSON through Pydantic, readable by clients in any language."""

from __future__ import annotations

from temporalio.contrib.pydantic import PydanticJSONPlainPayloadConverter
from temporalio.converter import (
    CompositePayloadConverter,
    DataConverter,
    DefaultPayloadConverter,
    JSONPlainPayloadConverter,
)

__all__ = ["PayloadConverter", "data_converter"]

# The SDK makes a new payload converter for each activation of a workflow, and Pydantic's then builds its
# serializer and type adapters anew. These are made once; they hold nothing but caches.
_CONVERTERS = tuple(
    PydanticJSONPlainPayloadConverter() if isinstance(converter, JSONPlainPayloadConverter) else converter
    for converter in DefaultPayloadConverter.default_encoding_payload_converters
)


class PayloadConverter(CompositePayloadConverter):
    """Pydantic's payload converter, cheap to make."""

    def __init__(self) -> None:
        super().__init__(*_CONVERTERS)


data_converter = DataConverter(payload_converter_class=PayloadConverter)
"""Give this to a client that starts tasks from Python without `TasquencerPlugin`."""
