"""Statements compiled once for the driver, with values bound directly instead of by SQLAlchemy.

At each execution SQLAlchemy takes every row apart by name, looks up the types of its values and puts it
together again. That was most of the Python time of a ledger write.
"""

from __future__ import annotations

import functools
import sqlite3
from collections.abc import Callable, Iterable, Mapping, Sequence
from operator import itemgetter
from typing import Any

import sqlalchemy as sa

__all__ = ["execute_many", "rows_of"]

_Process = Callable[[Any], Any]


def execute_many(
    connection: sa.Connection, statement: sa.Insert | sa.Update, rows: Sequence[Mapping[str, Any]]
) -> None:
    """Execute the statement for each row.

    Args:
        statement: A statement with at least two values, without values that SQLAlchemy has to add (column
        defaults).
        rows: Each has a value for every parameter of the statement, by its name. Other values are ignored.

    Raises:
        sqlalchemy.exc.StatementError: a value is not of its column's type, or the database refuses a row.
    """
    text, names, processors = _compiled(statement, connection.dialect)
    values_of = itemgetter(*names)
    parameters = []
    try:
        for row in rows:
            values = list(values_of(row))
            for place, process in processors:
                values[place] = process(values[place])
            parameters.append(tuple(values))
    except (TypeError, ValueError) as error:
        raise sa.exc.StatementError(str(error), text, None, error, hide_parameters=True) from error
    if connection.dialect.name == "sqlite":
        _sqlite(connection, text, parameters if len(parameters) > 1 else parameters[0])
    else:
        connection.exec_driver_sql(text, parameters)


def rows_of(
    connection: sa.Connection, statement: sa.Select[Any], values: Iterable[Any]
) -> Iterable[Sequence[Any]]:
    """Return the driver's rows of a query, given the values of its parameters in order."""
    text, _, processors = _compiled(statement, connection.dialect)
    parameters = list(values)
    for place, process in processors:
        parameters[place] = process(parameters[place])
    if connection.dialect.name == "sqlite":
        return _sqlite(connection, text, tuple(parameters))
    return connection.exec_driver_sql(text, tuple(parameters))


def _sqlite(
    connection: sa.Connection, text: str, parameters: tuple[Any, ...] | list[tuple[Any, ...]]
) -> list[Any]:
    """Return the rows of a statement run by the driver alone, at a fifth of SQLAlchemy's overhead."""
    driver: sqlite3.Connection = connection.connection.driver_connection  # type: ignore[assignment]
    try:
        if isinstance(parameters, list):
            driver.executemany(text, parameters)
            return []
        return driver.execute(text, parameters).fetchall()
    except sqlite3.Error as error:
        raise sa.exc.DBAPIError.instance(
            text, None, error, sqlite3.Error, hide_parameters=True, dialect=connection.dialect
        ) from error


@functools.lru_cache(maxsize=128)
def _compiled(
    statement: sa.Insert | sa.Update | sa.Select[Any], dialect: sa.Dialect
) -> tuple[str, list[str], list[tuple[int, _Process]]]:
    """Return the text, the names of its parameters in order, and the converters of values by place."""
    compiled = statement.compile(dialect=dialect)
    names = compiled.positiontup or []
    found = [compiled.binds[name].type.dialect_impl(dialect).bind_processor(dialect) for name in names]
    return (
        str(compiled),
        names,
        [(place, process) for place, process in enumerate(found) if process is not None],
    )
