"""Turn users' values into JSON, for the payloads and results of work items."""

from __future__ import annotations

import math
from typing import cast

from pydantic import BaseModel, JsonValue
from pydantic_core import PydanticSerializationError, to_jsonable_python

from tasquencer.core.errors import TaskMisused

__all__ = ["as_json"]


def as_json(value: object, what: str) -> JsonValue:
    """Return the value as JSON: models and dataclasses become objects, times and decimals text, bytes base64.

    A model whose class says `leaves_out_defaults = True` is written without its defaults.

    Args:
        value: Anything.
        what: Names the value in the error.

    Raises:
        TaskMisused: JSON cannot represent the value, such as NaN or an object of an unknown class.
    """
    try:
        if isinstance(value, BaseModel) and getattr(type(value), "leaves_out_defaults", False):
            return cast("JsonValue", value.model_dump(mode="json", exclude_defaults=True))
        dumped = to_jsonable_python(value, bytes_mode="base64", inf_nan_mode="constants")
    except (PydanticSerializationError, ValueError, RecursionError) as error:
        raise TaskMisused(f"{what} cannot be written as JSON: {error}") from error
    if _has_no_number(dumped):
        raise TaskMisused(f"{what} cannot be written as JSON: it contains NaN or infinity")
    return cast("JsonValue", dumped)


def _has_no_number(value: object) -> bool:
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, float) and not math.isfinite(part):
            return True
        if isinstance(part, dict):
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return False
