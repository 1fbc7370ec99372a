"""From what the application has to a Connection that an operation works on, and who owns its transaction.

An Engine's connection is checked out for one operation, in a transaction of its own; so is that of a session which a
sessionmaker opens for it. A Connection or Session of the caller's is used as it is: its transaction is the caller's to
begin, commit and roll back, and an operation is a savepoint in it. Operations take turns on a single connection, and
on nothing else.
"""

from __future__ import annotations

import asyncio
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import partial
from typing import Any, TypeVar

from sqlalchemy import (
    AsyncAdaptedQueuePool,
    Connection,
    Dialect,
    Engine,
    QueuePool,
    SingletonThreadPool,
    StaticPool,
    delete,
)
from sqlalchemy.exc import UnboundExecutionError
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sa_checkpoint import _transactions, _turns
from sa_checkpoint._cancellation import Cancellation, GivenUp
from sa_checkpoint._direct import has_listeners, is_plain
from sa_checkpoint._groups import Groups
from sa_checkpoint._single import NotSingle, Single
from sa_checkpoint._urls import is_memory
from sa_checkpoint.errors import InvalidBind
from sa_checkpoint.models import Checkpoint

T = TypeVar("T")

_A_WRITE = delete(Checkpoint)

IsOne = Callable[[Dialect], bool]


def _unknown(_dialect: Dialect) -> bool:
    return False


class Bind(ABC):
    """Where the operations of one saver get their connection.

    Attributes:
        source: What the application has given, or the sync side of it.
        is_async: Whether this is the sync side of what an asyncio program has, used inside `greenlet_spawn`.
    """

    source: Any

    def __init__(self, *, is_async: bool) -> None:
        self.is_async = is_async

    @abstractmethod
    def connect(
        self, cancellation: Cancellation, *, writes: bool = True, is_one: IsOne = _unknown, is_short: bool = False
    ) -> AbstractContextManager[Connection]:
        """A Connection for as long as an operation's statements run.

        If the operation fails or is cancelled, nothing of it is left, and a caller's transaction is as it was before;
        but a single statement that has come to its end may be in the database although its call was cancelled.
        A connection that is closed afterwards was in a transaction of ours, which has ended.

        Args:
            cancellation: The call's. Waiting for a connection can be interrupted, work on a caller's cannot.
            writes: Whether the operation changes anything.
            is_one: Whether it is one statement, atomic by itself, on a database. An engine's connection may then do
                without a BEGIN.
            is_short: Whether it takes a moment, and comes to nothing but rows that are written, if it writes: it may be
                committed by its last statement, or together with others.
        """

    def run(
        self,
        work: Callable[[Connection], T],
        cancellation: Cancellation,
        *,
        writes: bool = True,
        is_one: IsOne = _unknown,
        is_short: bool = False,
        is_constant: bool = False,
    ) -> T | None:
        """Do an operation's work on a Connection, as `connect` has it.

        Args:
            work: Executes statements.
            cancellation: As for `connect`.
            writes: As for `connect`.
            is_one: As for `connect`.
            is_short: As for `connect`.
            is_constant: Whether its statements never change, so that SQLAlchemy is not needed to execute them.

        Returns:
            What the work returned.
        """
        with self.connect(cancellation, writes=writes, is_one=is_one, is_short=is_short) as connection:
            return work(connection)

    @abstractmethod
    def migrating(self, cancellation: Cancellation) -> AbstractContextManager[Engine | Connection]:
        """What Alembic works on: an Engine, or a Connection in the caller's transaction."""

    def turn(self, key: Any) -> AbstractContextManager[None]:
        """Wait until a key is free; None is."""
        if key is None:
            return nullcontext()
        return _turns.async_turn(key) if self.is_async else _turns.turn(key)

    def protect(self, dialect: Dialect, cancellation: Cancellation) -> None:
        """Protect work on a connection of ours, unless it is an async driver's, which SQLAlchemy then closes.

        A thread cannot be interrupted, and aiosqlite's statements run in one: SQLAlchemy would abandon a connection
        that holds SQLite's write lock.
        """
        if not self.is_async or dialect.name == "sqlite":
            cancellation.protect()


class EngineBind(Bind):
    """An Engine: each operation is a transaction on a connection of its pool."""

    def __init__(self, engine: Engine, *, is_async: bool, autocommit: bool | None) -> None:
        super().__init__(is_async=is_async)
        self.source = engine
        self._autocommit = autocommit
        self._groups = Groups(engine, self.turn, is_async=is_async)
        self._takes_singles = (
            type(engine) is Engine
            and not isinstance(engine.pool, StaticPool)
            and (engine.dialect.name in ("postgresql", "sqlite") or engine.dialect.driver == "pymysql")
        )

    def connect(
        self, cancellation: Cancellation, *, writes: bool = True, is_one: IsOne = _unknown, is_short: bool = False
    ) -> AbstractContextManager[Connection]:
        key = _shared(self.source, writes=writes)
        transaction = self._checked_out(cancellation, writes=writes, is_one=is_one, is_short=is_short)
        return transaction if key is None else self._in_turn(key, transaction)

    @contextmanager
    def _in_turn(self, key: Any, transaction: AbstractContextManager[Connection]) -> Iterator[Connection]:
        with self.turn(key), transaction as connection:
            yield connection

    @contextmanager
    def _checked_out(
        self,
        cancellation: Cancellation,
        *,
        writes: bool = True,
        is_one: IsOne = _unknown,
        is_short: bool = False,
        pooled: Any = None,
    ) -> Iterator[Connection]:
        with self.source.connect() if pooled is None else Connection(self.source, pooled) as connection:
            self.protect(self.source.dialect, cancellation)
            single = is_one(connection.dialect)
            with _transactions.own(
                connection, writes=writes, is_one=single, is_short=is_short, autocommit=self._autocommit
            ):
                yield connection
                cancellation.check()
            # What is left is the pool's ROLLBACK. SQLAlchemy 2.0 loses a connection that is cancelled in that.
            cancellation.protect()

    def run(
        self,
        work: Callable[[Connection], T],
        cancellation: Cancellation,
        *,
        writes: bool = True,
        is_one: IsOne = _unknown,
        is_short: bool = False,
        is_constant: bool = False,
    ) -> T | None:
        how: Any = {"writes": writes, "is_one": is_one, "is_short": is_short}
        is_single = is_constant and self._takes_singles and self._is_unobserved()
        with suppress(NotSingle):
            if writes and self.source.dialect.name == "sqlite":
                if is_short and self._commits_groups():
                    transact: Any = self._run_single if is_single else self._run_usual
                    self._groups.run(work, cancellation, partial(transact, **how))
                    return None
            elif is_single:
                return self._run_single(work, cancellation, **how)
        return super().run(work, cancellation, **how)

    def _run_usual(self, work: Callable[[Connection], T], cancellation: Cancellation, **how: Any) -> T:
        with self._checked_out(cancellation, **how) as connection:
            return work(connection)

    def _run_single(
        self,
        work: Callable[[Connection], T],
        cancellation: Cancellation,
        *,
        writes: bool,
        is_one: IsOne,
        is_short: bool,
    ) -> T:
        """Do work without SQLAlchemy's Connection, if it turns out that the pool's connection is as usual."""
        dialect = self.source.dialect
        with Single(self.source) as single:
            end = _transactions.without_begin(
                single, writes=writes, is_one=is_one(dialect), is_short=is_short, autocommit=self._autocommit
            )
            if end is None:
                pooled = single.release()
                return self._run_usual(
                    work, cancellation, writes=writes, is_one=is_one, is_short=is_short, pooled=pooled
                )
            self.protect(dialect, cancellation)
            if single.batch is not None:
                single.batch.calls.append(cancellation)
            result = work(single.as_connection)
            cancellation.check()
            try:
                end()
            except GivenUp:
                cancellation.check()
                raise
            cancellation.protect()  # as in `_checked_out`
            return result

    def _is_unobserved(self) -> bool:
        is_heard = getattr(Connection, "_has_events", False) or self.source.get_execution_options()
        return not is_heard and is_plain(self.source)

    def _commits_groups(self) -> bool:
        """Whether a short operation that writes may be committed together with others."""
        # Writers wait for each other on SQLite. Whoever listens expects a transaction, or a connection, for each of
        # them; and where connections are not shared, they may differ: by tenant, say, which only the caller's context
        # has.
        pool = self.source.pool
        if type(pool) not in (QueuePool, AsyncAdaptedQueuePool):
            return False
        events = pool.dispatch
        return not (has_listeners(self.source) or events.checkout or events.checkin or events.reset)

    @contextmanager
    def migrating(self, cancellation: Cancellation) -> Iterator[Engine]:
        with self.turn(_shared(self.source)):
            self.protect(self.source.dialect, cancellation)
            yield self.source


class ConnectionBind(Bind):
    """A Connection of the caller's."""

    def __init__(self, connection: Connection, *, is_async: bool) -> None:
        super().__init__(is_async=is_async)
        self.source = connection

    @contextmanager
    def connect(
        self, cancellation: Cancellation, *, writes: bool = True, is_one: IsOne = _unknown, is_short: bool = False
    ) -> Iterator[Connection]:
        with self.migrating(cancellation), _transactions.savepoint(self.source, writes=writes):
            yield self.source
            cancellation.check()

    @contextmanager
    def migrating(self, cancellation: Cancellation) -> Iterator[Connection]:
        with self.turn(_shared(self.source)):
            cancellation.protect()
            yield self.source


class SessionBind(Bind):
    """A Session of the caller's: its connection, so that nothing of the caller's is flushed."""

    def __init__(self, session: Session, *, is_async: bool) -> None:
        super().__init__(is_async=is_async)
        self.source = session

    @contextmanager
    def connect(
        self, cancellation: Cancellation, *, writes: bool = True, is_one: IsOne = _unknown, is_short: bool = False
    ) -> Iterator[Connection]:
        with self.migrating(cancellation) as connection, _transactions.savepoint(connection, writes=writes):
            yield connection
            cancellation.check()

    @contextmanager
    def migrating(self, cancellation: Cancellation) -> Iterator[Connection]:
        bind = _routed(self.source, is_async=self.is_async)
        with self.turn(self.source):
            connection = self.source.connection(bind_arguments={"bind": bind})
            with self.turn(_shared(connection)):
                cancellation.protect()
                yield connection


class SessionFactoryBind(Bind):
    """A sessionmaker: each operation opens a session and commits it, with the host's session events and routing."""

    def __init__(self, factory: Callable[[], Session], *, is_async: bool) -> None:
        super().__init__(is_async=is_async)
        self.source = factory

    @contextmanager
    def connect(
        self, cancellation: Cancellation, *, writes: bool = True, is_one: IsOne = _unknown, is_short: bool = False
    ) -> Iterator[Connection]:
        with self.source() as session:
            bind = _routed(session, is_async=self.is_async)
            # A factory of the host's may have begun.
            with self.turn(_shared(bind, writes=writes)), session.get_transaction() or session.begin():
                connection = session.connection(bind_arguments={"bind": bind})
                self.protect(bind.dialect, cancellation)
                with _transactions.whole(connection, writes=writes):
                    yield connection
                    # What is left is the COMMIT, and in the same step the pool's ROLLBACK, as above.
                    cancellation.protect()

    @contextmanager
    def migrating(self, cancellation: Cancellation) -> Iterator[Engine | Connection]:
        with self.source() as session:
            bind = _routed(session, is_async=self.is_async)
            with self.turn(_shared(bind)):
                self.protect(bind.dialect, cancellation)
                yield bind


def _shared(bind: Engine | Connection, *, writes: bool = False) -> Any:
    """What operations on this bind take turns on; None if each has a connection of its own.

    A SQLite database has one writer at a time. The others would look again after ever longer pauses, and so waste most
    of the time; here the next one comes at once.
    """
    # An engine's dispose() replaces the pool, and with it the one connection.
    if isinstance(bind.engine.pool, StaticPool):
        return bind.engine.pool
    if isinstance(bind, Connection):
        return bind
    return bind.pool if writes and bind.dialect.name == "sqlite" else None


def _routed(session: Session, *, is_async: bool) -> Engine | Connection:
    """The bind that the host's session has for our tables.

    A `get_bind` that sends reads to a replica is told of a write, whatever the operation is: a replica that lags
    behind would hand an agent an old state to go on from.
    """
    try:
        bind = session.get_bind(mapper=Checkpoint.__mapper__, clause=_A_WRITE)
    except UnboundExecutionError as error:
        raise InvalidBind(
            f"The session has no engine for the checkpoint tables ({error}). Give the sessionmaker a bind, add "
            "sa_checkpoint.models.Base to its binds, or return an engine for our models from get_bind()."
        ) from error
    _check_database(bind, is_async=is_async)
    return bind


def _check_database(bind: Any, *, is_async: bool) -> None:
    """Refuse the engine or connection of a sync program in an async one, and the other way round."""
    if bind.dialect.is_async and not is_async:
        raise InvalidBind(
            f"This {type(bind).__name__} belongs to an async engine: give the AsyncEngine, async_sessionmaker or "
            "AsyncSession to AsyncSQLAlchemySaver."
        )
    if is_async and not bind.dialect.is_async:
        raise InvalidBind(
            f"This {type(bind).__name__} belongs to a sync engine: give it, or its sessionmaker or Session, to "
            "SQLAlchemySaver, whose a… methods serve async graphs, too."
        )


def _check_memory(engine: Any) -> None:
    if isinstance(engine, Engine) and isinstance(engine.pool, SingletonThreadPool) and is_memory(engine.url):
        raise InvalidBind(
            "This engine gives each thread an empty SQLite database of its own, and LangGraph writes checkpoints from "
            "background threads. Create it with create_engine(url, poolclass=StaticPool, "
            'connect_args={"check_same_thread": False}), or use a file.'
        )


def _asyncio_class(*names: str) -> tuple[type[Any], ...]:
    """Classes of `sqlalchemy.ext.asyncio`, without importing it: that fails where greenlet is not installed."""
    module = sys.modules.get("sqlalchemy.ext.asyncio")
    return tuple(getattr(module, name) for name in names) if module else ()


_SYNC = (Engine, sessionmaker, scoped_session, Connection, Session)
_ASYNC = ("AsyncEngine", "async_sessionmaker", "async_scoped_session", "AsyncConnection", "AsyncSession")


def sync_bind(bind: Any, *, autocommit: bool | None = None) -> Bind:
    """What `SQLAlchemySaver` works on, made of what the application has; one that is made already stays as it is.

    Args:
        bind: What the application has.
        autocommit: For an Engine: see `_transactions.own`.

    Raises:
        InvalidBind: It is something else, or an engine on which threads would not see the same database.
    """
    if isinstance(bind, Bind):
        return bind
    if isinstance(bind, _asyncio_class(*_ASYNC)):
        raise InvalidBind(
            f"{type(bind).__name__} is for AsyncSQLAlchemySaver: use that class, or give SQLAlchemySaver an Engine "
            "from create_engine()."
        )
    _check_kind(bind, "SQLAlchemySaver", _SYNC)
    _check_autocommit(bind, autocommit, (Engine,))
    if isinstance(bind, Session):
        return SessionBind(bind, is_async=False)
    if isinstance(bind, sessionmaker | scoped_session):
        factory = bind.session_factory if isinstance(bind, scoped_session) else bind
        given = _bind_of(factory)
        if given is not None:
            _check_memory(given)
            _check_database(given, is_async=False)
        return SessionFactoryBind(factory, is_async=False)
    _check_database(bind, is_async=False)
    _check_memory(bind)
    if isinstance(bind, Engine):
        return EngineBind(bind, is_async=False, autocommit=autocommit)
    return ConnectionBind(bind, is_async=False)


def async_bind(bind: Any, *, autocommit: bool | None = None) -> Bind:
    """The same for `AsyncSQLAlchemySaver`: on the sync side of what the application has.

    Args:
        bind: What the application has.
        autocommit: For an AsyncEngine: see `_transactions.own`.

    Raises:
        InvalidBind: It is something else, or a connection that has not been awaited.
    """
    if isinstance(bind, Bind):
        return bind
    if isinstance(bind, _SYNC):
        raise InvalidBind(
            f"{type(bind).__name__} is for SQLAlchemySaver, whose a… methods serve async graphs, too: use that class, "
            "or give AsyncSQLAlchemySaver an AsyncEngine from create_async_engine()."
        )
    _check_kind(bind, "AsyncSQLAlchemySaver", _asyncio_class(*_ASYNC))
    _check_autocommit(bind, autocommit, _asyncio_class("AsyncEngine"))
    if isinstance(bind, _asyncio_class("AsyncSession")):
        return SessionBind(bind.sync_session, is_async=True)
    if isinstance(bind, _asyncio_class("async_sessionmaker", "async_scoped_session")):
        factory = bind.session_factory if isinstance(bind, _asyncio_class("async_scoped_session")) else bind
        given = _bind_of(factory)
        if given is not None:
            _check_database(given, is_async=True)
        return SessionFactoryBind(lambda: factory().sync_session, is_async=True)
    if isinstance(bind, _asyncio_class("AsyncEngine")):
        return EngineBind(bind.sync_engine, is_async=True, autocommit=autocommit)
    if bind.sync_connection is None:
        raise InvalidBind(
            "This AsyncConnection has not been started: use `async with engine.connect() as connection`, or await it."
        )
    return ConnectionBind(bind.sync_connection, is_async=True)


def callers(bind: Any) -> Any:
    """Check what `using()` is given: something that is in a transaction of the caller's.

    Returns:
        It, or the current session of a scoped_session.

    Raises:
        InvalidBind: It begins transactions of its own.
    """
    scoped: tuple[type[Any], ...] = (scoped_session, *_asyncio_class("async_scoped_session"))
    if isinstance(bind, scoped):
        return bind()
    if isinstance(bind, (Engine, sessionmaker, *_asyncio_class("AsyncEngine", "async_sessionmaker"))):
        raise InvalidBind(
            f"using() is for a transaction of yours, and {type(bind).__name__} has none: pass a Connection or a "
            "Session. For a saver whose calls commit by themselves, give it to the class."
        )
    return bind


def _bind_of(factory: Any) -> Any:
    """The engine or connection that a sessionmaker gives its sessions, if it is known beforehand."""
    return getattr(factory, "kw", {}).get("bind")


def _check_kind(bind: Any, saver: str, kinds: tuple[type[Any], ...]) -> None:
    if isinstance(bind, kinds):
        return
    names = [kind.__name__ for kind in kinds] or list(_ASYNC)
    hint = f": for a URL, use {saver}.from_conn_string(url)" if isinstance(bind, str) else ""
    raise InvalidBind(
        f"{saver} takes SQLAlchemy's {', '.join(names[:-1])} or {names[-1]}, not {type(bind).__name__}{hint}."
    )


def _check_autocommit(bind: Any, autocommit: bool | None, engines: tuple[type[Any], ...]) -> None:
    if autocommit is None or isinstance(autocommit, bool):
        if not autocommit or isinstance(bind, engines):
            return
        raise InvalidBind(
            f"autocommit=True is for an Engine, and {type(bind).__name__} has transactions of its own: leave it out."
        )
    raise InvalidBind(f"autocommit is {autocommit!r}: pass True, False, or None to have it decided by the engine.")


def running_loop() -> asyncio.AbstractEventLoop | None:
    """The event loop that runs in this thread, if one does."""
    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
