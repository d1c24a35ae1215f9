"""Triggers for two more ways around immutability.

SQLite: a row may not take the key of an ended one, by UPDATE OR REPLACE or by its rowid. Both databases: a
work item that has ended takes no further transition.
"""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
oldest_compatible = "0001"  # no release writes what these triggers refuse

_ENDED = "('completed', 'failed', 'canceled')"
_ENDED_ITEM = "a work item that has ended is immutable"
_ENDED_JOB = "an AI job that has ended is immutable"
_NO_MORE = "a work item that has ended is immutable: it takes no further transition"


def upgrade() -> None:
    if op.get_bind().dialect.name == "postgresql":
        op.execute("SET LOCAL lock_timeout = '5s'")
        _end_transitions_on_postgresql()
    else:
        keys = ["id"], ["run_id", "lineage", "attempt"]
        _guard_keys_on_sqlite("work_items", f"held.state IN {_ENDED}", _ENDED_ITEM, *keys)
        _guard_keys_on_sqlite("ai_jobs", f"held.status IN {_ENDED}", _ENDED_JOB, ["work_item_id"])
        _end_transitions_on_sqlite()


def _guard_keys_on_sqlite(table: str, ended: str, message: str, *keys: list[str]) -> None:
    """Refuse an UPDATE or INSERT whose new key belongs to an ended row, which OR REPLACE would delete.

    Triggers for DELETE do not fire in that case. The rowid is a key as well.
    """
    refuse = f"BEGIN SELECT RAISE(ABORT, '{message}'); END"

    def held(columns: list[str]) -> str:
        same = " AND ".join(f"held.{column} = NEW.{column}" for column in columns)
        return f"EXISTS (SELECT 1 FROM {table} AS held WHERE {same} AND {ended})"  # noqa: S608

    names = ", ".join([*(column for key in keys for column in key), "rowid", "oid", "_rowid_"])
    taken = " OR ".join(held(key) for key in [*keys, ["rowid"]])
    op.execute(
        f"CREATE TRIGGER {table}_no_taking BEFORE UPDATE OF {names} ON {table} FOR EACH ROW "
        f"WHEN {taken} {refuse}"
    )
    op.execute(
        f"CREATE TRIGGER {table}_no_replace_rowid BEFORE INSERT ON {table} FOR EACH ROW "
        f"WHEN {held(['rowid'])} {refuse}"
    )


def _end_transitions_on_sqlite() -> None:
    op.execute(
        "CREATE TRIGGER work_item_transitions_no_append "  # noqa: S608
        "BEFORE INSERT ON work_item_transitions FOR EACH ROW "
        "WHEN EXISTS (SELECT 1 FROM work_item_transitions AS held "
        f"WHERE held.work_item_id = NEW.work_item_id AND held.next_state IN {_ENDED}) "
        f"BEGIN SELECT RAISE(ABORT, '{_NO_MORE}'); END"
    )


def _end_transitions_on_postgresql() -> None:
    # Name the schema, so that a temporary table of the same name is not read instead.
    schema = op.get_bind().scalar(
        sa.text(
            "SELECT relnamespace::regnamespace::text FROM pg_class "
            "WHERE oid = 'work_item_transitions'::regclass"
        )
    )
    op.execute(
        "CREATE FUNCTION refuse_transition_after_end() "  # noqa: S608
        "RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
        f"IF EXISTS (SELECT 1 FROM {schema}.work_item_transitions AS held "
        f"WHERE held.work_item_id = NEW.work_item_id AND held.next_state IN {_ENDED}) "
        f"THEN RAISE EXCEPTION '{_NO_MORE}' USING ERRCODE = 'restrict_violation'; END IF; "
        "RETURN NEW; END $$"
    )
    op.execute(
        "CREATE TRIGGER work_item_transitions_no_append BEFORE INSERT ON work_item_transitions FOR EACH ROW "
        "EXECUTE FUNCTION refuse_transition_after_end()"
    )
