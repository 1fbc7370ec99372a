"""What a saver can work on, and who owns the transaction."""

from __future__ import annotations

import asyncio
import sqlite3
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, cast

import pytest
from sqlalchemy import AsyncAdaptedQueuePool, NullPool, QueuePool, StaticPool, create_engine, event
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sa_checkpoint import AsyncSQLAlchemySaver, SQLAlchemySaver
from sa_checkpoint._cancellation import Cancellation
from tests.backends import Client, Database, done, entered, saver_on
from tests.checkpoints import checkpoint_of, config_of
from tests.hosts import connections_in_a_row


async def test_on_a_callers_connection_nothing_is_stored_until_the_caller_commits(
    client: Client, database: Database, thread: str
) -> None:
    async with database.engine() as engine:
        for commits in (False, True):
            if isinstance(engine, AsyncEngine):
                async with engine.connect() as connection:
                    saver = AsyncSQLAlchemySaver(connection)
                    await saver.aput(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
                    assert await saver.aget_tuple(config_of(thread)) is not None
                    await (connection.commit() if commits else connection.rollback())
            else:
                with engine.connect() as sync_connection:
                    sync_saver = SQLAlchemySaver(sync_connection)
                    sync_saver.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
                    assert sync_saver.get_tuple(config_of(thread)) is not None
                    sync_connection.commit() if commits else sync_connection.rollback()

            assert (await client.get_tuple(config_of(thread)) is not None) is commits


async def test_operations_take_turns_on_a_single_connection(database: Database, thread: str) -> None:
    """LangGraph calls from several threads or tasks, and a database connection serves one at a time."""
    async with database.engine() as engine:
        if isinstance(engine, AsyncEngine):
            async with engine.connect() as connection:
                savers = [AsyncSQLAlchemySaver(connection) for _ in range(2)]
                await asyncio.gather(
                    *(
                        savers[index % 2].aput(
                            config_of(thread), checkpoint_of({"a": [index]}, {"a": str(index)}), {}, {"a": str(index)}
                        )
                        for index in range(20)
                    )
                )
                assert len([found async for found in savers[0].alist(config_of(thread))]) == 20
        else:
            with engine.connect() as sync_connection, ThreadPoolExecutor(8) as pool:
                sync_savers = [SQLAlchemySaver(sync_connection) for _ in range(2)]

                def put(index: int) -> None:
                    checkpoint = checkpoint_of({"a": [index]}, {"a": str(index)})
                    sync_savers[index % 2].put(config_of(thread), checkpoint, {}, {"a": str(index)})

                list(pool.map(put, range(20)))
                assert len(list(sync_savers[0].list(config_of(thread)))) == 20


async def test_an_engine_is_left_alone(database: Database, thread: str) -> None:
    """No connection stays checked out, and the engine is neither disposed of nor listened to."""
    async with database.engine(pool_size=2) as engine:
        sync_engine = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        pool = sync_engine.pool
        client = Client(saver_on(engine), database.backend)
        saved = await client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        await client.setup()
        async for _ in client.iterate(config_of(thread)):
            assert pool.checkedout() == 0  # type: ignore[attr-defined]
            assert await client.get_tuple(saved) is not None
            break

        assert pool.checkedout() == 0  # type: ignore[attr-defined]
        assert sync_engine.pool is pool
        assert not sync_engine.dispatch.begin and not sync_engine.dispatch.before_cursor_execute
        assert sync_engine.get_execution_options() == {}


async def test_inside_a_list_any_other_operation_works_on_a_pool_of_one(database: Database, thread: str) -> None:
    """Known fault elsewhere: list() holds its connection and a lock between two items."""
    async with database.engine(pool_size=1, max_overflow=0, pool_timeout=2) as engine:
        client = Client(saver_on(engine), database.backend)
        config = config_of(thread)
        for _ in range(3):
            config = await client.put(config, checkpoint_of({"a": [1]}), {}, {"a": "1"})

        async for found in client.iterate(config_of(thread)):
            await client.put_writes(found.config, [("a", 2)], "task")
            assert (await client.load(found.config)).pending_writes == [("task", "a", 2)]
        await client.delete_thread(thread)


def test_threads_share_one_database_in_memory() -> None:
    """On a StaticPool all threads have the same connection, where one's rollback would undo another's writes."""
    with SQLAlchemySaver.from_conn_string("sqlite://") as saver, ThreadPoolExecutor(8) as pool:
        saver.setup()

        def use(index: int) -> Any:
            saved = saver.put(
                config_of(f"t{index % 4}"), checkpoint_of({"a": [index]}, {"a": str(index)}), {}, {"a": str(index)}
            )
            saver.put_writes(saved, [("a", index)], "task")
            found = saver.get_tuple(saved)
            assert found is not None
            return found.checkpoint["channel_values"]["a"], found.pending_writes

        found = list(pool.map(use, range(100)))
        assert found == [([index], [("task", "a", index)]) for index in range(100)]
        assert len(list(saver.list(None))) == 100


async def test_tasks_share_one_database_in_memory() -> None:
    async with AsyncSQLAlchemySaver.from_conn_string("sqlite://") as saver:
        await saver.setup()
        await asyncio.gather(
            *(
                saver.aput(config_of("t"), checkpoint_of({"a": [index]}, {"a": str(index)}), {}, {"a": str(index)})
                for index in range(50)
            )
        )
        assert len([found async for found in saver.alist(None)]) == 50


async def test_tasks_share_one_connection_on_each_of_several_loops(tmp_path: Path) -> None:
    """A lock of asyncio belongs to the loop that first waits for it."""
    engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/a.db", poolclass=StaticPool)
    saver = AsyncSQLAlchemySaver(engine)

    async def turn(name: str) -> int:
        await saver.setup()
        await asyncio.gather(*(saver.aput(config_of(name), checkpoint_of(), {}, {}) for _ in range(16)))
        return len([found async for found in saver.alist(config_of(name))])

    assert await asyncio.to_thread(lambda: [asyncio.run(turn("a")), asyncio.run(turn("b"))]) == [16, 16]
    await engine.dispose()


async def test_a_call_that_waits_for_the_pool_can_be_cancelled_at_once(database: Database, thread: str) -> None:
    async with database.engine(pool_size=1, max_overflow=0, pool_timeout=20) as engine:
        if isinstance(engine, AsyncEngine):
            saver = AsyncSQLAlchemySaver(engine)
            async with engine.connect(), asyncio.timeout(10):
                with pytest.raises(TimeoutError):
                    async with asyncio.timeout(0.1):
                        await saver.aget_tuple(config_of(thread))
            assert await saver.aget_tuple(config_of(thread)) is None


def test_our_own_sqlite_engine_uses_wal_and_waits_for_locks(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/a.db"
    with SQLAlchemySaver.from_conn_string(url) as saver, saver._bind.connect(Cancellation()) as connection:
        pragmas = {
            name: connection.exec_driver_sql(f"PRAGMA {name}").scalar()
            for name in ("journal_mode", "busy_timeout", "foreign_keys")
        }
    assert pragmas == {"journal_mode": "wal", "busy_timeout": 30_000, "foreign_keys": 1}


@pytest.mark.parametrize("options", [{}, {"max_overflow": 2}, {"pool_size": 7}, {"poolclass": QueuePool}])
def test_our_own_sqlite_engine_opens_no_connection_for_a_moment_only(tmp_path: Path, options: dict[str, Any]) -> None:
    url, most = f"sqlite:///{tmp_path}/a.db", 7 if "pool_size" in options or "max_overflow" in options else 5
    with SQLAlchemySaver.from_conn_string(url, pool_timeout=0.1, **options) as saver, ExitStack() as stack:
        for _ in range(most):
            stack.enter_context(saver._bind.source.connect())
        with pytest.raises(PoolTimeout):
            saver._bind.source.connect()


def test_our_own_sqlite_engine_takes_the_connection_that_was_used_last(tmp_path: Path) -> None:
    with SQLAlchemySaver.from_conn_string(f"sqlite:///{tmp_path}/a.db") as saver:
        assert connections_in_a_row(saver._bind.source, 3) == 1


class OwnPool(QueuePool):
    def __init__(self, creator: Any, **options: Any) -> None:
        self.options = options
        super().__init__(creator, **options)


OWN_POOL = QueuePool(lambda: cast(Any, sqlite3.connect(":memory:")))


@pytest.mark.parametrize("options", [{"poolclass": NullPool}, {"poolclass": OwnPool}, {"pool": OWN_POOL}])
def test_our_own_sqlite_engine_has_the_pool_that_it_is_given(tmp_path: Path, options: dict[str, Any]) -> None:
    with SQLAlchemySaver.from_conn_string(f"sqlite:///{tmp_path}/a.db", **options) as saver:
        pool = saver._bind.source.pool
        assert isinstance(pool, options.get("poolclass", QueuePool))
        assert "max_overflow" not in getattr(pool, "options", {})


@pytest.mark.parametrize("saver_type", [SQLAlchemySaver, AsyncSQLAlchemySaver])
async def test_our_own_sqlite_engine_waits_for_a_writer_before_it_switches_to_wal(
    saver_type: type[SQLAlchemySaver] | type[AsyncSQLAlchemySaver], tmp_path: Path
) -> None:
    """SQLite's busy_timeout does not apply there: of several processes that open a new file at once, some fail."""
    path = tmp_path / "a.db"
    writer = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    writer.execute("BEGIN IMMEDIATE")
    timer = threading.Timer(0.5, writer.execute, ["COMMIT"])
    timer.start()
    async with entered(saver_type.from_conn_string(f"sqlite:///{path}")) as saver:
        await done(saver.setup())
    timer.join()
    assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    writer.close()


def test_a_host_engine_gets_no_pragma(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/a.db")
    statements: list[str] = []
    event.listen(engine, "before_cursor_execute", lambda _c, _cursor, statement, *_: statements.append(statement))
    saver = SQLAlchemySaver(engine)
    saver.setup()
    saver.put(config_of("t"), checkpoint_of({"a": [1]}), {}, {"a": "1"})
    # Reading the schema takes PRAGMAs, too, but none that sets anything.
    assert not [statement for statement in statements if "PRAGMA" in statement and "=" in statement]
    engine.dispose()


def test_engine_options_reach_the_engine() -> None:
    with SQLAlchemySaver.from_conn_string("sqlite://", echo=False, poolclass=StaticPool, hide_parameters=True) as saver:
        source = saver._bind.source
        assert source.hide_parameters


@pytest.mark.parametrize("scheme", ["postgresql", "postgres", "postgresql+psycopg"])
def test_a_postgresql_dsn_means_psycopg(scheme: str, new_postgres: Any) -> None:
    url = new_postgres().set(drivername="postgresql").render_as_string(hide_password=False)
    with SQLAlchemySaver.from_conn_string(url.replace("postgresql", scheme, 1)) as saver:
        saver.setup()
        assert saver._bind.source.dialect.driver == "psycopg"
        assert list(saver.list(None)) == []


@pytest.mark.parametrize(
    ("scheme", "driver"),
    [("postgresql", "psycopg"), ("postgres", "psycopg"), ("postgresql+asyncpg", "asyncpg")],
)
async def test_a_postgresql_dsn_means_async_psycopg(scheme: str, driver: str, new_postgres: Any) -> None:
    url = new_postgres().set(drivername="postgresql").render_as_string(hide_password=False)
    async with AsyncSQLAlchemySaver.from_conn_string(url.replace("postgresql", scheme, 1)) as saver:
        await saver.setup()
        assert saver._bind.source.dialect.driver == driver
        assert [found async for found in saver.alist(None)] == []


async def test_from_conn_string_disposes_of_its_engine(tmp_path: Path) -> None:
    with SQLAlchemySaver.from_conn_string(f"sqlite:///{tmp_path}/a.db") as saver:
        saver.setup()
    assert saver._bind.source.pool.checkedin() == 0
    url = f"sqlite:///{tmp_path}/a.db"
    async with AsyncSQLAlchemySaver.from_conn_string(url, poolclass=AsyncAdaptedQueuePool) as async_saver:
        await async_saver.setup()
    assert async_saver._bind.source.pool.checkedin() == 0


async def test_an_async_saver_made_before_any_loop_serves_several_loops(tmp_path: Path) -> None:
    """A graph is often compiled at import time, and asyncio.run called more than once."""

    def program() -> list[Any]:
        engine = create_async_engine(f"sqlite+aiosqlite:///{tmp_path}/a.db")
        saver = AsyncSQLAlchemySaver(engine)

        async def turn(index: int) -> Any:
            await saver.setup()
            saved = await saver.aput(
                config_of("t"), checkpoint_of({"a": [index]}, {"a": str(index)}), {}, {"a": str(index)}
            )
            found = await asyncio.to_thread(saver.get_tuple, saved)
            await engine.dispose()
            assert found is not None
            return found.checkpoint["channel_values"]

        return [asyncio.run(turn(index)) for index in range(2)]

    assert await asyncio.to_thread(program) == [{"a": [0]}, {"a": [1]}]
