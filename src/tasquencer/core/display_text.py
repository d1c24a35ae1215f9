"""Make untrusted text safe for the place that shows it: a terminal, a log, Markdown, a line of JSON.

People, providers and models write prompts, answers, error messages, names of actors and ids, and none of
them is trusted. Code that shows such text passes it through one of these functions.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

__all__ = ["json_text", "markdown_line", "terminal_line", "terminal_text"]

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"

_CONTROLS = r"\x00-\x1f\x7f-\x9f"
_INVISIBLE = (
    "\\u00ad\\u034f\\u061c\\u115f\\u1160\\u17b4\\u17b5\\u180b-\\u180f\\u200b-\\u200f\\u2028-\\u202e\\u2060-\\u206f"
    "\\u3164\\ufeff\\uffa0\\ufff0-\\ufffb\\ud800-\\udfff"
    "\\U00013430-\\U0001345f\\U0001bca0-\\U0001bca3\\U0001d173-\\U0001d17a\\U000e0000-\\U000e0fff"
)
"""Characters that change the direction or the breaks of a line, take no space, or are half a character."""

_HARMFUL = re.compile(f"[{_CONTROLS}{_INVISIBLE}]")
_HARMFUL_IN_TEXT = re.compile(f"(?![\\n\\t])[{_CONTROLS}{_INVISIBLE}]")


def terminal_text(text: str) -> str:
    """Remove what could control a terminal or mislead its reader. Line breaks and tabs stay."""
    return _HARMFUL_IN_TEXT.sub(_REPLACEMENT, text.replace("\r\n", "\n"))


def terminal_line(text: str, width: int | None = None) -> str:
    """Return the text as one line that cannot control a terminal, also for a log.

    Args:
        text: From outside.
        width: The maximum length of the line in characters.
    """
    line = _HARMFUL.sub(_REPLACEMENT, " ".join(text.split()))
    return line if width is None or len(line) <= width else line[: width - 1] + "…"


_MARKUP = re.compile(
    r"[\\`*\[\]<>|!~&#]"
    r"|(?<![^\W_])_+|_+(?![^\W_])"  # an underscore between letters is not markup
    r"|(?<=[A-Za-z+.\-]):(?=\S)"  # the Web UI turns bare addresses into links
)
_BLOCK = re.compile(r"([-+=:]|\d{1,9}(?=[.)]))")


def markdown_line(text: str, width: int | None = None) -> str:
    """Return the text as one line of Markdown that shows it literally: no link, image, HTML or table cell.

    Args:
        text: From outside.
        width: The maximum number of characters to keep.
    """
    line = _MARKUP.sub(_escaped_markup, terminal_line(text, width))
    if found := _BLOCK.match(line):  # a list, a line below a heading, the alignment of a table
        marker = found.group()
        line = f"\\{line}" if not marker.isdecimal() else f"{marker}\\{line[len(marker) :]}"
    return line


def _escaped_markup(found: re.Match[str]) -> str:
    return "".join(f"\\{character}" for character in found.group())


def json_text(value: Any, *, indent: int | None = None, default: Callable[[Any], Any] | None = None) -> str:
    r"""Return the value as JSON that is safe on a terminal and is one line for every line reader.

    Letters stay as they are. Characters that `terminal_text` would replace are escaped, such as `\u2028`.
    """
    text = json.dumps(value, ensure_ascii=False, indent=indent, default=default)
    return _HARMFUL_IN_TEXT.sub(_escaped, text)


def _escaped(found: re.Match[str]) -> str:
    return json.dumps(found.group())[1:-1]
