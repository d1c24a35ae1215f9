"""A hook of MkDocs: lists the pages of docs/decisions in the navigation and on their start page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

MARK = "<!-- the decisions -->"
"""The line of the start page that the list replaces."""


def on_config(config: Any, **_: Any) -> Any:
    """Append the decisions to their part of the navigation."""
    (part,) = [part["Decisions"] for part in config["nav"] if "Decisions" in part]
    part.extend({_title(page): f"decisions/{page.name}"} for page in _pages(config))
    return config


def on_page_markdown(markdown: str, *, config: Any, **_: Any) -> str:
    """Return the page with the list in it, if it asks for it."""
    if MARK not in markdown:
        return markdown
    return markdown.replace(MARK, "\n".join(f"- [{_title(page)}]({page.name})" for page in _pages(config)))


def _pages(config: Any) -> list[Path]:
    return sorted((Path(config["docs_dir"]) / "decisions").glob("0*.md"))


def _title(page: Path) -> str:
    """Return the first line of the page, with "1:" for "1." because Markdown would take that for a list."""
    return page.read_text().splitlines()[0].removeprefix("# ").replace(". ", ": ", 1)
