"""Awaited calls that are given up: what is the caller's stays as it was, and nothing of the call is left."""

from __future__ import annotations

import asyncio
import gc
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import sqlalchemy
from sqlalchemy import create_engine, event, text
from sqlalchemy.ext.asyncio import AsyncEngine

from sa_checkpoint import migrations
from tests import triggers
from tests.backends import Client, Database, done, saver_on, with_sync_driver
from tests.checkpoints import checkpoint_of, config_of
from tests.hosts import connection_on, maker_on, session_on, sync_engine_of
from tests.rows import connection_of, keys_of

# SQLAlchemy 2.0 may leave a connection that was cancelled while it connected to the garbage collector, and drivers warn
# of that.
IS_2_0 = sqlalchemy.__version__.startswith("2.0.")
pytestmark = [pytest.mark.filterwarnings("ignore:.*(unclosed|while still open):ResourceWarning")] if IS_2_0 else []


@pytest.fixture(autouse=True)
def collected() -> Iterator[None]:
    """Have such a connection be collected here, and not in another test."""
    yield
    if IS_2_0:
        gc.collect()


PAUSE_SECONDS = 0.4
_PAUSING = {
    "sqlite": "SELECT pause()",
    "postgresql": f"PERFORM pg_sleep({PAUSE_SECONDS})",
    "mysql": f"DO SLEEP({PAUSE_SECONDS})",
}


@pytest.fixture(scope="module")
def database(database: Database) -> Database:
    engine = create_engine(with_sync_driver(database.url))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE host (id VARCHAR(64) PRIMARY KEY)"))
        # A checkpoint of a thread with this name takes a while to be stored.
        triggers.before("INSERT", connection, "NEW.thread_id LIKE 'slow%'", _PAUSING)
    engine.dispose()
    return database


def add_pause(dbapi_connection: Any, _record: Any) -> None:
    dbapi_connection.create_function("pause", 0, lambda: time.sleep(PAUSE_SECONDS))


@asynccontextmanager
async def engine_of(database: Database, **options: Any) -> AsyncIterator[Any]:
    async with database.engine(**options) as engine:
        if database.backend.dialect == "sqlite":
            event.listen(sync_engine_of(engine), "connect", add_pause)
        yield engine


async def give_up(saver: Any, thread: str) -> None:
    """Cancel a call in the middle of its statement, as a timeout or a client that disconnects would."""
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(PAUSE_SECONDS / 2):
            await saver.aput(config_of(thread), checkpoint_of({"a": ["slow"]}), {}, {"a": "1"})


def host_rows(client: Client) -> set[str]:
    with connection_of(client) as connection:
        return set(connection.scalars(text("SELECT id FROM host")))


OWNERS = pytest.mark.parametrize("owned", [connection_on, session_on], ids=["connection", "session"])


@OWNERS
@pytest.mark.parametrize("isolation_level", [None, "AUTOCOMMIT"])
async def test_a_call_given_up_in_the_callers_transaction_leaves_it_as_it_was(
    client: Client, database: Database, thread: str, owned: Callable[[Any], Any], isolation_level: str | None
) -> None:
    """SQLAlchemy invalidates a connection that is interrupted in a statement, and its transaction is lost."""
    options = {"isolation_level": isolation_level} if isolation_level else {}
    async with engine_of(database, **options) as engine, owned(engine) as owner:
        saver = saver_on(owner)
        await done(owner.execute(text("INSERT INTO host VALUES (:id)"), {"id": f"{thread}-1"}))
        saved = await saver.aput(config_of(thread), checkpoint_of({"a": ["kept"]}), {}, {"a": "1"})

        await give_up(saver, f"slow-{thread}")

        await done(owner.execute(text("INSERT INTO host VALUES (:id)"), {"id": f"{thread}-2"}))
        await saver.aput_writes(saved, [("a", 1)], "task")
        await done(owner.commit())

    assert {f"{thread}-1", f"{thread}-2"} <= host_rows(client)
    assert (await client.load(config_of(thread))).pending_writes == [("task", "a", 1)]
    assert not any(keys_of(client, f"slow-{thread}").values())


async def test_a_call_that_waits_its_turn_is_not_harmed(client: Client, database: Database, thread: str) -> None:
    async with engine_of(database) as engine, session_on(engine) as session:
        saver = saver_on(session)
        first = asyncio.create_task(give_up(saver, f"slow-{thread}"))
        await asyncio.sleep(PAUSE_SECONDS / 4)
        second = asyncio.create_task(saver.aput(config_of(thread), checkpoint_of({"a": ["kept"]}), {}, {"a": "1"}))
        await asyncio.gather(first, second)
        await done(session.commit())
    assert await client.get_tuple(config_of(thread)) is not None
    assert not any(keys_of(client, f"slow-{thread}").values())


async def test_a_call_that_is_given_up_while_it_waits_never_begins(
    client: Client, database: Database, thread: str
) -> None:
    async with engine_of(database) as engine, connection_on(engine) as connection:
        saver = saver_on(connection)
        slow = asyncio.create_task(saver.aput(config_of(f"slow-{thread}"), checkpoint_of(), {}, {}))
        await asyncio.sleep(PAUSE_SECONDS / 4)
        waiting = asyncio.create_task(saver.aput(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"}))
        await asyncio.sleep(PAUSE_SECONDS / 4)
        waiting.cancel()
        with pytest.raises(asyncio.CancelledError):
            await waiting
        await slow
        await saver.aget_tuple(config_of(thread))  # after whatever still waits for its turn
        await done(connection.commit())
    assert await client.get_tuple(config_of(f"slow-{thread}")) is not None
    assert not any(keys_of(client, thread).values())


@pytest.mark.parametrize(
    "make_saver",
    [lambda engine: saver_on(engine, autocommit=False), lambda engine: saver_on(maker_on(engine))],
    ids=["engine", "sessionmaker"],
)
async def test_a_call_given_up_on_a_pool_stores_nothing_and_gives_its_connection_back(
    client: Client, database: Database, thread: str, make_saver: Callable[[Any], Any]
) -> None:
    async with engine_of(database, pool_size=1, max_overflow=0, pool_timeout=5) as engine:
        saver = make_saver(engine)
        for _ in range(2):
            await give_up(saver, f"slow-{thread}")
        assert sync_engine_of(engine).pool.checkedout() == 0  # type: ignore[attr-defined]
        await saver.aput(config_of(thread), checkpoint_of({"a": ["kept"]}), {}, {"a": "1"})
    assert await client.get_tuple(config_of(thread)) is not None
    assert not any(keys_of(client, f"slow-{thread}").values())


async def test_a_single_statement_given_up_on_a_pool_stores_all_or_nothing_and_gives_its_connection_back(
    client: Client, database: Database, thread: str
) -> None:
    """Without a COMMIT after it, a statement that a worker thread has begun comes to its end."""
    async with engine_of(database, pool_size=1, max_overflow=0, pool_timeout=5) as engine:
        saver = saver_on(engine)
        await give_up(saver, f"slow-{thread}")
        assert sync_engine_of(engine).pool.checkedout() == 0  # type: ignore[attr-defined]
        await saver.aput(config_of(thread), checkpoint_of({"a": ["kept"]}), {}, {"a": "1"})
    assert await client.get_tuple(config_of(thread)) is not None
    found = await client.get_tuple(config_of(f"slow-{thread}"))
    if client.backend.id in ("psycopg", "psycopg2", "pymysql"):
        assert found is not None
        assert found.checkpoint["channel_values"] == {"a": ["slow"]}
    else:
        assert not any(keys_of(client, f"slow-{thread}").values())


async def test_a_migration_that_is_given_up_while_another_is_under_way_leaves_the_callers_transaction(
    client: Client, database: Database, thread: str
) -> None:
    async with engine_of(database) as engine, connection_on(engine) as connection:
        if not isinstance(engine, AsyncEngine) or database.backend.dialect != "postgresql":
            return  # nothing to await; SQLite itself makes its writers wait; MariaDB would commit the transaction
        await connection.execute(text("INSERT INTO host VALUES (:id)"), {"id": thread})
        with connection_of(client) as other:
            migrations.upgrade(other)  # and holds the lock until it commits
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(PAUSE_SECONDS):
                    await migrations.aupgrade(connection)
        await migrations.aupgrade(connection)
        await connection.commit()
    assert thread in host_rows(client)


async def test_a_setup_that_is_given_up_leaves_no_lock(database: Database, thread: str) -> None:
    async with engine_of(database) as engine:
        saver = saver_on(engine)
        client = Client(saver, database.backend)
        if not isinstance(engine, AsyncEngine):
            return  # nothing to await
        for tenths in range(10):
            task = asyncio.create_task(client.setup())
            await asyncio.sleep(tenths / 200)
            task.cancel()
            await asyncio.wait([task])
        async with asyncio.timeout(4):  # less than SQLite waits for a lock
            await client.setup()
            await client.put(config_of(thread), checkpoint_of(), {}, {})
