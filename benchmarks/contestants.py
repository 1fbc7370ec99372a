"""Who is measured: our savers on each driver, and LangGraph's own savers as their documentation sets them up.

On a server each has a database of its own, which its own `setup()` has migrated, and a pool of ten connections, all of
them open. LangGraph's savers for SQLite and MySQL have one connection, since they take no pool.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias

from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.mysql.pymysql import PyMySQLSaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.aio import AsyncPostgresSaver
from langgraph.checkpoint.sqlite import SqliteSaver
from langgraph.checkpoint.sqlite.aio import AsyncSqliteSaver
from psycopg.rows import dict_row
from psycopg_pool import AsyncConnectionPool, ConnectionPool
from sqlalchemy import URL, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from sa_checkpoint import AsyncSQLAlchemySaver, SQLAlchemySaver

Saver: TypeAlias = BaseCheckpointSaver[str]

POOL_SIZE = 10
_ENGINE_OPTIONS = {"pool_size": POOL_SIZE, "max_overflow": 0}
# What LangGraph's documentation passes to a connection of its own, or of a pool.
_PSYCOPG_OPTIONS = {"autocommit": True, "prepare_threshold": 0, "row_factory": dict_row}


@dataclass(frozen=True)
class Entry:
    """A saver that takes part, and how to open it."""

    name: str
    database: str
    is_ours: bool
    is_async: bool
    open: Callable[..., Any]
    """From a database's URL to a context manager of its saver, an async one if `is_async`.

    Ours takes `lifo`, too: whether the connection that was used last comes first, as docs/guides/engine.md recommends.
    """


@dataclass(frozen=True)
class Contestant:
    """A saver that is open, on tables that are migrated."""

    name: str
    is_ours: bool
    saver: Saver
    url: URL
    """Its database without a proxy and with a sync driver, for a look past the saver."""


@contextmanager
def _ours(url: URL, lifo: bool = True) -> Iterator[Saver]:
    engine = create_engine(url, **_ENGINE_OPTIONS, pool_use_lifo=lifo)
    saver = SQLAlchemySaver(engine)
    saver.setup()
    connections = [engine.connect() for _ in range(POOL_SIZE)]
    for connection in connections:
        connection.close()
    try:
        yield saver
    finally:
        engine.dispose()


@asynccontextmanager
async def _ours_async(url: URL, lifo: bool = True) -> AsyncIterator[Saver]:
    engine = create_async_engine(url, **_ENGINE_OPTIONS, pool_use_lifo=lifo)
    saver = AsyncSQLAlchemySaver(engine)
    await saver.setup()
    connections = [await engine.connect() for _ in range(POOL_SIZE)]
    for connection in connections:
        await connection.close()
    try:
        yield saver
    finally:
        await engine.dispose()


@contextmanager
def _ours_sqlite(url: URL, lifo: bool = True) -> Iterator[Saver]:
    with SQLAlchemySaver.from_conn_string(url, pool_use_lifo=lifo) as saver:
        saver.setup()
        yield saver


@asynccontextmanager
async def _ours_aiosqlite(url: URL, lifo: bool = True) -> AsyncIterator[Saver]:
    async with AsyncSQLAlchemySaver.from_conn_string(url, pool_use_lifo=lifo) as saver:
        await saver.setup()
        yield saver


def _dsn(url: URL, drivername: str) -> str:
    return url.set(drivername=drivername).render_as_string(hide_password=False)


@contextmanager
def _postgres_saver(url: URL) -> Iterator[Saver]:
    dsn = _dsn(url, "postgresql")
    with ConnectionPool[Any](dsn, min_size=POOL_SIZE, max_size=POOL_SIZE, kwargs=_PSYCOPG_OPTIONS, open=True) as pool:
        pool.wait()
        saver = PostgresSaver(pool)
        saver.setup()
        yield saver


@asynccontextmanager
async def _async_postgres_saver(url: URL) -> AsyncIterator[Saver]:
    dsn = _dsn(url, "postgresql")
    async with AsyncConnectionPool[Any](
        dsn, min_size=POOL_SIZE, max_size=POOL_SIZE, kwargs=_PSYCOPG_OPTIONS, open=False
    ) as pool:
        await pool.wait()
        saver = AsyncPostgresSaver(pool)
        await saver.setup()
        yield saver


@contextmanager
def _sqlite_saver(url: URL) -> Iterator[Saver]:
    with SqliteSaver.from_conn_string(str(url.database)) as saver:
        saver.setup()
        yield saver


@asynccontextmanager
async def _async_sqlite_saver(url: URL) -> AsyncIterator[Saver]:
    async with AsyncSqliteSaver.from_conn_string(str(url.database)) as saver:
        await saver.setup()
        yield saver


@contextmanager
def _mysql_saver(url: URL) -> Iterator[Saver]:
    with PyMySQLSaver.from_conn_string(_dsn(url, "mysql")) as saver:
        saver.setup()
        yield saver


def _on(driver: str, open_ours: Callable[..., Any]) -> Callable[..., Any]:
    return lambda url, **options: open_ours(url.set(drivername=driver), **options)


ENTRIES = (
    Entry("ours on psycopg", "postgresql", True, False, _on("postgresql+psycopg", _ours)),
    Entry("ours on psycopg2", "postgresql", True, False, _on("postgresql+psycopg2", _ours)),
    Entry("PostgresSaver", "postgresql", False, False, _postgres_saver),
    Entry("ours on psycopg, async", "postgresql", True, True, _on("postgresql+psycopg", _ours_async)),
    Entry("ours on asyncpg", "postgresql", True, True, _on("postgresql+asyncpg", _ours_async)),
    Entry("AsyncPostgresSaver", "postgresql", False, True, _async_postgres_saver),
    Entry("ours on sqlite3", "sqlite", True, False, _on("sqlite", _ours_sqlite)),
    Entry("SqliteSaver", "sqlite", False, False, _sqlite_saver),
    Entry("ours on aiosqlite", "sqlite", True, True, _on("sqlite+aiosqlite", _ours_aiosqlite)),
    Entry("AsyncSqliteSaver", "sqlite", False, True, _async_sqlite_saver),
    Entry("ours on PyMySQL", "mysql", True, False, _on("mysql+pymysql", _ours)),
    Entry("PyMySQLSaver", "mysql", False, False, _mysql_saver),
)


@contextmanager
def opened(
    entries: list[Entry],
    new_url: Callable[[], URL],
    link: Callable[[URL], URL],
    runner: asyncio.Runner,
    *,
    lifo: bool = True,
) -> Iterator[dict[bool, list[Contestant]]]:
    """Contestants on new databases: the sync ones under False, the async ones under True.

    Args:
        entries: Who takes part.
        new_url: Makes an empty database.
        link: The URL of the same database over the link that is measured.
        runner: Whose event loop the async ones live on.
        lifo: As for `Entry.open`.
    """
    stack = AsyncExitStack()
    contestants: dict[bool, list[Contestant]] = {False: [], True: []}
    try:
        for entry in entries:
            url = new_url()
            manager = entry.open(link(url), lifo=lifo) if entry.is_ours else entry.open(link(url))
            saver = runner.run(stack.enter_async_context(manager)) if entry.is_async else stack.enter_context(manager)
            contestants[entry.is_async].append(Contestant(entry.name, entry.is_ours, saver, url))
        yield contestants
    finally:
        runner.run(_awaited(stack.aclose()))


async def _awaited(awaitable: Awaitable[None]) -> None:
    await awaitable
