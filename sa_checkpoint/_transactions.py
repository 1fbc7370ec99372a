"""An operation is all or nothing, in whatever state the application's connection is.

In a transaction of ours that is given. In one of the caller's it takes a savepoint, after which the caller can go on.
On a connection in autocommit, where every statement is committed by itself, it takes a BEGIN of our own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection

# Rows are fetched at once. The application may have asked for server-side cursors on its engine or connection, which
# no statement that writes can have.
BUFFERED: Mapping[str, Any] = {"stream_results": False, "yield_per": None}


@contextmanager
def whole(connection: Connection, *, writes: bool) -> Iterator[None]:
    """Make the statements in the block one transaction, if they are not one yet.

    Args:
        connection: A Connection on which SQLAlchemy has begun; in autocommit, that begins nothing in the database.
        writes: Whether anything is changed.
    """
    if not (writes and _is_autocommit(connection)):
        yield
        return
    _execute(connection, "BEGIN")
    try:
        yield
    except BaseException:
        if not connection.invalidated:  # a connection that has been lost has no transaction any more
            _execute(connection, "ROLLBACK")
        raise
    _execute(connection, "COMMIT")


@contextmanager
def savepoint(connection: Connection, *, writes: bool) -> Iterator[None]:
    """Undo the statements in the block if one of them fails, and leave the caller's transaction usable.

    Args:
        connection: The caller's; a transaction that it begins here is the caller's, too.
        writes: Whether anything is changed.
    """
    if not connection.in_transaction():
        connection.begin()
    if _is_autocommit(connection):
        with whole(connection, writes=writes):
            yield
    elif connection.dialect.name == "sqlite" and not writes:
        # A failed SELECT does no harm there, and a transaction that has begun with one may not be able to write.
        yield
    else:
        _begin_in_sqlite(connection)
        with connection.begin_nested():
            yield


def _is_autocommit(connection: Connection) -> bool:
    """Whether the driver commits each statement."""
    if connection.dialect.name == "sqlite":
        driver = _driver_connection(connection)
        # Without an isolation level Python's sqlite3 begins nothing; but a host's listener may have.
        begins = driver.isolation_level is not None and getattr(driver, "autocommit", None) is not True
        return not begins and not driver.in_transaction
    level = connection.get_execution_options().get("isolation_level")
    if level is not None:
        return bool(level == "AUTOCOMMIT")
    return getattr(connection.connection.dbapi_connection, "autocommit", None) is True


def has_isolation_level(connection: Connection) -> bool:
    """Whether a level other than autocommit has been set, so that SQLAlchemy or the driver names it in each BEGIN."""
    option = connection.get_execution_options().get("isolation_level")
    pooled = connection.connection
    levels = (
        getattr(driver, "isolation_level", None) for driver in (pooled.dbapi_connection, pooled.driver_connection)
    )
    return not _is_autocommit(connection) and (option is not None or any(levels))


def _begin_in_sqlite(connection: Connection) -> None:
    """Begin where SQLAlchemy thinks it has: Python's sqlite3 waits for the first INSERT, UPDATE or DELETE.

    A SAVEPOINT before that would be a transaction of its own, and its RELEASE a COMMIT
    (https://www.sqlite.org/lang_savepoint.html).
    """
    if connection.dialect.name == "sqlite":
        driver = _driver_connection(connection)
        if not driver.in_transaction:
            _execute(connection, f"BEGIN {driver.isolation_level}")


def _execute(connection: Connection, statement: str) -> None:
    connection.exec_driver_sql(statement, execution_options=BUFFERED)


def _driver_connection(connection: Connection) -> Any:
    return connection.connection.driver_connection
