"""Reads the body of an error, in any of the shapes that providers and gateways use.

The shapes are `{"error": {"message", "code", "type"}}` (OpenAI), the inner object alone (from the OpenAI
client), a list of one (Google), `{"error": "…"}` (Ollama), `{"detail": …}` (FastAPI), text, HTML, and any of
these inside a string of another one (gateways).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from tasquencer.ai.provider.reply import Clean, as_text, excerpt, one_line
from tasquencer.ai.provider.waits import asked_in_text, field_wait, is_wait_field

__all__ = ["Report", "report_in", "says_something"]

_MOST_LEVELS = 12
_MOST_VALUES = 1_000
_MOST_TEXT = 20_000
_MOST_CODE = 500
"""Maximum levels, values and characters of an error that are read, and characters of a code."""

_CODES = frozenset(
    {
        "code", "type", "status", "statuscode", "reason", "errorcode", "errortype", "errcode", "httpstatus",
        "httpcode", "httpstatuscode", "kind", "exception", "blockreason",
    }
)  # fmt: skip
_TEXTS = frozenset(
    {
        "message", "msg", "detail", "details", "error", "errors", "errormessage", "errormsg", "errmsg", "raw",
        "description", "errordescription", "statusmsg", "title", "cause", "innererror", "metadata", "body",
    }
)  # fmt: skip
_NOT_OURS = frozenset(
    {
        "input", "ctx", "param", "flaggedinput", "failedgeneration", "messages", "prompt", "request", "links",
        "choices", "usage", "contentfilterresult", "contentfilterresults",
    }
)  # fmt: skip
"""Fields that repeat the request, or do not describe the failure."""

_SHELLS = re.compile(
    r"(?i)\W*(?:provider returned error|error from (?:upstream |the )?provider|upstream (?:provider )?error"
    r"|upstream request failed|(?:an )?(?:unknown |internal )?error"
    r"(?: occurred)?|bad request|request failed|failed|failure|error code: \d+|too many requests|forbidden|"
    r"api ?error)\W*"
)
"""Messages that only wrap another one."""

_CODE_IN_TEXT = re.compile(
    r"""(?i)(?:["'](?:code|type|status|reason|error_type)\\*["']\s{0,3}:\s{0,3}\\*["']?|"""
    r"""\b(?:status|error) code[ :=]{1,3}|\bhttp[ :]|\bstatus[ :=]{1,3})([A-Za-z0-9_.\-]{2,60})"""
)
_PARAMETER_IN_TEXT = re.compile(
    r"""(?i)\b(?:unsupported|unknown|unrecognized|unexpected|invalid)\s(?:request\s)?"""
    r"""(?:parameter|argument|field|keyword argument|value)s?(?:\ssupplied)?"""
    r"""\s{0,2}:?\s{0,2}["'`]([\w.\[\]-]{1,60})["'`]"""
)
_NOTHING = frozenset({"", "0", "200", "ok", "success", "succeeded", "none", "null", "noerror", "stop"})


@dataclass(frozen=True)
class Report:
    """The contents of an error's body.

    Attributes:
        message: The message for people, in one line. Empty if there is none.
        code: The outermost code, else the outermost type, in the provider's spelling.
        codes: All codes, types and similar fields in lower case, letters and digits only, outermost first.
        numbers: Those of them that are HTTP error statuses, outermost first.
        numbers_in_text: HTTP error statuses within sentences.
        text: All messages in lower case.
        wait_seconds: The longest wait that it asks for.
        parameter: The parameter of the request that it complains about.
    """

    message: str = ""
    code: str | None = None
    codes: tuple[str, ...] = ()
    numbers: tuple[int, ...] = ()
    numbers_in_text: tuple[int, ...] = ()
    text: str = ""
    wait_seconds: float | None = None
    parameter: str | None = None
    headers: dict[str, str] = field(default_factory=dict)
    """Headers of the inner answer, with names in lower case."""


def report_in(body: object, clean: Clean) -> Report:
    """Return the report of a decoded body."""
    found = _Findings()
    if isinstance(body, str):
        found.text(body, 0)
    else:
        found.walk(body, 0)
    text = "\n".join(found.texts).lower()[:_MOST_TEXT]
    in_text = [match[1] for match in _CODE_IN_TEXT.finditer("\n".join(found.texts)[:_MOST_TEXT])]
    asked = asked_in_text(text)
    waits = found.waits if asked is None else [*found.waits, asked]
    is_plain = isinstance(body, str) and found.texts == [body.strip()[:_MOST_TEXT]]
    return Report(
        message=excerpt(str(body), clean) if is_plain else _message(found.texts, clean),
        code=next((code for code in (as_text(code, clean) for code in found.codes) if code), None),
        codes=tuple(_plain(str(code)) for code in found.codes) + tuple(map(_plain, in_text)),
        numbers=tuple(_statuses(found.codes)),
        numbers_in_text=tuple(_statuses(in_text)),
        text=text,
        wait_seconds=max(waits, default=None),
        parameter=_parameter(found, clean),
        headers=found.headers,
    )


def _parameter(found: _Findings, clean: Clean) -> str | None:
    """The parameter that the error names in a field of its own, or in its message."""
    named = found.parameter
    if not named:
        match = _PARAMETER_IN_TEXT.search("\n".join(found.texts)[:_MOST_TEXT])
        named = match[1] if match else None
    return as_text(named, clean) if named else None


def says_something(error: object) -> bool:
    """Return whether an error field has content. `{"message": "", "code": null}`, `null` and `{}` do not."""
    if isinstance(error, str | int | float):
        return error is not False and _is_word(str(error))
    if not isinstance(error, dict | list):
        return False
    found = _Findings()
    found.walk(error, 0)
    return any(map(_is_word, [*found.texts, *map(str, found.codes)]))


def _is_word(text: str) -> bool:
    return _plain(text) not in _NOTHING or not text.isascii()


class _Findings:
    """Collects the findings in a body."""

    def __init__(self) -> None:
        self.texts: list[str] = []
        self.codes: list[str | float] = []
        self.waits: list[float] = []
        self.headers: dict[str, str] = {}
        self.parameter: str | None = None
        self._left = _MOST_VALUES

    def walk(self, value: object, level: int, *, is_text: bool = True) -> None:
        """Collect from a value. Its strings count only if a message is expected."""
        self._left -= 1
        if level > _MOST_LEVELS or self._left < 0:
            return
        if isinstance(value, str):
            if is_text:
                self.text(value, level)
        elif isinstance(value, list):
            for one in value[:_MOST_VALUES]:
                self.walk(one, level + 1, is_text=is_text)
        elif isinstance(value, dict):
            for name, one in _outer_first(value):
                self._field(_plain(name), one, level)

    def _field(self, name: str, value: object, level: int) -> None:
        if is_wait_field(name):
            wait = field_wait(name, value)
            self.waits += [] if wait is None else [wait]
        elif name in _CODES and isinstance(value, str | int | float) and not isinstance(value, bool):
            self._code(int(value) if isinstance(value, float) and value.is_integer() else value)
        elif name == "headers" and isinstance(value, dict):
            pairs = [(key, one) for key, one in [*value.items()][:50] if isinstance(one, str | int)]
            self.headers |= {str(key).lower()[:200]: str(one)[:200] for key, one in pairs}
        elif name == "param" and isinstance(value, str):
            self.parameter = self.parameter or value
        elif name not in _NOT_OURS:
            if name == "error" and isinstance(value, str) and " " not in value.strip():
                self._code(value)
            self.walk(value, level + 1, is_text=name in _TEXTS)

    def _code(self, value: str | float) -> None:
        if value != "error":
            self.codes.append(value[:_MOST_CODE] if isinstance(value, str) else value)

    def text(self, value: str, level: int) -> None:
        """Collect from a message, which may itself be JSON."""
        stripped = value.strip()[:_MOST_TEXT]
        if not stripped or sum(map(len, self.texts)) > _MOST_TEXT:
            return
        inner = _json_in(stripped)
        if inner is not None:
            self.walk(inner, level + 1)
        else:
            self.texts.append(stripped)


def _outer_first(value: dict[object, object]) -> Iterator[tuple[str, object]]:
    """Return the fields of an object: its own values before nested ones, code and message first."""
    fields = [(str(name)[:100], one) for name, one in [*value.items()][:_MOST_VALUES]]
    first = ("code", "message", "msg")
    yield from sorted(fields, key=lambda entry: (isinstance(entry[1], dict | list), entry[0] not in first))


def _json_in(text: str) -> object:
    """Return the JSON object or list in a text."""
    if text[0] not in "{[":
        return None
    try:
        value = json.loads(text, strict=False)
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict | list) else None


def _message(texts: list[str], clean: Clean) -> str:
    """Return the first message with content, without the messages that wrap it."""
    shown: list[str] = []
    for text in texts:
        said = excerpt(text, clean) if text[:1] == "<" else one_line(text, clean)
        if said and said not in shown:
            shown.append(said)
        if said and not _SHELLS.fullmatch(said):
            break
    return one_line(": ".join(shown), clean)


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", name[:_MOST_TEXT].lower())


def _statuses(codes: list[str] | list[str | float]) -> Iterator[int]:
    for code in codes:
        text = str(code).strip()
        if len(text) == 3 and text.isascii() and text.isdigit() and 400 <= int(text) <= 599:
            yield int(text)
