"""Observed activities on a busy machine: what the ledger lacks, it lacks because the test says so."""

from __future__ import annotations

from datetime import timedelta

import pytest

from tasquencer.temporal import observed_ends, observed_writing
from tests.support.patience import PATIENCE_SECONDS


@pytest.fixture(autouse=True)
def _no_observed_write_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """No write counts as an outage, and no look for Temporal's last failure is given up."""
    monkeypatch.setattr(observed_writing, "_PATIENCE", timedelta(seconds=PATIENCE_SECONDS))
    monkeypatch.setattr(observed_ends, "_LOOK_SECONDS", PATIENCE_SECONDS)
