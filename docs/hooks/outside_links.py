"""A hook of MkDocs: the site holds the pages of docs/, so a link to another file becomes the file's name.

A file that does not exist is a warning, which ends `make docs`.
"""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

_LINK = re.compile(r"\[(?P<text>[^\]]+)\]\((?P<target>(?:\.\./)+[^)#\s]+)(?:#[^)\s]*)?\)")
_log = logging.getLogger("mkdocs.hooks.outside_links")


def on_page_markdown(markdown: str, *, page: Any, config: Any, **_: Any) -> str:
    """Return the page without links to files outside of docs/."""
    docs = Path(config["docs_dir"]).resolve()
    folder = (docs / page.file.src_uri).parent

    def without(link: re.Match[str]) -> str:
        file = (folder / link["target"]).resolve()
        if file.is_relative_to(docs):
            return link[0]
        if not file.exists():
            _log.warning("%s links to %s, which does not exist", page.file.src_uri, link["target"])
        name = file.relative_to(docs.parent).as_posix()
        same = link["text"].strip("`") in {name, file.name}
        return f"`{name}`" if same else f"{link['text']} (`{name}`)"

    return _LINK.sub(without, markdown)
