"""What an application has besides its engine: connections, sessions and sessionmakers, sync or async."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Connection, Engine, event
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from tests.backends import entered


def sync_engine_of(engine: Engine | AsyncEngine) -> Engine:
    return engine.sync_engine if isinstance(engine, AsyncEngine) else engine


def driver_of(connection: Connection | AsyncConnection) -> Any:
    """The driver's connection."""
    sync_connection = connection.sync_connection if isinstance(connection, AsyncConnection) else connection
    assert sync_connection is not None
    return sync_connection.connection.driver_connection


def connections_in_a_row(engine: Engine, number: int) -> int:
    """How many connections of the pool, which has so many, are used when they are taken one after another."""
    for connection in [engine.connect() for _ in range(number)]:
        connection.close()
    used = set()
    for _ in range(number):
        with engine.connect() as connection:
            used.add(connection.connection.dbapi_connection)
    return len(used)


def executing_at_checkout(statement: str) -> Callable[[Engine], None]:
    """A listener of an engine's pool, which executes this on each connection that is checked out."""

    def checkout(dbapi_connection: Any, *_: Any) -> None:
        cursor = dbapi_connection.cursor()
        cursor.execute(statement)
        cursor.close()

    return lambda engine: event.listen(engine, "checkout", checkout)


@asynccontextmanager
async def engine_on(engine: Any) -> AsyncIterator[Any]:
    yield engine


@asynccontextmanager
async def connection_on(engine: Any) -> AsyncIterator[Any]:
    async with entered(engine.connect()) as connection:
        yield connection


@asynccontextmanager
async def session_on(engine: Any) -> AsyncIterator[Any]:
    async with entered(AsyncSession(engine) if isinstance(engine, AsyncEngine) else Session(engine)) as session:
        yield session


def maker_on(engine: Engine | AsyncEngine | None, **options: Any) -> Any:
    """A sessionmaker. `session_class` is the class of its sync sessions."""
    session_class = options.pop("session_class", Session)
    if isinstance(engine, AsyncEngine):
        return async_sessionmaker(engine, sync_session_class=session_class, **options)
    return sessionmaker(engine, class_=session_class, **options)


def scoped_on(engine: Engine | AsyncEngine) -> Any:
    maker = maker_on(engine)
    if isinstance(engine, AsyncEngine):
        return async_scoped_session(maker, asyncio.current_task)
    return scoped_session(maker)
