"""A statement on the driver's own cursor, where nobody looks on.

SQLAlchemy's context of an execution and its result, which notes each column, take up to a quarter of a short call. They
are there for listeners, the echo and types; a statement that is text already, whose rows are taken by position, on an
engine without any of the former, needs neither. What is kept of SQLAlchemy is what the application relies on: its
Connection and pool, and its errors.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

from sqlalchemy import Connection, CursorResult, Engine
from sqlalchemy.exc import DBAPIError

from sa_checkpoint import _aiosqlite, _asyncpg, _libpq
from sa_checkpoint._driver import give_up
from sa_checkpoint._single import NotSingle, Single

# Rows are fetched at once. The application may have asked for server-side cursors on its engine or connection, which
# no statement that writes can have.
BUFFERED: Mapping[str, Any] = {"stream_results": False, "yield_per": None}

# For others, SQLAlchemy may do more around a statement.
_DRIVERS = frozenset(
    ("psycopg", "psycopg_async", "psycopg2", "asyncpg", "pysqlite", "aiosqlite", "pymysql", "asyncmy", "aiomysql")
)

_NOTICES = logging.getLogger("sqlalchemy.dialects.postgresql")


def has_listeners(connection: Connection | Engine) -> bool:
    """Whether the application listens to anything on a connection, its engine or dialect; or on those of an engine.

    By the flags that SQLAlchemy itself goes by before it looks for listeners. Without them there may be some.
    """
    return (
        getattr(connection, "_has_events", True)
        or getattr(connection.engine, "_has_events", True)
        or getattr(connection.dialect, "_has_events", True)
    )


def is_unobserved(connection: Connection) -> bool:
    """Whether nobody would notice: no listener, no log, no dialect of another's, and a transaction as it should be."""
    if getattr(connection, "_has_events", True) or not is_plain(connection.engine):
        return False
    for transaction in (connection.get_transaction(), connection.get_nested_transaction()):
        if not (transaction is None or transaction.is_active):
            return False  # SQLAlchemy says why
    return True


def is_plain(engine: Engine) -> bool:
    """Whether nobody listens to an engine, it does not log, and its dialect is SQLAlchemy's."""
    dialect = engine.dialect
    if dialect.driver not in _DRIVERS or has_listeners(engine):
        return False
    for class_ in (type(dialect), dialect.execution_ctx_cls):
        if not class_.__module__.startswith("sqlalchemy."):
            return False  # it may do something at each execution
    if dialect.driver == "asyncpg" and not hasattr(dialect, "_invalidate_schema_cache_asof"):
        return False
    is_logged = engine.logger.isEnabledFor(logging.INFO)
    return not (is_logged or (dialect.driver == "psycopg2" and _NOTICES.isEnabledFor(logging.INFO)))


def execute(connection: Connection, text: str, parameters: Any, *, fetch: bool, direct: bool) -> Sequence[Any]:
    """Execute a statement.

    Args:
        connection: The connection.
        text: The statement, as the driver takes it.
        parameters: Its parameters, or a list of several for an executemany.
        fetch: Whether it has rows.
        direct: Whether to go past SQLAlchemy, since the connection `is_unobserved`.

    Returns:
        The rows, in the order of their columns.

    Raises:
        DBAPIError: As SQLAlchemy raises it.
    """
    if not direct:
        return rows_of(connection.exec_driver_sql(text, parameters, execution_options=BUFFERED), fetch=fetch)
    dialect: Any = connection.dialect
    pooled: Any = connection.connection
    single: Any = connection if isinstance(connection, Single) else None
    many = isinstance(parameters, list)
    if single and single.batch:
        if fetch:
            raise NotSingle  # it would not see what waits
        single.batch.add(text, parameters)
        return ()
    cursor = None
    try:
        if dialect.driver == "aiosqlite":
            return _aiosqlite.execute(pooled.driver_connection, text, parameters)
        is_named = isinstance(parameters, dict)  # psycopg's own form; an engine may have another paramstyle
        if dialect.driver == "psycopg" and is_named and (single or pooled.driver_connection.autocommit):
            found = _libpq.execute(pooled.driver_connection, text, parameters, fetch=fetch)
            if found is not None:
                return found
        if dialect.driver == "asyncpg" and not many and (single or pooled.dbapi_connection.autocommit):
            if _asyncpg.may_fetch(pooled.dbapi_connection):
                return _asyncpg.fetch(pooled.dbapi_connection, text, parameters)
        if single and dialect.name == "postgresql":  # a single statement
            single.autocommit()
        cursor = pooled.cursor()
        if dialect.driver == "asyncpg":
            _forget_old_schema(cursor, dialect)
        if many:
            dialect.do_executemany(cursor, text, parameters)
        else:
            dialect.do_execute(cursor, text, parameters)
        rows = cursor.fetchall() if fetch else ()
        cursor.close()
    except dialect.loaded_dbapi.Error as error:
        if dialect.driver == "asyncpg":
            _notice_new_schema(error, dialect)
        is_gone = dialect.is_disconnect(error, pooled, cursor)
        _close(cursor)
        if is_gone:
            single.give_up(error) if single else give_up(connection, error)
        raise DBAPIError.instance(
            text,
            parameters,
            error,
            dialect.loaded_dbapi.Error,
            hide_parameters=connection.engine.hide_parameters,
            connection_invalidated=is_gone,
            dialect=dialect,
            ismulti=many,
        ) from error
    except Exception as error:
        _close(cursor)
        if dialect.driver == "aiosqlite" and isinstance(error, ValueError):  # its thread has come to an end
            return execute(connection, text, parameters, fetch=fetch, direct=False)
        raise
    except BaseException as error:
        connection.invalidate(error)  # interrupted in the middle
        raise
    return rows


def _forget_old_schema(cursor: Any, dialect: Any) -> None:
    """Have asyncpg prepare a statement again if it was prepared before tables were changed, as SQLAlchemy has it do."""
    cursor._invalidate_schema_cache_asof = dialect._invalidate_schema_cache_asof


def _notice_new_schema(error: Exception, dialect: Any) -> None:
    """Have all statements prepared again after an error that comes of a change by another process."""
    dbapi = dialect.loaded_dbapi
    if isinstance(error, (dbapi.InvalidCachedStatementError, dbapi.InternalServerError)):
        dialect._invalidate_schema_cache()


def rows_of(result: CursorResult[Any], *, fetch: bool) -> Sequence[Any]:
    """The rows of what SQLAlchemy has executed, if there are any."""
    if fetch:
        return result.fetchall()
    result.close()
    return ()


def _close(cursor: Any) -> None:
    with suppress(Exception):
        cursor.close()
