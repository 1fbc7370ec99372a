"""`AsyncSQLAlchemySaver`: LangGraph's checkpointer on an application's AsyncEngine."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Coroutine
from contextlib import asynccontextmanager, suppress
from typing import Any, Self, TypeVar

from langgraph.checkpoint.serde.base import SerializerProtocol
from sqlalchemy import URL
from sqlalchemy.util import greenlet_spawn

from sa_checkpoint import migrations
from sa_checkpoint._base import BaseSQLAlchemySaver
from sa_checkpoint._binds import async_bind, running_loop
from sa_checkpoint._execution import Operation
from sa_checkpoint._urls import create_own_async_engine
from sa_checkpoint.errors import MissingDriver, SyncCallOnEventLoop

try:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine
except ImportError as error:  # SQLAlchemy 2.1 without greenlet
    raise MissingDriver(f'{error}. Install it with: pip install "sa-checkpoint[asyncio]"') from error

T = TypeVar("T")


class AsyncSQLAlchemySaver(BaseSQLAlchemySaver):
    """A checkpointer on a SQLAlchemy AsyncEngine or AsyncConnection.

    On an AsyncEngine, each call checks one connection out, for as long as its statements run, and commits before it
    returns; calls from several tasks run in parallel, as far as the pool goes. The engine is used as it is and never
    disposed of. On an AsyncConnection, calls take turns and work in whatever transaction it is in: they do not
    commit, roll back or close, so nothing is stored until the caller commits.

    The blocking methods (`put`, `get_tuple`, …) work from other threads, where they wait for the event loop that the
    saver was made or last used on. On that loop itself they raise `SyncCallOnEventLoop`, since they would wait for
    ever.

    Args:
        bind: The AsyncEngine or AsyncConnection.
        serde: The serializer of channel values and writes; LangGraph's `JsonPlusSerializer` by default.

    Raises:
        InvalidBind: `bind` is of another kind; the message says which class takes it.
    """

    def __init__(self, bind: AsyncEngine | AsyncConnection, *, serde: SerializerProtocol | None = None) -> None:
        super().__init__(async_bind(bind), serde=serde)
        self._source = bind
        self._loop = running_loop()

    @classmethod
    @asynccontextmanager
    async def from_conn_string(
        cls, url: str | URL, *, serde: SerializerProtocol | None = None, **engine_kwargs: Any
    ) -> AsyncIterator[Self]:
        """A saver on an engine of its own, which is disposed of at the end of the `async with` block.

        On SQLite the engine uses WAL, waits for locks up to 30 seconds and checks foreign keys.

        Args:
            url: Any SQLAlchemy URL. `postgresql://` and `postgres://` mean psycopg, `sqlite://` means aiosqlite.
            serde: As in the constructor.
            **engine_kwargs: Passed on to `sqlalchemy.ext.asyncio.create_async_engine`.

        Raises:
            InvalidConfig: It is not a URL.
            InvalidBind: Its driver has no async mode.
            MissingDriver: Its driver, or greenlet, is not installed.
        """
        engine = create_own_async_engine(url, **engine_kwargs)
        try:
            yield cls(engine, serde=serde)
        finally:
            await engine.dispose()

    async def setup(self) -> None:
        """Create or upgrade the tables: `alembic upgrade head`, from Python.

        It may be called at every start, by any number of processes and tasks at once. On an AsyncEngine it is one
        transaction; on an AsyncConnection it works in the caller's.
        """
        async with self._bind.aturn():
            await migrations.aupgrade(self._source)

    async def _arun(self, operation: Operation[T]) -> T:
        self._loop = asyncio.get_running_loop()
        started = asyncio.Event()
        async with self._bind.aturn():
            # What AsyncConnection.run_sync does, with checkout and commit inside: one switch instead of three.
            result = await self._finished(greenlet_spawn(self._execute, operation, started.set), started)
        return operation.decode(result)

    async def _finished(self, work: Coroutine[Any, Any, Any], started: asyncio.Event) -> Any:
        """Await work on a connection, and if this is cancelled, wait until the connection has been given back.

        The work is cancelled, too, but only once: a second time would interrupt its rollback. On aiosqlite's
        connection it is let finish: statements run in a thread that knows nothing of it, and SQLAlchemy would abandon
        a connection that holds SQLite's write lock.
        """
        task = asyncio.ensure_future(work)
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            if self._bind.source.dialect.name != "sqlite" or not started.is_set():
                task.cancel()
            while not task.done():
                with suppress(asyncio.CancelledError):
                    await asyncio.wait([task])
            if not task.cancelled():
                task.exception()  # marked as retrieved: the caller asked for the end, and gets it
            raise

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
