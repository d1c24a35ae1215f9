"""What users need to test their own tasks: ledgers without a database."""

from tasquencer.batch.memory import InMemoryBatches
from tasquencer.ledger.memory import InMemoryLedger

__all__ = ["InMemoryBatches", "InMemoryLedger"]
