"""The strict form of a JSON Schema: providers promise an answer that fits only for schemas in this form.

In it, every object lists its properties, requires all of them and allows no others. Source:
https://platform.openai.com/docs/guides/structured-outputs#supported-schemas.
"""

from __future__ import annotations

from typing import cast

from pydantic import JsonValue

__all__ = ["strict_form"]

_NOT_STRICT = frozenset(
    {
        "allOf", "contains", "default", "dependentRequired", "dependentSchemas", "else", "if", "not", "oneOf",
        "patternProperties", "prefixItems", "propertyNames", "then", "unevaluatedItems",
        "unevaluatedProperties", "uniqueItems",
    }
)  # fmt: skip

_WHOLE_VALUES = frozenset({"const", "enum", "examples"})
"""Keywords whose value is no schema."""


def strict_form(schema: dict[str, JsonValue]) -> dict[str, JsonValue] | None:
    """The same schema in strict form, or None: what it allows would change.

    Objects that say nothing of further properties are closed. Nobody has asked for those.
    """
    if schema.get("type") != "object":
        return None
    try:
        return cast("dict[str, JsonValue]", _closed(schema))
    except _NotStrict:
        return None


class _NotStrict(Exception):
    pass


def _closed(schema: JsonValue) -> JsonValue:
    if not isinstance(schema, dict) or not schema or _NOT_STRICT & schema.keys():
        raise _NotStrict
    if "$ref" in schema and len(schema) > 1:
        raise _NotStrict
    closed = {name: _part(name, value) for name, value in schema.items()}
    if schema.get("type") == "object" or "properties" in schema:
        properties = schema.get("properties")
        required = schema.get("required")
        if not isinstance(properties, dict) or not isinstance(required, list):
            raise _NotStrict
        if set(map(str, required)) != properties.keys() or schema.get("additionalProperties", False):
            raise _NotStrict
        closed["additionalProperties"] = False
    return closed


def _part(name: str, value: JsonValue) -> JsonValue:
    if name in _WHOLE_VALUES:
        return value
    if name in ("properties", "$defs", "definitions"):
        return {key: _closed(one) for key, one in value.items()} if isinstance(value, dict) else value
    if name == "items":
        return _closed(value)
    if name == "anyOf":
        return [_closed(one) for one in value] if isinstance(value, list) else value
    return value
