"""The ledger on SQLite and PostgreSQL.

SQLite serves one machine and needs no set-up: the file migrates automatically when it is opened. PostgreSQL
serves several workers. There, `upgrade` (the command `tasq db upgrade`) brings the schema up to date.
"""

from tasquencer.sql.batches import SqlBatches
from tasquencer.sql.ledger import SqlLedger
from tasquencer.sql.migrate import schema_version, upgrade
from tasquencer.sql.schema import (
    SCHEMA_VERSION,
    ai_jobs,
    batch_rows,
    batches,
    metadata,
    work_item_transitions,
    work_items,
)

__all__ = [
    "SCHEMA_VERSION",
    "SqlBatches",
    "SqlLedger",
    "ai_jobs",
    "batch_rows",
    "batches",
    "metadata",
    "schema_version",
    "upgrade",
    "work_item_transitions",
    "work_items",
]
