"""Log records that cannot be forged: one line each, followed only by indented lines."""

from __future__ import annotations

import logging

from tasquencer.core.display_text import terminal_text

__all__ = ["LogFormatter"]

_INDENT = "    "


class LogFormatter(logging.Formatter):
    """Writes a record so that a line break in it does not look like another record.

    Error messages come from providers, models and activities. All lines of a record except the first, such as
    those of a traceback, are indented. Characters that could control a terminal are replaced.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See the base class."""
        return terminal_text(super().format(record)).replace("\n", f"\n{_INDENT}")
