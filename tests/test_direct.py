"""Statements go to the driver itself where nobody listens, and nobody can tell but by the time it takes."""

from __future__ import annotations

import asyncio
import gc
import logging
from collections.abc import Callable
from contextlib import AsyncExitStack
from typing import Any

import pytest
from sqlalchemy import DDL, Connection, Engine, StaticPool, create_engine, event, text
from sqlalchemy.exc import DBAPIError, PendingRollbackError
from sqlalchemy.ext.asyncio import AsyncEngine

from sa_checkpoint import AsyncSQLAlchemySaver, SQLAlchemySaver
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
from tests.hosts import connection_on, driver_of, sync_engine_of
from tests.rows import cut_connections
from tests.usage import use, use_one_statement_calls

on_all = on_strategies("sqlite", "postgresql", "mysql")


@pytest.fixture(scope="module")
def database(database: Database) -> Database:
    """A database that refuses some threads."""
    engine = create_engine(with_sync_driver(database.url))
    with engine.begin() as connection:
        triggers.before("INSERT", connection, "NEW.thread_id LIKE '%refused'", triggers.refusing("no such luck"))
    engine.dispose()
    return database


@pytest.fixture
def executed(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The statements on our tables that SQLAlchemy executes as text."""
    found: list[str] = []
    usual = Connection.exec_driver_sql

    def exec_driver_sql(self: Connection, statement: str, *args: Any, **kwargs: Any) -> Any:
        if "checkpoint" in statement:
            found.append(statement)
        return usual(self, statement, *args, **kwargs)

    monkeypatch.setattr(Connection, "exec_driver_sql", exec_driver_sql)
    return found


def nothing(*_args: Any) -> None:
    """A listener that only listens."""


def listen(name: str) -> Callable[[Engine], None]:
    """Something that listens to this event of an engine."""
    return lambda engine: event.listen(engine, name, nothing)


def log(engine: Engine) -> None:
    engine.echo = True


def have_an_own_dialect(engine: Engine) -> None:
    usual = type(engine.dialect)
    engine.dialect.__class__ = type("Own", (usual,), {"__module__": __name__})


def have_an_own_context(engine: Engine) -> None:
    usual = engine.dialect.execution_ctx_cls
    engine.dialect.execution_ctx_cls = type("Own", (usual,), {"__module__": __name__})


EVENTS = ("before_cursor_execute", "after_cursor_execute", "rollback", "do_execute", "handle_error")
OBSERVERS = {name: listen(name) for name in EVENTS} | {
    one.__name__: one for one in (log, have_an_own_dialect, have_an_own_context)
}


async def short_calls(client: Client, thread: str) -> None:
    await use_one_statement_calls(client, thread)
    assert len(await client.list(config_of(thread), limit=1)) == 1


@on_all
async def test_without_listeners_short_calls_go_past_sqlalchemys_execution(
    database: Database, thread: str, executed: list[str]
) -> None:
    async with database.engine() as engine:
        await short_calls(Client(saver_on(engine), database.backend), thread)
    assert executed == []


@on_all
@pytest.mark.parametrize("observe", OBSERVERS.values(), ids=OBSERVERS)
async def test_with_a_listener_or_a_log_they_do_not(
    database: Database,
    thread: str,
    executed: list[str],
    observe: Callable[[Engine], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(logging.getLogger("sqlalchemy"), "handlers", [logging.NullHandler()])
    async with database.engine() as engine:
        client = Client(saver_on(engine), database.backend)
        await client.get_tuple(config_of(thread))
        assert executed == []
        observe(sync_engine_of(engine))
        await short_calls(client, thread)
    assert len(executed) >= 4


@on_all
async def test_a_listener_of_the_class_hears_of_engines_that_were_there_before(
    database: Database, thread: str, executed: list[str]
) -> None:
    async with database.engine() as engine:
        client = Client(saver_on(engine), database.backend)
        await client.get_tuple(config_of(thread))
        seen: list[str] = []

        def collect(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            seen.append(statement)

        event.listen(Engine, "before_cursor_execute", collect)
        try:
            await short_calls(client, thread)
        finally:
            event.remove(Engine, "before_cursor_execute", collect)
            Engine._has_events = False  # for the tests that come after
        assert len(seen) >= 4


async def errors_of(database: Database, thread: str, *, listens: bool, **options: Any) -> list[DBAPIError]:
    """What comes of a checkpoint that the database refuses, twice on the same connection."""
    found = []
    async with database.engine(**options) as engine:
        if listens:
            event.listen(sync_engine_of(engine), "before_cursor_execute", nothing)
        client = Client(saver_on(engine), database.backend)
        for _ in range(2):
            with pytest.raises(DBAPIError) as caught:
                await client.put(config_of(f"{thread} refused"), checkpoint_of({"a": ["secret"]}), {}, {"a": "1"})
            found.append(caught.value)
        await use(client, f"{thread} {listens} {len(options)}")
    return found


@on_all
@pytest.mark.parametrize("options", [{}, {"hide_parameters": True}], ids=str)
async def test_an_error_is_the_one_that_sqlalchemy_makes(
    database: Database, thread: str, options: dict[str, Any]
) -> None:
    usual = await errors_of(database, thread, listens=True, **options)
    direct = await errors_of(database, thread, listens=False, **options)
    for one, other in zip(direct, usual, strict=True):
        assert type(one) is type(other)
        assert type(one.orig) is type(other.orig) and str(one.orig) == str(other.orig)
        assert one.__cause__ is one.orig
        # Where nobody listens for MariaDB's COMMIT, it is in the statement.
        assert str(one.statement).replace("COMMIT; ", "") == other.statement
        assert "INSERT INTO checkpoints" in str(one.statement)
        assert one.hide_parameters is other.hide_parameters is bool(options)
        assert one.connection_invalidated is other.connection_invalidated is False
        assert "no such luck" in str(one) and one.ismulti == other.ismulti
        if options:
            assert thread not in str(one)


@on_strategies("postgresql", "mysql")
@pytest.mark.filterwarnings("ignore:.*(unclosed|while still open):ResourceWarning")
@pytest.mark.parametrize("listens", [True, False])
async def test_all_connections_that_a_restart_has_cut_cost_one_call(
    database: Database, thread: str, listens: bool
) -> None:
    """As with SQLAlchemy's own execution, which gives up the pool's older connections with the first."""
    async with database.engine(pool_size=5) as engine:
        if listens:
            event.listen(sync_engine_of(engine), "before_cursor_execute", nothing)
        client = Client(saver_on(engine), database.backend)
        await open_connections(engine, 5)
        cut_connections(client)
        await asyncio.sleep(0.1)  # until an older asyncpg has heard of it
        with pytest.raises(DBAPIError) as caught:
            await client.get_tuple(config_of(thread))
        assert caught.value.connection_invalidated
        for _ in range(5):
            await short_calls(client, thread)
            await client.delete_thread(thread)
    del caught
    gc.collect()


@on_backends(*(backend for backend in BACKENDS if backend.id == "pymysql"))
@pytest.mark.filterwarnings("ignore:.*(unclosed|while still open):ResourceWarning")
@pytest.mark.parametrize("listens", [True, False])
async def test_a_restart_before_the_commit_costs_one_call(
    database: Database, thread: str, listens: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.engine(pool_size=5) as engine:
        # In this mode the COMMIT is sent by itself.
        event.listen(sync_engine_of(engine), "connect", lambda driver, _: driver.query("SET sql_mode = 'ORACLE'"))
        if listens:
            event.listen(sync_engine_of(engine), "before_cursor_execute", nothing)
        client = Client(saver_on(engine), database.backend)
        await open_connections(engine, 5)
        usual = sync_engine_of(engine).dialect.do_commit

        def commit(connection: Any) -> None:
            monkeypatch.undo()
            cut_connections(client)
            usual(connection)

        monkeypatch.setattr(sync_engine_of(engine).dialect, "do_commit", commit)
        with pytest.raises(DBAPIError) as caught:
            await client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        assert caught.value.connection_invalidated and caught.value.statement is None
        for _ in range(5):
            await short_calls(client, thread)
            await client.delete_thread(thread)


@on_strategies("sqlite")
@pytest.mark.parametrize("call", ["get_tuple", "put"])
@pytest.mark.parametrize("listens", [True, False])
async def test_a_connection_to_sqlite_that_was_closed_costs_one_call(
    database: Database, thread: str, listens: bool, call: str
) -> None:
    async with database.engine(pool_size=1) as engine:
        if listens:
            event.listen(sync_engine_of(engine), "before_cursor_execute", nothing)
        client = Client(saver_on(engine), database.backend)
        async with connection_on(engine) as connection:
            driver = driver_of(connection)
        await done(driver.close())
        with pytest.raises(DBAPIError, match=r"(?i)no active connection|connection closed|closed database") as caught:
            if call == "put":
                await client.put(config_of(thread), checkpoint_of(), {}, {})
            await client.get_tuple(config_of(thread))
        assert caught.value.connection_invalidated
        await use(client, thread)


async def open_connections(engine: Engine | AsyncEngine, number: int) -> None:
    async with AsyncExitStack() as stack:
        for _ in range(number):
            await stack.enter_async_context(entered(engine.connect()))


@on_backends(*(backend for backend in BACKENDS if backend.id == "asyncpg"))
@pytest.mark.parametrize("bind", ["engine", "engine without autocommit", "connection"])
@pytest.mark.parametrize("by_itself", [True, False])
async def test_a_migration_under_way_is_met_as_by_sqlalchemy(
    database: Database, thread: str, bind: str, by_itself: bool
) -> None:
    """asyncpg refuses a prepared statement whose columns have other types now, and SQLAlchemy prepares it again.

    In autocommit asyncpg does so by itself, and nobody sees an error.
    """
    found = {}
    for listens in (True, False):
        async with database.engine(pool_size=2, max_overflow=0) as engine:
            assert isinstance(engine, AsyncEngine)
            if listens:
                event.listen(engine.sync_engine, "before_cursor_execute", nothing)
            async with engine.connect() as connection, engine.connect() as another:
                await another.close()
                savers = {
                    "engine": AsyncSQLAlchemySaver(engine),
                    "engine without autocommit": AsyncSQLAlchemySaver(engine, autocommit=False),
                    "connection": AsyncSQLAlchemySaver(connection),
                }
                client = Client(savers[bind], database.backend)
                outcomes: list[Any] = []
                for number, type_ in enumerate((None, "BIGINT", "INTEGER")):
                    if type_:
                        await connection.commit()
                        await alter(engine if by_itself else database, type_)
                    for _ in range(7 if number == 0 else 3):
                        try:
                            await short_calls(client, thread)
                        except DBAPIError as error:
                            await connection.rollback()
                            outcomes.append((number, type(error), type(error.orig), str(error.orig)))
                        else:
                            await connection.commit()
                            await client.delete_thread(thread)
                            await connection.commit()
                found[listens] = outcomes
    assert found[False] == ([] if bind == "engine" else found[True])
    assert len(found[True]) == (0 if by_itself else 2)


async def alter(target: AsyncEngine | Database, type_: str) -> None:
    """Change a table, as a migration does: on the application's engine, or in another process."""
    statement = text(f"ALTER TABLE checkpoint_writes ALTER COLUMN idx TYPE {type_}")
    if isinstance(target, AsyncEngine):
        async with target.begin() as connection:
            await connection.execute(DDL(str(statement)))  # type: ignore[no-untyped-call]
    else:
        engine = create_engine(with_sync_driver(target.url))
        with engine.begin() as sync_connection:
            sync_connection.execute(statement)
        engine.dispose()


@on_backends(*(backend for backend in BACKENDS if backend.id in ("sqlite", "aiosqlite")))
async def test_reading_keeps_what_others_do_on_the_one_connection_of_a_pool(database: Database, thread: str) -> None:
    """As in memory, where a StaticPool hands the same connection to all."""
    async with database.engine(poolclass=StaticPool, connect_args={"check_same_thread": False}) as engine:
        async with connection_on(engine) as connection:
            mine = Client(saver_on(connection), database.backend)
            saved = await mine.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
            assert await Client(saver_on(engine), database.backend).get_tuple(config_of(f"{thread} other")) is None
            await done(connection.commit())
        assert await Client(saver_on(engine), database.backend).get_tuple(saved) is not None


@on_all
@pytest.mark.parametrize("name", ["engine_connect", "before_cursor_execute"])
async def test_reading_keeps_what_a_listener_writes(database: Database, thread: str, name: str) -> None:
    # There a COMMIT would be a round trip more for everybody whose statements are traced.
    is_lost = database.backend.dialect == "mysql" and name == "before_cursor_execute"
    table = f"audit_{thread}"
    async with database.engine() as engine:
        async with connection_on(engine) as connection:
            await done(connection.execute(text(f"CREATE TABLE {table} (id INTEGER)")))
            await done(connection.commit())
        client = Client(saver_on(engine), database.backend)
        await client.get_tuple(config_of(thread))

        def audit(connection: Connection, *args: Any) -> None:
            if not args or "audit" not in str(args[1]):
                connection.exec_driver_sql(f"INSERT INTO {table} VALUES (1)")

        event.listen(sync_engine_of(engine), name, audit)
        await client.get_tuple(config_of(thread))
        event.remove(sync_engine_of(engine), name, audit)
        async with connection_on(engine) as connection:
            rows = await done(connection.execute(text(f"SELECT count(*) FROM {table}")))
            assert rows.scalar() == (0 if is_lost else 1)


@on_backends(*(backend for backend in BACKENDS if backend.id == "psycopg2"))
async def test_psycopg2s_notices_are_logged_by_sqlalchemy(
    database: Database, thread: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "sqlalchemy.dialects.postgresql")
    async with database.engine() as engine:
        sync_engine = sync_engine_of(engine)
        with sync_engine.begin() as connection:
            notice = {"postgresql": "RAISE NOTICE 'hello'"}
            triggers.before("INSERT", connection, f"NEW.thread_id = '{thread}'", notice)
        await Client(saver_on(engine), database.backend).put(config_of(thread), checkpoint_of(), {}, {})
    assert "hello" in caplog.text


@on_backends(*(backend for backend in BACKENDS if not (backend.is_async or backend.is_portable)))
def test_a_transaction_of_the_callers_that_has_failed_stays_so(database: Database, thread: str) -> None:
    engine = create_engine(database.url)
    with engine.connect() as connection:
        connection.begin()
        connection.invalidate()
        with pytest.raises(PendingRollbackError):
            SQLAlchemySaver(connection).get_tuple(config_of(thread))
        connection.rollback()
        assert SQLAlchemySaver(connection).get_tuple(config_of(thread)) is None
    engine.dispose()
