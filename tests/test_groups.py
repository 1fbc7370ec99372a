"""Writers to SQLite who wait for each other are committed together; what one does wrong or gives up is its own."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import URL, NullPool, create_engine, event
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncEngine

from sa_checkpoint import SQLAlchemySaver
from sa_checkpoint.errors import SchemaOutOfDate
from tests import triggers
from tests.backends import Backend, Client, Database, entered, on_strategies, saver_on
from tests.checkpoints import checkpoint_of, config_of
from tests.hosts import sync_engine_of
from tests.rows import connection_of, keys_of

pytestmark = on_strategies("sqlite")


@asynccontextmanager
async def writers(
    database: Database, *, seconds: float = 30, **options: Any
) -> AsyncIterator[tuple[Client, list[str]]]:
    """A saver on an application's engine, whose a… methods may have many threads, and what SQLite executes for it."""
    executed: list[str] = []

    def trace(dbapi_connection: Any, _record: Any) -> None:
        if database.backend.is_async:
            dbapi_connection.run_async(lambda driver: driver.set_trace_callback(executed.append))
        else:
            dbapi_connection.set_trace_callback(executed.append)

    with ThreadPoolExecutor(200) as executor:
        asyncio.get_running_loop().set_default_executor(executor)
        # With a size, an engine on aiosqlite has a pool in older versions of SQLAlchemy, too.
        async with database.engine(connect_args={"timeout": seconds}, **{"pool_size": 5, **options}) as engine:
            event.listen(sync_engine_of(engine), "connect", trace)
            yield Client(saver_on(engine), database.backend), executed


@contextmanager
def locked(database: Database) -> Iterator[sqlite3.Connection]:
    """Have another program hold the write lock."""
    other = sqlite3.connect(str(database.url.database), isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield other
    finally:
        other.close()


def begin_put(client: Client, thread: str) -> asyncio.Task[Any]:
    values = {"messages": [thread], "inline": thread}
    return asyncio.ensure_future(client.saver.aput(config_of(thread), checkpoint_of(values), {}, {"messages": "1"}))


def group_of(client: Client) -> Any:
    bind: Any = client.saver._bind
    return bind._groups._group(bind.source.pool)


async def waiting(client: Client, number: int) -> None:
    """Wait until so many wait for the one who leads, who is among them until it has the lock, or turned out alone."""
    leaders = 0 if client.backend.is_async else 1
    for _ in range(1000):
        if len(group_of(client)._waiting) == number + leaders:
            return
        await asyncio.sleep(0.01)
    raise TimeoutError


@asynccontextmanager
async def one_leads(client: Client, database: Database, others: list[str]) -> AsyncIterator[list[asyncio.Task[Any]]]:
    """Have one writer wait for another program's lock, and others for that one, until the end of the block."""
    with locked(database):
        first = begin_put(client, f"first of {others[0]}")
        await asyncio.sleep(0.1)
        tasks = []
        for number, thread in enumerate(others, start=1):
            tasks.append(begin_put(client, thread))
            await waiting(client, number)
        yield tasks
    await first


def stored(client: Client, thread: str) -> bool:
    """Whether a thread is there; if so, all of it."""
    keys = keys_of(client, thread)
    counts = {len(keys["checkpoints"]), len(keys["checkpoint_blobs"])}
    assert counts in ({0}, {1})
    return counts == {1}


def commits(executed: list[str]) -> int:
    return sum(statement.strip().upper() == "COMMIT" for statement in executed)


async def test_those_who_wait_are_committed_together(database: Database, thread: str) -> None:
    threads = [f"{thread} {number}" for number in range(20)]
    async with writers(database) as (client, executed):
        async with one_leads(client, database, threads) as tasks:
            executed.clear()
        saved = await asyncio.gather(*tasks)
        # On aiosqlite the one who led was alone when its statements and COMMIT went to the thread.
        assert commits(executed) == (2 if database.backend.is_async else 1)
        for config, name in zip(saved, threads, strict=True):
            found = await client.load(config)
            assert found.config["configurable"]["thread_id"] == name
            assert found.checkpoint["channel_values"] == {"messages": [name], "inline": name}


async def test_those_who_begin_together_are_committed_together(database: Database, thread: str) -> None:
    if not database.backend.is_async:
        return  # of threads nobody knows who is about to begin
    names = [f"{thread} {number}" for number in range(20)]
    async with writers(database) as (client, executed):
        await begin_put(client, thread)
        executed.clear()
        await asyncio.gather(*(begin_put(client, name) for name in names))
        assert commits(executed) == 1
        assert all(stored(client, name) for name in names)


async def test_a_group_is_not_endless(database: Database, thread: str) -> None:
    threads = [f"{thread} {number}" for number in range(100)]
    async with writers(database) as (client, executed):
        async with one_leads(client, database, threads) as tasks:
            executed.clear()
        await asyncio.gather(*tasks)
        # Of 64 and of 37; or of one, of 64 and of 36.
        assert commits(executed) == (3 if database.backend.is_async else 2)
        assert all(stored(client, name) for name in threads)


@pytest.fixture
def own_database(backend: Backend, new_url: Callable[[Backend], URL]) -> Iterator[Database]:
    yield Database(backend, new_url(backend))


async def test_an_error_is_of_the_one_who_made_it(own_database: Database, thread: str) -> None:
    names = [f"{thread} 0", f"refused {thread}", f"{thread} 2"]
    async with writers(own_database) as (client, _):
        await client.setup()
        with connection_of(client) as connection:
            triggers.before("INSERT", connection, "NEW.thread_id LIKE 'refused%'", triggers.refusing())
        async with one_leads(client, own_database, names) as tasks:
            pass
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, DBAPIError) for result in results] == [False, True, False]
        assert "refused" in str(results[1])
        assert [stored(client, name) for name in names] == [True, False, True]
        await client.put(config_of(f"{thread} 3"), checkpoint_of({}), {}, {})


async def test_without_tables_each_is_told_what_to_do(own_database: Database, thread: str) -> None:
    async with writers(own_database) as (client, _):
        await client.setup()
        with connection_of(client) as connection:
            connection.exec_driver_sql("DROP TABLE checkpoint_blobs")
        tasks = [begin_put(client, f"{thread} {number}") for number in range(5)]
        for result in await asyncio.gather(*tasks, return_exceptions=True):
            assert isinstance(result, SchemaOutOfDate)
            assert "alembic upgrade head" in str(result)


async def test_of_a_call_that_is_given_up_while_it_waits_nothing_is_stored(database: Database, thread: str) -> None:
    names = [f"{thread} {number}" for number in range(3)]
    async with writers(database) as (client, _):
        async with one_leads(client, database, names) as tasks:
            tasks[1].cancel()
            await asyncio.sleep(0.1)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [False, True, False]
        assert [stored(client, name) for name in names] == [True, False, True]


async def test_of_a_call_that_is_given_up_while_it_is_executed_nothing_is_stored(
    own_database: Database, thread: str
) -> None:
    names = [f"{thread} 0", f"{thread} 1", f"slow {thread}"]
    loop = asyncio.get_running_loop()
    tasks: list[asyncio.Task[Any]] = []

    def give_up() -> None:
        loop.call_soon_threadsafe(tasks[1].cancel)
        time.sleep(0.1)

    def add_function(dbapi_connection: Any, _record: Any) -> None:
        dbapi_connection.create_function("give_up", 0, give_up)

    async with writers(own_database) as (client, _):
        event.listen(client.sync_engine, "connect", add_function)
        await client.setup()
        with connection_of(client) as connection:
            triggers.before("INSERT", connection, "NEW.thread_id LIKE 'slow%'", {"sqlite": "SELECT give_up()"})
        async with one_leads(client, own_database, names) as begun:
            tasks += begun
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [False, True, False]
        assert [stored(client, name) for name in names] == [True, False, True]


async def test_who_waits_for_too_long_says_so_and_the_next_ones_go_on(database: Database, thread: str) -> None:
    names = [f"{thread} {number}" for number in range(3)]
    async with writers(database, seconds=0.5) as (client, _):
        with locked(database):
            tasks = [begin_put(client, name) for name in names]
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, OperationalError) and "locked" in str(result) for result in results)
        assert not any(stored(client, name) for name in names)
        await begin_put(client, names[0])
        assert stored(client, names[0])


async def test_who_waits_for_the_pool_for_too_long_says_so_and_waits_no_longer(
    database: Database, thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[int] = []
    async with writers(database, pool_size=1, max_overflow=0, pool_timeout=0.5) as (client, _):
        engine = client.sync_engine
        async with entered(AsyncEngine(engine).connect() if client.backend.is_async else engine.connect()):
            connect = engine.pool.connect

            def asking() -> Any:
                asked.append(1)
                return connect()

            monkeypatch.setattr(engine.pool, "connect", asking)
            tasks = [begin_put(client, f"{thread} {number}") for number in range(3)]
            results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [type(result) for result in results] == [PoolTimeout] * 3
        assert len(asked) == 3
        await begin_put(client, thread)
        assert stored(client, thread)


@pytest.mark.parametrize("name", ["begin", "commit", "before_cursor_execute", "checkout", "checkin", "reset"])
async def test_who_listens_is_told_of_each_transaction_and_connection(
    database: Database, thread: str, name: str
) -> None:
    names = [f"{thread} {number}" for number in range(5)]
    seen: list[Any] = []
    async with writers(database) as (client, executed):
        event.listen(client.sync_engine, name, lambda *arguments: seen.append(arguments), named=False)
        tasks = [begin_put(client, each) for each in names]
        await asyncio.gather(*tasks)
        assert commits(executed) == 5
        assert len(seen) >= 5
        assert all(stored(client, each) for each in names)


async def test_large_states_and_maintenance_are_transactions_of_their_own(database: Database, thread: str) -> None:
    names = [f"{thread} {number}" for number in range(4)]
    async with writers(database) as (client, executed):
        for name in names:
            await begin_put(client, name)
        executed.clear()
        large = checkpoint_of({"document": "x" * 2_000_000})
        await asyncio.gather(
            *(client.saver.aput(config_of(name), large, {}, {"document": "1"}) for name in names[:2]),
            client.saver.acopy_thread(names[2], f"copy of {thread}"),
            client.saver.aprune([names[3]]),
            client.saver.adelete_thread(f"none of {thread}"),
        )
        assert commits(executed) == 5


async def test_nobody_hangs_and_nothing_is_half_stored_whoever_gives_up(database: Database, thread: str) -> None:
    async with writers(database, pool_size=5, max_overflow=0) as (client, _):
        for round in range(5):
            names = [f"{thread} {round} {number}" for number in range(100)]
            tasks = [begin_put(client, name) for name in names]
            for task in random.sample(tasks, 40):
                await asyncio.sleep(random.random() / 1000)
                task.cancel()
            async with asyncio.timeout(30):
                results = await asyncio.gather(*tasks, return_exceptions=True)
            for name, result in zip(names, results, strict=True):
                if isinstance(result, asyncio.CancelledError):
                    stored(client, name)  # all of it, or nothing
                else:
                    assert not isinstance(result, BaseException)
                    assert stored(client, name)


async def test_each_event_loop_has_writers_of_its_own(database: Database, thread: str) -> None:
    """SQLAlchemy asks for a NullPool where an engine is used on several at the same time, or a dispose() in between."""
    async with writers(database) as (client, _):

        async def put_all(loop: int) -> None:
            async with asyncio.timeout(30):
                await asyncio.gather(*(begin_put(client, f"{thread} {loop} {number}") for number in range(20)))
            await (dispose(client) if client.backend.is_async else asyncio.to_thread(client.sync_engine.dispose))

        for loop in range(3):
            await asyncio.to_thread(asyncio.run, put_all(loop))
        assert all(stored(client, f"{thread} {loop} {number}") for loop in range(3) for number in range(20))


async def dispose(client: Client) -> None:
    await AsyncEngine(client.sync_engine).dispose()


async def test_connections_that_are_not_shared_store_what_is_their_own_callers(
    own_database: Database, thread: str
) -> None:
    """With a pool that keeps none, a connection may depend on who asks for it."""
    folder = Path(str(own_database.url.database)).parent
    tenant: ContextVar[str] = ContextVar("tenant", default="none")
    if own_database.backend.is_async:
        return  # aiosqlite's creator is a coroutine, which is not called in the caller's context

    def connect() -> sqlite3.Connection:
        return sqlite3.connect(folder / f"{thread}-{tenant.get()}.db", timeout=30, check_same_thread=False)

    engine = create_engine("sqlite:///unused.db", creator=connect, poolclass=NullPool)
    saver = SQLAlchemySaver(engine)

    def work(name: str) -> int:
        tenant.set(name)
        saver.setup()
        for number in range(10):
            saver.put(config_of(f"{name} {number}"), checkpoint_of({"a": [name]}), {}, {"a": "1"})
        return len(list(saver.list(None)))

    with ThreadPoolExecutor(8) as executor:
        assert list(executor.map(work, [f"tenant {number}" for number in range(8)])) == [10] * 8


async def test_who_waits_for_one_that_waits_for_the_pool_can_be_cancelled_at_once(
    database: Database, thread: str
) -> None:
    if not database.backend.is_async:
        return  # a thread that waits for a pool cannot be interrupted
    async with writers(database, pool_size=1, max_overflow=0, pool_timeout=30) as (client, _):
        async with AsyncEngine(client.sync_engine).connect():
            tasks = [begin_put(client, f"{thread} {number}") for number in range(4)]
            await asyncio.sleep(0.1)
            for task in tasks:
                task.cancel()
            async with asyncio.timeout(10):
                results = await asyncio.gather(*tasks, return_exceptions=True)
        assert all(isinstance(result, asyncio.CancelledError) for result in results)
        await begin_put(client, thread)
        assert stored(client, thread)
        assert not any(stored(client, f"{thread} {number}") for number in range(4))


async def test_who_waits_for_one_that_waits_for_another_program_can_be_cancelled_at_once(
    database: Database, thread: str
) -> None:
    async with writers(database) as (client, _):
        async with one_leads(client, database, [f"{thread} 0", f"{thread} 1"]) as tasks:
            tasks[0].cancel()
            if database.backend.is_async:  # a thread looks when it is woken
                async with asyncio.timeout(10):
                    await asyncio.wait([tasks[0]])
        await asyncio.gather(*tasks, return_exceptions=True)
        assert [stored(client, f"{thread} {number}") for number in range(2)] == [False, True]


async def test_a_leader_that_has_gone_without_a_word_holds_nobody_up(database: Database, thread: str) -> None:
    """KeyboardInterrupt may have come anywhere. It comes to threads; an event loop ends with it."""
    if database.backend.is_async:
        return
    async with writers(database) as (client, _):
        group_of(client)._is_led = True
        async with asyncio.timeout(20):
            await asyncio.gather(*(begin_put(client, f"{thread} {number}") for number in range(10)))
        assert not group_of(client)._is_led
        assert all(stored(client, f"{thread} {number}") for number in range(10))


async def test_after_dispose_nobody_waits_for_those_on_the_old_pool(database: Database, thread: str) -> None:
    """A child process has nobody of them, and SQLAlchemy asks it to dispose()."""
    async with writers(database) as (client, _):
        old = group_of(client)
        old._is_led = True
        client.sync_engine.dispose(close=False)
        assert group_of(client) is not old
        async with asyncio.timeout(20):
            await begin_put(client, thread)


async def test_another_saver_on_the_engine_waits_for_its_turn(database: Database, thread: str) -> None:
    async with writers(database) as (client, _):
        second = (
            Client(saver_on(client.saver._bind.source), database.backend) if not database.backend.is_async else client
        )
        names = [f"{thread} {number}" for number in range(20)]
        tasks = [begin_put(random.choice([client, second]), name) for name in names]
        await asyncio.gather(*tasks)
        assert all(stored(client, name) for name in names)
