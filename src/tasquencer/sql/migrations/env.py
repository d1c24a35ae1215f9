"""Run by Alembic. The connection, and the transaction around it all, come from `tasquencer.sql.migrate`."""

from alembic import context

from tasquencer.sql.schema import VERSION_TABLE, metadata

context.configure(
    connection=context.config.attributes["connection"], target_metadata=metadata, version_table=VERSION_TABLE
)
context.run_migrations()
