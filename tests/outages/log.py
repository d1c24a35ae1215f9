"""The log of a worker, without what only a busy machine makes the SDK say."""

from __future__ import annotations

import logging
import re

from tasquencer.devkit.processes import ChildProcess

__all__ = ["lines_of", "tells_of_starving"]

_STARVED = "[TMPRL1101]"
"""The SDK's word for a workflow task that got no further for two seconds; the server gives it out again."""


def tells_of_starving(record: logging.LogRecord) -> bool:
    """Whether this record is about such a workflow task."""
    return record.exc_info is not None and _STARVED in str(record.exc_info[1])


def lines_of(worker: ChildProcess) -> list[str]:
    """The lines that it has said, without the records of such workflow tasks."""
    records = re.split(r"^(?=\d{4}-\d\d-\d\d)", worker.output(), flags=re.MULTILINE)
    return "".join(record for record in records if _STARVED not in record).splitlines()
