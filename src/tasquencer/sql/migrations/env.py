"""Run by Alembic. The connection comes from `tasquencer.sql.migrate`.

On PostgreSQL each migration has a transaction of its own, so that one may leave it
(`op.get_context().autocommit_block()`); on SQLite one transaction, already begun, is around it all.
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
