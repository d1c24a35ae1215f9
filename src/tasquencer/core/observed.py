"""Work items that were only watched: attempts of activities that Temporal itself retries.

No history records them, so what compares the ledger with histories passes them over. Their id says so.
"""

from __future__ import annotations

import hashlib

__all__ = ["OBSERVED", "is_observed", "observed_id"]

OBSERVED = "observed-"
"""What the id of an observed work item begins with."""


def observed_id(*facts: str) -> str:
    """The id of the work item that these facts determine: writing it twice writes it once."""
    return OBSERVED + hashlib.sha256("\x00".join(facts).encode()).hexdigest()[:32]


def is_observed(work_item_id: str) -> bool:
    """Return whether the work item is an observed attempt."""
    return work_item_id.startswith(OBSERVED)
