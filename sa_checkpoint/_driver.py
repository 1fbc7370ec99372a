"""What a driver does better when it is asked to, on the one connection that an operation works on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from functools import cache, partial
from typing import Any

from sqlalchemy import Connection
from sqlalchemy.exc import SQLAlchemyError


def binary_results(connection: Connection) -> AbstractContextManager[None]:
    """Have psycopg fetch in the binary format: it is half as long for bytes, which are hexadecimal otherwise.

    An application's own kind of cursor is left as it is.
    """
    if connection.dialect.driver not in ("psycopg", "psycopg_async"):
        return nullcontext()
    driver: Any = connection.connection.driver_connection
    usual = getattr(driver, "cursor_factory", None)
    return _with_cursors(driver, usual) if usual in binary_cursors() else nullcontext()


@contextmanager
def _with_cursors(driver: Any, usual: Any) -> Iterator[None]:
    driver.cursor_factory = binary_cursors()[usual]
    try:
        yield
    finally:
        driver.cursor_factory = usual


def give_up(connection: Connection, error: Exception) -> None:
    """Have SQLAlchemy find out that a connection is gone, so that it also gives up older ones in the pool."""
    with suppress(SQLAlchemyError):
        connection.exec_driver_sql("SELECT 1")
    if not connection.invalidated:
        connection.invalidate(error)


def or_give_up(connection: Connection, tidy: Callable[[], object]) -> None:
    """Make a driver's connection what the next one to have it expects, or have the pool give it up."""
    try:
        tidy()
    except BaseException as error:
        connection.invalidate(error)
        if not isinstance(error, Exception):
            raise  # an awaited call has been given up


def leave_autocommit(connection: Connection, driver: Any) -> None:
    """Have a driver's connection commit no more by itself: nothing could be rolled back on it."""
    or_give_up(connection, partial(setattr, driver, "autocommit", False))


@cache
def binary_cursors() -> dict[Any, type[Any]]:
    """By psycopg's own kinds of cursors those that are the same, but for the format."""
    from psycopg import AsyncCursor, Cursor
    from psycopg.pq import Format

    class BinaryCursor(Cursor[Any]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.format = Format.BINARY

    class AsyncBinaryCursor(AsyncCursor[Any]):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.format = Format.BINARY

    return {Cursor: BinaryCursor, AsyncCursor: AsyncBinaryCursor}
