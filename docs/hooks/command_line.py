"""A hook of MkDocs: writes the reference of `tasq` from the parser of `tasq`, where the page asks for it."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import typer

from tasquencer.cli.main import app

MARK = "<!-- the commands of tasq -->"
"""The line of a page that the reference replaces."""

ROOT = Path(__file__).resolve().parents[2]


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Return the page with the reference in it, if it asks for it."""
    return markdown.replace(MARK, reference()) if MARK in markdown else markdown


def reference() -> str:
    """Return a section for each command, as Markdown."""
    return "\n".join(_lines(typer.main.get_command(app), "tasq"))


def _lines(command: Any, name: str) -> Iterator[str]:
    options = _worker() if name == "tasq worker" else command
    context = options.context_class(options, info_name=name)
    commands = getattr(command, "commands", {})
    if name != "tasq":
        yield f"{'#' * (1 + name.count(' '))} {name}\n"
        yield f"{_prose(command.help)}\n"
        yield f"```text\n{options.get_usage(context).removeprefix('Usage: ')}\n```\n"
    rows = [record for parameter in options.params if (record := parameter.get_help_record(context))]
    if rows and name != "tasq":
        yield "| argument or option | |\n| --- | --- |"
        yield from (f"| `{_cell(names)}` | {_cell(_prose(text))} |" for names, text in rows)
        yield ""
    if name != "tasq" and (examples := _examples(command.epilog or "")):
        yield f"```sh\n{examples}\n```\n"
    for each, inner in commands.items():
        yield from _lines(inner, f"{name} {each}")


def _worker() -> Any:
    """Return the parser of `worker.py`, to which `tasq worker` gives all its options."""
    sys.path.insert(0, str(ROOT))
    try:
        from worker import main
    finally:
        sys.path.remove(str(ROOT))
    program = typer.Typer(add_completion=False)
    program.command()(main)
    return typer.main.get_command(program)


def _prose(text: str) -> str:
    """Return a help text with the names of settings and options as code."""
    marked = re.sub(r"(?<![`\w-])(--[a-z][a-z-]+|(?:TASQ|TEMPORAL|OPENAI)_[A-Z_]+)", r"`\1`", text)
    return re.sub(r"\[(env var|default): ", r"[\1: ", marked)


def _cell(text: str) -> str:
    return " ".join(text.replace("|", "\\|").split())


def _examples(epilog: str) -> str:
    return "\n".join(line for line in epilog.split("\n\n")[1:] if line)
