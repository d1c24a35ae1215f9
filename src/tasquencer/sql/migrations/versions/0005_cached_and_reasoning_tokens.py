"""Cached and reasoning tokens of AI jobs. Older releases leave these columns empty."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
oldest_compatible = "0001"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("ai_jobs", sa.Column("cached_tokens", sa.BigInteger))
    op.add_column("ai_jobs", sa.Column("reasoning_tokens", sa.BigInteger))
