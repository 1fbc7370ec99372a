"""What a driver does better when it is asked to, on the one connection that an operation works on."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

from sqlalchemy import Connection


@contextmanager
def binary_results(connection: Connection) -> Iterator[None]:
    """Have psycopg fetch in the binary format: it is half as long for bytes, which are hexadecimal otherwise.

    An application's own kind of cursor is left as it is.
    """
    driver: Any = connection.connection.driver_connection
    factories = binary_cursors() if connection.dialect.driver in ("psycopg", "psycopg_async") else {}
    usual = getattr(driver, "cursor_factory", None)
    if usual not in factories:
        yield
        return
    driver.cursor_factory = factories[usual]
    try:
        yield
    finally:
        driver.cursor_factory = usual


def leave_autocommit(connection: Connection, driver: Any) -> None:
    """Have a driver's connection commit no more by itself, or have the pool give it up."""
    try:
        driver.autocommit = False
    except BaseException as error:
        # The pool must not hand out a connection on which nothing can be rolled back.
        connection.invalidate(error)
        if not isinstance(error, Exception):
            raise  # an awaited call has been given up


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
