"""What an application has besides its engine: connections, sessions and sessionmakers, sync or async."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

from sqlalchemy import Engine
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from tests.backends import entered


def sync_engine_of(engine: Engine | AsyncEngine) -> Engine:
    return engine.sync_engine if isinstance(engine, AsyncEngine) else engine


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
