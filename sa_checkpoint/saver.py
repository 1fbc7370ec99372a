"""`SQLAlchemySaver`: LangGraph's checkpointer on an application's Engine, sessions or transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from langgraph.checkpoint.serde.base import SerializerProtocol
from sqlalchemy import URL, Connection, Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sa_checkpoint import _alembic
from sa_checkpoint._base import BaseSQLAlchemySaver
from sa_checkpoint._binds import callers, sync_bind
from sa_checkpoint._cancellation import Cancellation, finished
from sa_checkpoint._execution import Operation
from sa_checkpoint._urls import create_own_engine

T = TypeVar("T")


class SQLAlchemySaver(BaseSQLAlchemySaver):
    """A checkpointer on what a SQLAlchemy application has: an Engine, sessionmaker, or a transaction.

    On an **Engine**, each call checks one connection out, for as long as its statements run, and commits before it
    returns; calls from several threads run in parallel, as far as the pool goes. The Engine is used as it is and never
    disposed of.

    On a **sessionmaker**, each call opens a session, works on its connection, and commits and closes it, so that the
    application's session events and `get_bind` routing apply. `get_bind` is asked for the engine of a write, for
    reading calls, too. A **scoped_session** stands for its factory: calls never use a thread's current session, which
    LangGraph's background threads do not share (`using` does).

    On a **Connection** or **Session**, calls take turns and work in the transaction that it is in, or begin one. They
    do not commit, roll back, close or flush, so nothing is stored until the caller commits. Each call is a savepoint:
    if it fails, the transaction is as it was before. On a Connection in autocommit each call is stored at once.

    The `a…` methods run the same calls in a worker thread, so that a sync engine serves an async graph.

    Args:
        bind: One of these.
        serde: The serializer of channel values and writes; LangGraph's `JsonPlusSerializer` by default.
        schema: The database schema of the checkpoint tables. None for unqualified tables: the `search_path`, or the
            engine's `schema_translate_map`, says where they are.
        autocommit: Whether a call that is one statement, as all but the maintenance of threads are on PostgreSQL, has
            the database commit it by itself, in one round trip instead of three. None, the default, does so unless the
            Engine has a `begin` or `commit` listener or an isolation level, is read-only, or hands out a connection
            in a transaction. False sends a BEGIN and COMMIT in any case: for other listeners that set something for the
            transaction, or refuse a statement after it was executed. True goes without, also past these listeners. On
            MariaDB with PyMySQL all but False send the COMMIT with the last statement, unless anybody listens to the
            Engine. Elsewhere it changes nothing.

    Raises:
        InvalidBind: `bind` is of another kind; the message says which class takes it.
        InvalidSchema: `schema` is not an identifier.
    """

    def __init__(
        self,
        bind: Engine | sessionmaker[Any] | scoped_session[Any] | Connection | Session,
        *,
        serde: SerializerProtocol | None = None,
        schema: str | None = None,
        autocommit: bool | None = None,
    ) -> None:
        super().__init__(sync_bind(bind, autocommit=autocommit), serde=serde, schema=schema)

    def using(self, bind: Connection | Session | scoped_session[Any]) -> Self:
        """This saver in a transaction of yours: what it does is committed with your own rows, or not at all.

        It is cheap enough to be made for each request.

        Args:
            bind: Your Connection or Session; of a scoped_session, its current one.

        Returns:
            A saver with the same serde and schema that commits nothing.

        Raises:
            InvalidBind: It has no transaction of yours.
        """
        return self._on(sync_bind(callers(bind)))

    @classmethod
    @contextmanager
    def from_conn_string(
        cls,
        url: str | URL,
        *,
        serde: SerializerProtocol | None = None,
        schema: str | None = None,
        **engine_kwargs: Any,
    ) -> Iterator[Self]:
        """A saver on an engine of its own, which is disposed of at the end of the `with` block.

        On SQLite the engine uses WAL, waits for locks up to 30 seconds and checks foreign keys; its pool has 5
        connections to a file, no more for a moment, and hands out the one that was used last, unless you pass
        `pool_size`, `max_overflow` or `pool_use_lifo`.

        Args:
            url: Any SQLAlchemy URL. `postgresql://` and `postgres://` mean psycopg.
            serde: As in the constructor.
            schema: As in the constructor.
            **engine_kwargs: Passed on to `sqlalchemy.create_engine`.

        Raises:
            InvalidConfig: It is not a URL.
            InvalidBind: Its driver is an async one.
            MissingDriver: Its driver is not installed.
        """
        engine = create_own_engine(url, **engine_kwargs)
        try:
            yield cls(engine, serde=serde, schema=schema)
        finally:
            engine.dispose()

    def setup(self) -> None:
        """Create or upgrade the tables: `alembic upgrade head`, from Python.

        It may be called at every start, by any number of processes and threads at once. It is one transaction; on a
        Connection or Session it works in the caller's.
        """
        _alembic.run(self._bind, self._schema, _alembic.upgrading())

    def _run(self, operation: Operation[T], cancellation: Cancellation | None = None) -> T:
        return operation.decode(self._execute(operation, cancellation or Cancellation()))

    async def _arun(self, operation: Operation[T]) -> T:
        cancellation = Cancellation()
        result: T = await finished(asyncio.to_thread(self._run, operation, cancellation), cancellation)
        return result
