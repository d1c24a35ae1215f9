"""What an answer is to be: text, or JSON of a type."""

from __future__ import annotations

from functools import lru_cache
from typing import Any, Generic, TypeVar, cast

from pydantic import JsonValue, TypeAdapter, ValidationError
from pydantic.errors import PydanticUserError

from tasquencer.core.errors import TaskMisused
from tasquencer.core.validation import problems_of

__all__ = ["OutputType", "output_type"]

_T = TypeVar("_T")

_WRAPPED = "output"
"""The field that holds an output which is no JSON object: providers only take schemas of objects."""


class OutputType(Generic[_T]):
    """Text, or what a Pydantic `TypeAdapter` validates.

    Attributes:
        name: For people, in lower case: `label` for a model `Label`; None for text and unnamed types.
        schema: The JSON Schema of the answer; None: any text will do.
    """

    def __init__(self, name: str | None, adapter: TypeAdapter[_T] | None) -> None:
        self.name = name
        self._adapter = adapter
        self.schema: dict[str, JsonValue] | None = None
        self._is_wrapped = False
        if adapter is None:
            return
        try:
            schema: dict[str, Any] = adapter.json_schema()
        except PydanticUserError as error:
            said = str(error).splitlines()[0]
            raise TaskMisused(f"the type given as `output` has no JSON Schema: {said}") from error
        self._is_wrapped = _root(schema).get("type") != "object"
        self.schema = _wrapped(schema) if self._is_wrapped else schema

    def read(self, text: str) -> _T:
        """The output in an answer's text.

        Raises:
            ValueError: the text does not fit; the message says why, in one line.
        """
        if self._adapter is None:
            return cast("_T", text)
        try:
            if not self._is_wrapped:
                return self._adapter.validate_json(text)
            wrapped = _JSON_OBJECT.validate_json(text)
            if _WRAPPED not in wrapped:
                raise ValueError(f"{_WRAPPED}: required")
            return self._adapter.validate_python(wrapped[_WRAPPED])
        except ValidationError as error:
            raise ValueError("; ".join(problems_of(error))) from None


_JSON_OBJECT: TypeAdapter[dict[str, Any]] = TypeAdapter(dict[str, Any])


def output_type(output: object) -> OutputType[Any]:
    """The type that `output` stands for: `str`, a `TypeAdapter`, or any type that one takes.

    Raises:
        TaskMisused: Pydantic can make no JSON Schema for it.
    """
    try:
        return _output_type(output)
    except TypeError:  # it cannot be hashed, such as an annotation with a list in it
        return _made(output)


@lru_cache(maxsize=32)  # few: the sandbox makes each workflow run another class of the same type
def _output_type(output: object) -> OutputType[Any]:
    return _made(output)


def _made(output: object) -> OutputType[Any]:
    if output is str:
        return OutputType(None, None)
    if isinstance(output, TypeAdapter):
        return OutputType(None, output)
    name = output.__name__.lower() if isinstance(output, type) and output.__module__ != "builtins" else None
    try:
        return OutputType(name, TypeAdapter[Any](output))  # type: ignore[arg-type]
    except PydanticUserError as error:
        said = str(error).splitlines()[0]
        raise TaskMisused(f"`output` must be a type that Pydantic can validate: {said}") from error


def _root(schema: dict[str, Any]) -> dict[str, Any]:
    """The schema itself, or the definition that it refers to."""
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#/$defs/"):
        found: dict[str, Any] = schema["$defs"][reference.removeprefix("#/$defs/")]
        return found
    return schema


def _wrapped(schema: dict[str, Any]) -> dict[str, JsonValue]:
    inner = {name: value for name, value in schema.items() if name != "$defs"}
    wrapped: dict[str, JsonValue] = {
        "type": "object",
        "properties": {_WRAPPED: inner},
        "required": [_WRAPPED],
        "additionalProperties": False,
    }
    if "$defs" in schema:
        wrapped["$defs"] = schema["$defs"]
    return wrapped
