"""A call takes the pool's connection as it is where it may, and nobody can tell but by the time."""

from __future__ import annotations

import asyncio
import gc
import logging
import sqlite3
import time
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import AsyncAdaptedQueuePool, Connection, Engine, QueuePool, create_engine, event, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout

from sa_checkpoint import AsyncSQLAlchemySaver, SQLAlchemySaver
from sa_checkpoint._binds import EngineBind
from sa_checkpoint.errors import SchemaOutOfDate
from tests import triggers
from tests.backends import (
    BACKENDS,
    Client,
    Database,
    done,
    entered,
    on_backends,
    on_strategies,
    saver_on,
    with_sync_driver,
)
from tests.checkpoints import checkpoint_of, config_of
from tests.hosts import executing_at_checkout, sync_engine_of
from tests.usage import use, use_one_statement_calls

on_postgresql = on_strategies("postgresql")
# Without those that are forced to portable statements, and asyncmy, which sends a COMMIT of its own.
on_all = on_backends(*(one for one in BACKENDS if not one.is_portable and one.id != "asyncmy"))
on_sqlite = on_strategies("sqlite")
on_pymysql = on_backends(*(one for one in BACKENDS if one.id == "pymysql"))
on_psycopg = on_backends(*(backend for backend in BACKENDS if backend.id == "psycopg"))


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Connection]:
    """The Connections that SQLAlchemy makes."""
    made: list[Connection] = []
    usual = Connection.__init__

    def init(self: Connection, *args: Any, **kwargs: Any) -> None:
        made.append(self)
        usual(self, *args, **kwargs)

    monkeypatch.setattr(Connection, "__init__", init)
    return made


@on_all
async def test_a_call_makes_no_connection_of_sqlalchemys(
    database: Database, thread: str, connections: list[Connection]
) -> None:
    async with database.engine(pool_size=5) as engine:
        client = Client(saver_on(engine), database.backend)
        # SQLAlchemy looks at the server with a Connection of its own first.
        await use_one_statement_calls(client, thread)
        connections.clear()
        for number in range(8):
            await use_one_statement_calls(client, f"{thread} {number}")
            assert len(await client.list(config_of(f"{thread} {number}"))) == 1
            assert len(await client.list(config_of(f"{thread} {number}"), limit=1)) == 1
            await client.delete_thread(f"{thread} {number}")
            assert await client.get_tuple(config_of(f"{thread} {number}")) is None
            await client.put(config_of(f"{thread} {number}"), checkpoint_of({"a": [1]}, {"a": 1}), {}, {"a": 1})
        assert connections == []
        await use(client, f"{thread} all")


def listen(engine: Engine) -> None:
    event.listen(engine, "before_cursor_execute", lambda *_: None)


def set_level(engine: Engine) -> None:
    event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", 4))


@on_psycopg
@pytest.mark.parametrize("set_up", [listen, set_level, executing_at_checkout("SELECT 1")])
async def test_sqlalchemys_connection_serves_where_the_application_has_set_something(
    database: Database, thread: str, connections: list[Connection], set_up: Callable[[Engine], None]
) -> None:
    async with database.engine(pool_size=1, max_overflow=0) as engine:
        client = Client(saver_on(engine), database.backend)
        set_up(sync_engine_of(engine))
        await use_one_statement_calls(client, f"{thread} before")
        connections.clear()
        checkouts: list[Any] = []
        event.listen(sync_engine_of(engine), "checkout", lambda *_: checkouts.append(1))
        await use_one_statement_calls(client, thread)
        assert len(connections) == len(checkouts) == 3
        assert all(connection.closed for connection in connections)


def begin_nothing(engine: Engine) -> None:
    event.listen(engine, "connect", lambda connection, _: setattr(connection, "isolation_level", None))


@on_sqlite
# A read needs no transaction.
@pytest.mark.parametrize(("set_up", "made"), [(listen, 3), (executing_at_checkout("BEGIN"), 3), (begin_nothing, 2)])
async def test_sqlalchemys_connection_serves_where_the_driver_does_not_begin(
    database: Database, thread: str, connections: list[Connection], set_up: Callable[[Engine], None], made: int
) -> None:
    async with database.engine(pool_size=1) as engine:
        client = Client(saver_on(engine), database.backend)
        set_up(sync_engine_of(engine))
        await use_one_statement_calls(client, f"{thread} before")
        connections.clear()
        await use_one_statement_calls(client, thread)
        assert len(connections) == made


@on_pymysql
async def test_sqlalchemys_connection_serves_where_a_commit_cannot_be_sent_along(
    database: Database, thread: str, connections: list[Connection]
) -> None:
    async with database.engine() as engine:
        in_autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
        for number, saver in enumerate((saver_on(engine, autocommit=False), saver_on(in_autocommit))):
            client = Client(saver, database.backend)
            await use_one_statement_calls(client, f"{thread} {number} before")
            connections.clear()
            await use_one_statement_calls(client, f"{thread} {number}")
            assert len(connections) == 3


@on_all
async def test_a_call_that_fails_is_rolled_back_whatever_the_pool_does(database: Database, thread: str) -> None:
    sync_engine = create_engine(with_sync_driver(database.url))
    with sync_engine.begin() as connection:
        # It is the second table that a put inserts into.
        triggers.before("INSERT", connection, f"NEW.thread_id = '{thread}'", triggers.refusing())
    async with database.engine(pool_size=1, max_overflow=0, pool_reset_on_return=None) as engine:
        client = Client(saver_on(engine), database.backend)
        await use_one_statement_calls(client, f"{thread} before")
        with pytest.raises(DBAPIError, match="refused"):
            await client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        await use_one_statement_calls(client, f"{thread} after")
    with sync_engine.connect() as connection:
        left = connection.execute(text("SELECT count(*) FROM checkpoint_blobs WHERE thread_id = :id"), {"id": thread})
        assert left.scalar() == 0
    sync_engine.dispose()


@on_sqlite
async def test_a_connection_whose_commit_was_interrupted_is_given_up(
    database: Database, thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.engine(pool_size=1, max_overflow=0) as engine:
        client = Client(saver_on(engine), database.backend)
        await use_one_statement_calls(client, f"{thread} before")
        given_up: list[Any] = []
        event.listen(sync_engine_of(engine), "invalidate", lambda *_: given_up.append(1))

        def interrupted(_connection: Any) -> None:
            raise asyncio.CancelledError  # as KeyboardInterrupt is, no Exception

        monkeypatch.setattr(sync_engine_of(engine).dialect, "do_commit", interrupted)
        monkeypatch.setattr("sa_checkpoint._aiosqlite.Batch.commit", interrupted)
        with pytest.raises(asyncio.CancelledError):
            await client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        monkeypatch.undo()
        assert given_up == [1]
        assert await client.get_tuple(config_of(thread)) is None


@on_all
async def test_a_sqlalchemy_that_closes_connections_otherwise_serves(
    database: Database, thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.engine(pool_size=1, max_overflow=0) as engine:
        client = Client(saver_on(engine), database.backend)
        await use_one_statement_calls(client, f"{thread} before")
        with monkeypatch.context() as later:
            later.delattr("sqlalchemy.pool.base._ConnectionFairy._close_special")
            await use_one_statement_calls(client, thread)
        assert (await client.load(config_of(thread))).checkpoint["channel_values"] == {"a": [1]}


@on_sqlite
async def test_of_a_commit_that_fails_nothing_is_left(database: Database, thread: str) -> None:
    async with database.engine(pool_size=1, max_overflow=0, connect_args={"timeout": 0}) as engine:
        client = Client(saver_on(engine), database.backend)
        await use_one_statement_calls(client, f"{thread} before")
        reader = sqlite3.connect(str(database.url.database), isolation_level=None)
        # Without WAL, a writer waits for readers when it commits.
        assert reader.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        reader.execute("BEGIN")
        reader.execute("SELECT count(*) FROM checkpoints").fetchall()
        with pytest.raises(OperationalError, match="locked") as caught:
            await client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        reader.close()
        assert caught.value.statement is None  # the COMMIT is not one of SQLAlchemy's
        assert await client.get_tuple(config_of(thread)) is None
        await use_one_statement_calls(client, f"{thread} after")


@on_sqlite
async def test_writers_to_whom_a_listener_comes_too_late_go_by_sqlalchemy(
    database: Database, thread: str, connections: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.engine(pool_size=5) as engine:
        client = Client(saver_on(engine), database.backend)
        await use_one_statement_calls(client, f"{thread} before")
        # What is seen after these looks, by everything else.
        monkeypatch.setattr(EngineBind, "_is_unobserved", lambda _: True)
        monkeypatch.setattr(EngineBind, "_commits_groups", lambda _: True)
        begun: list[Connection] = []
        event.listen(sync_engine_of(engine), "begin", begun.append)
        connections.clear()
        names = [f"{thread} {number}" for number in range(8)]
        await asyncio.gather(*(use_one_statement_calls(client, name) for name in names))
        assert len(connections) == len(begun) == 3 * len(names)


@on_psycopg
async def test_options_of_an_engine_are_those_of_its_connections(
    database: Database, thread: str, connections: list[Connection]
) -> None:
    async with database.engine() as engine:
        await use_one_statement_calls(Client(saver_on(engine), database.backend), f"{thread} before")
        connections.clear()
        optioned = engine.execution_options(isolation_level="SERIALIZABLE")
        await use_one_statement_calls(Client(saver_on(optioned), database.backend), thread)
        assert len(connections) == 3


@on_postgresql
async def test_a_connection_goes_back_to_the_pool_as_it_was(database: Database, thread: str) -> None:
    async with database.engine(pool_size=1, max_overflow=0, pool_timeout=5) as engine:
        client = Client(saver_on(engine), database.backend)
        pool: Any = sync_engine_of(engine).pool
        assert isinstance(pool, QueuePool | AsyncAdaptedQueuePool)
        for number in range(8):
            await use_one_statement_calls(client, f"{thread} {number}")
            assert pool.checkedout() == 0
        with pytest.raises(SchemaOutOfDate):
            async with entered(engine.connect()) as connection:
                await done(connection.exec_driver_sql("ALTER TABLE checkpoint_writes RENAME TO elsewhere"))
                await done(connection.commit())
            try:
                await client.put_writes(config_of(thread, checkpoint_id="1"), [("a", 1)], "task")
            finally:
                async with entered(engine.connect()) as connection:
                    await done(connection.exec_driver_sql("ALTER TABLE elsewhere RENAME TO checkpoint_writes"))
                    await done(connection.commit())
        assert pool.checkedout() == 0
        async with entered(engine.connect()) as connection:  # not in autocommit
            await done(connection.exec_driver_sql("CREATE TABLE never (id INTEGER)"))
            await done(connection.rollback())
        async with entered(engine.connect()) as connection:
            found = await done(connection.exec_driver_sql("SELECT to_regclass('never')"))
            assert found.scalar() is None


@on_postgresql
@pytest.mark.parametrize("hide", [True, False])
async def test_a_server_that_is_not_there_is_sqlalchemys_error(database: Database, thread: str, hide: bool) -> None:
    errors = []
    for listens in (True, False):
        elsewhere = Database(database.backend, database.url.set(host="127.0.0.1", port=1, query={}))
        async with elsewhere.engine(hide_parameters=hide) as engine:
            # SQLAlchemy's own first look at a server is past, as when it has gone later.
            sync_engine_of(engine).dialect.initialize = lambda _connection: None  # type: ignore[assignment, method-assign]
            if listens:
                listen(sync_engine_of(engine))
            client = Client(saver_on(engine), database.backend)
            with pytest.raises((OperationalError, OSError)) as caught:
                await client.get_tuple(config_of(thread))
            errors.append(caught.value)
    one, other = errors
    assert type(one) is type(other)
    assert str(one) == str(other)
    assert getattr(one, "connection_invalidated", None) is getattr(other, "connection_invalidated", None)
    assert type(getattr(one, "orig", None)) is type(getattr(other, "orig", None))


@on_postgresql
async def test_a_pool_that_is_empty_is_sqlalchemys_error(database: Database, thread: str) -> None:
    async with database.engine(pool_size=1, max_overflow=0, pool_timeout=0.2) as engine:
        client = Client(saver_on(engine), database.backend)
        await use_one_statement_calls(client, thread)
        async with entered(engine.connect()):
            with pytest.raises(PoolTimeout):
                await client.get_tuple(config_of(thread))
        await use_one_statement_calls(client, f"{thread} after")


def wait_for(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 5
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.001)


@on_postgresql
# An older asyncpg loses a connection that is being made.
@pytest.mark.filterwarnings("ignore:.*unclosed:ResourceWarning")
async def test_a_call_that_is_given_up_gives_the_connection_back(database: Database, thread: str) -> None:
    async with database.engine(pool_size=1, max_overflow=0) as engine:
        saver: Any = saver_on(engine)
        assert isinstance(saver, SQLAlchemySaver | AsyncSQLAlchemySaver)
        pool: Any = sync_engine_of(engine).pool
        for delay in range(30):
            task = asyncio.ensure_future(saver.aput(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"}))
            await asyncio.sleep(delay / 10_000)
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)
            # A thread of a sync saver's comes to an end by itself.
            await asyncio.to_thread(wait_for, lambda: pool.checkedout() == 0)
        await use_one_statement_calls(Client(saver, database.backend), f"{thread} after")
    gc.collect()


@on_psycopg
async def test_a_dialect_with_short_labels_is_left_to_sqlalchemy(
    database: Database, thread: str, connections: list[Connection]
) -> None:
    async with database.engine(label_length=20) as engine:
        saver = saver_on(engine)
        client = Client(saver, database.backend)
        await use_one_statement_calls(client, f"{thread} before")
        assert isinstance(saver._bind, EngineBind)
        connections.clear()
        await use_one_statement_calls(client, thread)
        assert len(connections) == 3


def listen_for_commits(engine: Engine) -> None:
    event.listen(engine, "commit", lambda _connection: None)


def log(engine: Engine) -> None:
    logger: Any = engine.logger
    logger.setLevel(logging.INFO)


@on_postgresql
@pytest.mark.parametrize("begin", [listen, listen_for_commits, log])
async def test_who_begins_to_listen_while_a_call_waits_for_its_connection_is_told(
    database: Database, thread: str, connections: list[Connection], begin: Callable[[Engine], None]
) -> None:
    async with database.engine(pool_size=2, max_overflow=0, logging_name=thread) as engine:
        client = Client(saver_on(engine), database.backend)
        await use_one_statement_calls(client, f"{thread} before")
        sync_engine = sync_engine_of(engine)
        connections.clear()

        def connect(*_: Any) -> None:
            begin(sync_engine)

        event.listen(sync_engine, "checkout", connect, once=True)
        await use_one_statement_calls(client, thread)
        assert len(connections) == 3


@on_postgresql
async def test_a_listener_that_comes_later_still_makes_a_call_go_by_sqlalchemy(
    database: Database, thread: str, connections: list[Connection], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.engine() as engine:
        client = Client(saver_on(engine), database.backend)
        await use_one_statement_calls(client, f"{thread} before")
        usual = EngineBind._is_unobserved
        # What is seen after that look, by everything else.
        monkeypatch.setattr(EngineBind, "_is_unobserved", lambda self: bool(usual(self)) or True)
        connections.clear()
        listen(sync_engine_of(engine))
        await use_one_statement_calls(client, thread)
        assert len(connections) == 3
        assert sync_engine_of(engine).pool.checkedout() == 0  # type: ignore[attr-defined]


@on_backends(*(backend for backend in BACKENDS if backend.id == "asyncpg"))
async def test_a_fetch_of_the_applications_own_is_not_called(database: Database, thread: str) -> None:
    import asyncpg  # type: ignore[import-untyped]

    class Own(asyncpg.Connection):  # type: ignore[misc]
        async def fetch(self, *args: Any, **kwargs: Any) -> Any:
            return [dict(row) for row in await super().fetch(*args, **kwargs)]

    async with database.engine(connect_args={"connection_class": Own}) as engine:
        await use_one_statement_calls(Client(saver_on(engine), database.backend), thread)
