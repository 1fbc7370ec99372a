"""`AsyncSQLAlchemySaver`: LangGraph's checkpointer on an application's AsyncEngine, sessions or transaction."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any, Self, TypeVar

from langgraph.checkpoint.serde.base import SerializerProtocol
from sqlalchemy import URL
from sqlalchemy.util import greenlet_spawn

from sa_checkpoint import _alembic
from sa_checkpoint._base import BaseSQLAlchemySaver
from sa_checkpoint._binds import async_bind, callers, running_loop
from sa_checkpoint._cancellation import Cancellation, finished
from sa_checkpoint._event_loop import SLOW_BYTES, unblocked
from sa_checkpoint._execution import Operation
from sa_checkpoint._urls import create_own_async_engine
from sa_checkpoint.errors import MissingDriver, SyncCallOnEventLoop

try:
    from sqlalchemy.ext.asyncio import (
        AsyncConnection,
        AsyncEngine,
        AsyncSession,
        async_scoped_session,
        async_sessionmaker,
    )
except ImportError as error:  # SQLAlchemy 2.1 without greenlet
    raise MissingDriver(f'{error}. Install it with: pip install "sa-checkpoint[asyncio]"') from error

T = TypeVar("T")


class AsyncSQLAlchemySaver(BaseSQLAlchemySaver):
    """A checkpointer on what an asyncio application has: an AsyncEngine, async_sessionmaker, or a transaction.

    On an **AsyncEngine**, each call checks one connection out, for as long as its statements run, and commits before
    it returns; calls from several tasks run in parallel, as far as the pool goes. The engine is used as it is and
    never disposed of.

    On an **async_sessionmaker**, each call opens a session, works on its connection, and commits and closes it, so
    that the application's session events and `get_bind` routing apply. `get_bind` is asked for the engine of a write,
    for reading calls, too. An **async_scoped_session** stands for its factory: calls never use a task's current
    session, which LangGraph's tasks do not share (`using` does).

    On an **AsyncConnection** or **AsyncSession**, calls take turns and work in the transaction that it is in, or begin
    one. They do not commit, roll back, close or flush, so nothing is stored until the caller commits. Each call is a
    savepoint: if it fails, the transaction is as it was before. On a connection in autocommit each call is stored at
    once.

    The blocking methods (`put`, `get_tuple`, …) work from other threads, where they wait for the event loop that the
    saver was made or last used on. On that loop itself they raise `SyncCallOnEventLoop`, since they would wait for
    ever.

    Args:
        bind: One of these.
        serde: The serializer of channel values and writes; LangGraph's `JsonPlusSerializer` by default.
        schema: The database schema of the checkpoint tables. None for unqualified tables: the `search_path`, or the
            engine's `schema_translate_map`, says where they are.
        autocommit: Whether a call that is one statement, as all but the maintenance of threads are on PostgreSQL, has
            the database commit it by itself, in one round trip instead of three. None, the default, does so unless the
            AsyncEngine has a `begin` or `commit` listener or an isolation level, is read-only, or hands out a
            connection in a transaction. False sends a BEGIN and COMMIT in any case: for other listeners that set
            something for the transaction, or refuse a statement after it was executed. True goes without, also past
            these listeners.
            Elsewhere than on an AsyncEngine of PostgreSQL it changes nothing.

    Raises:
        InvalidBind: `bind` is of another kind; the message says which class takes it.
        InvalidSchema: `schema` is not an identifier.
    """

    def __init__(
        self,
        bind: AsyncEngine | async_sessionmaker[Any] | async_scoped_session[Any] | AsyncConnection | AsyncSession,
        *,
        serde: SerializerProtocol | None = None,
        schema: str | None = None,
        autocommit: bool | None = None,
    ) -> None:
        super().__init__(async_bind(bind, autocommit=autocommit), serde=serde, schema=schema)
        self._loop = running_loop()

    def using(self, bind: AsyncConnection | AsyncSession | async_scoped_session[Any]) -> Self:
        """This saver in a transaction of yours: what it does is committed with your own rows, or not at all.

        It is cheap enough to be made for each request.

        Args:
            bind: Your AsyncConnection or AsyncSession; of an async_scoped_session, its current one.

        Returns:
            A saver with the same serde and schema that commits nothing.

        Raises:
            InvalidBind: It has no transaction of yours.
        """
        saver = self._on(async_bind(callers(bind)))
        saver._loop = running_loop() or self._loop
        return saver

    @classmethod
    @asynccontextmanager
    async def from_conn_string(
        cls,
        url: str | URL,
        *,
        serde: SerializerProtocol | None = None,
        schema: str | None = None,
        **engine_kwargs: Any,
    ) -> AsyncIterator[Self]:
        """A saver on an engine of its own, which is disposed of at the end of the `async with` block.

        On SQLite the engine uses WAL, waits for locks up to 30 seconds and checks foreign keys; its pool has 5
        connections to a file, no more for a moment, and hands out the one that was used last, unless you pass
        `pool_size`, `max_overflow` or `pool_use_lifo`.

        Args:
            url: Any SQLAlchemy URL. `postgresql://` and `postgres://` mean psycopg, `sqlite://` means aiosqlite.
            serde: As in the constructor.
            schema: As in the constructor.
            **engine_kwargs: Passed on to `sqlalchemy.ext.asyncio.create_async_engine`.

        Raises:
            InvalidConfig: It is not a URL.
            InvalidBind: Its driver has no async mode.
            MissingDriver: Its driver, or greenlet, is not installed.
        """
        engine = create_own_async_engine(url, **engine_kwargs)
        try:
            yield cls(engine, serde=serde, schema=schema)
        finally:
            await engine.dispose()

    async def setup(self) -> None:
        """Create or upgrade the tables: `alembic upgrade head`, from Python.

        It may be called at every start, by any number of processes and tasks at once. It is one transaction; on an
        AsyncConnection or AsyncSession it works in the caller's.
        """
        await _alembic.arun(self._bind, self._schema, _alembic.upgrading())

    async def _arun(self, operation: Operation[T]) -> T:
        self._loop = asyncio.get_running_loop()
        cancellation = Cancellation()
        # What AsyncConnection.run_sync does, with checkout and commit inside: one switch instead of three.
        result = await finished(greenlet_spawn(self._execute, operation, cancellation), cancellation)
        return await unblocked(lambda: operation.decode(result), is_slow=operation.weigh(result) > SLOW_BYTES)

    def _run(self, operation: Operation[T]) -> T:
        running = running_loop()
        if self._loop is None or not self._loop.is_running():
            raise SyncCallOnEventLoop(
                "AsyncSQLAlchemySaver has no running event loop to run this on: use its a… methods (`await "
                "saver.aget_tuple(...)`, `await graph.ainvoke(...)`), or SQLAlchemySaver in a program without one."
            )
        if running is self._loop:
            raise SyncCallOnEventLoop(
                "A blocking method of AsyncSQLAlchemySaver was called on its own event loop, where it would wait for "
                "itself for ever: use the a… method (`await saver.aget_tuple(...)`, `await graph.ainvoke(...)`), or "
                "call it from another thread (`await asyncio.to_thread(...)`)."
            )
        return asyncio.run_coroutine_threadsafe(self._arun(operation), self._loop).result()
