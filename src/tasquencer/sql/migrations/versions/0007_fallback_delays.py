"""The delay reason `fallback`. Older releases never write it."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
oldest_compatible = "0001"

_NAME = "work_items_delay_reason_known"
_BEFORE = "'first_try', 'backoff', 'retry_after', 'operator'"
_REASONS = "'first_try', 'backoff', 'retry_after', 'fallback', 'operator'"


def upgrade() -> None:
    connection = op.get_bind()
    if connection.dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '5s'")
        op.execute(
            f"ALTER TABLE work_items DROP CONSTRAINT {_NAME}, "
            f"ADD CONSTRAINT {_NAME} CHECK (delay_reason IN ({_REASONS})) NOT VALID"
        )
        op.execute(f"ALTER TABLE work_items VALIDATE CONSTRAINT {_NAME}")
        return
    # SQLite cannot change a constraint. Its manual gives this way for one that allows more than before, which
    # leaves all rows as they are: https://www.sqlite.org/lang_altertable.html, section 7.
    version = connection.execute(sa.text("PRAGMA schema_version")).scalar_one()
    op.execute("PRAGMA writable_schema = ON")
    changed = connection.execute(
        sa.text("UPDATE sqlite_master SET sql = replace(sql, :before, :after) WHERE name = 'work_items'"),
        {"before": _BEFORE, "after": _REASONS},
    )
    assert changed.rowcount == 1
    op.execute(f"PRAGMA schema_version = {version + 1}")
    op.execute("PRAGMA writable_schema = OFF")
