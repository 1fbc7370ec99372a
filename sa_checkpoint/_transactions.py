"""An operation is all or nothing, in whatever state the application's connection is.

In a transaction of ours that is given. In one of the caller's it takes a savepoint, after which the caller can go on.
On a connection in autocommit, where every statement is committed by itself, it takes a BEGIN of our own. What is one
statement anyway, on a connection of ours, does better without the round trips of a BEGIN and a COMMIT.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from sa_checkpoint._aiosqlite import batch_on
from sa_checkpoint._direct import BUFFERED, has_listeners, is_unobserved
from sa_checkpoint._driver import leave_autocommit
from sa_checkpoint._single import Single
from sa_checkpoint._types import MYSQL
from sa_checkpoint.errors import is_transient

# Drivers whose DBAPI connection has an attribute `autocommit` that sends nothing to the server: what they call READ
# COMMITTED, and which of their attributes makes transactions read-only.
_AUTOCOMMITTING = {
    "psycopg": (2, "read_only"),
    "psycopg_async": (2, "read_only"),
    "psycopg2": (1, "readonly"),
    "asyncpg": ("read_committed", "readonly"),
}


class Ending:
    """How an operation's transaction ends, where its last statement may commit.

    It is the connection's execution option `OPTION`.

    Attributes:
        is_committed: Whether the statement that came last has committed.
    """

    OPTION = "sa_checkpoint_ending"

    is_committed = False


def own(
    connection: Connection, *, writes: bool, is_one: bool, is_short: bool, autocommit: bool | None
) -> AbstractContextManager[Any]:
    """Make the statements in the block a transaction of ours, on a connection that was just checked out.

    Args:
        connection: The connection. A listener of the application's may have begun.
        writes: Whether anything is changed.
        is_one: Whether there is one statement only, which is atomic by itself.
        is_short: Whether nothing comes after the last statement that depends on it.
        autocommit: Whether that may be committed by itself: if None, unless `_needs_begin`.
    """
    if is_one and may_autocommit(connection, autocommit):
        return _in_autocommit(connection)
    if is_short and autocommit is not False and _may_end_with_last(connection):
        return _ended_with_last(connection, writes=writes)
    if not writes and _may_roll_back(connection):
        # SQLAlchemy does, when the connection is closed: once. After a COMMIT the pool would do so, too.
        return nullcontext(connection.get_transaction() or connection.begin())
    return _in_transaction(connection, writes=writes)


def _may_roll_back(connection: Connection) -> bool:
    """Whether a read may end with a ROLLBACK, where one comes after a COMMIT, too: a round trip, or a call of a thread.

    Nobody else must have work in the transaction: a listener, or on SQLite whoever shares the pool's one connection.
    """
    name = connection.dialect.name
    is_worth_it = name in MYSQL or (name == "sqlite" and not has_listeners(connection))
    return is_worth_it and not is_in_transaction(connection)


@contextmanager
def _in_transaction(connection: Connection, *, writes: bool) -> Iterator[None]:
    with connection.get_transaction() or connection.begin(), whole(connection, writes=writes):
        yield


def _may_end_with_last(connection: Connection) -> bool:
    """Whether a COMMIT may be in a statement, where it is a round trip: nobody listens for it, and nobody has begun.

    Not with asyncmy, where a call that is given up is interrupted, and then nothing of it shall be stored.
    """
    if connection.dialect.driver != "pymysql" or not is_unobserved(connection):
        return False
    return not (connection.in_transaction() or is_in_transaction(connection) or _is_autocommit(connection))


@contextmanager
def _ended_with_last(connection: Connection, *, writes: bool) -> Iterator[None]:
    ending = Ending()
    connection.execution_options(**{Ending.OPTION: ending})
    transaction = connection.begin()
    yield
    if ending.is_committed:
        # Else SQLAlchemy would close the connection with a ROLLBACK, as it does after an error.
        transaction.is_active = False
    elif writes:
        transaction.commit()


def without_begin(
    single: Single, *, writes: bool, is_one: bool, is_short: bool, autocommit: bool | None
) -> Callable[[], None] | None:
    """How a transaction of ours ends for which nothing has to begin.

    Args:
        single: The connection that was just checked out.
        writes: As for `own`.
        is_one: As for `own`.
        is_short: As for `own`.
        autocommit: As for `own`.

    Returns:
        What ends it when its statements have been executed; None if it takes `own`.
    """
    connection = single.as_connection
    if is_one:
        return _nothing if may_autocommit(connection, autocommit) else None
    if connection.dialect.name == "sqlite":
        # Python's sqlite3 begins with the first INSERT, UPDATE or DELETE, unless it has been told otherwise.
        driver = _driver_connection(connection)
        # It is neither where somebody has closed it, of which SQLAlchemy's Connection tells.
        if _of_sqlite(driver, "in_transaction") is not False or (writes and _sqlite_commits(driver)):
            return None
        single.is_open = writes  # a SELECT begins nothing
        if not writes:
            return _nothing
        if connection.dialect.driver == "aiosqlite":
            single.batch = batch_on(driver)
        return single.commit
    if is_short and autocommit is not False and _may_end_with_last(connection):
        ending = Ending()
        single.execution_options(**{Ending.OPTION: ending})
        single.is_open = True

        def end() -> None:
            if ending.is_committed:
                single.is_open = False
            elif writes:
                single.commit()

        return end
    return None


def _nothing() -> None:
    """The end of what is committed by itself, or changes nothing."""


@contextmanager
def _in_autocommit(connection: Connection) -> Iterator[None]:
    """Have a single statement committed by itself, and leave the driver's connection as it was."""
    driver: Any = connection.connection.dbapi_connection
    was_autocommit = driver.autocommit
    try:
        driver.autocommit = True
        yield
        connection.commit()  # for the application's listeners, if SQLAlchemy has begun: the driver sends nothing
    finally:
        if not (was_autocommit or connection.invalidated):
            leave_autocommit(connection, driver)


def may_autocommit(connection: Connection, autocommit: bool | None) -> bool:
    """Whether a single statement may be committed by itself on a connection that was just checked out."""
    if autocommit is False or connection.dialect.driver not in _AUTOCOMMITTING:
        return False
    if connection.in_transaction() or is_in_transaction(connection):
        return False
    return autocommit or not _needs_begin(connection)


def _needs_begin(connection: Connection) -> bool:
    """Whether the application asks for more than a BEGIN: with a listener, or with what it has set for each BEGIN.

    A `begin` listener may set something for this transaction only, such as the tenant that row-level security looks at,
    and a `commit` listener may prevent it. READ COMMITTED, which SQLAlchemy leaves behind on a connection that was in
    autocommit, is nothing more. A psycopg connection that is not read-only says so in each BEGIN, if that was set.
    """
    if has_listeners(connection) and (connection.dispatch.begin or connection.dispatch.commit):
        return True
    name = connection.dialect.driver
    driver: Any = connection.connection.dbapi_connection if name == "asyncpg" else _driver_connection(connection)
    read_committed, read_only = _AUTOCOMMITTING[name]
    if name == "asyncpg" and _names_statements(driver):
        return True
    says_access = bool(driver.readonly) if name == "asyncpg" else getattr(driver, read_only) is not None
    return says_access or driver.deferrable or driver.isolation_level not in (None, read_committed, "autocommit")


def _names_statements(driver: Any) -> bool:
    """Whether the application names asyncpg's prepared statements, as it does for PgBouncer in transaction mode.

    There a statement is known to the server connection that it was prepared on, which is the same for a transaction.
    """
    default = getattr(driver, "_default_name_func", None)
    return getattr(driver, "_prepared_statement_name_func", default) is not default


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
    _execute(connection, _begin(connection))
    try:
        yield
        _execute(connection, "COMMIT")
    except BaseException:
        _roll_back(connection)
        raise


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
        # Python's sqlite3 waits for the first INSERT, UPDATE or DELETE. A SAVEPOINT before that would be a transaction
        # of its own, and its RELEASE a COMMIT (https://www.sqlite.org/lang_savepoint.html).
        if connection.dialect.name == "sqlite" and not is_in_transaction(connection):
            _execute(connection, _begin(connection))
        nested = connection.begin_nested()
        try:
            yield
        except BaseException as error:
            # In a deadlock MySQL has rolled back all of the transaction, and there is no savepoint any more.
            is_gone = isinstance(error, DBAPIError) and is_transient(error)
            with suppress(DBAPIError) if is_gone else nullcontext():
                nested.rollback()
            raise
        nested.commit()


def has_isolation_level(connection: Connection) -> bool:
    """Whether a level other than autocommit has been set, so that SQLAlchemy or the driver names it in each BEGIN."""
    option = connection.get_execution_options().get("isolation_level")
    pooled = connection.connection
    levels = (
        getattr(driver, "isolation_level", None) for driver in (pooled.dbapi_connection, pooled.driver_connection)
    )
    return not _is_autocommit(connection) and (option is not None or any(levels))


def begin_immediately(connection: Connection) -> None:
    """Have a transaction of ours on SQLite begin with the write lock, even where a host's listener has begun without.

    One that reads first could not write after another writer.
    """
    if is_in_transaction(connection):
        _execute(connection, "COMMIT")
    _execute(connection, _begin(connection))


def _is_autocommit(connection: Connection) -> bool:
    """Whether the driver commits each statement."""
    if is_in_transaction(connection):
        return False  # an application may have sent a BEGIN itself
    driver = _driver_connection(connection)
    if connection.dialect.name == "sqlite":
        return _sqlite_commits(driver)
    level = connection.get_execution_options().get("isolation_level")
    if level is not None:
        return bool(level == "AUTOCOMMIT")
    if hasattr(driver, "get_autocommit"):  # those of MySQL
        return bool(driver.get_autocommit())
    return getattr(connection.connection.dbapi_connection, "autocommit", None) is True


def is_in_transaction(connection: Connection) -> bool:
    """Whether the driver knows of a transaction; what SQLAlchemy has begun may begin with the next statement only.

    A driver such as mysqlclient, which does not say, is taken to be in none.
    """
    driver = _driver_connection(connection)
    if connection.dialect.driver in ("psycopg", "psycopg_async"):
        return bool(driver.pgconn.transaction_status)  # libpq's PQTRANS_IDLE is 0
    if connection.dialect.name == "sqlite":
        return bool(_of_sqlite(driver, "in_transaction"))
    if hasattr(driver, "is_in_transaction"):  # asyncpg
        return bool(driver.is_in_transaction())
    if hasattr(driver, "get_transaction_status"):  # asyncmy; psycopg2, whose TRANSACTION_STATUS_IDLE is 0
        return bool(driver.get_transaction_status())
    # PyMySQL; 1 is MySQL's SERVER_STATUS_IN_TRANS
    return bool(getattr(driver, "server_status", 0) & 1)


def _of_sqlite(driver: Any, name: str) -> Any:
    """An attribute of sqlite3's or aiosqlite's connection; None if that was closed, which the next statement says."""
    try:
        return getattr(driver, name, None)
    except (ValueError, sqlite3.ProgrammingError):
        return None


def _sqlite_commits(driver: Any) -> bool:
    """Whether each statement is committed: without an isolation level Python's sqlite3 begins nothing."""
    return _of_sqlite(driver, "isolation_level") is None or _of_sqlite(driver, "autocommit") is True


def _begin(connection: Connection) -> str:
    if connection.dialect.name == "sqlite":
        return "BEGIN IMMEDIATE"  # a transaction that is going to write takes the lock at once
    # In MariaDB's ORACLE mode, BEGIN begins a block.
    return "START TRANSACTION" if connection.dialect.name in MYSQL else "BEGIN"


def _roll_back(connection: Connection) -> None:
    """Roll back what is left, and let the error that led here be the one that is seen.

    To PostgreSQL a ROLLBACK of nothing is a warning, and to SQLite an error; to others it is nothing.
    """
    says_so = connection.dialect.name in ("postgresql", "sqlite")
    if not connection.invalidated and (is_in_transaction(connection) or not says_so):
        with suppress(DBAPIError):
            _execute(connection, "ROLLBACK")


def _execute(connection: Connection, statement: str) -> None:
    connection.exec_driver_sql(statement, execution_options=BUFFERED)


def _driver_connection(connection: Connection) -> Any:
    return connection.connection.driver_connection
