"""Providers by a file, models written `provider:model`, and the Responses API."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from tasquencer.ai.job import AiJob
from tasquencer.ai.provider.client import make_client
from tasquencer.ai.provider.directory import named_providers, provider_problems
from tasquencer.ai.provider.requests import responses_body
from tasquencer.core.errors import WrongSetting
from tasquencer.core.failure import Failure, FailureKind
from tasquencer.temporal.ai_calls import AiCalls
from tests.activities.calling import KEY, MODEL, environment, free, job, schema
from tests.support import answers
from tests.support.provider import ScriptedProvider

SECRET = "sk-other-0123456789abcdef"


def entry(name: str, base_url: str, *lines: str) -> str:
    return "\n".join([f"[providers.{name}]", f'base_url = "{base_url}"', *lines])


@asynccontextmanager
async def calls_with(
    monkeypatch: pytest.MonkeyPatch, folder: Path, default: ScriptedProvider, *entries: str
) -> AsyncIterator[AiCalls]:
    file = folder / "providers.toml"
    file.write_text("\n".join(entries))
    monkeypatch.setenv("TASQ_PROVIDERS", str(file))
    monkeypatch.setenv("OTHER_KEY", SECRET)
    monkeypatch.setenv("OTHER_TENANT", "tenant-of-the-other")
    async with (
        make_client(api_key=KEY, base_url=default.base_url) as client,
        AiCalls(client, MODEL, free) as calls,
    ):
        yield calls


async def test_a_prefix_names_the_provider_and_the_rest_is_the_model(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with (
        ScriptedProvider(then=answers.ok("mine")) as mine,
        ScriptedProvider(then=answers.ok("other")) as other,
    ):
        lines = (
            'api_key_env = "OTHER_KEY"',
            'default_model = "other-1"',
            'headers_env = {"X-Tenant" = "OTHER_TENANT"}',
        )
        async with calls_with(monkeypatch, tmp_path, mine, entry("other", other.base_url, *lines)) as calls:
            texts = [
                (await environment().run(calls.generate, job(model=model))).text
                for model in (None, "llama3:8b", "other:big:v2", "other:")
            ]

    assert texts == ["mine", "mine", "other", "other"]
    assert [request.body["model"] for request in mine.requests] == [MODEL, "llama3:8b"]
    assert [request.body["model"] for request in other.requests] == ["big:v2", "other-1"]
    assert other.requests[0].authorization == f"Bearer {SECRET}"
    assert other.requests[0].headers["x-tenant"] == "tenant-of-the-other"
    assert "x-tenant" not in mine.requests[0].headers


async def test_a_failure_says_whether_the_next_model_is_another_provider_s(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nowhere = entry("other", "http://127.0.0.1:9/v1")
    async with (
        ScriptedProvider(then=answers.rate_limited("9")) as mine,
        calls_with(monkeypatch, tmp_path, mine, nowhere) as calls,
    ):
        failures = [await failure(calls, job(fallback_models=[model])) for model in ("other:1", "llama3:8b")]
        plain = await failure(calls, job())

    assert [one.details["next_provider"] for one in failures] == ["other", "default"]
    assert failures[0].details["provider"] == "default"
    assert "provider" not in plain.details


async def failure(calls: AiCalls, asked: AiJob) -> Failure:
    with pytest.raises(Exception, match=r".") as caught:
        await environment().run(calls.generate, asked)
    return Failure.model_validate(caught.value.details[0])  # type: ignore[attr-defined]


async def test_a_provider_gets_no_more_calls_at_the_same_time_than_it_takes(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    hold = answers.Hold()
    async with ScriptedProvider(then=answers.stall(hold)) as other:
        lines = entry("other", other.base_url, "concurrent_calls = 1")
        async with calls_with(monkeypatch, tmp_path, other, lines) as calls:
            first = asyncio.create_task(environment().run(calls.generate, job(model="other:1")))
            await other.wait_for_requests(1)
            with pytest.raises(Exception, match="left no place in time; nothing was sent") as caught:
                await environment(limit_seconds=0.2).run(calls.generate, job(model="other:1"))
            hold.release()
            await first

    assert len(other.requests) == 1
    assert Failure.model_validate(caught.value.details[0]).kind == FailureKind.NOT_PICKED_UP  # type: ignore[attr-defined]


async def test_the_responses_api_is_asked_and_read(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    answer = answers.ok('{"age": 3}', usage=(12, 5))
    async with ScriptedProvider([answer]) as other:
        lines = entry("other", other.base_url, 'api = "responses"', 'api_key_env = "OTHER_KEY"')
        async with calls_with(monkeypatch, tmp_path, other, lines) as calls:
            asked = job(
                model="other:o1",
                output_schema=schema(age={"type": "integer"}),
                max_output_tokens=9,
                reasoning_effort="low",
            )
            found = await environment().run(calls.generate, asked)

    (request,) = other.requests
    assert request.path == "/v1/responses"
    assert request.body["input"] == [{"role": "user", "content": "Say hello"}]
    assert request.body["text"]["format"]["type"] == "json_schema"
    assert request.body["text"]["format"]["strict"] is True
    assert request.body["reasoning"] == {"effort": "low"}
    assert request.body["max_output_tokens"] == 9
    assert request.body["store"] is False
    assert (found.text, found.input_tokens, found.output_tokens) == ('{"age": 3}', 12, 5)
    assert found.finish_reason == "stop"


def test_a_conversation_with_tools_is_told_in_the_words_of_the_responses_api() -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": "{}"}}
    asked = AiJob.model_validate(
        {
            "messages": [
                {"role": "user", "content": [{"type": "text", "text": "1 + 1?"}]},
                {"role": "assistant", "content": "Let me see.", "tool_calls": [call]},
                {"role": "tool", "content": "2", "tool_call_id": "c1"},
            ]
        }
    )
    offered = {"type": "function", "function": {"name": "add", "parameters": {}}}
    chosen = {"type": "function", "function": {"name": "add"}}
    body = responses_body(asked, "o1", {"tools": [offered], "tool_choice": chosen})

    assert body["input"] == [
        {"role": "user", "content": [{"type": "input_text", "text": "1 + 1?"}]},
        {"role": "assistant", "content": "Let me see."},
        {"type": "function_call", "call_id": "c1", "name": "add", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c1", "output": "2"},
    ]
    assert body["tools"] == [{"type": "function", "name": "add", "parameters": {}}]
    assert body["tool_choice"] == {"type": "function", "name": "add"}


@pytest.mark.parametrize(
    ("events", "text"),
    [
        (
            [
                {"type": "response.created", "response": {"status": "in_progress", "output": []}},
                {"type": "response.output_text.delta", "delta": "Hel"},
                {
                    "type": "response.completed",
                    "response": {
                        "object": "response",
                        "status": "completed",
                        "output": [
                            {"type": "message", "content": [{"type": "output_text", "text": "Hello"}]}
                        ],
                    },
                },
            ],
            "Hello",
        ),
        ([{"type": "response.created", "response": {"status": "in_progress"}}], None),
    ],
    ids=["whole", "broken off"],
)
async def test_a_stream_of_the_responses_api_is_read(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, events: list[dict[str, Any]], text: str | None
) -> None:
    import json

    stream = "".join(f"event: {one['type']}\ndata: {json.dumps(one)}\n\n" for one in events)
    raw = answers.raw(stream.encode(), content_type="text/event-stream")
    async with ScriptedProvider([raw]) as other:
        lines = entry("other", other.base_url, 'api = "responses"', 'api_key_env = "OTHER_KEY"')
        async with calls_with(monkeypatch, tmp_path, other, lines) as calls:
            if text is not None:
                assert (await environment().run(calls.generate, job(model="other:o1"))).text == text
            else:
                found = await failure(calls, job(model="other:o1"))
                assert found.kind == FailureKind.PROVIDER_ERROR
                assert found.outcome_unknown


async def test_a_provider_without_structured_output_gets_an_instruction(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    async with ScriptedProvider([answers.ok('{"age": 3}')]) as other:
        lines = entry("other", other.base_url, "structured_output = false")
        async with calls_with(monkeypatch, tmp_path, other, lines) as calls:
            asked = job(model="other:1", output_schema=schema(age={"type": "integer"}))
            await environment().run(calls.generate, asked)

    assert "response_format" not in other.requests[0].body
    assert '"age"' in other.requests[0].body["messages"][0]["content"]


@pytest.mark.parametrize(
    "error",
    [
        {"message": "Unsupported parameter: 'top_p' is not supported with this model.", "param": "top_p"},
        {"message": "Unsupported parameter: 'top_p' is not supported with this model."},
        {"message": "That will not do.", "param": "top_p", "code": "unsupported_parameter"},
        {"message": "Unrecognized request argument supplied: `top_p`"},
    ],
)
async def test_a_parameter_that_a_provider_refuses_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, error: dict[str, Any]
) -> None:
    refused = answers.status(400, {"error": {"type": "invalid_request_error", **error}})
    async with (
        ScriptedProvider([refused]) as mine,
        calls_with(monkeypatch, tmp_path, mine, entry("other", "http://127.0.0.1:9/v1")) as calls,
    ):
        found = await failure(calls, job(top_p=0.5))

    assert found.kind == FailureKind.INVALID_REQUEST
    assert found.details["parameter"] == "top_p"
    assert "top_p" in found.message


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[providers.x]", "providers.x.base_url: "),
        (entry("x", "no url"), "providers.x.base_url: expected a URL"),
        (
            entry("Big_Name", "http://127.0.0.1:9/v1"),
            "providers.Big_Name: expected lower case",
        ),
        (entry("default", "http://127.0.0.1:9/v1"), "not 'default'"),
        (entry("x", "http://127.0.0.1:9/v1", 'api = "batch"'), "providers.x.api: "),
        (entry("x", "http://127.0.0.1:9/v1", "concurrent_calls = 0"), "providers.x.concurrent_calls: "),
        (entry("x", "http://127.0.0.1:9/v1", 'api_key = "sk-1"'), "providers.x.api_key: unknown field"),
        ("providers = 5", "providers: "),
        ("a = [", "is not TOML"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(tmp_path: Path, text: str, problem: str) -> None:
    file = tmp_path / "providers.toml"
    file.write_text(text)
    with pytest.raises(WrongSetting) as wrong:
        named_providers({"TASQ_PROVIDERS": str(file)})

    assert wrong.value.name == "TASQ_PROVIDERS"
    assert problem in str(wrong.value)


def test_missing_keys_and_files_are_named(tmp_path: Path) -> None:
    file = tmp_path / "providers.toml"
    file.write_text(entry("far", "https://models.example.org/v1", 'api_key_env = "FAR_KEY"'))

    (missing,) = provider_problems({"TASQ_PROVIDERS": str(file)})
    assert (missing.name, "'far'" in str(missing)) == ("FAR_KEY", True)
    assert provider_problems({"TASQ_PROVIDERS": str(file), "FAR_KEY": KEY}) == []
    (quoted,) = provider_problems({"TASQ_PROVIDERS": str(file), "FAR_KEY": f"'{KEY}'"})
    assert KEY not in str(quoted)
    (no_file,) = provider_problems({"TASQ_PROVIDERS": "nowhere.toml"})
    assert "cannot read 'nowhere.toml'" in str(no_file)
    assert provider_problems({}) == []
