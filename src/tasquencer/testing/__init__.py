"""What users need to test their own tasks: ledgers without a database, and AI calls without a model."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tasquencer._exports import lazy

if TYPE_CHECKING:
    from tasquencer.batch.memory import InMemoryBatches as InMemoryBatches
    from tasquencer.ledger.memory import InMemoryLedger as InMemoryLedger
    from tasquencer.testing.scripted_calls import ScriptedCalls as ScriptedCalls

__getattr__, __dir__, __all__ = lazy(__name__)
