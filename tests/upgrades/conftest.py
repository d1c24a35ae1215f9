"""The PostgreSQL server of the ledger's tests, for those of its upgrades."""

from tests.ledger.conftest import postgres

__all__ = ["postgres"]
