"""The log of a worker, without what only a busy machine makes the SDK say."""

from __future__ import annotations

import logging
import re

from tasquencer.devkit.processes import ChildProcess
from tests.chaos.histories import DEADLOCK_CODE

__all__ = ["lines_of", "tells_of_starving"]


def tells_of_starving(record: logging.LogRecord) -> bool:
    """Whether this record is about such a workflow task."""
    return record.exc_info is not None and DEADLOCK_CODE in str(record.exc_info[1])


def lines_of(worker: ChildProcess) -> list[str]:
    """The lines that it has said, without the records of such workflow tasks."""
    records = re.split(r"^(?=\d{4}-\d\d-\d\d)", worker.output(), flags=re.MULTILINE)
    return "".join(record for record in records if DEADLOCK_CODE not in record).splitlines()
