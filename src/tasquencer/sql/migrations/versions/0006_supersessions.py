"""Supersessions: a permanent record allows to replace what a lost workflow task wrote.

The triggers allow three changes of immutable rows: to delete a work item's later transitions, to update its
domain record, and to update its row. They allow them only while a supersession exists that the work item's
`version` does not count yet.
"""

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

revision = "0006"
down_revision = "0005"
oldest_compatible = "0001"  # older releases write no version, no as_of and no supersession

_JSON = sa.JSON(none_as_null=True).with_variant(JSONB(none_as_null=True), "postgresql")
_TIME = sa.DateTime(timezone=True)
_ENDED = "('completed', 'failed', 'canceled')"
_MESSAGES = {
    "work_items": "a work item that has ended is immutable",
    "work_item_transitions": "transitions are immutable",
    "ai_jobs": "an AI job that has ended is immutable",
    "work_item_supersessions": "supersessions are immutable",
}


def upgrade() -> None:
    is_postgresql = op.get_bind().dialect.name == "postgresql"
    if is_postgresql:
        op.execute("SET LOCAL lock_timeout = '5s'")
    op.add_column("work_items", sa.Column("version", sa.Integer, nullable=False, server_default="0"))
    op.add_column("work_item_transitions", sa.Column("as_of", _TIME))
    op.create_table(
        "work_item_supersessions",
        sa.Column("work_item_id", sa.Text, sa.ForeignKey("work_items.id"), primary_key=True),
        sa.Column("number", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("from_sequence", sa.Integer, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("reason", sa.Text, nullable=False),
        sa.Column("held", _JSON, nullable=False),
        sa.Column("decided", _JSON, nullable=False),
        sa.CheckConstraint("number >= 1", name="work_item_supersessions_number_counts_from_1"),
    )
    (_on_postgresql if is_postgresql else _on_sqlite)()


def _row_changes(schema: str) -> str:
    return (
        "NEW.version = OLD.version + 1 AND NEW.id = OLD.id "  # noqa: S608
        f"AND EXISTS (SELECT 1 FROM {schema}work_item_supersessions AS it "
        "WHERE it.work_item_id = OLD.id AND it.number = NEW.version)"
    )


def _is_pending(schema: str, also: str = "") -> str:
    return (
        f"EXISTS (SELECT 1 FROM {schema}work_item_supersessions AS it "  # noqa: S608
        f"JOIN {schema}work_items AS item ON item.id = it.work_item_id "
        f"WHERE it.work_item_id = OLD.work_item_id AND it.number = item.version + 1{also})"
    )


_LATER = " AND OLD.sequence >= it.from_sequence"


def _on_sqlite() -> None:
    def refuse(table: str) -> str:
        return f"BEGIN SELECT RAISE(ABORT, '{_MESSAGES[table]}'); END"

    for name, event, table, condition in (
        (
            "work_items_no_update",
            "UPDATE",
            "work_items",
            f"OLD.state IN {_ENDED} AND NOT ({_row_changes('')})",
        ),
        (
            "work_item_transitions_no_delete",
            "DELETE",
            "work_item_transitions",
            f"NOT {_is_pending('', _LATER)}",
        ),
        ("ai_jobs_no_update", "UPDATE", "ai_jobs", f"OLD.status IN {_ENDED} AND NOT {_is_pending('')}"),
        ("work_item_supersessions_no_update", "UPDATE", "work_item_supersessions", "1"),
        ("work_item_supersessions_no_delete", "DELETE", "work_item_supersessions", "1"),
    ):
        op.execute(f"DROP TRIGGER IF EXISTS {name}")
        op.execute(
            f"CREATE TRIGGER {name} BEFORE {event} ON {table} FOR EACH ROW WHEN {condition} {refuse(table)}"
        )
    op.execute(
        "CREATE TRIGGER work_item_supersessions_no_replace BEFORE INSERT ON work_item_supersessions "  # noqa: S608
        "FOR EACH ROW WHEN EXISTS (SELECT 1 FROM work_item_supersessions AS held "
        "WHERE held.work_item_id = NEW.work_item_id AND held.number = NEW.number) "
        + refuse("work_item_supersessions")
    )


def _on_postgresql() -> None:
    # Name the schema, so that a temporary table of the same name is not read instead.
    schema = op.get_bind().scalar(
        sa.text(
            "SELECT relnamespace::regnamespace::text FROM pg_class "
            "WHERE oid = 'work_item_transitions'::regclass"
        )
    )
    named = f"{schema}."
    _allow("work_items", "UPDATE", _row_changes(named), "NEW")
    _allow("work_item_transitions", "DELETE", _is_pending(named, _LATER), "OLD")
    _allow("ai_jobs", "UPDATE", f"NEW.work_item_id = OLD.work_item_id AND {_is_pending(named)}", "NEW")
    op.execute(
        "CREATE FUNCTION refuse_change_of_work_item_supersessions() RETURNS trigger LANGUAGE plpgsql AS $$ "
        f"BEGIN RAISE EXCEPTION '{_MESSAGES['work_item_supersessions']}' "
        "USING ERRCODE = 'restrict_violation'; END $$"
    )
    for name, when in (
        ("immutable", "BEFORE UPDATE OR DELETE ON work_item_supersessions FOR EACH ROW"),
        ("no_truncate", "BEFORE TRUNCATE ON work_item_supersessions FOR EACH STATEMENT"),
    ):
        op.execute(
            f"CREATE TRIGGER work_item_supersessions_{name} {when} "
            "EXECUTE FUNCTION refuse_change_of_work_item_supersessions()"
        )


def _allow(table: str, event: str, condition: str, row: str) -> None:
    """Let the function behind a table's triggers allow one change. The triggers stay as they are.

    The event has its own IF, because a DELETE has no NEW, and a TRUNCATE has neither NEW nor OLD.
    """
    op.execute(
        f"CREATE OR REPLACE FUNCTION refuse_change_of_{table}() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF TG_OP = '{event}' THEN IF {condition} THEN RETURN {row}; END IF; END IF; "
        f"RAISE EXCEPTION '{_MESSAGES[table]}' USING ERRCODE = 'restrict_violation'; END $$"
    )
