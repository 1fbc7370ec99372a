"""The application's engine, and its tables brought up to date together with the checkpointer's.

Nothing here happens at import: the application's lifespan makes the engine and disposes of it.
"""

from __future__ import annotations

import sqlite3
from contextlib import suppress
from pathlib import Path
from typing import Any

from alembic import command
from alembic.config import Config
from sqlalchemy import AsyncAdaptedQueuePool, Connection, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sa_checkpoint import migrations

from .settings import Settings

ALEMBIC_INI = Path(__file__).parent / "alembic.ini"


def create_engine(settings: Settings) -> AsyncEngine:
    """The one engine that requests, sessions and the checkpointer share."""
    engine = create_async_engine(
        settings.database_url,
        poolclass=AsyncAdaptedQueuePool,  # the default, but for SQLite only since SQLAlchemy 2.0.38
        pool_size=settings.pool_size,
        max_overflow=0,
        pool_timeout=settings.pool_timeout,
    )
    if engine.dialect.name == "sqlite":
        event.listen(engine.sync_engine, "connect", tune_sqlite)
    return engine


def tune_sqlite(dbapi_connection: Any, _record: Any) -> None:
    """Let readers and a writer work at once, have a second writer wait, and check foreign keys."""
    cursor = dbapi_connection.cursor()
    # The wait comes first: switching to WAL takes a lock itself.
    cursor.execute("PRAGMA busy_timeout = 30000")
    # This PRAGMA alone does not wait for a writer, and another process may have just made the file. WAL is kept in the
    # file, so whoever comes next switches it.
    with suppress(sqlite3.OperationalError):
        cursor.execute("PRAGMA journal_mode = WAL")
    cursor.execute("PRAGMA foreign_keys = ON")
    cursor.close()


async def upgrade(engine: AsyncEngine) -> None:
    """Bring all tables up to date: `alembic upgrade head`, for the checkpointer's revisions and then for our own.

    The checkpointer's comes first because it locks out other processes until the transaction ends, so that any number
    of them may start at once, and our own revisions are under that lock, too.
    """
    async with engine.begin() as connection:
        await migrations.aupgrade(connection)
        await connection.run_sync(upgrade_own_tables)


def upgrade_own_tables(connection: Connection) -> None:
    config = Config(ALEMBIC_INI)
    config.attributes["connection"] = connection
    command.upgrade(config, "head")
