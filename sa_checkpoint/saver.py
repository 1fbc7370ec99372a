"""`SQLAlchemySaver`: LangGraph's checkpointer on an application's Engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self, TypeVar

from langgraph.checkpoint.serde.base import SerializerProtocol
from sqlalchemy import URL, Connection, Engine

from sa_checkpoint import migrations
from sa_checkpoint._base import BaseSQLAlchemySaver
from sa_checkpoint._binds import sync_bind
from sa_checkpoint._execution import Operation
from sa_checkpoint._urls import create_own_engine

T = TypeVar("T")


class SQLAlchemySaver(BaseSQLAlchemySaver):
    """A checkpointer on a SQLAlchemy Engine or Connection.

    On an Engine, each call checks one connection out, for as long as its statements run, and commits before it
    returns; calls from several threads run in parallel, as far as the pool goes. The Engine is used as it is and never
    disposed of. On a Connection, calls take turns and work in whatever transaction it is in: they do not commit, roll
    back or close, so nothing is stored until the caller commits.

    The `a…` methods run the same calls in a worker thread, so that a sync engine serves an async graph.

    Args:
        bind: The Engine or Connection.
        serde: The serializer of channel values and writes; LangGraph's `JsonPlusSerializer` by default.

    Raises:
        InvalidBind: `bind` is of another kind; the message says which class takes it.
    """

    def __init__(self, bind: Engine | Connection, *, serde: SerializerProtocol | None = None) -> None:
        super().__init__(sync_bind(bind), serde=serde)

    @classmethod
    @contextmanager
    def from_conn_string(
        cls, url: str | URL, *, serde: SerializerProtocol | None = None, **engine_kwargs: Any
    ) -> Iterator[Self]:
        """A saver on an engine of its own, which is disposed of at the end of the `with` block.

        On SQLite the engine uses WAL, waits for locks up to 30 seconds and checks foreign keys.

        Args:
            url: Any SQLAlchemy URL. `postgresql://` and `postgres://` mean psycopg.
            serde: As in the constructor.
            **engine_kwargs: Passed on to `sqlalchemy.create_engine`.

        Raises:
            InvalidConfig: It is not a URL.
            InvalidBind: Its driver is an async one.
            MissingDriver: Its driver is not installed.
        """
        engine = create_own_engine(url, **engine_kwargs)
        try:
            yield cls(engine, serde=serde)
        finally:
            engine.dispose()

    def setup(self) -> None:
        """Create or upgrade the tables: `alembic upgrade head`, from Python.

        It may be called at every start, by any number of processes and threads at once. On an Engine it is one
        transaction; on a Connection it works in the caller's.
        """
        with self._bind.turn():
            migrations.upgrade(self._bind.source)

    def _run(self, operation: Operation[T]) -> T:
        with self._bind.turn():
            rows = self._execute(operation)
        return operation.decode(rows)

    async def _arun(self, operation: Operation[T]) -> T:
        return await asyncio.to_thread(self._run, operation)
