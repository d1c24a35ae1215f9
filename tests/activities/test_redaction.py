"""What must not be recorded does not pass; what people need to read does."""

from __future__ import annotations

import base64
from collections.abc import Callable

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


def escaped(form: str) -> Callable[[str], str]:
    return lambda key: "".join(form % ord(character) for character in key)


FORMS: list[tuple[str, Callable[[str], str]]] = [
    ("base64", lambda key: base64.b64encode(key.encode()).decode()),
    ("base64 of a user and it", lambda key: base64.b64encode(f"me:{key}".encode()).decode()),
    ("base64 of something and it", lambda key: base64.b64encode(f"a {key} b".encode()).decode()),
    ("base64 for URLs", lambda key: base64.urlsafe_b64encode(f"??{key}??".encode()).decode()),
    ("percent", escaped("%%%02X")),
    ("percent in lower case", escaped("%%%02x")),
    ("percent twice", escaped("%%25%02x")),
    ("JSON", escaped("\\u%04x")),
    ("JSON in JSON", escaped("\\\\u%04X")),
    ("JSON in part", lambda key: key[:3] + escaped("\\u%04x")(key[3:15]) + key[15:]),
    ("Python", escaped("\\x%02x")),
    ("HTML", escaped("&#%d;")),
    ("HTML, hexadecimal", escaped("&#x%02x;")),
    ("hexadecimal", lambda key: key.encode().hex()),
    ("hexadecimal in upper case", lambda key: key.encode().hex().upper()),
    ("hexadecimal with blanks", lambda key: key.encode().hex(" ")),
]


@pytest.mark.parametrize("write", [row[1] for row in FORMS], ids=[row[0] for row in FORMS])
@pytest.mark.parametrize("key", ["sk-test-0123456789abcdef", "not/shaped+like?a~key"])
@pytest.mark.parametrize("part", [1.0, 0.7])
def test_a_key_is_taken_out_in_any_form_whole_or_cut(
    write: Callable[[str], str], key: str, part: float
) -> None:
    written = write(key)
    said = f"the key {written[: int(len(written) * part)]} is wrong"
    recorded = Redactor.of(openai.AsyncOpenAI(api_key=key))(said)
    assert recorded.startswith("the key ")
    assert recorded.endswith(" is wrong")
    assert "[redacted]" in recorded
    assert len(recorded) < len("the key [redacted] is wrong") + 14


def test_what_is_around_an_escaped_key_stays_as_it_is() -> None:
    key = "sk-test-0123456789abcdef"
    said = f"50%25 of {escaped('%%%02X')(key)} \\u0041 &#65; {key.encode().hex()} end"
    recorded = Redactor.of(openai.AsyncOpenAI(api_key=key))(said)
    assert recorded == "50%25 of [redacted] \\u0041 &#65; [redacted] end"
