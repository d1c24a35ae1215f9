"""Observed work items: attempts of activities that Temporal itself retries.

No history records them, so the comparison of ledger and histories skips them. Their ids have a prefix.
"""

from __future__ import annotations

import hashlib

__all__ = ["OBSERVED", "is_observed", "observed_id"]

OBSERVED = "observed-"
"""The prefix of an observed work item's id."""


def observed_id(*facts: str) -> str:
    """Return the id that these facts determine. A second write of the same attempt changes nothing."""
    return OBSERVED + hashlib.sha256("\x00".join(facts).encode()).hexdigest()[:32]


def is_observed(work_item_id: str) -> bool:
    """Return whether the work item is an observed attempt."""
    return work_item_id.startswith(OBSERVED)
