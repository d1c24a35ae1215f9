from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from tasquencer.ai.request import MAXIMUM_REQUEST_BYTES, AiAgentRequest, RetryOptions
from tasquencer.ai.review import ReviewedDraftRequest
from tasquencer.cli import reviews, tasks
from tasquencer.cli.request import DRAFT_OPTIONS, OPTIONS
from tests.cli.conftest import Tasq


@pytest.fixture
def sent(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What `tasq run` would send, which goes nowhere here."""
    requests: list[tuple[Any, ...]] = []

    async def keep(request: dict[str, Any], task_type: str, task_id: str, **options: object) -> int:
        requests.append((request, task_id, options))
        return 0

    for module in (tasks, reviews):
        monkeypatch.setattr(module, "start_and_report", keep)
    return requests


def test_only_what_the_user_set_is_sent(tasq: Tasq, sent: list[Any]) -> None:
    assert tasq("run", "hello").exit_code == 0
    ((request, task_id, options),) = sent
    assert request == {"prompt": "hello"}
    assert task_id.startswith("ai-agent-") and len(task_id) == len("ai-agent-12345678")
    assert options == {"detach": False, "as_json": False}


def test_every_field_of_the_request_is_an_option(tasq: Tasq, sent: list[Any], tmp_path: Path) -> None:
    result = tasq(
        *("run", "hello", "--system", "be brief", "--model", "m", "--temperature", "0.5"),
        *("--max-output-tokens", "9", "--max-retries", "0", "--initial-interval", "500ms"),
        *("--backoff-coefficient", "3", "--maximum-interval", "1m", "--jitter", "0.1", "--retry-on", "any"),
        *(
            "--attempt-timeout",
            "2m",
            "--heartbeat-timeout",
            "10",
            "--queue-timeout",
            "1m",
            "--deadline",
            "1h",
        ),
        *("--metadata", "a=1", "--metadata", "b=x=y", "--id", "mine"),
        *("--tool", "a", "--tool", "b", "--tool-choice", "a", "--no-parallel-tool-calls", "--max-turns", "5"),
    )
    assert result.exit_code == 0, result.output
    ((request, task_id, _),) = sent
    assert task_id == "mine"
    assert request == {
        "prompt": "hello",
        "system": "be brief",
        "model": "m",
        "temperature": 0.5,
        "max_output_tokens": 9,
        "max_retries": 0,
        "retry": {
            "initial_interval_seconds": 0.5,
            "backoff_coefficient": 3.0,
            "maximum_interval_seconds": 60.0,
            "jitter": 0.1,
            "retry_on": "any",
        },
        "attempt_timeout_seconds": 120.0,
        "heartbeat_timeout_seconds": 10.0,
        "queue_timeout_seconds": 60.0,
        "deadline_seconds": 3600.0,
        "metadata": {"a": "1", "b": "x=y"},
        "tools": ["a", "b"],
        "tool_choice": "a",
        "parallel_tool_calls": False,
        "max_turns": 5,
    }
    fields = set(AiAgentRequest.model_fields) - {"retry"}
    assert set(OPTIONS) == fields | {f"retry.{name}" for name in RetryOptions.model_fields}


def test_a_conversation_comes_from_a_file(tasq: Tasq, sent: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "messages.json"
    messages = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hm?"}]
    file.write_text(json.dumps(messages))
    assert tasq("run", "--messages", str(file)).exit_code == 0
    assert sent[0][0] == {"messages": messages}


def test_a_dash_reads_the_prompt_from_standard_input(tasq: Tasq, sent: list[Any]) -> None:
    assert tasq("run", "-", stdin="zwei\nZeilen: ü\n").exit_code == 0
    assert sent[0][0] == {"prompt": "zwei\nZeilen: ü"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "PROMPT: required (or --messages)"),
        (["", "--id", "x"], "PROMPT: must not be empty"),
        (["x", "--temperature", "3"], "--temperature: should be less than or equal to 2"),
        (["x", "--max-retries", "1001"], "--max-retries: should be less than or equal to 1000"),
        (["x", "--max-retries", "-1"], "--max-retries: should be greater than or equal to 0"),
        (["x", "--max-output-tokens", "0"], "--max-output-tokens: should be greater than or equal to 1"),
        (["x", "--temperature", "nan"], "--temperature: should be a finite number"),
        (["x", "--deadline", "0"], "--deadline: should be greater than 0"),
        (
            ["x", "--initial-interval", "5", "--maximum-interval", "2"],
            "--maximum-interval must not be less than --initial-interval",
        ),
        (["x", "--temperature", "3", "--jitter", "-1"], "--jitter: should be greater than or equal to 0"),
        (["x", "--max-turns", "2"], "--max-turns: only with tools"),
        (["x", "--metadata", "novalue"], "--metadata: 'novalue' is not key=value"),
        (["x", "--metadata", "a=1", "--metadata", "a=2"], "--metadata: 'a' is given twice"),
        (["x", "--id", " "], "--id: a task's id must not be empty"),
        (["x", "--initial-interval", "soon"], "'soon' is not a duration such as 30, 500ms, 5m, 2h or 1d"),
        (["x", "--retry-on", "maybe"], "'--retry-on'"),
        (["x", "--max-retries", "many"], "'--max-retries'"),
        (["x", "--no-such-option"], "--no-such-option"),
        (["x", "--messages", "missing.json"], "--messages: cannot read 'missing.json': No such file"),
    ],
)
def test_a_wrong_request_is_refused_in_one_line_that_names_the_option(
    tasq: Tasq, sent: list[Any], arguments: list[str], message: str
) -> None:
    result = tasq("run", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    assert result.stdout == ""
    assert sent == []


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[{", "is not JSON"),
        ("{}", "--messages: should be a valid list"),
        ("[]", "--messages: List should have at least 1 item"),
        ('[{"role": "wizard", "content": "x"}]', "--messages: 0.role: should be"),
        ('[{"role": "user", "content": "x", "text": "y"}]', "--messages: 0.text"),
    ],
)
def test_a_wrong_conversation_is_refused(
    tasq: Tasq, sent: list[Any], tmp_path: Path, content: str, message: str
) -> None:
    file = tmp_path / "messages.json"
    file.write_text(content)
    result = tasq("run", "--messages", str(file))
    assert (result.exit_code, sent) == (2, [])
    assert message in result.stderr and result.stderr.count("\n") == 1


def test_prompt_and_conversation_exclude_each_other(tasq: Tasq, sent: list[Any], tmp_path: Path) -> None:
    file = tmp_path / "messages.json"
    file.write_text('[{"role": "user", "content": "x"}]')
    result = tasq("run", "x", "--messages", str(file))
    assert (result.exit_code, sent) == (2, [])
    assert "error: PROMPT and --messages: give one of them, not both" in result.stderr


def test_a_prompt_too_large_is_refused_with_its_size_and_the_limit(tasq: Tasq, sent: list[Any]) -> None:
    result = tasq("run", "-", stdin="x" * MAXIMUM_REQUEST_BYTES)
    assert (result.exit_code, sent) == (2, [])
    assert "PROMPT: the request has 1,572,8" in result.stderr
    assert f"the limit is {MAXIMUM_REQUEST_BYTES:,}" in result.stderr


def test_standard_input_that_is_not_text_is_refused(tasq: Tasq, sent: list[Any]) -> None:
    result = tasq("run", "-", stdin=b"abc\xff")
    assert (result.exit_code, sent) == (2, [])
    assert "PROMPT: standard input is not UTF-8 text (invalid start byte at byte 3)" in result.stderr


def test_a_fan_out_takes_its_prompts_from_the_lines_of_a_file(
    tasq: Tasq, sent: list[Any], tmp_path: Path
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_text("one\n\n  two  \r\nthree")
    assert tasq("fan-out", str(file), "--max-failures", "1", "--concurrency", "5").exit_code == 0
    assert tasq("fan-out", "-", "--successes", "1", stdin="one\n").exit_code == 0
    assert sent[0][0] == {"prompts": ["one", "two", "three"], "concurrency": 5, "policy": {"limit": 1}}
    assert sent[1][0] == {"prompts": ["one"], "policy": {"name": "require_successes", "successes": 1}}
    assert sent[0][1].startswith("ai-fan-out-")


@pytest.mark.parametrize(
    ("content", "options", "expected"),
    [
        (b"\n \n", [], "has no prompts: write one per line"),
        (b"\xff\n", [], "FILE: is not UTF-8 text (invalid start byte at byte 0)"),
        (b"a\n", ["--successes", "2"], "--successes: 2 are required of only 1 prompt"),
        (b"a\n", ["--concurrency", "0"], "--concurrency: should be greater than or equal to 1"),
        (
            b"a\n",
            ["--max-failure-fraction", "2"],
            "--max-failure-fraction: should be less than or equal to 1",
        ),
        (b"a\n" * 501, [], "FILE: "),
    ],
)
def test_a_wrong_fan_out_is_refused_by_the_names_of_the_options(
    tasq: Tasq, sent: list[Any], tmp_path: Path, content: bytes, options: list[str], expected: str
) -> None:
    file = tmp_path / "prompts.txt"
    file.write_bytes(content)
    refused = tasq("fan-out", str(file), *options)
    assert refused.exit_code == 2
    assert expected in refused.stderr
    assert sent == []


def test_every_field_of_a_reviewed_draft_is_an_option(tasq: Tasq, sent: list[Any]) -> None:
    result = tasq(
        *("draft", "hello", "--max-revisions", "0", "--review-timeout", "2d", "--reminder", "1d"),
        *("--reminder-activity", "remind", "--reminder-task-queue", "pagers", "--model", "m"),
    )
    assert result.exit_code == 0, result.output
    ((request, task_id, options),) = sent
    assert request == {
        "prompt": "hello",
        "model": "m",
        "max_revisions": 0,
        "review_timeout_seconds": 172_800.0,
        "reminder_seconds": 86_400.0,
        "reminder_activity": "remind",
        "reminder_task_queue": "pagers",
    }
    assert task_id.startswith("reviewed-draft-")
    assert options["hint"] == f"when there is a draft, review it: tasq review {task_id}"
    own = set(ReviewedDraftRequest.model_fields) - set(AiAgentRequest.model_fields)
    assert set(DRAFT_OPTIONS) == own


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "PROMPT: required (or --messages)"),
        (["x", "--max-revisions", "21"], "--max-revisions: should be less than or equal to 20"),
        (["x", "--reminder", "7d"], "--reminder: must be less than --review-timeout"),
        (["x", "--reminder-activity", "remind"], "--reminder: required with --reminder-activity"),
        (
            ["x", "--max-revisions", "9", "--max-retries", "200"],
            "--max-revisions and --max-retries: could make 2,010 AI calls, the limit is 1,001",
        ),
    ],
)
def test_a_wrong_draft_is_refused_by_the_names_of_the_options(
    tasq: Tasq, sent: list[Any], arguments: list[str], message: str
) -> None:
    refused = tasq("draft", *arguments)
    assert (refused.exit_code, refused.stderr) == (2, f"error: {message}\n")
    assert sent == []
