"""What an answer is to be: the JSON Schema of a type, and reading an answer as that type."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

import pytest
from pydantic import BaseModel, TypeAdapter

from tasquencer.ai.output import output_type
from tasquencer.ai.strict_schema import strict_form
from tasquencer.core.errors import TaskMisused


class Inner(BaseModel):
    number: int


class Label(BaseModel):
    urgent: bool
    inner: Inner
    note: str | None


class Tree(BaseModel):
    name: str
    leaves: list[Tree]


@dataclass
class Point:
    x: int
    y: int


@pytest.mark.parametrize(
    ("output", "text", "expected"),
    [
        (str, "any {text", "any {text"),
        (Label, '{"urgent": true, "inner": {"number": 1}, "note": null}', None),
        (Point, '{"x": 1, "y": 2}', Point(1, 2)),
        (list[int], '{"output": [1, 2]}', [1, 2]),
        (int | str, '{"output": 5}', 5),
        (Literal["yes", "no"], '{"output": "no"}', "no"),
        (dict[str, int], '{"a": 1}', {"a": 1}),
        (TypeAdapter(tuple[int, int]), '{"output": [3, 4]}', (3, 4)),
        (Tree, '{"name": "a", "leaves": [{"name": "b", "leaves": []}]}', None),
    ],
)
def test_a_type_has_a_schema_of_an_object_and_reads_its_answers(
    output: Any, text: str, expected: Any
) -> None:
    wanted = output_type(output)

    assert (
        output is str
        or "properties" in str(wanted.schema)
        or wanted.schema == {"type": "object"} | (wanted.schema or {})
    )
    read = wanted.read(text)
    assert read == expected if expected is not None else isinstance(read, output)


@pytest.mark.parametrize(
    ("output", "text", "problem"),
    [
        (Label, "no json", "Invalid JSON"),
        (Label, '{"urgent": true}', "inner: Field required"),
        (list[int], "[1]", "Input should be"),
        (list[int], '{"outputs": [1]}', "output: required"),
        (list[int], '{"output": ["x"]}', "0: Input should be a valid integer"),
    ],
)
def test_an_answer_that_does_not_fit_says_why(output: Any, text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        output_type(output).read(text)


def test_a_type_without_a_schema_is_a_mistake() -> None:
    with pytest.raises(TaskMisused, match="output"):
        output_type(object())
    with pytest.raises(TaskMisused, match="JSON Schema"):
        output_type(TypeAdapter(Callable[[], int]))


def test_a_type_is_prepared_once() -> None:
    assert output_type(Label) is output_type(Label)
    assert output_type(Label).name == "label"
    assert output_type(list[int]).name is None


def test_the_strict_form_closes_every_object() -> None:
    strict = strict_form(output_type(Label).schema or {})

    assert strict is not None
    assert strict["additionalProperties"] is False
    assert strict["$defs"]["Inner"]["additionalProperties"] is False  # type: ignore[call-overload, index]
    recursive = output_type(Tree).schema or {}
    assert strict_form(recursive) is None  # its root is a reference


@pytest.mark.parametrize(
    "change",
    [
        {"required": []},
        {"additionalProperties": True},
        {"patternProperties": {}},
        {"properties": {"a": {"type": "object"}}},
        {"properties": {"a": {"type": "integer", "default": 1}}},
        {"properties": {"a": {}}},
        {"properties": {"a": {"oneOf": []}}},
        {"properties": {"a": {"$ref": "#/$defs/B", "description": "a B"}}},
        {"type": "array"},
    ],
)
def test_what_the_strict_form_would_change_has_none(change: dict[str, Any]) -> None:
    schema: dict[str, Any] = {
        "type": "object",
        "properties": {"a": {"type": "integer"}},
        "required": ["a"],
    }

    assert strict_form(schema) is not None
    assert strict_form(schema | change) is None
