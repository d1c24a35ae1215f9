"""The input of an AI agent task: what is accepted, what is refused and which field is blamed."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from pydantic import BaseModel

from tasquencer.ai.fan_out import parse_fan_out
from tasquencer.ai.job import AiJob, ChatMessage
from tasquencer.ai.request import MAXIMUM_REQUEST_BYTES, AiAgentRequest, RetryOptions, parse_request
from tasquencer.ai.review import parse_reviewed_draft
from tasquencer.batch.rows import parse_pause
from tasquencer.core.errors import InvalidRequest
from tasquencer.core.retry import RetryOn, RetryRecipe


def problem(raw: object) -> str:
    with pytest.raises(InvalidRequest) as raised:
        parse_request(raw)
    return str(raised.value)


def with_messages(*messages: object) -> dict[str, object]:
    return {"messages": list(messages)}


def test_the_defaults_are_those_of_the_outside_contract() -> None:
    assert parse_request({"prompt": "Hello"}).model_dump(mode="json") == {
        "prompt": "Hello",
        "messages": None,
        "system": None,
        "model": None,
        "temperature": None,
        "max_output_tokens": None,
        "output_schema": None,
        "top_p": None,
        "seed": None,
        "stop": None,
        "reasoning_effort": None,
        "extra_body": None,
        "fallback_models": None,
        "fallback_on": None,
        "feedback": True,
        "max_retries": 3,
        "retry": {
            "initial_interval_seconds": 1,
            "backoff_coefficient": 2,
            "maximum_interval_seconds": None,
            "jitter": 0,
            "retry_on": "transient",
        },
        "attempt_timeout_seconds": 300,
        "heartbeat_timeout_seconds": 30,
        "queue_timeout_seconds": None,
        "deadline_seconds": None,
        "metadata": {},
        "tools": None,
        "tool_choice": None,
        "parallel_tool_calls": None,
        "max_turns": 20,
    }


def test_the_default_recipe_of_a_request_is_the_default_recipe() -> None:
    assert parse_request({"prompt": "Hello"}).recipe() == RetryRecipe()


def test_a_recipe_takes_every_field_of_the_request() -> None:
    request = parse_request(
        {
            "prompt": "Hello",
            "max_retries": 9,
            "retry": {
                "initial_interval_seconds": 0.5,
                "backoff_coefficient": 3,
                "maximum_interval_seconds": 60,
                "jitter": 0.25,
                "retry_on": "any",
            },
        }
    )

    assert request.recipe() == RetryRecipe(
        max_retries=9,
        initial_interval=timedelta(seconds=0.5),
        backoff_coefficient=3,
        maximum_interval=timedelta(minutes=1),
        jitter=0.25,
        retry_on=RetryOn.ANY,
    )


@pytest.mark.parametrize(
    "raw",
    [
        {"prompt": "Hello"},
        {"messages": [{"role": "user", "content": "Hello"}], "model": "m", "metadata": {"team": "blue"}},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}]},
        {"prompt": "Grüße 🎉", "retry": {"retry_on": "any"}, "deadline_seconds": 0.5, "temperature": 0},
    ],
)
def test_a_request_survives_json(raw: dict[str, Any]) -> None:
    request = parse_request(raw)

    assert parse_request(json.loads(request.model_dump_json())) == request
    assert AiJob.model_validate(json.loads(request.job().model_dump_json())) == request.job()


def test_a_request_that_is_one_already_is_taken_as_it_is() -> None:
    request = AiAgentRequest(prompt="Hello")

    assert parse_request(request) is request


@pytest.mark.parametrize(
    ("raw", "found"),
    [
        (None, "nothing"),
        ("Hello", "a string"),
        ([{"prompt": "Hello"}], "a list"),
        (5, "a number"),
        (0.5, "a number"),
    ],
)
def test_an_input_that_is_no_object_is_answered_with_an_example(raw: object, found: str) -> None:
    assert problem(raw) == f'the input must be one JSON object such as {{"prompt": "…"}}, not {found}'


@pytest.mark.parametrize(
    ("facts", "beginning"),
    [
        # prompt and messages
        ({"prompt": None}, "prompt: required (or messages)"),
        ({"prompt": ""}, "prompt: "),
        ({"prompt": 5}, "prompt: "),
        ({"prompt": "a\x00b"}, "prompt: must not contain NUL characters"),
        ({"prompt": "\ud800"}, "prompt: must not contain lone surrogates"),
        ({"messages": [{"role": "user", "content": "b"}]}, "prompt, messages: give one of them, not both"),
        ({"messages": []}, "messages: "),
        ({"messages": "Hello"}, "messages: "),
        # texts
        ({"system": ""}, "system: "),
        ({"system": "\x00"}, "system: must not contain NUL characters"),
        ({"model": ""}, "model: "),
        ({"model": 5}, "model: "),
        # numbers
        ({"temperature": -0.1}, "temperature: "),
        ({"temperature": 2.1}, "temperature: "),
        ({"temperature": float("nan")}, "temperature: "),
        ({"temperature": "hot"}, "temperature: "),
        ({"max_output_tokens": 0}, "max_output_tokens: "),
        ({"max_output_tokens": 1.5}, "max_output_tokens: "),
        ({"max_retries": -1}, "max_retries: "),
        ({"max_retries": 1001}, "max_retries: "),
        ({"max_retries": 2.5}, "max_retries: "),
        ({"max_retries": 10**30}, "max_retries: "),
        # times
        ({"attempt_timeout_seconds": 0}, "attempt_timeout_seconds: "),
        ({"attempt_timeout_seconds": -1}, "attempt_timeout_seconds: "),
        ({"attempt_timeout_seconds": float("inf")}, "attempt_timeout_seconds: "),
        ({"attempt_timeout_seconds": 365 * 86_400 + 1}, "attempt_timeout_seconds: "),
        ({"heartbeat_timeout_seconds": 0.999}, "heartbeat_timeout_seconds: "),
        ({"heartbeat_timeout_seconds": "soon"}, "heartbeat_timeout_seconds: "),
        ({"deadline_seconds": 0}, "deadline_seconds: "),
        ({"deadline_seconds": "tomorrow"}, "deadline_seconds: "),
        # retry
        ({"retry": 3}, "retry: "),
        ({"retry": {"initial_interval_seconds": -1}}, "retry.initial_interval_seconds: "),
        ({"retry": {"initial_interval_seconds": float("nan")}}, "retry.initial_interval_seconds: "),
        ({"retry": {"backoff_coefficient": 0.5}}, "retry.backoff_coefficient: "),
        ({"retry": {"backoff_coefficient": 1001}}, "retry.backoff_coefficient: "),
        ({"retry": {"maximum_interval_seconds": -1}}, "retry.maximum_interval_seconds: "),
        (
            {"retry": {"maximum_interval_seconds": 0.5}},
            "retry: maximum_interval_seconds must not be less than initial_interval_seconds",
        ),
        ({"retry": {"jitter": -0.1}}, "retry.jitter: "),
        ({"retry": {"jitter": 11}}, "retry.jitter: "),
        ({"retry": {"jitter": float("nan")}}, "retry.jitter: "),
        ({"retry": {"retry_on": "all"}}, "retry.retry_on: "),
        # metadata
        ({"metadata": {"team": 1}}, "metadata.team: "),
        ({"metadata": ["team"]}, "metadata: "),
        ({"metadata": {"team": "\x00"}}, "metadata.team: must not contain NUL characters"),
        # unknown fields
        ({"temprature": 1}, "temprature: unknown field (did you mean 'temperature'?)"),
        ({"max_retry": 1}, "max_retry: unknown field (did you mean 'max_retries'?)"),
        ({"retries": 1}, "retries: unknown field"),
        ({"xyzzy": 1}, "xyzzy: unknown field"),
        ({"retry": {"jiter": 1}}, "retry.jiter: unknown field (did you mean 'jitter'?)"),
        ({"retry": {"xyzzy": 1}}, "retry.xyzzy: unknown field"),
    ],
)
def test_a_wrong_field_is_named(facts: dict[str, Any], beginning: str) -> None:
    message = problem({"prompt": "Hello", **facts})

    assert message.startswith(beginning)
    assert ";" not in message  # one field, one problem


@pytest.mark.parametrize(
    "facts",
    [
        {"temperature": 0},
        {"temperature": 2},
        {"max_output_tokens": 1},
        {"max_retries": 0},
        {"max_retries": 1000},
        {"attempt_timeout_seconds": 0.001},
        {"attempt_timeout_seconds": 365 * 86_400},
        {"heartbeat_timeout_seconds": 1},
        {"deadline_seconds": 0.001},
        {"retry": {}},
        {"retry": {"initial_interval_seconds": 0}},
        {"retry": {"backoff_coefficient": 1}},
        {"retry": {"backoff_coefficient": 1000}},
        {"retry": {"maximum_interval_seconds": 1}},  # the initial interval
        {"retry": {"jitter": 10}},
    ],
)
def test_the_bounds_of_a_request_are_accepted(facts: dict[str, Any]) -> None:
    parse_request({"prompt": "Hello", **facts}).recipe()


@pytest.mark.parametrize(
    ("message", "beginning"),
    [
        ({"role": "user"}, "messages.0.content: "),
        ({"content": "Hello"}, "messages.0.role: "),
        ({"role": "robot", "content": "Hello"}, "messages.0.role: "),
        ({"role": "user", "content": "Hello", "xyzzy": 1}, "messages.0.xyzzy: unknown field"),
        ("Hello", "messages.0: "),
    ],
)
def test_a_wrong_message_is_named_by_its_place(message: object, beginning: str) -> None:
    assert problem(with_messages(message)).startswith(beginning)


@pytest.mark.parametrize("content", ["", 5, None, [], ["Hello"], "a\x00b"])
def test_a_wrong_content_is_named_in_words_for_people(content: object) -> None:
    message = problem(with_messages({"role": "user", "content": content}))

    assert message.startswith("messages.0.content: ")
    for inner in ("function-after", "functools", " at 0x", "json-or-python", "["):
        assert inner not in message


def test_a_lone_surrogate_in_a_content_part_is_refused() -> None:
    parts = [{"type": "text", "text": "\ud800"}]

    assert problem(with_messages({"role": "user", "content": parts})).startswith("messages.0.content")


@pytest.mark.parametrize("part", [{"type": "text", "text": "a\x00b"}, {"a\x00": 1}, {"x": float("nan")}])
def test_what_cannot_be_stored_is_refused_in_a_content_part_too(part: dict[str, Any]) -> None:
    assert problem(with_messages({"role": "user", "content": [part]})).startswith("messages.0.content")


def test_the_suggestion_for_a_message_is_a_field_of_a_message() -> None:
    message = problem(with_messages({"role": "user", "content": "Hello", "promt": 1}))

    assert message == "messages.0.promt: unknown field"


@pytest.mark.parametrize(
    "name", ["max_retries", "temperature", "attempt_timeout_seconds", "deadline_seconds"]
)
def test_true_is_no_number(name: str) -> None:
    assert problem({"prompt": "Hello", name: True}).startswith(f"{name}: ")


def test_every_wrong_field_is_named_at_once() -> None:
    message = problem({"prompt": 5, "max_retries": -1, "retry": {"jitter": -1}, "xyzzy": 1})

    assert {part.split(":")[0] for part in message.split("; ")} == {
        "prompt",
        "max_retries",
        "retry.jitter",
        "xyzzy",
    }


def test_the_problems_can_be_read_one_by_one() -> None:
    with pytest.raises(InvalidRequest) as raised:
        parse_request({"prompt": "Hello", "xyzzy": 1, "jitter": 1})

    assert raised.value.problems == ["xyzzy: unknown field", "jitter: unknown field"]


# Size

FRAME = len('{"prompt":""}')


def test_a_request_of_exactly_the_limit_is_accepted() -> None:
    parse_request({"prompt": "x" * (MAXIMUM_REQUEST_BYTES - FRAME)})


def test_a_byte_more_is_refused_with_size_and_limit() -> None:
    message = problem({"prompt": "x" * (MAXIMUM_REQUEST_BYTES - FRAME + 1)})

    assert message == "prompt: the request has 1,572,865 bytes, the limit is 1,572,864"  # 1,536 × 1,024


def test_bytes_are_counted_not_characters() -> None:
    assert problem({"prompt": "ü" * (MAXIMUM_REQUEST_BYTES // 2)}).startswith(
        "prompt: the request has 1,572,877"
    )


def test_messages_that_are_too_large_are_named() -> None:
    message = problem(with_messages({"role": "user", "content": "x" * MAXIMUM_REQUEST_BYTES}))

    assert message.startswith("messages: the request has ")


def test_everything_counts_towards_the_size() -> None:
    assert " bytes, the limit is " in problem(
        {"prompt": "Hello", "metadata": {"a": "x" * MAXIMUM_REQUEST_BYTES}}
    )


# The job


def test_a_prompt_becomes_one_user_message() -> None:
    request = parse_request({"prompt": "Hello", "model": "m", "temperature": 0.5, "max_output_tokens": 9})

    assert request.job() == AiJob(
        messages=[ChatMessage(role="user", content="Hello")], model="m", temperature=0.5, max_output_tokens=9
    )


def test_a_system_prompt_comes_first() -> None:
    messages = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Yes?"}]

    asked = parse_request({"messages": messages, "system": "Be brief."}).job().messages

    assert [(message.role, message.content) for message in asked] == [
        ("system", "Be brief."),
        ("user", "Hi"),
        ("assistant", "Yes?"),
    ]


def test_the_metadata_goes_along() -> None:
    assert parse_request({"prompt": "Hello", "metadata": {"team": "blue"}}).job().metadata == {"team": "blue"}


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        ({"prompt": "Hello"}, "Hello"),
        ({"prompt": "Hello", "system": "Be brief."}, "Hello"),
        (
            {
                "messages": [
                    {"role": "developer", "content": "Be brief."},
                    {"role": "user", "content": "Grüße"},
                ]
            },
            "Grüße",
        ),
        (
            {"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ü"}]},
            '[{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ü"}]',
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]},
            '[{"role": "user", "content": [{"type": "text", "text": "Hi"}]}]',
        ),
    ],
)
def test_the_prompt_of_a_job_is_its_sole_question_or_the_conversation(
    raw: dict[str, Any], expected: str
) -> None:
    assert parse_request(raw).job().prompt == expected


def test_the_retry_options_and_the_recipe_share_their_defaults() -> None:
    options = RetryOptions()
    recipe = RetryRecipe()

    assert options.initial_interval_seconds == recipe.initial_interval.total_seconds()
    assert options.backoff_coefficient == recipe.backoff_coefficient
    assert options.maximum_interval_seconds is None
    assert recipe.maximum_interval is None
    assert (options.jitter, options.retry_on) == (recipe.jitter, recipe.retry_on)


@pytest.mark.parametrize(
    "parse", [parse_request, parse_fan_out, parse_reviewed_draft], ids=["task", "fan-out", "draft"]
)
def test_null_means_not_given_for_every_field(parse: Callable[[object], BaseModel]) -> None:
    asked = {"prompts": ["a"]} if parse is parse_fan_out else {"prompt": "a"}
    given = parse(asked)
    for name in type(given).model_fields:
        if name not in asked and name != "review_timeout_seconds":  # null is a value of it: any time
            assert parse({**asked, name: None}) == given, name
    assert parse({**asked, "retry": {"jitter": None, "retry_on": None}}) == given


def test_null_gives_no_required_field_and_hides_no_unknown_one() -> None:
    with pytest.raises(InvalidRequest, match="prompt: required"):
        parse_request({"prompt": None})
    with pytest.raises(InvalidRequest, match="promt: unknown field"):
        parse_request({"prompt": "a", "promt": None})


@pytest.mark.parametrize("field", ["actor", "reason"])
def test_a_pause_has_the_limits_of_other_actions(field: str) -> None:
    with pytest.raises(InvalidRequest, match=f"{field}: .* at most"):
        parse_pause({"actor": "anna", "reason": "x"} | {field: "x" * 1_000_000})
