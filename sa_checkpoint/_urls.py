"""From a URL, as people write it, to an engine of our own: which driver it means, and what to install when it lacks.

Only engines that this package creates itself pass through here (`from_conn_string`, `alembic.ini`); an application's
own engine is taken as it is.
"""

from __future__ import annotations

import importlib
import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from sqlalchemy import URL, AsyncAdaptedQueuePool, Engine, QueuePool, StaticPool, create_engine, event, make_url
from sqlalchemy.exc import ArgumentError

from sa_checkpoint.errors import InvalidBind, InvalidConfig, MissingDriver, is_locked

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncEngine

# The plain names a DSN can start with, and the driver each means. SQLAlchemy itself reads `postgresql://` as psycopg2
# in 2.0 and as psycopg in 2.1, does not know libpq's `postgres://`, and reads `mysql://` as mysqlclient.
_SYNC_DRIVERS = {
    "postgresql": "postgresql+psycopg",
    "postgres": "postgresql+psycopg",
    "mysql": "mysql+pymysql",
    "mariadb": "mariadb+pymysql",
}
_ASYNC_DRIVERS = _SYNC_DRIVERS | {
    "sqlite": "sqlite+aiosqlite",
    "sqlite+pysqlite": "sqlite+aiosqlite",
    "mysql": "mysql+asyncmy",
    "mysql+pymysql": "mysql+asyncmy",
    "mariadb": "mariadb+asyncmy",
    "mariadb+pymysql": "mariadb+asyncmy",
}

_EXTRAS = {
    "psycopg": "postgres",
    "psycopg2": "psycopg2",
    "asyncpg": "asyncpg",
    "aiosqlite": "sqlite-async",
    "pymysql": "mysql",
    "asyncmy": "mysql-async",
    "greenlet": "asyncio",
}

SQLITE_BUSY_TIMEOUT_MS = 30_000
# How often another process may come between waiting for the lock and taking it: once was the most that was seen.
_WAL_ATTEMPTS = 20


def default_url() -> str:
    """The database where none is named: `$SA_CHECKPOINT_URL`, else a SQLite file in the current folder."""
    return os.environ.get("SA_CHECKPOINT_URL") or "sqlite:///checkpoints.db"


def parse_url(url: str | URL, drivers: dict[str, str] = _SYNC_DRIVERS) -> URL:
    """A URL as SQLAlchemy reads it, with the driver that a plain name stands for.

    Args:
        url: A SQLAlchemy URL, or a `postgresql://` or `postgres://` DSN.
        drivers: What a name without a driver means.

    Raises:
        InvalidConfig: It is not a URL.
    """
    if isinstance(url, str) and url.startswith("postgres://"):
        url = "postgresql://" + url.removeprefix("postgres://")
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        # Not chained: before SQLAlchemy 2.1 its message has the whole URL, password included.
        raise InvalidConfig(
            "The connection string is not a database URL. Write it as 'sqlite:///checkpoints.db' or "
            "'postgresql://user:password@host:5432/database'."
        ) from None
    return parsed.set(drivername=drivers.get(parsed.drivername, parsed.drivername))


def is_async(url: URL) -> bool:
    """Whether the URL names a driver for async engines only."""
    # psycopg's dialect is sync by itself and hands over its async twin when it is asked to.
    return bool(url.get_dialect().is_async)


def sync_url(url: str | URL) -> URL:
    """The URL with the driver that a sync engine needs.

    Args:
        url: A SQLAlchemy URL, or a `postgresql://` or `postgres://` DSN (taken as psycopg).

    Raises:
        InvalidConfig: It is not a URL.
        InvalidBind: It names an async driver.
    """
    parsed = parse_url(url)
    if is_async(parsed):
        raise InvalidBind(
            f"{parsed.drivername!r} is an async driver: use AsyncSQLAlchemySaver.from_conn_string with this URL, "
            "or give SQLAlchemySaver a URL with a sync driver, such as 'postgresql+psycopg://…' or 'sqlite:///…'."
        )
    return parsed


def async_url(url: str | URL) -> URL:
    """The URL with the driver that an async engine needs: aiosqlite for SQLite, psycopg for a PostgreSQL DSN.

    Args:
        url: A SQLAlchemy URL, or a `postgresql://` or `postgres://` DSN (taken as psycopg).

    Raises:
        InvalidConfig: It is not a URL.
        InvalidBind: It names a driver that has no async mode.
    """
    parsed = parse_url(url, _ASYNC_DRIVERS)
    if parsed.get_driver_name() != "psycopg" and not is_async(parsed):
        raise InvalidBind(
            f"{parsed.drivername!r} has no async mode: give AsyncSQLAlchemySaver a URL with an async driver, such as "
            "'postgresql+psycopg://…', 'postgresql+asyncpg://…' or 'sqlite+aiosqlite:///…', or use SQLAlchemySaver."
        )
    return parsed


def _require(driver: str, url: URL) -> None:
    """Raise `MissingDriver` when a package that the URL needs cannot be imported."""
    try:
        importlib.import_module(driver)
    except ImportError as error:
        raise _missing(driver, url, error) from error


def _missing(driver: str, url: URL, error: ImportError) -> MissingDriver:
    package = f"sa-checkpoint[{_EXTRAS[driver]}]" if driver in _EXTRAS else driver
    return MissingDriver(
        f"{url.drivername!r} needs the package {driver!r}, which cannot be imported ({error}). "
        f'Install it with: pip install "{package}"'
    )


def is_memory(url: URL) -> bool:
    """Whether the URL is SQLite's database in memory, of which each connection has its own."""
    return url.get_backend_name() == "sqlite" and (
        url.database in (None, "", ":memory:") or url.query.get("mode") == "memory"
    )


def _options(url: URL, options: dict[str, Any]) -> dict[str, Any]:
    """The engine options, with what is better for SQLite unless it is given."""
    if is_memory(url):
        # One connection for all threads, since every connection is a database of its own.
        connect_args = {"check_same_thread": False} | options.get("connect_args", {})
        return {"poolclass": StaticPool} | options | {"connect_args": connect_args}
    if url.get_backend_name() == "sqlite" and "pool" not in options:
        dialect: Any = url.get_dialect()
        if (options.get("poolclass") or dialect.get_pool_class(url)) in (QueuePool, AsyncAdaptedQueuePool):
            # Connections stay open: to open one, with its PRAGMAs and perhaps a thread, takes longer than to wait.
            # The one that was used last comes first: others' pages in memory are old, and have to be read again.
            return {"max_overflow": 0, "pool_use_lifo": True} | options
    return options


def _tune_sqlite(engine: Engine) -> None:
    """Let readers and a writer work at once (WAL), and a second writer wait instead of failing."""

    @event.listens_for(engine, "connect")
    def _on_connect(dbapi_connection: Any, _record: Any) -> None:
        cursor = dbapi_connection.cursor()
        # The wait comes first: switching to WAL takes a lock itself.
        cursor.execute(f"PRAGMA busy_timeout = {SQLITE_BUSY_TIMEOUT_MS}")
        _switch_to_wal(cursor)
        cursor.execute("PRAGMA foreign_keys = ON")
        cursor.close()


def _switch_to_wal(cursor: Any) -> None:
    """Set the file's journal mode, once nobody writes: for a writer the PRAGMA itself fails at once instead of waiting.

    It has read the file before it asks for the lock, and SQLite does not wait between the two, which might be a
    deadlock. A transaction that asks first does wait. Of eight processes that open a new file, one or two need it.
    """
    for attempt in range(_WAL_ATTEMPTS + 1):
        try:
            cursor.execute("PRAGMA journal_mode = WAL")
            return
        except Exception as error:  # the driver's own class, of whichever driver
            if not is_locked(error) or attempt == _WAL_ATTEMPTS:
                raise
        cursor.execute("BEGIN EXCLUSIVE")
        cursor.execute("COMMIT")


def _create(make: Callable[..., Any], url: URL, options: dict[str, Any]) -> Any:
    if url.get_driver_name() in _EXTRAS:
        _require(url.get_driver_name(), url)
    try:
        engine = make(url, **_options(url, options))
    except ModuleNotFoundError as error:
        raise _missing(error.name or url.get_driver_name(), url, error) from error
    if url.get_backend_name() == "sqlite":
        _tune_sqlite(getattr(engine, "sync_engine", engine))
    return engine


def create_own_engine(url: str | URL, **options: Any) -> Engine:
    """An engine of ours for a URL, with WAL and a busy timeout on SQLite.

    Args:
        url: As in `sync_url`.
        **options: Passed on to `sqlalchemy.create_engine`.

    Returns:
        The engine. Whoever calls this disposes of it.

    Raises:
        InvalidConfig: It is not a URL.
        InvalidBind: It names an async driver.
        MissingDriver: The driver is not installed; the message names the extra that brings it.
    """
    engine: Engine = _create(create_engine, sync_url(url), options)
    return engine


def create_own_async_engine(url: str | URL, **options: Any) -> AsyncEngine:
    """The async twin of `create_own_engine`; options go to `sqlalchemy.ext.asyncio.create_async_engine`."""
    parsed = async_url(url)
    _require("greenlet", parsed)
    from sqlalchemy.ext.asyncio import create_async_engine

    engine: AsyncEngine = _create(create_async_engine, parsed, options)
    return engine
