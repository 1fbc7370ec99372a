"""How many round trips to the server an operation is, checkout and return of its connection included.

On PostgreSQL an operation is one statement, and so one round trip: a transaction around it would be two more. It is
real, though, wherever the application's engine gives transactions a meaning of its own. And a pooled connection comes
back as it was: the application's next transaction on it is one that can be rolled back.
"""

from __future__ import annotations

import asyncio
import gc
import warnings
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from contextvars import ContextVar
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import URL, Connection, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.pool import QueuePool

from sa_checkpoint import migrations
from sa_checkpoint.errors import SchemaOutOfDate
from tests import triggers
from tests.backends import BACKENDS, Backend, Client, Database, done, entered, on_backends, saver_on, with_sync_driver
from tests.checkpoints import checkpoint_of, config_of
from tests.hosts import sync_engine_of
from tests.rows import connection_of, cut_connections, keys_of, statements_of
from tests.tenants import guarded
from tests.usage import put_chain, use, use_graphs
from tests.wire import Tap, TappedDatabase, tap_on

Call = Callable[[], Coroutine[Any, Any, Any]]

ONE = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 20}
# Drivers prepare a statement that has been used often, with a round trip more: psycopg at the sixth time.
WARM_UP = 8
TRANSACTION = (b"BEGIN", b"START TRANSACTION", b"COMMIT", b"ROLLBACK")
REFUSED, SLOW = "refused", "slow"
"""What the name of a thread begins with whose checkpoints the server refuses, or takes half a second to store."""

POSTGRESQL = [one for one in BACKENDS if one.dialect == "postgresql" and not one.is_portable]
MYSQL = [one for one in BACKENDS if one.dialect == "mysql" and not one.is_portable]
on_postgresql = on_backends(*POSTGRESQL)
on_async_postgresql = on_backends(*(one for one in POSTGRESQL if one.is_async))


def new_database(url: URL) -> None:
    """Make our tables and one of the application's, in a database that refuses some threads and is slow with others."""
    engine = create_engine(with_sync_driver(url))
    migrations.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE host (id VARCHAR(99) PRIMARY KEY)"))
        condition = "NEW.thread_id LIKE '{}%'"
        triggers.before("INSERT", connection, condition.format(REFUSED), triggers.refusing())
        if engine.dialect.name == "postgresql":
            triggers.before("INSERT", connection, condition.format(SLOW), {"postgresql": "PERFORM pg_sleep(0.5)"})
    engine.dispose()


@pytest.fixture(scope="module", params=[*POSTGRESQL, *MYSQL], ids=lambda backend: backend.id)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each of the drivers of a server in turn."""
    assert isinstance(request.param, Backend)
    return request.param


@pytest.fixture(scope="module")
def server(backend: Backend, new_url: Callable[[Backend], URL]) -> URL:
    """A database with our tables, past the tap."""
    url = new_url(backend)
    new_database(url)
    return url


@pytest.fixture(scope="module")
def tap(server: URL) -> Iterator[Tap]:
    with tap_on(server) as tap:
        yield tap


@pytest.fixture(scope="module")
def database(backend: Backend, tap: Tap) -> Database:
    """The same database through the tap."""
    return TappedDatabase(backend, tap.url)


@asynccontextmanager
async def client_on(database: Database, saver: dict[str, Any] | None = None, **options: Any) -> AsyncIterator[Client]:
    """A saver on an engine of one connection, which has to be back in the pool in the end."""
    async with database.engine(**ONE, **options) as engine:
        client = Client(saver_on(engine, **saver or {}), database.backend)
        yield client
        pool = client.sync_engine.pool
        assert isinstance(pool, QueuePool) and pool.checkedout() == 0


async def flights_of(tap: Tap, client: Client, thread: str) -> dict[str, list[bytes]]:
    """What the client sent for each operation, in the last of some turns, by round trips."""
    found: dict[str, list[bytes]] = {}

    async def measured(name: str, call: Coroutine[Any, Any, Any]) -> Any:
        with tap.recorded() as found[name]:
            return await call

    values = {"a": [1], "b": {"c": 2}, "d": "inline"}
    versions: Any = dict.fromkeys(values, "1")
    for turn in range(WARM_UP + 1):
        config = config_of(f"{thread} {turn}")
        saved = await measured("put", client.put(config, checkpoint_of(values), {}, versions))
        inline = checkpoint_of({"d": "inline"})
        saved = await measured("put without blobs", client.put(saved, inline, {}, {"d": "1"}))
        saved = await measured("put of an update", client.put(saved, inline, {}, {}))
        writes = [("a", 1), ("b", [2]), ("c", "3")]
        await measured("put_writes", client.put_writes(saved, writes, "task"))
        special = [("__error__", 1), ("__interrupt__", 2), ("__resume__", 3)]
        await measured("put_writes that replace", client.put_writes(saved, special, "task"))
        assert await measured("get_tuple of the latest", client.get_tuple(config))
        assert await measured("get_tuple by id", client.get_tuple(saved))
        assert not await measured("get_tuple of nothing", client.get_tuple(config_of(f"{thread} none")))
        assert len(await measured("list", client.list(config))) == 2
        assert not await measured("list with a filter", client.list(config, filter={"step": 1}))
        await measured("delta history", client.delta_history(saved, ["a"]))
        await measured("delete_thread", client.delete_thread(f"{thread} {turn}"))
    return found


def numbers(flights: dict[str, list[bytes]]) -> dict[str, int]:
    return {name: len(sent) for name, sent in flights.items()}


OPERATIONS = (
    "put",
    "put without blobs",
    "put of an update",
    "put_writes",
    "put_writes that replace",
    "get_tuple of the latest",
    "get_tuple by id",
    "get_tuple of nothing",
    "list",
    "list with a filter",
    "delta history",
    "delete_thread",
)
READS = OPERATIONS[5:11]


def all_in(number: int) -> dict[str, int]:
    """The same number for every operation."""
    return dict.fromkeys(OPERATIONS, number)


async def test_the_tap_hears_each_round_trip_of_the_applications_own(tap: Tap, database: Database) -> None:
    """What the other tests go by: BEGIN, a statement and COMMIT are three."""
    async with database.engine(**ONE) as engine:
        for _ in range(WARM_UP):
            with tap.recorded() as flights:
                async with entered(engine.begin()) as connection:
                    await done(connection.execute(text("SELECT 'the host''s own'")))
        sent = b"".join(flights)
        assert b"COMMIT" in sent
        # asyncpg has prepared the statement, and PyMySQL and asyncmy begin with it; the pool's ROLLBACK is the third.
        is_postgresql = database.backend.dialect == "postgresql"
        assert len(flights) == 3 and (b"BEGIN" if is_postgresql else b"ROLLBACK") in sent


# ------------------------------------------------------------------------------------------------------- one round trip


@on_postgresql
@pytest.mark.parametrize("autocommit", [None, True])
async def test_each_operation_on_an_engine_is_one_round_trip(
    tap: Tap, database: Database, thread: str, autocommit: bool | None
) -> None:
    async with client_on(database, {"autocommit": autocommit}) as client:
        flights = await flights_of(tap, client, thread)
    assert numbers(flights) == all_in(1)
    assert not [name for name, sent in flights.items() if any(word in b"".join(sent) for word in TRANSACTION)]


@on_postgresql
async def test_each_operation_on_an_engine_in_autocommit_is_one_round_trip(
    tap: Tap, database: Database, thread: str
) -> None:
    async with client_on(database, isolation_level="AUTOCOMMIT") as client:
        flights = await flights_of(tap, client, thread)
        assert numbers(flights) == all_in(1)
        assert not [name for name, sent in flights.items() if any(word in b"".join(sent) for word in TRANSACTION)]
        # It is as the application set it: what it does is committed at once.
        await host_insert(client, thread, rolled_back=True)
    assert is_there(client, thread)


@on_postgresql
async def test_tracing_sees_the_statement_of_a_round_trip(database: Database, thread: str) -> None:
    async with client_on(database) as client:
        saved = await client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        for call, part in (
            (lambda: client.put(saved, checkpoint_of({"a": [1]}), {}, {"a": "1"}), "INSERT INTO checkpoints "),
            (lambda: client.put_writes(saved, [("a", 1)], "task"), "INSERT INTO checkpoint_writes "),
            (lambda: client.get_tuple(saved), "FROM checkpoints "),
            (lambda: client.list(saved), "FROM checkpoints "),
            (lambda: client.delete_thread(thread), "DELETE FROM checkpoints "),
        ):
            with statements_of(client) as statements:
                await call()
            assert len(statements) == 1 and part in statements[0].replace("\n", " ")


@on_postgresql
async def test_an_operation_of_several_statements_is_all_or_nothing(tap: Tap, database: Database, thread: str) -> None:
    async with client_on(database) as client:
        await put_chain(client, thread)
        calls: list[Call] = [
            lambda: client.copy_thread(thread, f"{thread} copy"),
            lambda: client.prune([thread]),
            lambda: client.delete_for_runs([f"{thread} second"]),
        ]
        for call in calls:
            with tap.recorded() as flights:
                await call()
            sent = b"".join(flights)
            assert b"BEGIN" in sent and b"COMMIT" in sent
        await put_chain(client, thread)
        before = keys_of(client, thread)
        with pytest.raises(DBAPIError, match="refused"):
            await client.copy_thread(thread, f"{REFUSED} {thread}")
        assert keys_of(client, thread) == before
        assert not any(keys_of(client, f"{REFUSED} {thread}").values())


# ------------------------------------------------------------------------------------------------------- a transaction


def ends(flights: dict[str, list[bytes]]) -> dict[str, bool]:
    """Whether each operation was a transaction on the wire: it has begun, and it has ended."""
    sent = {name: b"".join(flight) for name, flight in flights.items()}
    return {
        name: b"BEGIN" in found and (b"COMMIT" in found or (name in READS and b"ROLLBACK" in found))
        for name, found in sent.items()
    }


@on_postgresql
@pytest.mark.parametrize("given", ["begin listener", "isolation level", "copy's isolation level", "autocommit=False"])
async def test_an_operation_is_a_transaction_where_that_means_something(
    tap: Tap, database: Database, thread: str, given: str
) -> None:
    """BEGIN, the statement, and COMMIT: three round trips."""
    level = {"isolation_level": "REPEATABLE READ"}
    async with database.engine(**ONE, **(level if given == "isolation level" else {})) as engine:
        bind = engine.execution_options(**level) if given == "copy's isolation level" else engine
        begun: list[Connection] = []
        if given == "begin listener":
            event.listen(sync_engine_of(engine), "begin", begun.append)
        options = {"autocommit": False} if given == "autocommit=False" else {}
        client = Client(saver_on(bind, **options), database.backend)
        flights = await flights_of(tap, client, thread)

    assert ends(flights) == dict.fromkeys(OPERATIONS, True)
    assert numbers(flights) == all_in(3)
    if given == "begin listener":
        assert len(begun) == (WARM_UP + 1) * len(OPERATIONS)
    if "isolation" in given:
        assert all(b"REPEATABLE READ" in b"".join(sent) for sent in flights.values())


@on_postgresql
async def test_a_commit_listener_that_fails_prevents_the_commit(database: Database, thread: str) -> None:
    async with database.engine(**ONE) as engine:
        client = Client(saver_on(engine), database.backend)

        @event.listens_for(sync_engine_of(engine), "commit")
        def refuse(_connection: Connection) -> None:
            raise RuntimeError("refused")

        with pytest.raises(RuntimeError, match="refused"):
            await client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
    async with database.engine(**ONE) as engine:
        assert await Client(saver_on(engine), database.backend).get_tuple(config_of(thread)) is None


@on_postgresql
async def test_an_engine_that_may_write_where_the_servers_default_is_to_read_only(
    database: Database, thread: str
) -> None:
    read_only = {"default_transaction_read_only": "on"}
    by_driver = (
        {"server_settings": read_only}
        if database.backend.id == "asyncpg"
        else {"options": "-c default_transaction_read_only=on"}
    )
    writes = {"postgresql_readonly": False}
    async with database.engine(**ONE, connect_args=by_driver, execution_options=writes) as engine:
        client = Client(saver_on(engine), database.backend)
        if database.backend.id == "asyncpg":  # which has no way to say READ WRITE
            with pytest.raises(DBAPIError, match="read-only"):
                await client.put(config_of(thread), checkpoint_of(), {}, {})
        else:
            await client.put(config_of(thread), checkpoint_of(), {}, {})
            assert await client.get_tuple(config_of(thread)) is not None


@on_backends(*(one for one in POSTGRESQL if one.id == "asyncpg"))
async def test_a_begin_is_sent_where_prepared_statements_are_named_for_pgbouncer(
    tap: Tap, database: Database, thread: str
) -> None:
    named = {"prepared_statement_name_func": lambda: f"__asyncpg_{uuid4()}__"}
    async with database.engine(**ONE, connect_args=named) as engine:
        flights = await flights_of(tap, Client(saver_on(engine), database.backend), thread)
    assert ends(flights) == dict.fromkeys(OPERATIONS, True)


@on_postgresql
async def test_autocommit_may_be_asked_for_in_spite_of_a_begin_listener(
    tap: Tap, database: Database, thread: str
) -> None:
    async with database.engine(**ONE) as engine:
        event.listen(sync_engine_of(engine), "begin", lambda _connection: None)
        client = Client(saver_on(engine, autocommit=True), database.backend)
        flights = await flights_of(tap, client, thread)
    assert numbers(flights) == all_in(1)


@on_postgresql
async def test_a_begin_listener_may_execute_although_autocommit_is_asked_for(database: Database, thread: str) -> None:
    found: list[Any] = []
    async with database.engine(**ONE) as engine:

        @event.listens_for(sync_engine_of(engine), "begin")
        def ask(connection: Connection) -> None:
            found.append(connection.scalar(text("SELECT 1")))

        await use(Client(saver_on(engine, autocommit=True), database.backend), thread)
    assert found and set(found) == {1}


# ----------------------------------------------------------------------------------------------- MySQL's and MariaDB's

# Of a write: its statements as one block, the COMMIT, and the ROLLBACK with which SQLAlchemy's pool takes a connection
# back. Of a read: a statement, and that ROLLBACK.
MARIADB = {**all_in(3), **dict.fromkeys(READS, 2), "delta history": 6}
# The COMMIT is in the block, and then there is nothing to roll back. A filtered list is no statement that is kept, and
# the history is one of several.
MARIADB_IN_ONE = {**all_in(1), "list with a filter": 2, "delta history": 6}


@on_backends(*MYSQL)
async def test_how_many_round_trips_an_operation_is_on_mariadb(tap: Tap, database: Database, thread: str) -> None:
    async with client_on(database) as client:
        flights = await flights_of(tap, client, thread)
    assert numbers(flights) == (MARIADB if client.backend.is_async else MARIADB_IN_ONE)


@on_backends(*(backend for backend in MYSQL if not backend.is_async))
@pytest.mark.parametrize("heard", ["begin", "commit", "rollback", "before_cursor_execute", "autocommit=False", "echo"])
async def test_on_mariadb_a_transaction_that_somebody_listens_for_has_its_own_commit(
    tap: Tap, database: Database, thread: str, heard: str, caplog: pytest.LogCaptureFixture
) -> None:
    seen: list[str] = []
    async with client_on(database, {"autocommit": False} if heard == "autocommit=False" else {}) as client:
        if heard == "echo":
            caplog.set_level("INFO", logger="sqlalchemy.engine")
        elif heard != "autocommit=False":
            event.listen(client.sync_engine, heard, lambda *_: seen.append(heard))
        flights = await flights_of(tap, client, thread)
    assert numbers(flights) == MARIADB
    assert bool(seen) == (heard not in ("autocommit=False", "echo"))


@on_backends(*MYSQL)
async def test_on_mariadb_the_applications_next_transaction_is_a_real_one(database: Database, thread: str) -> None:
    async with client_on(database) as client:
        saved = await client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        calls: list[Call] = [
            lambda: client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"}),
            lambda: client.put_writes(saved, [("a", 1)], "task"),
            lambda: client.put_writes(saved, [], "task"),
            lambda: client.get_tuple(saved),
            lambda: client.list(saved),
            lambda: client.list(saved, filter={"a": 1}),
            lambda: client.prune([thread]),
            lambda: client.delete_thread(thread),
        ]
        for number, call in enumerate(calls):
            await call()
            await assert_transactions_are_real(client, f"{thread} {number}")


@on_backends(*MYSQL)
async def test_on_mariadb_nothing_is_left_of_a_call_that_fails(database: Database, thread: str) -> None:
    async with client_on(database) as client:
        for number in range(2):
            with pytest.raises(DBAPIError):
                await client.put(config_of(f"{REFUSED} {thread}"), checkpoint_of({"a": [1]}), {}, {"a": "1"})
            await host_insert(client, f"{thread} {number}", rolled_back=False)
        assert not any(keys_of(client, f"{REFUSED} {thread}").values())


@on_backends(*MYSQL)
async def test_on_mariadb_a_call_sees_what_others_have_committed_since(database: Database, thread: str) -> None:
    """A connection that is given back in a transaction would go on with what it saw first."""
    async with client_on(database) as one, client_on(database) as other:
        for number in range(3):
            assert len(await one.list(config_of(thread))) == number
            versions = {"a": str(number)}
            await other.put(config_of(thread), checkpoint_of({"a": [number]}, versions), {}, versions)
            assert (await one.load(config_of(thread))).checkpoint["channel_values"] == {"a": [number]}


# ------------------------------------------------------------------------------------- the connection that comes back


async def host_insert(client: Client, id: str, *, rolled_back: bool) -> None:
    """What the application does on the connection that an operation had before, in a transaction of its own."""
    engine = client.saver._bind.source
    if client.backend.is_async:
        engine = AsyncEngine(engine)
    async with entered(engine.connect()) as connection:
        await done(connection.execute(text("INSERT INTO host VALUES (:id)"), {"id": id}))
        await done(connection.rollback() if rolled_back else connection.commit())


def is_there(client: Client, id: str) -> bool:
    """Whether the application has stored something, as another program sees it."""
    with connection_of(client) as connection:
        return connection.scalar(text("SELECT 1 FROM host WHERE id = :id"), {"id": id}) is not None


async def assert_transactions_are_real(client: Client, id: str) -> None:
    """What the application rolls back is not there, and what it commits is."""
    await host_insert(client, f"{id} rolled back", rolled_back=True)
    await host_insert(client, f"{id} committed", rolled_back=False)
    assert not is_there(client, f"{id} rolled back")
    assert is_there(client, f"{id} committed")


async def assert_as_before(client: Client, id: str) -> None:
    """The pooled connection is not in autocommit, for the driver as for the server."""
    autocommits: list[Any] = []

    def look(dbapi_connection: Any, *_: Any) -> None:
        autocommits.append(getattr(dbapi_connection, "autocommit", None))

    event.listen(client.sync_engine, "checkout", look)
    await assert_transactions_are_real(client, id)
    event.remove(client.sync_engine, "checkout", look)
    assert autocommits == [False, False]


@on_postgresql
async def test_the_applications_next_transaction_is_a_real_one(database: Database, thread: str) -> None:
    async with client_on(database) as client:
        saved = await client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        calls: list[Call] = [
            lambda: client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"}),
            lambda: client.put_writes(saved, [("a", 1)], "task"),
            lambda: client.get_tuple(saved),
            lambda: client.list(saved),
            lambda: client.delete_thread(thread),
        ]
        for number, call in enumerate(calls):
            await call()
            await assert_as_before(client, f"{thread} {number}")


@pytest.fixture
def collected() -> Iterator[None]:
    """Have a connection that nobody could close be collected here, and its driver not warn of that in another test."""
    yield
    with warnings.catch_warnings(action="ignore", category=ResourceWarning):
        gc.collect()


@on_postgresql
@pytest.mark.usefixtures("collected")
@pytest.mark.parametrize("fails", ["in a trigger", "without tables", "without a connection"])
async def test_the_applications_next_transaction_is_a_real_one_after_an_error(
    database: Database, thread: str, fails: str
) -> None:
    error = SchemaOutOfDate if fails == "without tables" else DBAPIError
    async with client_on(database, {"schema": "absent"} if fails == "without tables" else {}) as client:
        await host_insert(client, thread, rolled_back=True)
        for number in range(3):
            with pytest.raises(error):
                if fails == "without a connection":
                    cut_connections(client)
                    await asyncio.sleep(0.1)  # an older asyncpg fails in a way of its own until it has heard of it
                await client.put(config_of(f"{REFUSED} {thread}"), checkpoint_of({"a": [1]}), {}, {"a": "1"})
            await assert_as_before(client, f"{thread} {number}")
        assert not any(keys_of(client, f"{REFUSED} {thread}").values())


@on_async_postgresql
@pytest.mark.usefixtures("collected")
@pytest.mark.filterwarnings("ignore:.*(unclosed|while still open):ResourceWarning")
@pytest.mark.parametrize("seconds", [0, 0.001, 0.005, 0.1, 0.3])
async def test_the_applications_next_transaction_is_a_real_one_after_a_cancellation(
    database: Database, thread: str, seconds: float
) -> None:
    """What the statement did is undone, unless the server had not begun with it: then it is done in full."""
    names = [f"{SLOW} {thread} {number}" for number in range(3)]
    async with client_on(database) as client:
        await client.get_tuple(config_of(thread))
        for name in names:
            task = asyncio.create_task(client.put(config_of(name), checkpoint_of({"a": [1]}), {}, {"a": "1"}))
            await asyncio.sleep(seconds)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await assert_as_before(client, name)
        await asyncio.sleep(0.6)  # what the server may still be at
        for name in names:
            rows = keys_of(client, name)
            assert bool(rows["checkpoints"]) == bool(rows["checkpoint_blobs"])
            assert seconds < 0.1 or not rows["checkpoints"]


@on_postgresql
async def test_a_connection_serves_operations_and_the_application_in_turn(database: Database, thread: str) -> None:
    """Also graphs, whose nodes write at once, and operations of several statements in between."""
    async with client_on(database) as client:
        for turn in range(2):
            await use(client, f"{thread} {turn}")
            await assert_as_before(client, f"{thread} {turn} used")
            await use_graphs(client, f"{thread} {turn}", runs=2)
            await assert_as_before(client, f"{thread} {turn} run")


# -------------------------------------------------------------------------------------------------------------- tenants


TENANT: ContextVar[str] = ContextVar("TENANT")
_SET_TENANT = "SELECT set_config('app.tenant', '{}', true)"  # SET LOCAL, with a name that need not be a literal


def set_at_begin(connection: Connection) -> None:
    connection.exec_driver_sql(_SET_TENANT.format(TENANT.get()))


def set_on_driver(dbapi_connection: Any, *_: Any) -> None:
    """Leaves the driver in a transaction, in which the tenant is set."""
    if TENANT.get(""):
        cursor = dbapi_connection.cursor()
        cursor.execute(_SET_TENANT.format(TENANT.get()))
        cursor.close()


LISTENERS: dict[str, Callable[[Any], None]] = {
    "begin": lambda engine: event.listen(engine, "begin", set_at_begin),
    "checkout": lambda engine: event.listen(engine, "checkout", set_on_driver),
    "engine_connect, driver": lambda engine: event.listen(
        engine, "engine_connect", lambda connection: set_on_driver(connection.connection)
    ),
    "engine_connect": lambda engine: event.listen(engine, "engine_connect", set_at_begin),
}


@pytest.fixture
def role(backend: Backend, new_url: Callable[[Backend], URL]) -> Iterator[tuple[Database, str]]:
    url = new_url(backend)
    with guarded(url) as name:
        yield Database(backend, url), name


@on_postgresql
@pytest.mark.parametrize("listener", LISTENERS)
@pytest.mark.parametrize("isolation_level", [None, "REPEATABLE READ"])
async def test_tenants_see_their_own_rows_only(
    role: tuple[Database, str], listener: str, isolation_level: str | None
) -> None:
    """One connection serves both. What is set for a transaction is gone after it, and there without it is nothing."""
    database, name = role
    options = {"isolation_level": isolation_level} if isolation_level else {}
    async with database.engine(**ONE, **options) as engine:

        @event.listens_for(sync_engine_of(engine), "connect")
        def set_role(dbapi_connection: Any, _record: Any) -> None:
            cursor = dbapi_connection.cursor()
            cursor.execute(f"SET ROLE {name}")
            cursor.close()
            dbapi_connection.commit()

        TENANT.set("nobody")
        LISTENERS[listener](sync_engine_of(engine))
        client = Client(saver_on(engine), database.backend)
        shared_id = checkpoint_of()["id"]
        for tenant in ("acme", "globex"):
            TENANT.set(tenant)
            config = config_of(f"{tenant}:1")
            for id in (shared_id, checkpoint_of()["id"]):
                config = await client.put(config, checkpoint_of({"a": [tenant]}, id=id), {}, {"a": "1"})
            await client.put_writes(config, [("a", tenant)], "task")
            await client.put_writes(config, [("__error__", tenant)], "task")

        for tenant, other in (("acme", "globex"), ("globex", "acme")):
            TENANT.set(tenant)
            found = await client.list(None)
            assert [one.config["configurable"]["thread_id"] for one in found] == [f"{tenant}:1"] * 2
            assert {str(one.checkpoint["channel_values"]) for one in found} == {str({"a": [tenant]})}
            latest = await client.load(config_of(f"{tenant}:1"))
            assert {value for _, _, value in latest.pending_writes or ()} == {tenant}
            for config in (config_of(f"{other}:1"), config_of(f"{other}:1", "", shared_id)):
                assert await client.get_tuple(config) is None
            assert await client.list(config_of(f"{other}:1")) == []
            await client.delete_thread(f"{other}:1")
            for change in (
                lambda other=other: client.put(config_of(f"{other}:1"), checkpoint_of({"a": [1]}), {}, {"a": "1"}),
                lambda other=other: client.put_writes(config_of(f"{other}:1", "", shared_id), [("a", 1)], "other task"),
                lambda other=other: client.put_writes(
                    config_of(f"{other}:1", "", shared_id), [("__error__", 1)], "task"
                ),
            ):
                with pytest.raises(DBAPIError, match="row-level security"):
                    await change()
        for tenant, number in (("acme", 2), ("globex", 2)):
            TENANT.set(tenant)
            assert len(await client.list(None)) == number
            await client.delete_thread(f"{tenant}:1")
            assert await client.list(None) == []


@on_postgresql
@pytest.mark.parametrize("listener", [name for name in LISTENERS if name != "begin"])
async def test_a_transaction_that_a_listener_began_is_committed(database: Database, thread: str, listener: str) -> None:
    """What the listener wrote in it is stored with the operation, or not at all."""
    async with client_on(database) as client:
        number = 0

        def write(connection: Any, *_: Any) -> None:
            nonlocal number
            number += 1
            connection.execute(f"INSERT INTO host VALUES ('{thread} {number}')")

        def write_on_driver(dbapi_connection: Any, *_: Any) -> None:
            cursor = dbapi_connection.cursor()
            write(cursor)
            cursor.close()

        def write_on_connection(connection: Connection) -> None:
            nonlocal number
            number += 1
            connection.exec_driver_sql(f"INSERT INTO host VALUES ('{thread} {number}')")

        targets: dict[str, tuple[str, Any]] = {
            "checkout": ("checkout", write_on_driver),
            "engine_connect, driver": ("engine_connect", lambda connection: write_on_driver(connection.connection)),
            "engine_connect": ("engine_connect", write_on_connection),
        }
        await client.get_tuple(config_of(thread))
        event.listen(client.sync_engine, *targets[listener])
        saved = await client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        with pytest.raises(DBAPIError, match="refused"):
            await client.put(config_of(f"{REFUSED} {thread}"), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        await client.put_writes(saved, [("a", 1)], "task")
        event.remove(client.sync_engine, *targets[listener])
        assert [is_there(client, f"{thread} {number}") for number in (1, 2, 3)] == [True, False, True]
        await assert_as_before(client, thread)
