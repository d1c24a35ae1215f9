"""The rights of the workers' role on PostgreSQL, which owns no table.

An owner may disable triggers, drop tables and empty them. So the role that runs `tasq db upgrade` and
`tasq ledger prune` owns the tables, and workers use another role.
"""

from __future__ import annotations

import sqlalchemy as sa

from tasquencer.core.errors import WrongSetting
from tasquencer.sql.schema import (
    VERSION_TABLE,
    metadata,
    schema_compatibility,
    work_item_supersessions,
    work_item_transitions,
)

__all__ = ["SETTING", "grant"]

SETTING = "TASQ_DB_WORKER_ROLE"

_RIGHTS = {
    work_item_transitions.name: "SELECT, INSERT, DELETE",  # the triggers only allow it for a supersession
    work_item_supersessions.name: "SELECT, INSERT",
    schema_compatibility.name: "SELECT",
    VERSION_TABLE: "SELECT",
}
_RIGHTS_OF_OTHERS = "SELECT, INSERT, UPDATE"


def grant(connection: sa.Connection, role: str) -> None:
    """Give the role the rights that a worker needs on the ledger's tables, and no others.

    Raises:
        WrongSetting: the role does not exist, or may act as the owner of the tables.
    """
    _check(connection, role)
    quote = connection.dialect.identifier_preparer.quote_identifier
    schema, database, may_connect = connection.execute(
        sa.text(
            "SELECT relnamespace::regnamespace::text, current_database(), "
            "has_database_privilege(:role, current_database(), 'CONNECT') "
            "FROM pg_class WHERE oid = 'work_items'::regclass"
        ),
        {"role": role},
    ).one()
    if not may_connect:
        connection.exec_driver_sql(f"GRANT CONNECT ON DATABASE {quote(database)} TO {quote(role)}")
    connection.exec_driver_sql(f"GRANT USAGE ON SCHEMA {schema} TO {quote(role)}")
    for name in sorted({*metadata.tables, VERSION_TABLE}):
        table = f"{schema}.{quote(name)}"
        connection.exec_driver_sql(f"REVOKE ALL ON {table} FROM {quote(role)}")
        rights = _RIGHTS.get(name, _RIGHTS_OF_OTHERS)
        connection.exec_driver_sql(f"GRANT {rights} ON {table} TO {quote(role)}")


def _check(connection: sa.Connection, role: str) -> None:
    found = connection.execute(
        sa.text(
            "SELECT pg_has_role(role.oid, held.relowner, 'MEMBER'), held.relowner::regrole::text "
            "FROM pg_roles AS role, pg_class AS held "
            "WHERE role.rolname = :role AND held.oid = 'work_items'::regclass"
        ),
        {"role": role},
    ).first()
    if found is None:
        raise WrongSetting(SETTING, f"there is no role {role!r}: CREATE ROLE … LOGIN PASSWORD '…'")
    may_be_owner, owner = found
    if may_be_owner:
        raise WrongSetting(
            SETTING, f"role {role!r} may act as {owner}, who owns the tables: use another role"
        )
