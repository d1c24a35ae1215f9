"""Text from outside is safe wherever it is shown."""

from __future__ import annotations

import ast
import json
import logging
import sys
import unicodedata
from pathlib import Path

import pytest

import tasquencer
from tasquencer.cli.log_format import LogFormatter
from tasquencer.core.display_text import json_text, markdown_line, terminal_line, terminal_text

R = "\N{REPLACEMENT CHARACTER}"

VISIBLE_FORMATS = {0x06DD, 0x070F, 0x08E2, 0x110BD, 0x110CD, *range(0x600, 0x606), 0x890, 0x891}
"""Marks of Arabic and other scripts that Unicode counts as formats, but that a reader sees."""


def test_every_character_that_steers_or_hides_is_replaced() -> None:
    harmful = [
        chr(code)
        for code in range(sys.maxunicode + 1)
        if unicodedata.category(chr(code)) in ("Cc", "Cf", "Cs", "Zl", "Zp") and code not in VISIBLE_FORMATS
    ]
    kept = [c for c in harmful if c not in "\n\t" and terminal_text(c) != R]
    assert not kept
    assert not [c for c in harmful if c.isprintable() or terminal_line(f"a{c}b") not in (f"a{R}b", "a b")]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (
            "\x1b]8;;https://evil.example\x07click\x1b]8;;\x07",
            f"{R}]8;;https://evil.example{R}click{R}]8;;{R}",
        ),
        ("\x9b2J", f"{R}2J"),
        ("a\x7fb", f"a{R}b"),
        ("user\u202etxt.exe", f"user{R}txt.exe"),
        ("\u2066a\u2069", f"{R}a{R}"),
        ("ad\u200bmin\ufeff", f"ad{R}min{R}"),
        ("ad\u3164min\u115f", f"ad{R}min{R}"),
        ("a\U000e0041b", f"a{R}b"),
        ("a\rerror: forged", f"a{R}error: forged"),
        ("line\r\nline\n\ttab", "line\nline\n\ttab"),
        ("日本語　\N{NO-BREAK SPACE}é ✓ 😀", "日本語　\N{NO-BREAK SPACE}é ✓ 😀"),
    ],
)
def test_text_for_a_terminal(text: str, shown: str) -> None:
    assert terminal_text(text) == shown


def test_a_line_for_a_terminal_is_one_line_of_a_width() -> None:
    assert terminal_line("anna\nerror: forged\u2028x\x85y") == "anna error: forged x y"
    assert terminal_line("a" * 50, 10) == "a" * 9 + "…"


@pytest.mark.parametrize(
    ("text", "markdown"),
    [
        ("[a](javascript:x)", r"\[a\](javascript\:x)"),
        ("<img src=x onerror=y>", r"\<img src=x onerror=y\>"),
        ("see https://evil.example mailto:a@b.example", r"see https\://evil.example mailto\:a@b.example"),
        ("at 10:30: done", "at 10:30: done"),
        ("a | b\n| c", r"a \| b \| c"),
        ("rate_limited _x_ __y__", r"rate_limited \_x\_ \_\_y\_\_"),
        ("- a list", r"\- a list"),
        ("1. a list", r"1\. a list"),
        ("---", r"\---"),
        ("# title", r"\# title"),
        ("&lt;form&gt;", r"\&lt;form\&gt;"),
        ("a\u202eb\x1b", f"a{R}b{R}"),
    ],
)
def test_a_line_of_markdown(text: str, markdown: str) -> None:
    assert markdown_line(text) == markdown


def test_json_is_one_line_and_safe_to_look_at() -> None:
    value = {"text": "a\u2028b\u2029c\x85d\x9b\x7f\u202e\ud800 é 😀\n\t"}
    text = json_text(value)
    assert len(text.splitlines()) == 1
    assert terminal_text(text) == text and "é 😀" in text
    assert json.loads(text) == value
    assert json.loads(json_text(value, indent=2)) == value


def test_a_log_record_cannot_forge_another_one() -> None:
    formatter = LogFormatter("%(asctime)s %(levelname)s %(name)s: %(message)s")
    try:
        raise RuntimeError("bad\n2026-11-29 12:00:00 ERROR root: forged\r\x1b[2J")
    except RuntimeError:
        record = logging.LogRecord("a", logging.WARNING, "f", 1, "failed: %s", ("x\ny",), sys.exc_info())
    first, *others = formatter.format(record).splitlines()
    assert first.endswith("WARNING a: failed: x")
    assert others and all(line.startswith("    ") for line in others)
    assert any("forged" in line for line in others)


def test_commands_print_through_one_module() -> None:
    folder = Path(tasquencer.__file__).parent / "cli"
    found = [
        f"{file.name}:{node.lineno}"
        for file in folder.glob("*.py")
        if file.name not in ("output.py", "entry.py")  # the entry works without the packages of the output
        and not file.name.startswith("demo")
        for node in ast.walk(ast.parse(file.read_text()))
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print"
    ]
    assert not found
