"""Tools: from a Python function to a schema, from a model's arguments to a call."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from datetime import date, timedelta
from typing import Annotated, Any, Literal

import pytest
from pydantic import BaseModel, Field

from tasquencer.ai.job import AiJob, ChatMessage
from tasquencer.ai.tool_calls import ToolCall, answered_calls, tool_lineages, tool_message
from tasquencer.ai.tools import (
    FunctionTool,
    ToolContext,
    ToolError,
    WrongTool,
    by_name,
    checked,
    tool,
    tool_fields,
)
from tasquencer.core.work_item import WorkItem, WorkItemState
from tests.unit.driving import NOON

CONTEXT = ToolContext(task_id="task-1", work_item_id="w1", attempt=0, idempotency_key="task-1/turn-1/f")


class Address(BaseModel):
    """Where to."""

    street: str
    zip: str = Field(pattern="^[0-9]{5}$")


def ship(order: int, to: Address, by: Literal["air", "sea"] = "sea", on: date | None = None) -> str:
    """Ship an order."""
    return f"{order} to {to.street} by {by} on {on}"


def called(function: Callable[..., Any], arguments: object) -> Any:
    written = arguments if isinstance(arguments, str) else json.dumps(arguments)
    return asyncio.run(FunctionTool(function).call(written, CONTEXT))


def test_the_schema_says_what_the_signature_says() -> None:
    schema = FunctionTool(ship).schema()
    assert (schema["name"], schema["description"]) == ("ship", "Ship an order.")
    parameters = schema["parameters"]
    assert isinstance(parameters, dict)
    assert parameters["required"] == ["order", "to"]
    assert parameters["additionalProperties"] is False
    assert list(parameters["properties"]) == ["order", "to", "by", "on"]  # type: ignore[arg-type]


def test_arguments_become_what_the_type_hints_say() -> None:
    given = {"order": 7, "to": {"street": "Elm 1", "zip": "12345"}, "on": "2026-11-29"}
    assert called(ship, given) == "7 to Elm 1 by sea on 2026-11-29"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"order": 7}, "to: Field required"),
        ({"order": 7, "to": {"street": "Elm 1", "zip": "x"}}, "to.zip"),
        ({"order": 7, "to": {"street": "Elm 1", "zip": "12345"}, "by": "rail"}, "by: Input should be"),
        ("[" * 2_000, "nested too deeply"),
        ('"' + "x" * 300_000 + '"', "bytes"),
        ("", "Invalid JSON"),
    ],
)
def test_wrong_arguments_are_explained(arguments: object, said: str) -> None:
    written = arguments if isinstance(arguments, str) else json.dumps(arguments)
    assert said in (FunctionTool(ship).problem_with(written) or "")


def test_a_parameter_may_be_called_like_a_method_of_a_model() -> None:
    def convert(copy: str, json: int, model_fields: bool) -> list[Any]:
        """Convert."""
        return [copy, json, model_fields]

    assert called(convert, {"copy": "a", "json": 1, "model_fields": True}) == ["a", 1, True]


def test_the_context_is_given_and_not_offered() -> None:
    def who(context: ToolContext, name: str) -> list[str]:
        """Who?"""
        return [context.idempotency_key, name]

    assert "context" not in str(FunctionTool(who).schema()["parameters"])
    assert called(who, {"name": "anna"}) == ["task-1/turn-1/f", "anna"]


def no_docstring(order: int) -> None: ...


def no_type(order) -> None:  # type: ignore[no-untyped-def]
    """Docs."""


def no_schema(order: Callable[[], int]) -> None:
    """Docs."""


def no_names(*orders: int) -> None:
    """Docs."""


@tool(name="no blanks allowed")
def misnamed() -> None:
    """Docs."""


@pytest.mark.parametrize(
    ("function", "said"),
    [
        (no_docstring, "docstring"),
        (no_type, "type hint"),
        (no_schema, "JSON Schema"),
        (no_names, "by name"),
        (misnamed, "its name"),
    ],
)
def test_a_function_that_cannot_be_a_tool_is_named(function: Callable[..., Any], said: str) -> None:
    with pytest.raises(WrongTool, match=said):
        FunctionTool(function)


def test_two_tools_need_two_names() -> None:
    with pytest.raises(WrongTool, match="two tools"):
        by_name([FunctionTool(no_context), no_context])


def no_context() -> None:
    """Do nothing."""


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(WrongTool, match="max_retries"):
        tool(retries=-1)
    with pytest.raises(WrongTool, match="reminder_activity: only with a reminder"):
        tool(reminder_activity="remind")
    with pytest.raises(WrongTool, match="reminder_task_queue: only with a reminder_activity"):
        tool(reminder=timedelta(hours=1), reminder_task_queue="pagers")
    with pytest.raises(WrongTool, match="timeout_seconds"):
        tool(timeout=timedelta(0))


@pytest.mark.parametrize(
    ("returned", "said"),
    [(object(), "cannot be sent"), (float("nan"), "NaN"), ("x" * 300_000, "bytes"), ("\x00", "NUL")],
)
def test_a_result_that_cannot_be_kept_is_a_failure(returned: object, said: str) -> None:
    def give() -> object:
        """Give."""
        return returned

    with pytest.raises(ToolError, match=said):
        called(give, {})


def test_results_are_json() -> None:
    def give() -> list[Address]:
        """Give."""
        return [Address(street="Elm 1", zip="12345")]

    assert called(give, {}) == [{"street": "Elm 1", "zip": "12345"}]


def test_only_the_exceptions_named_may_be_retried() -> None:
    @tool(retries=2, retry_on=(ConnectionError,))
    def look() -> None:
        """Look."""

    known = FunctionTool(look)
    assert known.is_transient(ConnectionResetError())
    assert not known.is_transient(ValueError())
    assert not known.is_transient(ToolError("no"))
    assert known.is_transient(ToolError("later", retry=True))


def test_calls_are_read_as_providers_write_them() -> None:
    raw = [
        {"id": "a", "function": {"name": "f", "arguments": '{"x": 1}'}},
        {"id": "a", "function": {"name": "f", "arguments": {"x": 2}}},
        {"function": {"name": "g"}},
    ]
    assert [(call.id, call.name, call.arguments) for call in answered_calls(raw)] == [
        ("a", "f", '{"x": 1}'),
        ("call-2", "f", '{"x": 2}'),
        ("call-3", "g", "{}"),
    ]
    with pytest.raises(ValueError, match="tool call 1"):
        answered_calls([{"function": {}}])


def test_each_call_of_a_turn_has_a_lineage_of_its_own() -> None:
    names = ["refund", "refund", "a/b c", "x" * 100]
    calls = [ToolCall(id=str(n), name=name, arguments="{}") for n, name in enumerate(names)]
    assert tool_lineages("turn-2", calls) == [
        "turn-2/refund",
        "turn-2/refund-2",
        "turn-2/a_b_c",
        "turn-2/" + "x" * 64,
    ]


def test_lineages_stay_apart_whatever_the_names_are() -> None:
    calls = [ToolCall(id=str(n), name=name, arguments="{}") for n, name in enumerate(["f", "f-2", "f", "f"])]
    assert len(set(tool_lineages("turn-1", calls))) == 4


def test_an_empty_result_is_still_a_message() -> None:
    ended = WorkItem(
        id="w1",
        task_id="t",
        run_id="r",
        task_type="T",
        lineage="turn-1/f",
        attempt=0,
        state=WorkItemState.COMPLETED,
        result="",
        not_before=NOON,
        created_at=NOON,
    )
    message = tool_message(ToolCall(id="c", name="f", arguments="{}"), ended)
    assert message.as_sent() == {"role": "tool", "tool_call_id": "c", "content": '""'}


@pytest.mark.parametrize(
    ("choice", "sent"),
    [
        (None, None),
        ("required", "required"),
        ("ship", {"type": "function", "function": {"name": "ship"}}),
    ],
)
def test_a_tool_may_be_required(choice: str | None, sent: object) -> None:
    job = AiJob(messages=[ChatMessage(role="user", content="?")], tools=["ship"], tool_choice=choice)
    assert tool_fields(job, [FunctionTool(ship)]).get("tool_choice") == sent


def test_a_call_of_a_tool_that_was_not_offered_is_none() -> None:
    (found,) = checked([ToolCall(id="c", name="x" * 500, arguments="{}")], [FunctionTool(ship)])
    assert found.problem is not None and len(found.problem) < 150


def test_annotated_parameters_describe_themselves() -> None:
    def look(number: Annotated[int, Field(description="The number on the bill.", ge=1)]) -> None:
        """Look."""

    parameters = FunctionTool(look).schema()["parameters"]
    assert isinstance(parameters, dict)
    assert parameters["properties"] == {
        "number": {
            "description": "The number on the bill.",
            "minimum": 1,
            "title": "Number",
            "type": "integer",
        }
    }
