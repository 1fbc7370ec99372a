"""What can go wrong in this package's own judgement, each error saying what to do next.

Errors of the database and of SQLAlchemy are not wrapped: an unreachable server raises SQLAlchemy's own
`OperationalError`. The one exception is `SchemaOutOfDate`, since a missing table has a remedy that we know.
"""

from __future__ import annotations

import asyncio
import re

from sqlalchemy.exc import DBAPIError


class CheckpointerError(Exception):
    """The base of all errors that this package raises itself."""


class InvalidBind(CheckpointerError, TypeError):
    """What was given as `bind` is not something that this saver can work on."""


class InvalidConfig(CheckpointerError, ValueError):
    """A `RunnableConfig` lacks a thread, or holds an identifier that no database column can hold."""


class InvalidValue(CheckpointerError, ValueError):
    """A checkpoint, its metadata, a write or a filter holds something that cannot be stored or compared."""


class InvalidSchema(CheckpointerError, ValueError):
    """The name of a schema is not an identifier, or there is no such schema and none can be created."""


class ThreadExists(CheckpointerError, ValueError):
    """The target of a copy has rows already."""


class UnsupportedDatabase(CheckpointerError, NotImplementedError):
    """The database, or the way it is connected to, cannot hold checkpoints as they are."""


class MissingDriver(CheckpointerError, ImportError):
    """The database driver that a URL asks for is not installed."""


class SyncCallOnEventLoop(CheckpointerError, asyncio.InvalidStateError):
    """A blocking method of the async saver was called where it would wait for itself for ever."""


class SchemaOutOfDate(CheckpointerError):
    """A checkpoint table or column is missing, or older than this version of the code."""


class SchemaMismatch(CheckpointerError):
    """There are tables with the names of ours that are not checkpoint tables of LangGraph's."""


class MigrationUnderWay(CheckpointerError, RuntimeError):
    """Alembic is running already in this process, and cannot run a second migration inside the first."""


# By what a database says: SQLSTATE for PostgreSQL (https://www.postgresql.org/docs/current/errcodes-appendix.html) and
# for ODBC, the error's number for MySQL and MariaDB
# (https://dev.mysql.com/doc/mysql-errors/8.4/en/server-error-reference.html).
# undefined_table, undefined_column; the same two of ODBC; ER_NO_SUCH_TABLE, ER_BAD_FIELD_ERROR
_UNDEFINED = frozenset({"42P01", "42703", "42S02", "42S22", 1146, 1054})
# unique_violation; ER_DUP_ENTRY
_DUPLICATE = frozenset({"23505", 1062})
# serialization_failure, deadlock_detected; ER_LOCK_DEADLOCK, ER_LOCK_WAIT_TIMEOUT, ER_CHECKREAD
_TRANSIENT = frozenset({"40001", "40P01", 1213, 1205, 1020})
_DUCKDB_CONFLICT = "TransactionContext Error"
_DIALECTS = frozenset({"sqlite", "postgresql", "mysql", "mariadb"})
_SQLITE_UNDEFINED = ("no such table", "no such column", "has no column named")


def is_schema_error(error: DBAPIError) -> bool:
    """Whether the database said that a table or column does not exist.

    Args:
        error: What SQLAlchemy raised. SQLite has the fact in its message only.
    """
    code = _code(error)
    if code is not None:
        return code in _UNDEFINED
    return any(words in str(error.orig) for words in _SQLITE_UNDEFINED)


def is_duplicate(error: DBAPIError) -> bool:
    """Whether the database refused a row because its key is taken."""
    return _code(error) in _DUPLICATE or "UNIQUE constraint failed" in str(error.orig)


def may_be_duplicate(error: DBAPIError, dialect: str) -> bool:
    """The same, where not every database is one whose words for it are known.

    Args:
        error: What SQLAlchemy raised for a row that was refused.
        dialect: SQLAlchemy's name of the database.
    """
    return is_duplicate(error) or dialect not in _DIALECTS


def is_transient(error: DBAPIError) -> bool:
    """Whether the transaction failed only because of another one at the same time, and may be tried again."""
    return _code(error) in _TRANSIENT or _DUCKDB_CONFLICT in str(error.orig)


def is_too_deep(error: DBAPIError) -> bool:
    """Whether MariaDB (beyond 32 levels) or MySQL (beyond 100) did not look into JSON that is nested too deeply."""
    return _code(error) in (4040, 3157)


def is_locked(error: Exception) -> bool:
    """Whether SQLite did not let a transaction write, perhaps because it began with reading."""
    return "database is locked" in str(getattr(error, "orig", error))


def _code(error: DBAPIError) -> str | int | None:
    # The drivers of MySQL have a number as first argument; their `sqlstate`, where they have one, says less. pyodbc has
    # the SQLSTATE there.
    first = next(iter(getattr(error.orig, "args", ())), None)
    if isinstance(first, int) or re.fullmatch("[0-9A-Z]{5}", str(first)):
        return first
    # psycopg and asyncpg say `sqlstate`, psycopg2 says `pgcode`.
    code: str | None = getattr(error.orig, "sqlstate", None) or getattr(error.orig, "pgcode", None)
    return code
