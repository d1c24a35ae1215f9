"""A hook of MkDocs: the reference of a package has every public name, also one that no page places."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any

_MARK = re.compile(r"^<!-- the other names of ([\w.]+) -->$", re.MULTILINE)
"""The line of a page that the names without a place replace."""

_DESCRIBED = re.compile(r"^::: [\w.]+\.(\w+)$", re.MULTILINE)


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Return the page with all names of its package."""
    if not page.file.src_uri.startswith("reference/api/"):
        return markdown
    folder = Path(config["docs_dir"]) / "reference/api"
    placed = {name for file in folder.glob("*.md") for name in _DESCRIBED.findall(file.read_text())}
    return _MARK.sub(lambda mark: _others(mark[1], placed), markdown)


def _others(package: str, placed: set[str]) -> str:
    names = [name for name in importlib.import_module(package).__all__ if name not in placed]
    return "\n\n".join(["## More", *(f"::: {package}.{name}" for name in names)]) if names else ""
