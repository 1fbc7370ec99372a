"""From what the application has, an Engine or a Connection, to a Connection that an operation works on.

An Engine's connection is checked out for one operation, in a transaction of its own. A Connection of the caller's is
used as it is: its transaction is the caller's to begin, commit and roll back. Operations take turns on a single
connection, and on nothing else.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager, contextmanager, nullcontext
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine, SingletonThreadPool, StaticPool

from sa_checkpoint._urls import is_memory
from sa_checkpoint.errors import InvalidBind

_LOCKS: WeakKeyDictionary[Any, Lock] = WeakKeyDictionary()
_LOCKS_LOCK = Lock()
_ASYNC_LOCKS: WeakKeyDictionary[Any, WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]] = WeakKeyDictionary()


class Bind:
    """An Engine, or a Connection of the caller's.

    Attributes:
        source: Which one.
        exclusive: Whether all operations share one database connection, so that they have to take turns.
    """

    def __init__(self, source: Engine | Connection) -> None:
        self.source = source
        self.exclusive = isinstance(source, Connection) or isinstance(source.pool, StaticPool)

    @contextmanager
    def connect(self) -> Iterator[Connection]:
        """A Connection in a transaction, for as long as statements run."""
        if isinstance(self.source, Connection):
            yield self.source
        else:
            with self.source.begin() as connection:
                yield connection

    def turn(self) -> AbstractContextManager[Any]:
        """Waits for a single connection to be free, also of other savers on it; does nothing where there are more."""
        if not self.exclusive:
            return nullcontext()
        with _LOCKS_LOCK:
            lock: Lock = _LOCKS.setdefault(self._connection_key(), Lock())
        return lock

    def aturn(self) -> AbstractAsyncContextManager[Any]:
        """The same for tasks of the running event loop."""
        if not self.exclusive:
            return nullcontext()
        loops = _ASYNC_LOCKS.setdefault(self._connection_key(), WeakKeyDictionary())
        # An asyncio.Lock belongs to the loop that first waits for it.
        return loops.setdefault(asyncio.get_running_loop(), asyncio.Lock())

    def _connection_key(self) -> Any:
        # An engine's dispose() replaces the pool, and with it the one connection.
        return self.source if isinstance(self.source, Connection) else self.source.pool


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None


def _asyncio_class(*names: str) -> tuple[type[Any], ...]:
    """Classes of `sqlalchemy.ext.asyncio`, without importing it: that fails where greenlet is not installed."""
    module = sys.modules.get("sqlalchemy.ext.asyncio")
    return tuple(getattr(module, name) for name in names) if module else ()


def sync_bind(bind: Engine | Connection) -> Bind:
    """What `SQLAlchemySaver` works on.

    Raises:
        InvalidBind: It is something else, or an engine on which threads would not see the same database.
    """
    if isinstance(bind, _asyncio_class("AsyncEngine", "AsyncConnection")):
        raise InvalidBind(
            f"{type(bind).__name__} is for AsyncSQLAlchemySaver: use that class, or give SQLAlchemySaver an Engine "
            "from create_engine()."
        )
    _check(bind, "SQLAlchemySaver", (Engine, Connection))
    if bind.dialect.is_async:
        raise InvalidBind(
            f"This {type(bind).__name__} belongs to an async engine: give the AsyncEngine to AsyncSQLAlchemySaver."
        )
    if isinstance(bind, Engine) and isinstance(bind.pool, SingletonThreadPool) and is_memory(bind.url):
        raise InvalidBind(
            "This engine gives each thread an empty SQLite database of its own, and LangGraph writes checkpoints from "
            "background threads. Create it with create_engine(url, poolclass=StaticPool, "
            'connect_args={"check_same_thread": False}), or use a file.'
        )
    return Bind(bind)


def async_bind(bind: Any) -> Bind:
    """What `AsyncSQLAlchemySaver` works on: the sync side of an AsyncEngine or AsyncConnection.

    Raises:
        InvalidBind: It is something else, or a connection that has not been awaited.
    """
    if isinstance(bind, Engine | Connection):
        raise InvalidBind(
            f"{type(bind).__name__} is for SQLAlchemySaver, whose a… methods serve async graphs, too: use that class, "
            "or give AsyncSQLAlchemySaver an AsyncEngine from create_async_engine()."
        )
    _check(bind, "AsyncSQLAlchemySaver", _asyncio_class("AsyncEngine", "AsyncConnection"))
    if isinstance(bind, _asyncio_class("AsyncEngine")):
        return Bind(bind.sync_engine)
    if bind.sync_connection is None:
        raise InvalidBind(
            "This AsyncConnection has not been started: use `async with engine.connect() as connection`, or await it."
        )
    return Bind(bind.sync_connection)


def _check(bind: Any, saver: str, kinds: tuple[type[Any], ...]) -> None:
    if isinstance(bind, kinds):
        return
    takes = "an Engine or a Connection" if saver == "SQLAlchemySaver" else "an AsyncEngine or an AsyncConnection"
    if isinstance(bind, str):
        hint = f"for a URL, use {saver}.from_conn_string(url)"
    else:
        hint = "from a Session, pass its engine or its connection()"
    raise InvalidBind(f"{saver} takes {takes} of SQLAlchemy, not {type(bind).__name__}: {hint}.")
