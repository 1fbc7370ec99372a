"""Direct looks into the database, past the savers, over a sync driver."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from sqlalchemy import Connection, create_engine, event, select, text

from sa_checkpoint import models
from tests.backends import Client, with_sync_driver

TABLES = models.metadata.tables


@contextmanager
def connection_of(client: Client) -> Iterator[Connection]:
    """A connection of the test's own to the client's database."""
    engine = create_engine(with_sync_driver(client.sync_engine.url))
    try:
        with engine.begin() as connection:
            yield connection
    finally:
        engine.dispose()


def keys_of(client: Client, *threads: str) -> dict[str, set[tuple[Any, ...]]]:
    """The primary keys of all rows of some threads, without the thread, by table."""
    with connection_of(client) as connection:
        return {
            name: {
                tuple(row)
                for row in connection.execute(
                    select(*table.primary_key.columns[1:]).where(table.c.thread_id.in_(threads))
                )
            }
            for name, table in TABLES.items()
        }


@contextmanager
def statements_of(client: Client) -> Iterator[list[str]]:
    """Collect what is sent to the driver, an executemany as one."""
    found: list[str] = []

    def collect(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        found.append(statement)

    event.listen(client.sync_engine, "before_cursor_execute", collect)
    try:
        yield found
    finally:
        event.remove(client.sync_engine, "before_cursor_execute", collect)


def cut_connections(client: Client) -> None:
    """What a restart of the server is for all connections to the client's database."""
    with connection_of(client) as connection:
        if connection.dialect.name == "postgresql":
            connection.execute(
                text(
                    "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                    "WHERE datname = current_database() AND pid != pg_backend_pid()"
                )
            )
        else:
            others = text(
                "SELECT id FROM information_schema.processlist WHERE db = DATABASE() AND id != CONNECTION_ID()"
            )
            for number in connection.scalars(others).all():
                connection.execute(text(f"KILL CONNECTION {number}"))
