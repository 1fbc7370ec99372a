"""A connection for a single call of ours, on an engine where nobody listens.

It is the pool's, without SQLAlchemy's Connection around it: that and its transaction take longer than what is left to
do of a short call, when its code has to come into the processor's caches. `_transactions.without_begin` says which
calls take no more.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Self, cast

from sqlalchemy import Connection, Engine
from sqlalchemy.exc import DBAPIError

from sa_checkpoint._aiosqlite import Batch
from sa_checkpoint._cancellation import GivenUp
from sa_checkpoint._driver import give_up, leave_autocommit, or_give_up


class NotSingle(Exception):
    """It takes SQLAlchemy's Connection, perhaps since somebody listens now. Nothing of it has been stored."""


class Single:
    """As much of a Connection as such a call takes.

    Attributes:
        engine: The engine.
        dialect: Its dialect.
        connection: The pool's connection, which is SQLAlchemy's adapter of the driver's.
        closed: Whether it has been given back.
        invalidated: Whether the pool has given up the connection.
        is_open: Whether a transaction of ours has to be rolled back; None if there is none, whatever happens.
        batch: Where statements without rows wait for the COMMIT, if they do.
    """

    _has_events = False

    def __init__(self, engine: Engine) -> None:
        """Check it out.

        Raises:
            DBAPIError: As SQLAlchemy raises it.
        """
        self.engine = engine
        self.dialect: Any = engine.dialect
        try:
            self.connection: Any = engine.raw_connection()
        except self.dialect.loaded_dbapi.Error as error:
            raise self._wrapped(error, None) from error
        self.closed = self.invalidated = False
        self.is_open: bool | None = None
        self.batch: Batch | None = None
        self._options: Mapping[str, Any] = engine.get_execution_options()
        self._is_switched = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    @property
    def as_connection(self) -> Connection:
        """Itself, for what takes a Connection and uses no more of it."""
        return cast(Connection, self)

    def release(self) -> Any:
        """The pool's connection, which the caller gives back."""
        self.closed = True
        return self.connection

    def get_execution_options(self) -> Mapping[str, Any]:
        return self._options

    def execution_options(self, **options: Any) -> None:
        """Set what `get_execution_options` returns, as well."""
        self._options = {**self._options, **options}

    def get_transaction(self) -> None:
        """There is none."""

    get_nested_transaction = get_transaction

    def in_transaction(self) -> bool:
        return False

    @property
    def dispatch(self) -> Any:
        """SQLAlchemy would tell those who listen, which somebody has begun to do."""
        raise NotSingle

    def execute(self, *_args: Any, **_kwargs: Any) -> Any:
        """SQLAlchemy would execute this."""
        raise NotSingle

    exec_driver_sql = execute

    def autocommit(self) -> None:
        """Have the driver commit what its cursors execute, until the connection is closed."""
        driver = self.connection.dbapi_connection
        if not driver.autocommit:
            self._is_switched = True
            driver.autocommit = True

    def flush(self) -> None:
        """Execute what waits for the COMMIT, so that the transaction has its locks.

        Raises:
            DBAPIError: As SQLAlchemy raises it. Closing rolls back.
        """
        if self.batch is not None:
            self._do(self.batch.flush)

    def commit(self) -> None:
        """Commit what the driver has begun.

        Raises:
            DBAPIError: As SQLAlchemy raises it. Closing rolls back.
            GivenUp: One of the calls of a batch has been given up.
        """
        if self.batch is None:
            self._do(partial(self.dialect.do_commit, self.connection.dbapi_connection))
        else:
            self._do(self.batch.commit)
        self.is_open = False

    def _do(self, step: Callable[[], object]) -> None:
        try:
            step()
        except self.dialect.loaded_dbapi.Error as error:
            wrapped = self._wrapped(error, self.connection, *(self.batch.current if self.batch else ()))
            if wrapped.connection_invalidated:
                self.give_up(error)
            raise wrapped from error
        except GivenUp:
            raise
        except BaseException as error:
            if self.batch and isinstance(error, ValueError):
                raise NotSingle from error  # aiosqlite's connection is closed, of which SQLAlchemy's Connection tells
            self.invalidate(error)  # interrupted in the middle: the server's answer may still come
            raise

    def _wrapped(self, error: Exception, pooled: Any, text: str | None = None, parameters: Any = None) -> DBAPIError:
        wrapped: Any = DBAPIError.instance(
            text,
            parameters,
            error,
            self.dialect.loaded_dbapi.Error,
            hide_parameters=self.engine.hide_parameters,
            connection_invalidated=self.dialect.is_disconnect(error, pooled, None),
            dialect=self.dialect,
            ismulti=isinstance(parameters, list),
        )
        return cast(DBAPIError, wrapped)

    def give_up(self, error: Exception) -> None:
        """Have SQLAlchemy find out that the server is gone, so that the pool gives up its older connections, too."""
        give_up(Connection(self.engine, self.connection), error)
        self.closed = self.invalidated = True

    def invalidate(self, error: BaseException | None = None) -> None:
        """Have the pool give up the connection."""
        self.closed = self.invalidated = True
        self.connection.invalidate(error)

    def close(self) -> None:
        """Give the connection back as it was."""
        if self.closed:
            return
        if self._is_switched:
            leave_autocommit(self.as_connection, self.connection.dbapi_connection)
        elif self.is_open:  # the pool might not
            or_give_up(self.as_connection, partial(self.dialect.do_rollback, self.connection.dbapi_connection))
        if self.closed:
            return
        self.closed = True
        close_without_rollback = getattr(self.connection, "_close_special", None)  # which SQLAlchemy's Connection has
        if self.is_open is None or close_without_rollback is None:
            self.connection.close()
        else:
            close_without_rollback(transaction_reset=True)
