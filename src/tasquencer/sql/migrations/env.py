"""Alembic runs this file. The connection comes from `tasquencer.sql.migrate`.

On PostgreSQL each migration has its own transaction, which it may leave
(`op.get_context().autocommit_block()`). On SQLite one transaction, which has already begun, contains them
all.
"""

from alembic import context

from tasquencer.sql.migrate import declare
from tasquencer.sql.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=metadata,
    version_table=VERSION_TABLE,
    transaction_per_migration=True,
    on_version_apply=declare,
)
with context.begin_transaction():
    context.run_migrations()
