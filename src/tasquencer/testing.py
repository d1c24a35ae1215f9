"""Parts for testing your own tasks: ledgers without a database."""

from tasquencer.batch.memory import InMemoryBatches
from tasquencer.ledger.memory import InMemoryLedger

__all__ = ["InMemoryBatches", "InMemoryLedger"]
