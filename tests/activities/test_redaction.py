"""What must not be recorded does not pass; what people need to read does."""

from __future__ import annotations

import openai
import pytest

from tasquencer.ai.provider.redaction import Redactor

OWN = "own/key+with=signs"


def redactor() -> Redactor:
    client = openai.AsyncOpenAI(
        api_key=OWN, default_headers={"X-Api-Key": "header-secret", "X-Team": "platform-team"}
    )
    return Redactor.of(client)


@pytest.mark.parametrize(
    ("said", "recorded"),
    [
        (f"bad key {OWN}!", "bad key [redacted]!"),
        ("GET /?k=own%2Fkey%2Bwith%3Dsigns", "GET /?k=[redacted]"),
        ("header-secret is wrong", "[redacted] is wrong"),
        ("key sk-proj-abc_DEF-123 is wrong", "key [redacted] is wrong"),
        ("key sk-abc*****xyz.", "key [redacted]"),
        ("Authorization: Bearer abc.def-123", "Authorization: Bearer [redacted]"),
        ('{"authorization": "Bearer abc"}', '{"authorization": "Bearer [redacted]"}'),
        ("Basic dXNlcjpwYXNz", "Basic [redacted]"),
        ("api_key=abc&x=1", "api_key=[redacted]&x=1"),
        ("X-Api-Key: abc", "X-Api-Key: [redacted]"),
        ("proxy http://user:pass@host:1 failed", "proxy http://[redacted]@host:1 failed"),
    ],
)
def test_credentials_are_taken_out(said: str, recorded: str) -> None:
    assert redactor()(said) == recorded


@pytest.mark.parametrize(
    "said",
    [
        "Rate limit reached for gpt-4o in organization org-1 on tokens per min (TPM)",
        "Missing bearer token",
        "use Basic authentication",
        "a risk-free, task-based desk-top",
        "the platform-team has no quota",
        "see https://example.org/docs?page=1",
    ],
)
def test_ordinary_words_stay(said: str) -> None:
    assert redactor()(said) == said


def test_a_placeholder_for_a_key_is_no_secret() -> None:
    assert Redactor.of(openai.AsyncOpenAI(api_key="ollama"))("try `ollama pull`") == "try `ollama pull`"
