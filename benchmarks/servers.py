"""The database servers that are measured: those of the tests, with the durability that a server has by default."""

from __future__ import annotations

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import URL, Engine, NullPool, create_engine, text

from tests import servers as test_servers

DATABASES = ("postgresql", "sqlite", "mysql")
_SETTINGS = {
    "postgresql": (
        "fsync",
        "synchronous_commit",
        "full_page_writes",
        "shared_buffers",
        "huge_pages",
        "max_wal_size",
    ),
    "mysql": ("innodb_flush_log_at_trx_commit", "sync_binlog", "innodb_buffer_pool_size"),
}


class Unavailable(Exception):
    """A database has no server here; the message says what to install."""


@dataclass(frozen=True)
class Server:
    """A server, or a folder of SQLite files, and a way to make empty databases on it."""

    database: str
    version: str
    settings: dict[str, str]
    new_url: Callable[[], URL]
    """The URL of a new and empty database, with a sync driver."""


@contextmanager
def started(database: str, *, durable: bool, pin: bool = False) -> Iterator[Server]:
    """A server of this kind: the one that the environment names as for the tests, else one of this run's own.

    Args:
        database: One of `DATABASES`.
        durable: Whether a server of this run's own waits for the disk at each commit. SQLite always does what its
            default is, and a server that the environment names is left as it is.
        pin: Whether it has other processors than this thread and those that this one starts, as on a machine of its
            own. Not for SQLite, which is no server, and only on Linux.

    Raises:
        Unavailable: It cannot be started.
    """
    processors = sorted(os.sched_getaffinity(0)) if pin and database != "sqlite" and sys.platform == "linux" else []
    is_pinned = len(processors) > 1
    try:
        if is_pinned:
            os.sched_setaffinity(0, processors[1:])  # of which a process that is started now has no others
        with {"postgresql": _postgresql, "sqlite": _sqlite, "mysql": _mysql}[database](durable) as server:
            if is_pinned:
                os.sched_setaffinity(0, processors[:1])
            yield server
    finally:
        if is_pinned:
            os.sched_setaffinity(0, processors)


@contextmanager
def _postgresql(durable: bool) -> Iterator[Server]:
    with _of_the_tests(test_servers.postgresql) as url:
        if not os.environ.get(test_servers.POSTGRES_VARIABLE):
            _execute(url, f"ALTER SYSTEM SET fsync = {'on' if durable else 'off'}", "SELECT pg_reload_conf()")
        with test_servers.databases(url, "DROP DATABASE {} WITH (FORCE)") as new_url:
            yield Server("postgresql", _version(url, "SELECT version()"), _settings(url, "SHOW {}"), new_url)


@contextmanager
def _mysql(durable: bool) -> Iterator[Server]:
    with _of_the_tests(test_servers.mysql) as url:
        if not os.environ.get(test_servers.MYSQL_VARIABLE):
            _execute(url, f"SET GLOBAL innodb_flush_log_at_trx_commit = {int(durable)}")
        with test_servers.databases(url, "DROP DATABASE {}") as new_url:
            yield Server("mysql", _version(url, "SELECT version()"), _settings(url, "SELECT @@GLOBAL.{}"), new_url)


@contextmanager
def _sqlite(_durable: bool) -> Iterator[Server]:
    with tempfile.TemporaryDirectory(prefix="sac-sqlite-") as folder:
        version = "SQLite " + _version(URL.create("sqlite"), "SELECT sqlite_version()")
        yield Server(
            "sqlite", version, {}, lambda: URL.create("sqlite", database=str(Path(folder) / f"{uuid4().hex}.db"))
        )


@contextmanager
def _of_the_tests(start: Callable[[], AbstractContextManager[URL]]) -> Iterator[URL]:
    with ExitStack() as stack:
        try:
            url = stack.enter_context(start())
        except (pytest.skip.Exception, pytest.fail.Exception) as reason:
            raise Unavailable(str(reason)) from None
        yield url


def looking_at(url: URL) -> Engine:
    """An engine for a look past the savers, which holds no connection in between."""
    return create_engine(url, poolclass=NullPool, isolation_level="AUTOCOMMIT")


def analyse(url: URL) -> None:
    """Bring the planner's statistics up to date on PostgreSQL, as autovacuum does at some time within a minute."""
    if url.get_backend_name() == "postgresql":
        _execute(url, "ANALYZE")


def _execute(url: URL, *statements: str) -> None:
    with looking_at(url).connect() as connection:
        for statement in statements:
            connection.execute(text(statement))


def _version(url: URL, statement: str) -> str:
    with looking_at(url).connect() as connection:
        return str(connection.scalar(text(statement)))


def _settings(url: URL, statement: str) -> dict[str, str]:
    with looking_at(url).connect() as connection:
        names = _SETTINGS[url.get_backend_name()]
        return {name: str(connection.scalar(text(statement.format(name)))) for name in names}
