"""Tokens and cost: the fields that many models share, and their sums."""

from __future__ import annotations

import json

import pytest

from tasquencer.ai.answer import AiAgentResult, AiAnswer
from tasquencer.ai.fan_out import PromptResult
from tasquencer.ai.usage import Usage, UsageSum
from tasquencer.batch.rows import AiBatchResult, BatchCounts, BatchProgress, RowOutcome
from tasquencer.batch.store import RowAnswer

FIELDS = {"input_tokens", "output_tokens", "cost_usd"}


@pytest.mark.parametrize(
    "model",
    [
        AiAnswer,
        AiAgentResult,
        PromptResult,
        RowOutcome,
        RowAnswer,
        BatchCounts,
        BatchProgress,
        AiBatchResult,
    ],
)
def test_tokens_and_cost_are_fields_of_the_models_own_json(model: type[Usage]) -> None:
    assert set(model.model_json_schema()["properties"]) >= FIELDS


def test_a_total_adds_up_what_is_known() -> None:
    parts = [
        Usage(input_tokens=3, output_tokens=12, cost_usd=0.25),
        Usage(),
        Usage(input_tokens=4, cost_usd=0.5),
    ]

    assert Usage.sum_of(parts) == Usage(input_tokens=7, output_tokens=12, cost_usd=0.75)


def test_a_total_of_nothing_known_is_unknown_and_a_sum_of_rows_has_no_tokens() -> None:
    assert Usage.sum_of([Usage(), Usage()]) == Usage()
    assert UsageSum.sum_of([Usage()]) == UsageSum(input_tokens=0, output_tokens=0, cost_usd=None)


def test_whole_numbers_stay_whole() -> None:
    written = Usage.sum_of([Usage(input_tokens=1), Usage(input_tokens=2)]).model_dump_json()

    assert json.loads(written) == {"input_tokens": 3, "output_tokens": None, "cost_usd": None}


def test_the_usage_of_an_answer_is_its_three_fields() -> None:
    assert AiAnswer(text="Yes.", input_tokens=3).usage == Usage(input_tokens=3)
