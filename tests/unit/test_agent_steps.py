"""What activities of agent frameworks are for the agent, read from their types, arguments and results."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, strategies as st
from pydantic import JsonValue

from tasquencer.ai.agents import AgentStep, step_of
from tasquencer.ai.agents.steps import answer_facts
from tasquencer.ai.provider.prices import OwnPrice, Price, price_list

MODEL = "agent__forecaster__model_request"

PYDANTIC_ASKED: dict[str, JsonValue] = {
    "messages": [
        {
            "kind": "request",
            "instructions": "Be brief.",
            "parts": [{"part_kind": "user-prompt", "content": "How is the weather?"}],
        },
        {
            "kind": "response",
            "parts": [{"part_kind": "tool-call", "tool_name": "weather", "args": {"city": "Oslo"}}],
        },
        {
            "kind": "request",
            "parts": [{"part_kind": "tool-return", "tool_name": "weather", "content": "Sun"}],
        },
    ],
    "model_id": None,
    "serialized_run_context": {},
}


def price_of(_url: str | None) -> Price:
    return price_list("", {"a-model": OwnPrice(input=1, output=2, cached_input=0.5, cache_write=1)})


def named(activity_type: str, argument: JsonValue = None, **options: Any) -> str | None:
    step = step_of(activity_type, argument, **options)
    return None if step is None else step.name


@pytest.mark.parametrize(
    ("activity_type", "argument", "name"),
    [
        (MODEL, PYDANTIC_ASKED, "forecaster: model turn 2"),
        (f"{MODEL}_stream", {"serialized_run_context": {"run_step": 7}}, "forecaster: model turn 7"),
        ("agent__a__model_compact_messages", {}, "a: compact messages"),
        ("agent__a__model_cancel_suspended_response", {}, "a: cancel a suspended response"),
        ("agent__a__b__toolset__<agent>__call_tool", {"name": "weather"}, "a__b: tool weather"),
        ("agent__a__mcp_server__files__call_tool", {"name": "read"}, "a: tool read"),
        ("agent__a__mcp_server__files__get_tools", {}, "a: list tools of files"),
        ("agent__a__mcp_server__files__get_instructions", {}, "a: instructions of files"),
        ("agent__a__dynamic_toolset__d__validate_args", {"name": "x"}, "a: check arguments of tool x"),
        ("agent__a__toolset__t__call_tool", None, "a: tool of t"),
        ("agent__a__event_stream_handler", {}, "a: event handler"),
        ("agent__a__capability__memory__recall", {}, "a: memory.recall"),
        ("agent__a__something_new", {}, None),
        ("invoke_model_activity", {"input": "Hello"}, "model turn 1"),
        ("invoke_model_activity", {"input": [], "previous_response_id": "r"}, "model turn"),
        ("temporalio.mcp.files.call-tool", {"name": "read"}, "tool read"),
        ("temporalio.mcp.files.list-tools", {}, "list tools of files"),
        ("charge_card", {"name": "x"}, None),
        ("files-list-tools", {}, None),
    ],
)
def test_a_step_has_a_name_that_people_understand(
    activity_type: str, argument: JsonValue, name: str | None
) -> None:
    assert named(activity_type, argument) == name


def test_in_a_run_of_the_openai_agents_sdk_every_other_activity_is_a_tool() -> None:
    assert named("weather", is_in_agent_run=True) == "tool weather"
    assert named("weather", is_in_agent_run=True, agent="forecaster") == "forecaster: tool weather"
    assert named("files-call-tool-v2", {"tool_name": "read"}, is_in_agent_run=True) == "tool read"
    assert named("files-list-prompts", {}, is_in_agent_run=True) == "list prompts of files"


def test_turns_are_counted_by_what_the_model_said_before() -> None:
    items: list[JsonValue] = [
        {"role": "user", "content": "How is the weather?"},
        {"type": "reasoning", "summary": []},
        {"type": "function_call", "name": "weather", "arguments": "{}"},
        {"type": "function_call", "name": "news", "arguments": "{}"},
        {"type": "function_call_output", "output": "Sun"},
        {"type": "function_call_output", "output": "None"},
    ]
    assert named("invoke_model_activity", {"input": items}, agent="a") == "a: model turn 2"
    answer: JsonValue = {
        "type": "message",
        "role": "assistant",
        "content": [{"type": "output_text", "text": "x"}],
    }
    more: list[JsonValue] = [*items, answer, {"role": "user", "content": "And tomorrow?"}]
    assert named("invoke_model_activity_streaming", {"input": more}) == "model turn 3"


def test_the_prompt_is_the_sole_question_or_the_whole_conversation() -> None:
    step = step_of("invoke_model_activity", {"system_instructions": "Be brief.", "input": "Hello"})
    assert step is not None and step.asked is not None and step.asked.prompt == "Hello"
    step = step_of(MODEL, PYDANTIC_ASKED)
    assert step is not None and step.asked is not None
    assert step.asked.prompt.startswith('[{"role": "system", "content": "Be brief."}, {"role": "user", ')
    assert '{"role": "tool", "name": "weather", "content": "Sun"}' in step.asked.prompt


def model_step(activity_type: str) -> AgentStep:
    step = step_of(activity_type, {"model_id": "asked", "model_name": "asked"})
    assert step is not None
    return step


def test_an_answer_of_pydantic_ai_tells_tokens_and_cost() -> None:
    response: JsonValue = {
        "kind": "response",
        "parts": [{"part_kind": "thinking", "content": "hm"}, {"part_kind": "text", "content": "Sunny."}],
        "usage": {
            "input_tokens": 100,
            "output_tokens": 20,
            "cache_read_tokens": 40,
            "output_reasoning_tokens": 0,
            "details": {"reasoning_tokens": 5},
        },
        "model_name": "a-model",
        "finish_reason": "stop",
        "provider_response_id": "id-1",
    }
    assert answer_facts(model_step(MODEL), response, price_of) == {
        "text": "Sunny.",
        "model": "a-model",
        "finish_reason": "stop",
        "provider_request_id": "id-1",
        "input_tokens": 100,
        "output_tokens": 20,
        "cached_tokens": 40,
        "reasoning_tokens": 5,
        "cost_usd": pytest.approx((60 + 20 + 40) / 1e6),
    }
    usage: JsonValue = {"input_tokens": 1, "output_tokens": 1, "cost": "0.25"}
    told: JsonValue = {"usage": usage, "parts": [], "kind": "response"}
    assert answer_facts(model_step(MODEL), told, price_of)["cost_usd"] == 0.25


def test_an_answer_of_the_openai_agents_sdk_tells_tokens() -> None:
    usage: JsonValue = {
        "requests": 1,
        "input_tokens": 100,
        "output_tokens": 20,
        "total_tokens": 120,
        "input_tokens_details": {"cached_tokens": 40},
        "output_tokens_details": {"reasoning_tokens": 5},
    }
    output: JsonValue = [{"type": "function_call", "name": "weather", "arguments": "{}"}]
    step = model_step("invoke_model_activity")
    found = answer_facts(step, {"output": output, "usage": usage, "response_id": "r"}, price_of)
    assert found == {
        "text": '[{"tool": "weather", "arguments": "{}"}]',
        "model": "asked",
        "provider_request_id": "r",
        "input_tokens": 100,
        "output_tokens": 20,
        "cached_tokens": 40,
        "reasoning_tokens": 5,
    }
    message: JsonValue = [{"type": "message", "content": [{"type": "output_text", "text": "Sunny."}]}]
    final: JsonValue = {
        "model": "a-model",
        "output": message,
        "usage": usage,
        "status": "completed",
        "id": "x",
    }
    events: JsonValue = [{"type": "response.created"}, {"type": "response.completed", "response": final}]
    found = answer_facts(step, events, price_of)
    assert (found["text"], found["model"], found["finish_reason"]) == ("Sunny.", "a-model", "completed")
    assert found["cost_usd"] == pytest.approx((60 + 20 + 40) / 1e6)
    zeros: JsonValue = {"input_tokens": 0, "output_tokens": 0, "total_tokens": 0}
    nothing: JsonValue = {"output": message, "usage": zeros}
    assert "input_tokens" not in answer_facts(step, nothing, price_of)


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=10,
)
fields = st.sampled_from(
    [
        "messages", "kind", "parts", "part_kind", "content", "instructions", "usage", "input_tokens", "input",
        "output", "response", "type", "role", "model_name", "details", "serialized_run_context", "run_step",
        "cost", "input_tokens_details", "tool_call", "args", "total_tokens",
    ]
)  # fmt: skip
words = st.sampled_from(["response", "request", "text", "user-prompt", "tool-call", "response.completed"])
shapes = st.recursive(
    values | words,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(fields, inner, max_size=4),
    max_leaves=20,
)


@given(st.sampled_from([MODEL, "invoke_model_activity", "agent__a__toolset__t__call_tool"]), shapes, shapes)
def test_no_shape_of_arguments_or_results_raises(
    activity_type: str, argument: JsonValue, result: JsonValue
) -> None:
    step = step_of(activity_type, argument)
    assert step is not None
    if step.asked is not None:
        assert isinstance(step.asked.prompt, str)
    answer_facts(step, result, price_of)
