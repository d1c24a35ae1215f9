"""Good statuses in the forms that providers and gateways give them: one row for each."""

# ruff: noqa: E501 - a row of a table has a line

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasquencer.ai.provider.prices import OwnPrice, own_prices, price_list
from tasquencer.core.errors import WrongSetting
from tasquencer.core.failure import FailureKind
from tests.activities.calling import answer_of, failure_of, job, schema
from tests.poison.wire import head, sending
from tests.support import answers
from tests.support.answers import Answer
from tests.support.provider import ScriptedProvider

K = FailureKind
STUMP = "Dear Anna, we are very"

FINISHES: list[tuple[str, FailureKind | None, FailureKind]] = [
    # the word, what it means with a text (None: the text is the answer), and without one
    ("stop", None, K.INVALID_OUTPUT),
    ("STOP", None, K.INVALID_OUTPUT),
    ("end_turn", None, K.INVALID_OUTPUT),
    ("eos", None, K.INVALID_OUTPUT),
    ("tool_calls", None, K.INVALID_OUTPUT),
    ("length", None, K.INVALID_OUTPUT),
    ("MAX_TOKENS", None, K.INVALID_OUTPUT),
    ("model_length", None, K.INVALID_OUTPUT),
    ("never_heard_of", None, K.INVALID_OUTPUT),
    ("OTHER", None, K.INVALID_OUTPUT),
    ("", None, K.INVALID_OUTPUT),
    ("insufficient_system_resource", K.PROVIDER_ERROR, K.PROVIDER_ERROR),
    ("error", K.PROVIDER_ERROR, K.PROVIDER_ERROR),
    ("network_error", K.PROVIDER_ERROR, K.PROVIDER_ERROR),
    ("NetworkError", K.PROVIDER_ERROR, K.PROVIDER_ERROR),
    ("abort", K.PROVIDER_ERROR, K.PROVIDER_ERROR),
    ("timeout", K.PROVIDER_ERROR, K.PROVIDER_ERROR),
    ("MALFORMED_RESPONSE", K.PROVIDER_ERROR, K.PROVIDER_ERROR),
    ("content_filter", K.REFUSED, K.REFUSED),
    ("content_filter: PROHIBITED_CONTENT", K.REFUSED, K.REFUSED),
    ("sensitive", K.REFUSED, K.REFUSED),
    ("SAFETY", K.REFUSED, K.REFUSED),
    ("RECITATION", K.REFUSED, K.REFUSED),
    ("PROHIBITED_CONTENT", K.REFUSED, K.REFUSED),
    ("refusal", K.REFUSED, K.REFUSED),
    ("guardrail_intervened", K.REFUSED, K.REFUSED),
    ("ERROR_TOXIC", K.REFUSED, K.REFUSED),
]


@pytest.mark.parametrize(("word", "with_text", "without"), FINISHES, ids=[row[0] for row in FINISHES])
async def test_a_finish_reason_says_whether_a_text_is_an_answer(
    word: str, with_text: FailureKind | None, without: FailureKind
) -> None:
    script = [answers.ok(STUMP, finish_reason=word), answers.ok("", finish_reason=word)]
    async with ScriptedProvider(script) as provider:
        if with_text is None:
            answer = await answer_of(provider.base_url)
            assert (answer.text, answer.finish_reason) == (STUMP, word or None)
        else:
            failure = await failure_of(provider.base_url, price=lambda *_: 0.5)
            assert failure.kind == with_text
            assert failure.details["output_tokens"] == 7
            assert failure.details["cost_usd"] == 0.5
            assert failure.details["finish_reason"] == word
        assert (await failure_of(provider.base_url)).kind == without


@pytest.mark.parametrize("word", ["length", "MAX_TOKENS", "max_tokens", "model_length"])
async def test_output_that_was_cut_off_does_not_count_where_a_schema_was_asked_for(word: str) -> None:
    async with ScriptedProvider([answers.ok("{}", finish_reason=word)]) as provider:
        failure = await failure_of(provider.base_url, job(output_schema=schema()))
    assert failure.kind == K.INVALID_OUTPUT


async def test_a_routers_own_word_for_the_finish_counts_where_the_text_is_empty() -> None:
    choice = {"message": {"content": ""}, "finish_reason": "stop", "native_finish_reason": "SAFETY"}
    async with ScriptedProvider([answers.raw(json.dumps({"choices": [choice]}).encode())]) as provider:
        assert (await failure_of(provider.base_url)).kind == K.REFUSED


NOTHING_SAID: list[Any] = [
    None,
    {},
    [],
    "",
    False,
    0,
    {"message": "", "code": None},
    {"message": None, "type": None, "param": None, "code": None},
    {"code": 0, "message": "success"},
    {"code": "0", "message": ""},
    {"code": 200, "message": "OK"},
]


@pytest.mark.parametrize("error", NOTHING_SAID, ids=repr)
async def test_an_error_that_says_nothing_beside_a_whole_answer_is_none(error: Any) -> None:
    body = {
        "choices": [{"message": {"content": "Hi"}, "finish_reason": "stop", "error": error}],
        "error": error,
    }
    async with ScriptedProvider([answers.raw(json.dumps(body).encode())]) as provider:
        assert (await answer_of(provider.base_url)).text == "Hi"


def chunk(content: Any = None, finish: str | None = None, **more: Any) -> dict[str, Any]:
    delta = {} if content is None else {"content": content}
    return {"id": "c-1", "object": "chat.completion.chunk", "model": "tiny-2", "choices": [
        {"index": 0, "delta": delta, "finish_reason": finish}
    ]} | more  # fmt: skip


def events(*values: Any, end: str = "\n\n") -> bytes:
    return "".join(
        f"data: {value if isinstance(value, str) else json.dumps(value)}{end}" for value in values
    ).encode()


WHOLE = {"choices": [{"message": {"content": "Hello"}, "finish_reason": "stop"}]}
USAGE = {"prompt_tokens": 3, "completion_tokens": 4, "total_tokens": 7}
HELLO = [
    chunk(""),
    chunk("Hel"),
    chunk("lo"),
    chunk(finish="stop"),
    {"choices": [], "usage": USAGE},
    "[DONE]",
]

BODIES: list[tuple[str, bytes]] = [
    ("chunks", events(*HELLO)),
    ("chunks with CRLF", events(*HELLO, end="\r\n\r\n")),
    ("chunks with CR", events(*HELLO, end="\r\r")),
    ("chunks without blank lines", events(*HELLO, end="\n")),
    ("chunks without blanks", events(*HELLO).replace(b"data: ", b"data:")),
    ("chunks with comments", b": OPENROUTER PROCESSING\n\n" * 3 + events(*HELLO)),
    ("chunks with comments between", events(*HELLO).replace(b"\n\n", b"\n\n: keep-alive\n\n")),
    ("chunks with other fields", b"retry: 3000\n\n" + events(*HELLO).replace(b"data:", b"event: x\nid: 7\ndata:")),
    ("chunks with pings", events("ping", *HELLO)),
    ("blank lines in front", b"\n\n\r\n  " + events(*HELLO)),
    ("a mark of the byte order", b"\xef\xbb\xbf" + events(*HELLO)),
    ("no end but a finish", events(*HELLO[:-1])),
    ("an end but no finish", events(chunk("Hello"), "[DONE]")),
    ("DONE without brackets", events(chunk("Hello"), "DONE")),
    ("a whole completion as an event", events(WHOLE, "[DONE]")),
    ("a whole completion as the only event", events(WHOLE)),
    ("a whole completion over several lines", b"data: " + json.dumps(WHOLE, indent=1).encode().replace(b"\n", b"\ndata: ")),
    ("an end glued to JSON", json.dumps(WHOLE).encode() + b"data: [DONE]"),
    ("an end after JSON", json.dumps(WHOLE).encode() + b"\n\ndata: [DONE]\n\n"),
    ("an end glued to an event", b"data: " + json.dumps(WHOLE).encode() + b"data: [DONE]\n\n"),
    ("blank lines before JSON", b"\n\n\n   " + json.dumps(WHOLE).encode()),
    ("reasoning in the chunks", events(chunk([{"type": "thinking", "text": "hm"}]), chunk("Hello", reasoning="x"), chunk(finish="stop"))),
    ("line separators in the text", events(chunk("Hello"), chunk(finish="stop"), "[DONE]")),
    ("two choices", events(chunk("Hello"), {"choices": [{"index": 1, "delta": {"content": "Bye"}}]}, chunk(finish="stop"))),
]  # fmt: skip


@pytest.mark.parametrize("body", [row[1] for row in BODIES], ids=[row[0] for row in BODIES])
async def test_a_body_is_read_as_a_stream_or_as_json(body: bytes) -> None:
    async with ScriptedProvider([answers.raw(body, content_type="text/event-stream")]) as provider:
        assert (await answer_of(provider.base_url)).text == "Hello"


async def test_a_stream_gives_all_that_a_completion_gives() -> None:
    async with ScriptedProvider([answers.raw(events(*HELLO))]) as provider:
        answer = await answer_of(provider.base_url)
    assert answer.model_dump(exclude={"latency_seconds"}, exclude_none=True) == {
        "text": "Hello",
        "model": "tiny-2",
        "finish_reason": "stop",
        "provider_request_id": "c-1",
        "input_tokens": 3,
        "output_tokens": 4,
    }


async def test_text_with_line_separators_comes_out_of_a_stream_as_it_went_in() -> None:
    text = "a\u2028b\u0085c\u2029d\x0be"
    body = "".join(
        f"data: {json.dumps(one, ensure_ascii=False)}\n\n" for one in (chunk(text), chunk(finish="stop"))
    )
    async with ScriptedProvider([answers.raw(body.encode())]) as provider:
        assert (await answer_of(provider.base_url)).text == text


BAD_STREAMS: list[tuple[str, bytes, FailureKind, str]] = [
    ("breaks off", events(chunk("Hel")), K.PROVIDER_ERROR, "break off"),
    ("breaks off in an event", events(chunk("Hel")) + b'data: {"choices": [{"del', K.PROVIDER_ERROR, "break off"),
    ("an error first", events({"error": {"message": "slow down", "code": 429}}), K.RATE_LIMITED, "slow down"),
    ("an error later", events(chunk("Hel"), {"error": {"message": "gone", "code": 502}}), K.PROVIDER_ERROR, "gone"),
    ("an error in a chunk", events(chunk("Hel", "error", error={"message": "gone", "code": 502})), K.PROVIDER_ERROR, "gone"),
    ("only comments", b": OPENROUTER PROCESSING\n\n" * 9, K.PROVIDER_ERROR, "without a completion"),
    ("filtered", events(chunk("Hel"), chunk(finish="content_filter"), "[DONE]"), K.REFUSED, "content filter"),
    ("nothing", events(chunk(""), chunk(finish="stop"), "[DONE]"), K.INVALID_OUTPUT, "empty"),
    ("refused", events({"choices": [{"delta": {"refusal": "I can't"}, "finish_reason": "stop"}]}), K.REFUSED, "I can't"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "kind", "said"), [row[1:] for row in BAD_STREAMS], ids=[row[0] for row in BAD_STREAMS]
)
async def test_a_stream_may_fail_as_any_answer_may(body: bytes, kind: FailureKind, said: str) -> None:
    async with ScriptedProvider([answers.raw(body, content_type="text/event-stream")]) as provider:
        failure = await failure_of(provider.base_url)
    assert failure.kind == kind, failure
    assert said in failure.message


BROKEN_OFF: list[tuple[str, bytes, bool]] = [
    ("whole JSON", json.dumps(WHOLE).encode(), True),
    ("half of it", json.dumps(WHOLE).encode()[:-5], False),
    ("a stream with its finish", events(*HELLO[:4]), True),
    ("a stream without", events(*HELLO[:3]), False),
]


@pytest.mark.parametrize(
    ("body", "counts"), [row[1:] for row in BROKEN_OFF], ids=[row[0] for row in BROKEN_OFF]
)
async def test_what_is_complete_counts_though_the_connection_broke(body: bytes, counts: bool) -> None:
    broken = sending(head("200 OK", b"transfer-encoding: chunked"), b"%x\r\n%b\r\n" % (len(body), body))
    async with ScriptedProvider([broken]) as provider:
        if counts:
            assert (await answer_of(provider.base_url)).text == "Hello"
        else:
            failure = await failure_of(provider.base_url)
            assert (failure.kind, failure.outcome_unknown) == (K.PROVIDER_ERROR, True)


@pytest.mark.parametrize(
    "part",
    [
        {"type": "reasoning", "text": "hm"},
        {"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]},
        {"type": "thinking", "text": "hm"},
        {"type": "redacted_thinking", "text": "hm"},
        {"type": "reasoning_text", "text": "hm"},
        {"type": "text", "text": "hm", "thought": True},
    ],
    ids=json.dumps,
)
async def test_reasoning_is_not_part_of_the_answer(part: dict[str, Any]) -> None:
    parts = [part, {"type": "text", "text": "Hi"}]
    body = {"choices": [{"message": {"content": parts}, "finish_reason": "stop"}]}
    alone = {"choices": [{"message": {"content": [part]}, "finish_reason": "stop"}]}
    script = [answers.raw(json.dumps(one).encode()) for one in (body, alone)]
    async with ScriptedProvider(script) as provider:
        assert (await answer_of(provider.base_url)).text == "Hi"
        assert (await failure_of(provider.base_url)).kind == K.INVALID_OUTPUT


def used(**usage: Any) -> Answer:
    return answers.raw(json.dumps(WHOLE | {"usage": usage}).encode())


TOKENS: list[tuple[str, dict[str, Any], tuple[int | None, ...]]] = [
    # the usage; then input, output, cached and reasoning tokens
    ("OpenAI", {"prompt_tokens": 10, "completion_tokens": 9, "total_tokens": 19,
                "prompt_tokens_details": {"cached_tokens": 4}, "completion_tokens_details": {"reasoning_tokens": 5}},
     (10, 9, 4, 5)),
    ("Gemini", {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 100}, (10, 90, None, 88)),
    ("xAI", {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 100,
             "completion_tokens_details": {"reasoning_tokens": 88}}, (10, 90, None, 88)),
    ("Gemini, all reasoning", {"prompt_tokens": 10, "total_tokens": 100}, (10, 90, None, None)),
    ("DeepSeek", {"prompt_tokens": 10, "completion_tokens": 2, "prompt_cache_hit_tokens": 7,
                  "prompt_cache_miss_tokens": 3}, (10, 2, 7, None)),
    ("Moonshot", {"prompt_tokens": 10, "completion_tokens": 2, "cached_tokens": 7}, (10, 2, 7, None)),
    ("Anthropic's names", {"input_tokens": 10, "output_tokens": 2, "cache_read_input_tokens": 7}, (10, 2, 7, None)),
    ("a total that is too small", {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 3}, (10, 2, None, None)),
    ("only output and total", {"completion_tokens": 2, "total_tokens": 12}, (10, 2, None, None)),
    ("more cached than read", {"prompt_tokens": 10, "completion_tokens": 2, "cached_tokens": 11}, (10, 2, None, None)),
    ("negative", {"prompt_tokens": 10, "completion_tokens": 2, "cached_tokens": -1, "total_tokens": -5}, (10, 2, None, None)),
    ("odd", {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": [7], "total_tokens": "x"}, (10, 2, None, None)),
    ("null", {"prompt_tokens": 10, "completion_tokens": 2, "prompt_tokens_details": None,
              "completion_tokens_details": {"reasoning_tokens": None}}, (10, 2, None, None)),
]  # fmt: skip


@pytest.mark.parametrize(("usage", "counts"), [row[1:] for row in TOKENS], ids=[row[0] for row in TOKENS])
async def test_tokens_are_counted_as_the_provider_means_them(
    usage: dict[str, Any], counts: tuple[int | None, ...]
) -> None:
    async with ScriptedProvider([used(**usage)]) as provider:
        answer = await answer_of(provider.base_url)
    found = (answer.input_tokens, answer.output_tokens, answer.cached_tokens, answer.reasoning_tokens)
    assert found == counts


PLAIN = {"prompt_tokens": 1_000, "completion_tokens": 10}
COSTS: list[tuple[str, dict[str, Any], dict[str, str], float | None]] = [
    # the usage and the headers, and the cost; the price list says 0.5
    ("by the list", PLAIN, {}, 0.5),
    ("by the provider", PLAIN | {"cost": 0.03}, {}, 0.03),
    ("for nothing", PLAIN | {"cost": 0}, {}, 0.0),
    ("in parts", PLAIN | {"cost": {"input_tokens_cost": 0.01, "total_cost": 0.04}}, {}, 0.04),
    ("with a key of one's own", PLAIN | {"cost": 0.001, "is_byok": True, "cost_details": {"upstream_inference_cost": 0.02}}, {}, 0.021),
    ("estimated", PLAIN | {"estimated_cost": 0.02}, {}, 0.02),
    ("in a header", PLAIN, {"x-litellm-response-cost": "0.07"}, 0.07),
    ("without tokens", {"cost": 0.03}, {}, 0.03),
    ("negative", PLAIN | {"cost": -1}, {}, 0.5),
    ("NaN", PLAIN | {"cost": float("nan")}, {}, 0.5),
    ("infinite", PLAIN | {"cost": float("inf")}, {}, 0.5),
    ("beyond belief", PLAIN | {"cost": 1e9}, {}, 0.5),
    ("a truth", PLAIN | {"cost": True}, {}, 0.5),
    ("a word", PLAIN | {"cost": "free"}, {}, 0.5),
    ("null", PLAIN | {"cost": None}, {}, 0.5),
    ("a header that cannot be read", PLAIN, {"x-litellm-response-cost": "None"}, 0.5),
]  # fmt: skip


@pytest.mark.parametrize(
    ("usage", "headers", "cost"), [row[1:] for row in COSTS], ids=[row[0] for row in COSTS]
)
async def test_a_cost_that_the_provider_reports_goes_before_the_list(
    usage: dict[str, Any], headers: dict[str, str], cost: float | None
) -> None:
    spoken = answers.raw(json.dumps(WHOLE | {"usage": usage}).encode(), headers=headers)
    async with ScriptedProvider([spoken]) as provider:
        answer = await answer_of(provider.base_url, price=lambda *_: 0.5)
    assert answer.cost_usd == pytest.approx(cost)


async def test_cached_tokens_have_a_price_of_their_own() -> None:
    usage = {
        "prompt_tokens": 10_000,
        "completion_tokens": 100,
        "prompt_tokens_details": {"cached_tokens": 9_000},
    }
    body = WHOLE | {"usage": usage, "model": "gpt-4o-mini"}
    async with ScriptedProvider([answers.raw(json.dumps(body).encode())]) as provider:
        answer = await answer_of(provider.base_url, price=None)
    assert answer.cost_usd == pytest.approx((1_000 * 0.15 + 9_000 * 0.075 + 100 * 0.6) / 1e6)


def written(folder: Path, text: str) -> dict[str, str]:
    file = folder / "prices.toml"
    file.write_text(text, encoding="utf-8")
    return {"TASQ_PRICES": str(file)}


async def test_a_file_has_prices_of_ones_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    environment = written(
        tmp_path,
        '["mine-*"]\ninput = 2\noutput = 10\ncached_input = 0.5\n[gpt-4o-mini]\ninput = 1\noutput = 1',
    )
    monkeypatch.setenv("TASQ_PRICES", environment["TASQ_PRICES"])
    usage = {
        "prompt_tokens": 10_000,
        "completion_tokens": 100,
        "prompt_tokens_details": {"cached_tokens": 9_000},
    }
    script = [
        answers.raw(json.dumps(WHOLE | {"usage": usage, "model": model}).encode())
        for model in ("mine-7b", "gpt-4o-mini", "nobody-knows-1")
    ]
    async with ScriptedProvider(script) as provider:
        costs = [(await answer_of(provider.base_url, price=None)).cost_usd for _ in script]
    assert costs == [
        pytest.approx((1_000 * 2 + 9_000 * 0.5 + 100 * 10) / 1e6), pytest.approx(10_100 / 1e6), None
    ]  # fmt: skip


def test_no_file_is_no_price_and_the_exact_name_goes_before_a_pattern(tmp_path: Path) -> None:
    assert own_prices({}) == {}
    assert own_prices({"TASQ_PRICES": " "}) == {}
    prices = own_prices(written(tmp_path, '["m*"]\ninput=1\noutput=1\n[mine]\ninput=3\noutput=0'))
    assert prices["mine"] == OwnPrice(3, 0, 3, 3)
    assert price_list("https://x.example/v1", prices)("mine", 1_000_000, 5) == 3
    assert price_list("https://x.example/v1", prices)("more", 1_000_000, 0) == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = [", "is not TOML"),
        ("[m]\ninput = 1", "must be a table with input and output"),
        ("[m]\ninput = 1\noutput = 1\nspeed = 3", "must be a table with input and output"),
        ("m = 3", "must be a table with input and output"),
        ("[m]\ninput = -1\noutput = 1", "0 or more, found -1"),
        ("[m]\ninput = nan\noutput = 1", "0 or more, found nan"),
        ("[m]\ninput = inf\noutput = 1", "0 or more, found inf"),
        ("[m]\ninput = '1'\noutput = 1", "0 or more, found '1'"),
        ("[m]\ninput = true\noutput = 1", "0 or more, found True"),
    ],
)
def test_a_file_that_is_wrong_is_refused_with_the_reason(tmp_path: Path, text: str, said: str) -> None:
    with pytest.raises(WrongSetting, match="TASQ_PRICES") as caught:
        own_prices(written(tmp_path, text))
    assert said in str(caught.value)


def test_a_file_that_is_missing_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WrongSetting, match="cannot be read"):
        own_prices({"TASQ_PRICES": str(tmp_path / "none.toml")})
