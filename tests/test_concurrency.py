"""Many threads or tasks on one saver: nothing acknowledged is lost, nobody waits for ever, connections come back."""

from __future__ import annotations

import asyncio
import gc
import random
import time
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator
from concurrent.futures import Future
from contextlib import asynccontextmanager, suppress
from threading import Thread
from typing import Any

import pytest
import sqlalchemy
from langgraph.checkpoint.serde.types import ERROR, INTERRUPT, RESUME
from sqlalchemy import URL, NullPool, QueuePool, create_engine, func, select, text

from sa_checkpoint import migrations, models
from tests.backends import BACKENDS, Backend, Client, Database, on_backends, saver_on, with_sync_driver
from tests.checkpoints import checkpoint_of, config_of

Job = Callable[[], Coroutine[Any, Any, Any]]

POOL = 8
WORKERS = 32
ROUNDS = 3


SERVERS = [backend for backend in BACKENDS if backend.dialect != "sqlite"]
on_servers = on_backends(*SERVERS)
on_async_servers = on_backends(*(backend for backend in SERVERS if backend.is_async))
on_async = on_backends(*(backend for backend in BACKENDS if backend.is_async))


@asynccontextmanager
async def pooled(database: Database, *, sqlite_timeout: float = 30) -> AsyncIterator[Client]:
    """A saver on an application's engine with 8 connections. SQLite waits for locks, and is not in WAL mode."""
    options = {"connect_args": {"timeout": sqlite_timeout}} if database.backend.dialect == "sqlite" else {}
    async with database.engine(pool_size=POOL, max_overflow=0, pool_timeout=30, **options) as engine:
        client = Client(saver_on(engine), database.backend)
        yield client
        assert checked_out(client) == 0
    if sqlalchemy.__version__.startswith("2.0."):
        # SQLAlchemy 2.0 may leave a connection that was cancelled while it connected to the garbage collector, and
        # asyncpg warns of that.
        with warnings.catch_warnings(action="ignore", category=ResourceWarning):
            gc.collect()


def checked_out(client: Client) -> int:
    pool = client.sync_engine.pool
    assert isinstance(pool, QueuePool)
    return pool.checkedout()


async def at_once(client: Client, jobs: Iterable[Job], *, seconds: float = 60) -> list[Any]:
    """Run jobs at the same time: each in a task on the async saver, in a thread on the sync one."""
    start = asyncio.create_task if client.backend.is_async else in_thread
    running = [start(job()) for job in jobs]
    async with asyncio.timeout(seconds):
        results = await asyncio.gather(*running, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return results


def in_thread(job: Coroutine[Any, Any, Any]) -> asyncio.Future[Any]:
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(asyncio.run(job))
        except BaseException as error:
            future.set_exception(error)

    Thread(target=run, daemon=True).start()  # a daemon, so that a deadlock fails the test and does not hold the run
    return asyncio.wrap_future(future)


def rows_by_thread(database: Database, prefix: str) -> dict[str, dict[str, int]]:
    """How many rows each table has of each thread that is called so, as another program sees it."""
    counts: dict[str, dict[str, int]] = {}
    with create_engine(with_sync_driver(database.url), poolclass=NullPool).connect() as connection:
        for name, table in models.metadata.tables.items():
            of_these = table.c.thread_id.startswith(prefix, autoescape=True)
            rows = connection.execute(select(table.c.thread_id, func.count()).where(of_these).group_by("thread_id"))
            counts[name] = {thread: number for thread, number in rows}
    return counts


def rows_of(database: Database, thread: str) -> dict[str, int]:
    return {table: counts.get(thread, 0) for table, counts in rows_by_thread(database, thread).items()}


# ------------------------------------------------------------------------------------------------- many at the same


async def test_every_acknowledged_write_of_32_workers_is_there(database: Database, thread: str) -> None:
    async with pooled(database) as client:
        shared = await client.put(config_of(thread), checkpoint_of(), {"shared": thread}, {})

        async def put(parent: Any, value: Any) -> Any:
            version = client.saver.get_next_version(None, None)
            checkpoint = checkpoint_of({"a": value, "inline": str(value)}, {"a": version, "inline": version})
            return await client.put(parent, checkpoint, {"value": str(value)}, {"a": version, "inline": version})

        async def work(worker: int) -> list[tuple[Any, Any]]:
            acknowledged = []
            own = config_of(f"{thread}-{worker}")
            for round in range(ROUNDS):
                value = [worker, round]
                own = await put(own, value)
                await client.put_writes(own, [("a", value), ("b", value)], f"task {worker}")
                child = await put(shared, value)
                await client.put_writes(child, [("a", value), ("b", value)], f"task {worker}")
                await client.put_writes(shared, [("a", value)], f"task {worker} {round}")
                acknowledged += [(own, value), (child, value)]
                for config in (own, child):
                    assert (await client.load(config)).checkpoint["channel_values"]["a"] == value

                side = f"{thread}-{worker}-side"
                await put(config_of(side), value)
                assert len(await client.list(config_of(side))) == 1
                await client.delete_thread(side)
                assert await client.get_tuple(config_of(side)) is None
                assert len(await client.list(config_of(thread), filter={"value": str(value)})) == 1
            return acknowledged

        workers = [lambda worker=worker: work(worker) for worker in range(WORKERS)]
        results = await at_once(client, workers)

        for config, value in [pair for acknowledged in results for pair in acknowledged]:
            found = await client.load(config)
            assert found.checkpoint["channel_values"] == {"a": value, "inline": str(value)}
            assert found.pending_writes == [(f"task {value[0]}", channel, value) for channel in "ab"]
        assert len(await client.list(config_of(thread))) == WORKERS * ROUNDS + 1
        assert sorted((await client.load(shared)).pending_writes or ()) == sorted(
            (f"task {worker} {round}", "a", [worker, round]) for worker in range(WORKERS) for round in range(ROUNDS)
        )


async def test_the_same_checkpoint_and_writes_put_at_once_are_there_once(database: Database, thread: str) -> None:
    """A run that is resumed in two processes replays the same steps in both."""
    values = {f"channel {number}": [number] for number in range(20)}
    checkpoint = checkpoint_of(values)
    writes: list[Any] = [(channel, value) for channel, value in values.items()]
    special = [(ERROR, "e"), (INTERRUPT, ["i"]), (RESUME, "r")]
    async with pooled(database) as client:
        saved = config_of(thread, "", checkpoint["id"])

        async def replay() -> None:
            for _ in range(5):
                assert await client.put(config_of(thread), checkpoint, {"step": 1}, dict.fromkeys(values, "1")) == saved
                await client.put_writes(saved, writes, "task")
                await client.put_writes(saved, special, "task")

        await at_once(client, [replay] * 8)
        before = await client.load(saved)
        await at_once(client, [replay] * 8)

        assert await client.load(saved) == before
        assert before.checkpoint == checkpoint
        assert len(before.pending_writes or ()) == len(writes) + len(special)
        assert rows_of(database, thread) == {
            "checkpoints": 1,
            "checkpoint_blobs": len(values),
            "checkpoint_writes": len(writes) + len(special),
        }


async def test_a_thread_may_be_deleted_while_others_write_to_it(database: Database, thread: str) -> None:
    async with pooled(database) as client:

        async def write() -> None:
            config = config_of(thread)
            for round in range(10):
                config = await client.put(config, checkpoint_of({"a": [round]}), {}, {"a": "1"})
                await client.put_writes(config, [("a", round), ("b", round)], "task")

        async def delete() -> None:
            for _ in range(10):
                await client.delete_thread(thread)

        await at_once(client, [write, delete] * 4)
        await client.delete_thread(thread)
        assert set(rows_of(database, thread).values()) == {0}


# ------------------------------------------------------------------------------------------- waiting in the database


_WAIT = {
    "postgresql": "CREATE TRIGGER wait BEFORE INSERT ON {table} FOR EACH ROW WHEN (NEW.thread_id LIKE '{threads}') "
    "EXECUTE FUNCTION wait({seconds})",
    "mysql": "CREATE TRIGGER wait_{table} BEFORE INSERT ON {table} FOR EACH ROW "
    "IF NEW.thread_id LIKE '{threads}' THEN DO SLEEP({seconds}); END IF",
}


@pytest.fixture(scope="module")
def slow_database(backend: Backend, new_url: Callable[[Backend], URL]) -> Iterator[Database]:
    """A server that takes a second to store a checkpoint of a thread "slow…", and 0.1 s for a row of "rows…"."""
    url = new_url(backend)
    engine = create_engine(with_sync_driver(url))
    migrations.upgrade(engine)
    with engine.begin() as connection:
        if backend.dialect == "postgresql":
            connection.execute(
                text(
                    "CREATE FUNCTION wait() RETURNS trigger LANGUAGE plpgsql AS"
                    " $$ BEGIN PERFORM pg_sleep(TG_ARGV[0]::float); RETURN NEW; END $$"
                )
            )
        for table, threads, seconds in (
            ("checkpoints", "slow%", 1),
            ("checkpoint_blobs", "rows%", 0.1),
            ("checkpoint_writes", "rows%", 0.1),
        ):
            connection.execute(text(_WAIT[backend.dialect].format(table=table, threads=threads, seconds=seconds)))
    engine.dispose()
    yield Database(backend, url)


# InnoDB locks the gap in which a row is looked for before it is inserted.
@on_backends(*SERVERS)
async def test_operations_wait_in_the_database_side_by_side(slow_database: Database) -> None:
    """Known fault elsewhere: a lock in the saver lets one operation at a time use the pool."""
    async with pooled(slow_database) as client:
        put = [
            lambda number=number: client.put(config_of(f"slow {number}"), checkpoint_of({"a": [1]}), {}, {"a": "1"})
            for number in range(3)
        ]
        started = time.perf_counter()
        saved = await at_once(client, put)
        assert 1 <= time.perf_counter() - started < 2.2
        for config in saved:
            assert (await client.load(config)).checkpoint["channel_values"] == {"a": [1]}


@on_backends(*(one for one in BACKENDS if one.strategy == "sqlite"))
async def test_writers_of_a_process_do_not_come_upon_sqlites_lock(database: Database, thread: str) -> None:
    """They take turns, and so none has to look again and again: here SQLite does not wait at all."""
    async with pooled(database, sqlite_timeout=0) as client:

        def put(number: int) -> Job:
            return lambda: client.put(config_of(f"{thread} {number}"), checkpoint_of({"a": [1]}), {}, {"a": "1"})

        await at_once(client, [put(number) for number in range(100)])
        assert len(rows_by_thread(database, thread)["checkpoints"]) == 100


@on_servers
@pytest.mark.parametrize("channels", [("a", "b"), (ERROR, INTERRUPT)], ids=["ordinary writes", "special writes"])
async def test_the_same_rows_in_another_order_do_not_wait_for_each_other(
    slow_database: Database, thread: str, channels: tuple[str, ...]
) -> None:
    """Known fault: two statements that lock the same rows in opposite orders are a deadlock."""
    config = config_of(f"rows {thread}", "", "1")
    versions: Any = dict.fromkeys(channels, "1")
    async with pooled(slow_database) as client:

        async def store(order: tuple[str, ...]) -> None:
            await client.put(config, checkpoint_of({channel: [1] for channel in order}, versions), {}, versions)

        async def write(order: tuple[str, ...]) -> None:
            await client.put_writes(config, [(channel, 1) for channel in order], "task")

        for job in (store, write):
            await at_once(client, [lambda job=job: job(channels), lambda job=job: job(channels[::-1])])  # type: ignore[misc]


@on_async_servers
async def test_a_put_cancelled_inside_its_statement_leaves_nothing_and_a_clean_pool(
    slow_database: Database, thread: str
) -> None:
    slow = f"slow {thread}"
    async with pooled(slow_database) as client:
        for after in (0.1, 0.4, 0.7):
            # More of them than connections, so that some are cancelled while they wait for one.
            tasks = [
                asyncio.create_task(client.put(config_of(slow), checkpoint_of({"a": [1]}), {}, {"a": "1"}))
                for _ in range(POOL + 2)
            ]
            await asyncio.sleep(after)
            for task in tasks:
                task.cancel()
            async with asyncio.timeout(10):
                results = await asyncio.gather(*tasks, return_exceptions=True)
            assert all(isinstance(result, asyncio.CancelledError) for result in results)
            assert checked_out(client) == 0

        assert set(rows_of(slow_database, slow).values()) == {0}
        saved = await client.put(config_of(slow), checkpoint_of({"a": [2]}), {}, {"a": "1"})
        assert (await client.load(saved)).checkpoint["channel_values"] == {"a": [2]}


@on_async_servers
async def test_a_timeout_of_the_application_ends_an_operation(slow_database: Database, thread: str) -> None:
    slow = f"slow {thread}"
    async with pooled(slow_database) as client:
        started = time.perf_counter()
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.2):
                await client.put(config_of(slow), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        assert time.perf_counter() - started < 0.9
        assert set(rows_of(slow_database, slow).values()) == {0}


@on_async
@pytest.mark.parametrize("times", [1, 2], ids=["once", "twice"])
async def test_whenever_a_task_is_cancelled_each_operation_is_done_or_not(
    database: Database, thread: str, times: int
) -> None:
    chance = random.Random(times)
    values = {"a": ["a"], "b": ["b"], "c": "c"}
    versions = dict.fromkeys(values, "1")
    writes = [(channel, 1) for channel in values]
    acknowledged: set[tuple[str, str]] = set()
    threads: list[str] = []
    async with pooled(database, sqlite_timeout=5) as client:

        async def work() -> None:
            for _ in range(3):
                name = f"{thread} {len(threads)}"
                threads.append(name)
                saved = await client.put(config_of(name), checkpoint_of(values), {}, versions)
                acknowledged.add((name, "checkpoints"))
                await client.put_writes(saved, writes, "task")
                acknowledged.add((name, "checkpoint_writes"))
                assert (await client.load(saved)).checkpoint["channel_values"] == values

        async def work_and_cancel() -> None:
            task = asyncio.create_task(work())
            for _ in range(times):
                await asyncio.sleep(chance.uniform(0, usual))
                task.cancel()
            with suppress(asyncio.CancelledError):
                await task

        started = time.perf_counter()
        await at_once(client, [work] * POOL * 2)
        usual = time.perf_counter() - started
        for _ in range(5):
            await at_once(client, [work_and_cancel] * POOL * 2)
            assert checked_out(client) == 0

        stored = rows_by_thread(database, thread)
        for name in threads:
            found = await client.get_tuple(config_of(name))
            rows = {table: counts.get(name, 0) for table, counts in stored.items()}
            assert found is None or found.checkpoint["channel_values"] == values
            assert rows["checkpoint_blobs"] == (2 if found else 0)
            assert rows["checkpoint_writes"] in {0, len(writes)}
            for table in ("checkpoints", "checkpoint_writes"):
                assert rows[table] or (name, table) not in acknowledged
        assert 0 < len(stored["checkpoint_writes"]) < len(threads)


@on_async
async def test_a_read_that_was_cancelled_keeps_no_writer_waiting(database: Database, thread: str) -> None:
    """Known fault: SQLAlchemy leaves its cursor open, and with it SQLite's lock, until the garbage collector comes."""
    async with pooled(database, sqlite_timeout=1) as client:
        saved = await client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        for turns in range(40):
            task = asyncio.create_task(client.get_tuple(saved))
            await asyncio.sleep(turns % 20 / 10_000)
            task.cancel()
            with suppress(asyncio.CancelledError):
                await task
            await client.put_writes(saved, [("a", turns)], f"task {turns}")
        assert len((await client.load(saved)).pending_writes or ()) == 40
