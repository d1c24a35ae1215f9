"""Good answers, in the shapes that providers give them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tasquencer.ai.provider.prices import price_list
from tests.activities.calling import MODEL, answer_of, job, schema
from tests.support import answers
from tests.support.patience import PATIENCE_SECONDS
from tests.support.provider import ScriptedProvider


def choice(message: dict[str, Any], **fields: Any) -> answers.Answer:
    """A completion with this message and nothing that is not required."""
    return answers.raw(json.dumps({"choices": [{"message": message}]} | fields).encode())


async def test_an_answer_carries_text_model_usage_cost_and_the_providers_name_for_the_request() -> None:
    spoken = answers.ok("Hello!", usage=(1000, 10), model="tiny-1-2026", request_id="req_9")
    prices = {"tiny-1-2026": 0.001}
    async with ScriptedProvider([spoken]) as provider:
        answer = await answer_of(
            provider.base_url, price=lambda model, read, written: prices[model] * (read + written)
        )
    assert 0 < (answer.latency_seconds or 0) < PATIENCE_SECONDS
    assert answer.model_dump(exclude={"latency_seconds"}) == {
        "text": "Hello!",
        "model": "tiny-1-2026",
        "finish_reason": "stop",
        "provider_request_id": "req_9",
        "input_tokens": 1000,
        "output_tokens": 10,
        "cached_tokens": None,
        "reasoning_tokens": None,
        "cost_usd": pytest.approx(1.01),
        "tool_calls": None,
    }


async def test_an_answer_may_lack_everything_but_its_text() -> None:
    async with ScriptedProvider([choice({"content": "Hi"})]) as provider:
        answer = await answer_of(provider.base_url)
    assert answer.model_dump(exclude={"latency_seconds"}, exclude_none=True) == {"text": "Hi", "model": MODEL}


async def test_the_completions_own_id_names_the_request_where_no_header_does() -> None:
    async with ScriptedProvider([choice({"content": "Hi"}, id="chatcmpl-1")]) as provider:
        assert (await answer_of(provider.base_url)).provider_request_id == "chatcmpl-1"


async def test_text_may_come_in_parts() -> None:
    parts = [{"type": "text", "text": "Hel"}, {"type": "image"}, "?", {"type": "text", "text": "lo"}]
    async with ScriptedProvider([choice({"content": parts})]) as provider:
        assert (await answer_of(provider.base_url)).text == "Hello"


async def test_null_fields_that_announce_errors_are_none() -> None:
    async with ScriptedProvider([choice({"content": "Hi", "refusal": None}, error=None)]) as provider:
        assert (await answer_of(provider.base_url)).text == "Hi"


async def test_an_answer_that_the_token_limit_cut_off_is_an_answer_where_no_schema_was_asked_for() -> None:
    async with ScriptedProvider([answers.ok("Once upon", finish_reason="length")]) as provider:
        answer = await answer_of(provider.base_url)
    assert (answer.text, answer.finish_reason) == ("Once upon", "length")


async def test_output_that_fits_the_schema_is_an_answer() -> None:
    async with ScriptedProvider([answers.ok('{"age": 3}')]) as provider:
        answer = await answer_of(provider.base_url, job(output_schema=schema(age={"type": "integer"})))
    assert answer.text == '{"age": 3}'


async def test_a_text_of_a_megabyte_is_an_answer() -> None:
    async with ScriptedProvider([answers.huge(1_000_000)]) as provider:
        assert len((await answer_of(provider.base_url)).text) == 1_000_000


@pytest.mark.parametrize(
    ("raw", "text"),
    [
        (rb'"a\u0000b"', "a\ufffdb"),
        (rb'"a\ud800b"', "a\ufffdb"),
        (rb'"\ud83d\ude00"', "\U0001f600"),
        (b'"a\xffb"', "a\ufffdb"),
        (b'"a\nb"', "a\nb"),
    ],
    ids=["NUL", "lone surrogate", "surrogate pair", "not UTF-8", "bare line break"],
)
async def test_text_that_no_database_can_hold_is_mended(raw: bytes, text: str) -> None:
    body = b'\xef\xbb\xbf{"choices": [{"message": {"content": ' + raw + b"}}]}"
    async with ScriptedProvider([answers.raw(body)]) as provider:
        assert (await answer_of(provider.base_url)).text == text


@pytest.mark.parametrize("tokens", [-1, 1.5, "7", None, True, 10**40, [7]])
async def test_a_usage_that_cannot_be_is_unknown(tokens: Any) -> None:
    usage = {"prompt_tokens": tokens, "completion_tokens": 7.0}
    async with ScriptedProvider([choice({"content": "Hi"}, usage=usage)]) as provider:
        answer = await answer_of(provider.base_url, price=lambda *_: 1.0)
    assert (answer.input_tokens, answer.output_tokens, answer.cost_usd) == (None, 7, None)


@pytest.mark.parametrize("cost", [float("nan"), -1.0, None])
async def test_a_price_that_is_none_does_not_spoil_the_answer(cost: float | None) -> None:
    async with ScriptedProvider([answers.ok()]) as provider:
        assert (await answer_of(provider.base_url, price=lambda *_: cost)).cost_usd is None


async def test_a_price_that_raises_does_not_spoil_the_answer() -> None:
    def broken(model: str, input_tokens: int, output_tokens: int) -> float:
        raise RuntimeError

    async with ScriptedProvider([answers.ok()]) as provider:
        assert (await answer_of(provider.base_url, price=broken)).cost_usd is None


async def test_the_default_prices_know_a_well_known_model_and_no_other() -> None:
    known = answers.ok(usage=(1_000_000, 1_000_000), model="gpt-4o-mini-2024-07-18")
    unknown = answers.ok(model="nobody-knows-1")
    async with ScriptedProvider([known, unknown]) as provider:
        assert (await answer_of(provider.base_url, price=None)).cost_usd == pytest.approx(0.15 + 0.60)
        assert (await answer_of(provider.base_url, price=None)).cost_usd is None


def test_a_price_is_that_of_the_provider_behind_the_url_where_it_is_known() -> None:
    openrouter, openai = price_list("https://openrouter.ai/api/v1/"), price_list("https://api.openai.com/v1/")
    assert openrouter("openai/gpt-4o-mini", 1_000_000, 0) == pytest.approx(0.15)
    assert openai("gpt-4o-mini", 1_000_000, 0) == pytest.approx(0.15)
    assert openai("nobody-knows-1", 1, 1) is None
