"""Reports an outage of the ledger from an activity to Temporal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from temporalio.exceptions import ApplicationError, ApplicationErrorCategory

from tasquencer.core.errors import LedgerUnavailable

__all__ = ["outage_error", "retried_outages"]


def outage_error(problem: str) -> ApplicationError:
    """Return the error that makes Temporal retry the activity. Benign, so the SDK does not log each try."""
    return ApplicationError(
        problem, type=LedgerUnavailable.__name__, category=ApplicationErrorCategory.BENIGN
    )


@contextmanager
def retried_outages() -> Iterator[None]:
    """Turn `LedgerUnavailable` into the error that lets Temporal retry the activity."""
    try:
        yield
    except LedgerUnavailable as error:
        raise outage_error(str(error)) from None
