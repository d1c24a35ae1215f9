"""Checks of JSON from outside, made before any other code uses it.

The same rules apply to a task's input, an operator's action and the lines of a batch. Databases must be able
to hold each text, and depth and size are limited. An error names a few problems, each in a short line.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, TypeVar, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails

from tasquencer.core.errors import InvalidRequest
from tasquencer.core.retry import LONGEST_BACKOFF

__all__ = [
    "LARGEST_INTEGER",
    "LONGEST_SECONDS",
    "MOST_VALUES",
    "ActorName",
    "FilledText",
    "Interval",
    "Number",
    "Reason",
    "RequestModel",
    "Seconds",
    "Text",
    "Whole",
    "keepable",
    "limit_size",
    "limit_values",
    "problems_of",
    "refuse_far_too_many",
    "unknown_fields",
    "validated",
]

LARGEST_INTEGER = 2**31 - 1
"""The largest number in an input. The type INTEGER of every database can hold it."""

LONGEST_SECONDS = LONGEST_BACKOFF.total_seconds()
"""The longest time in an input."""

_DEEPEST = 100
"""Levels of lists and objects. JSON parsers, including the ledger's, give up at about 200."""

MOST_VALUES = 50_000
"""Names and values in one piece of JSON from outside. A workflow must not compute for longer than two
seconds."""

_MOST_PROBLEMS = 20
_PROBLEM_LENGTH = 300
"""An error message names at most 20 problems, each in at most 300 characters."""

_Request = TypeVar("_Request", bound=BaseModel)


def _checked_text(text: str) -> str:
    if "\x00" in text:
        raise ValueError("must not contain NUL characters")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise ValueError("must not contain lone surrogates (it is not valid Unicode text)") from None
    return text


def _filled(text: str) -> str:
    if not text:
        raise ValueError("must not be empty")
    return text


def keepable(value: JsonValue) -> JsonValue:
    """Return the value if Temporal, the ledger's databases and JSON parsers can all carry it.

    Raises:
        ValueError: the value contains text that databases refuse, NaN or infinity, is nested too deeply, or
        has too many values.
    """
    level, depth, seen = [value], 0, 1
    while level:
        below: list[JsonValue] = []
        for part in level:
            if isinstance(part, str):
                _checked_text(part)
            elif isinstance(part, dict | list):
                if depth == _DEEPEST:
                    raise ValueError(f"must not be nested deeper than {_DEEPEST} levels")
                below += part
                if isinstance(part, dict):
                    below += part.values()
                if seen + len(below) > MOST_VALUES:
                    raise ValueError(f"must not have more than {MOST_VALUES:,} values")
            elif isinstance(part, float) and not math.isfinite(part):
                raise ValueError("must not contain NaN or infinity (it is not valid JSON)")
        seen += len(below)
        level, depth = below, depth + 1
    return value


def _no_truth(value: object) -> object:
    if isinstance(value, bool):
        raise ValueError("must be a number")
    return value


Text = Annotated[str, AfterValidator(_checked_text)]
FilledText = Annotated[Text, AfterValidator(_filled)]
Whole = Annotated[int, BeforeValidator(_no_truth)]
ActorName = Annotated[FilledText, Field(max_length=200)]
"""The actor in an operator's action."""
Reason = Annotated[Text, Field(max_length=2_000)]
"""The reason in an operator's action."""
Number = Annotated[float, BeforeValidator(_no_truth), Field(allow_inf_nan=False)]
Seconds = Annotated[Number, Field(gt=0, le=LONGEST_SECONDS)]
Interval = Annotated[Number, Field(ge=0, le=LONGEST_SECONDS)]


class RequestModel(BaseModel):
    """Part of a task's input. Unknown fields are refused. A null field counts as not given.

    Payloads of work items leave out its defaults.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    leaves_out_defaults: ClassVar[bool] = True

    @model_validator(mode="before")
    @classmethod
    def _null_is_not_given(cls, raw: Any) -> Any:
        if not isinstance(raw, dict) or None not in raw.values():
            return raw
        return {
            name: value for name, value in raw.items() if value is not None or not cls._refuses_null(name)
        }

    @classmethod
    def _refuses_null(cls, name: Any) -> bool:
        field = cls.model_fields.get(name)
        return field is not None and type(None) not in get_args(field.annotation)


def validated(model: type[_Request], raw: object, example: str, most_values: int = MOST_VALUES) -> _Request:
    """Turn the raw input of a task into its request. Raises `InvalidRequest`.

    Args:
        model: The class of the request.
        raw: What a client has sent.
        example: A short request that is valid, for the error's message.
        most_values: Names and values that the input may have in all its fields together.
    """
    if isinstance(raw, model):
        return raw
    if not isinstance(raw, dict):
        raise InvalidRequest([f"the input must be one JSON object such as {example}, not {_named(raw)}"])
    refuse_far_too_many(raw, model)
    limit_values(raw, most_values)
    try:
        return model.model_validate(raw)
    except ValidationError as error:
        raise InvalidRequest(problems_of(error, model)) from None


def refuse_far_too_many(raw: Mapping[str, object], model: type[BaseModel]) -> None:
    """Raise `InvalidRequest` for a number of unknown fields that would keep Pydantic busy for seconds."""
    if len(raw) > len(model.model_fields) + _MOST_PROBLEMS:
        raise InvalidRequest(unknown_fields([name for name in raw if name not in model.model_fields]))


def limit_values(raw: Mapping[str, object], most: int) -> None:
    """Raise `InvalidRequest`, naming the field, for an input with too many names and values.

    Counting stops at the limit, so it takes less time than anything else that a task does with its input.
    """
    seen = 0
    for name, value in raw.items():
        level = [value]
        while level:
            below: list[object] = []
            for part in level:
                if isinstance(part, dict | list):
                    below += part
                    if isinstance(part, dict):
                        below += part.values()
                    if seen + len(below) > most:
                        said = f"the input has more than {most:,} names and values"
                        raise InvalidRequest([f"{_shown(name)}: {said}"])
            seen += len(below)
            level = below


def unknown_fields(names: Sequence[str], prefix: str = "") -> list[str]:
    """Return a line for each of the first unknown fields, for an error's message."""
    problems = [f"{prefix}{_shown(name)}: unknown field" for name in names[:_MOST_PROBLEMS]]
    return [*problems, *_rest(len(names))]


def problems_of(error: ValidationError, model: type[BaseModel] | None = None) -> list[str]:
    """Return a line for each invalid field, few and short enough for an error's message.

    Args:
        error: Pydantic's error.
        model: The model, to find the known field that a misspelt name resembles.
    """
    found = error.errors(include_url=False, include_context=False, include_input=False)
    return [*(_problem(details, model) for details in found[:_MOST_PROBLEMS]), *_rest(len(found))]


def _rest(count: int) -> list[str]:
    return [f"and {count - _MOST_PROBLEMS:,} more"] if count > _MOST_PROBLEMS else []


def limit_size(request: BaseModel, field: str, limit: int) -> None:
    """Raise `InvalidRequest` with the field's name if the request has more bytes as JSON than allowed."""
    size = len(request.model_dump_json(exclude_defaults=True).encode())
    if size > limit:
        raise InvalidRequest([f"{field}: the request has {size:,} bytes, the limit is {limit:,}"])


def _named(raw: object) -> str:
    names = {
        "NoneType": "nothing",
        "str": "a string",
        "list": "a list",
        "int": "a number",
        "float": "a number",
    }
    return names.get(type(raw).__name__, type(raw).__name__)


def _problem(details: ErrorDetails, model: type[BaseModel] | None = None) -> str:
    place = _shown(".".join(_shown(str(part)) for part in details["loc"]))
    if details["type"] == "extra_forbidden":
        alike: list[str] = []
        if model is not None:
            known = _model_at(details["loc"], model).model_fields
            alike = difflib.get_close_matches(place.rpartition(".")[2], known, n=1)
        return f"{place}: unknown field" + (f" (did you mean {alike[0]!r}?)" if alike else "")
    message = details["msg"].removeprefix("Value error, ")
    return f"{place}: {message}" if place else message


def _model_at(place: Sequence[int | str], model: type[BaseModel]) -> type[BaseModel]:
    """Return the model that has the field at this place, by the annotations of the models above it."""
    for part in place[:-1]:
        field = model.model_fields.get(part) if isinstance(part, str) else None
        inner = _model_in(field.annotation) if field is not None else None
        model = inner or model
    return model


def _model_in(annotation: object) -> type[BaseModel] | None:
    """Return the first model in an annotation such as `list[Message] | None`."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return annotation
    return next((found for part in get_args(annotation) if (found := _model_in(part)) is not None), None)


def _shown(name: str) -> str:
    """Return a name from outside, shortened and made valid for an error's message."""
    name = name if len(name) <= _PROBLEM_LENGTH else name[: _PROBLEM_LENGTH - 1] + "…"
    return name.encode(errors="replace").decode()
