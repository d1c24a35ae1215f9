"""How payloads are written: plain JSON through Pydantic, readable by clients in any language."""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import zip_longest
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.contrib.pydantic import PydanticJSONPlainPayloadConverter
from temporalio.converter import (
    CompositePayloadConverter,
    DataConverter,
    DefaultFailureConverter,
    DefaultPayloadConverter,
    JSONPlainPayloadConverter,
    PayloadConverter as BasePayloadConverter,
)
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

__all__ = ["FailureConverter", "PayloadConverter", "data_converter"]


_ANYTHING = (None, Any, object)
"""Type hints of whoever takes any object."""


# The SDK makes a new payload converter for each activation of a workflow, and Pydantic's then builds its
# serializer and type adapters anew. These are made once; they hold nothing but caches.
class _LenientJson(PydanticJSONPlainPayloadConverter):
    """Hands what is no proper JSON on to whoever takes any object: a task refuses it, and says why.

    The SDK would fail the workflow task again and again, over an input that never gets better. JavaScript
    writes half an emoji as a lone surrogate, which Pydantic's parser refuses to read.
    """

    def from_payload(self, payload: Payload, type_hint: type | None = None) -> Any:
        """See the base class."""
        try:
            return super().from_payload(payload, type_hint)
        except ValueError:
            if type_hint not in _ANYTHING:
                raise
            try:
                return json.loads(payload.data)
            except (ValueError, RecursionError):
                return payload.data


_CONVERTERS = tuple(
    _LenientJson() if isinstance(converter, JSONPlainPayloadConverter) else converter
    for converter in DefaultPayloadConverter.default_encoding_payload_converters
)


class PayloadConverter(CompositePayloadConverter):
    """Pydantic's payload converter, cheap to make."""

    def __init__(self) -> None:
        super().__init__(*_CONVERTERS)

    def from_payloads(self, payloads: Sequence[Payload], type_hints: list[type] | None = None) -> list[Any]:
        """See the base class. Whoever takes any object gets the bytes of what has no readable encoding."""
        values: list[Any] = []
        for payload, hint in zip_longest(payloads, (type_hints or [])[: len(payloads)]):
            try:
                values += super().from_payloads([payload], None if hint is None else [hint])
            except Exception:
                if hint not in _ANYTHING:
                    raise
                values.append(payload.data)
        return values


class FailureConverter(DefaultFailureConverter):
    """Leaves out the stack trace of an expected failure: it says nothing, and names the worker's folders."""

    def to_failure(
        self, exception: BaseException, payload_converter: BasePayloadConverter, failure: Failure
    ) -> None:
        """See the base class."""
        super().to_failure(exception, payload_converter, failure)
        if isinstance(exception, ApplicationError) and exception.category is ApplicationErrorCategory.BENIGN:
            failure.ClearField("stack_trace")


data_converter = DataConverter(
    payload_converter_class=PayloadConverter, failure_converter_class=FailureConverter
)
"""Give this to a client that starts tasks from Python without `TasquencerPlugin`."""
