"""Payloads as plain JSON, written by Pydantic and readable by clients in any language."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import zip_longest
from pathlib import Path
from typing import Any

from temporalio.api.common.v1 import Payload
from temporalio.api.failure.v1 import Failure
from temporalio.contrib.pydantic import PydanticJSONPlainPayloadConverter, PydanticPayloadConverter
from temporalio.converter import (
    CompositePayloadConverter,
    DataConverter,
    DefaultFailureConverter,
    DefaultPayloadConverter,
    JSONPlainPayloadConverter,
    PayloadConverter as BasePayloadConverter,
)
from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from tasquencer.core.errors import WrongSetting
from tasquencer.settings import DATA_CONVERTER

__all__ = ["FailureConverter", "PayloadConverter", "configured", "data_converter", "is_default"]


_ANYTHING = (None, Any, object)
"""Type hints of receivers that accept any object."""


# The SDK makes a new payload converter for each activation of a workflow, and each time Pydantic's builds its
# serializer and type adapters. These are made once. They only hold caches.
class _LenientJson(PydanticJSONPlainPayloadConverter):
    """Passes malformed JSON to receivers that accept any object, so that a task can refuse it with a message.

    Without it the SDK would fail the workflow task again and again. For example, JavaScript writes half an
    emoji as a lone surrogate, which Pydantic's parser refuses.
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


class PayloadConverter(PydanticPayloadConverter):
    """Pydantic's payload converter, fast to create."""

    def __init__(self) -> None:
        CompositePayloadConverter.__init__(self, *_CONVERTERS)

    def from_payloads(self, payloads: Sequence[Payload], type_hints: list[type] | None = None) -> list[Any]:
        """See the base class. A receiver of any object gets the bytes if the encoding is unknown."""
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
    """Leaves out the stack trace of an expected failure. It is useless, and contains the worker's folders."""

    def to_failure(
        self, exception: BaseException, payload_converter: BasePayloadConverter, failure: Failure
    ) -> None:
        """See the base class."""
        if isinstance(exception, ApplicationError) and exception.category is ApplicationErrorCategory.BENIGN:
            exception.__traceback__ = None  # formatting it takes longer than the rest of the conversion
        super().to_failure(exception, payload_converter, failure)


data_converter = DataConverter(
    payload_converter_class=PayloadConverter, failure_converter_class=FailureConverter
)
"""Give this to a client that starts tasks from Python without `TasquencerPlugin`."""


def is_default(converter: DataConverter | None) -> bool:
    """Return whether the converter is the SDK's default in every part."""
    return converter is None or all(
        getattr(converter, part.name) == getattr(DataConverter.default, part.name)
        for part in fields(DataConverter)
        if part.init
    )


def configured(environment: Mapping[str, str]) -> DataConverter | None:
    """Return the data converter that `TASQ_DATA_CONVERTER` names, or None if it is not set.

    It is `module:attribute`: a `DataConverter`, or a function without arguments that returns one. The module
    may be in the current folder.

    Raises:
        WrongSetting: there is no such module or attribute, or it is not a data converter.
    """
    name = environment.get(DATA_CONVERTER)
    if not name:
        return None
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise WrongSetting(DATA_CONVERTER, f"must be module:attribute, found {name!r}")
    here = str(Path.cwd())
    if here not in sys.path and "" not in sys.path:
        sys.path.append(here)
    try:
        found = importlib.import_module(module_name)
        for part in attribute.split("."):
            found = getattr(found, part)
        converter = found if isinstance(found, DataConverter) else found()  # type: ignore[operator]
    except Exception as error:  # the user's module may raise any error
        raise WrongSetting(
            DATA_CONVERTER, f"{name!r} cannot be used: {type(error).__name__}: {error}"
        ) from error
    if not isinstance(converter, DataConverter):
        found_type = type(converter).__name__
        raise WrongSetting(
            DATA_CONVERTER, f"{name!r} must be a temporalio.converter.DataConverter, found {found_type}"
        )
    return converter
