"""A saver on a sessionmaker: each operation is a session of the application's, with its events and its routing."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from contextvars import ContextVar
from typing import Any
from uuid import uuid4

import pytest
from sqlalchemy import Delete, Engine, StaticPool, Update, create_engine, event, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import (
    AsyncEngine,
    async_sessionmaker,
    create_async_engine,
)
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from sa_checkpoint import migrations, models
from sa_checkpoint.errors import ThreadExists
from tests.backends import BACKENDS, Backend, Client, Database, Graph, done, entered, saver_on
from tests.checkpoints import checkpoint_of, config_of
from tests.hosts import maker_on, scoped_on, sync_engine_of
from tests.rows import keys_of
from tests.test_transactions import parallel_nodes


@pytest.mark.parametrize("bind_on", [maker_on, scoped_on], ids=["sessionmaker", "scoped_session"])
async def test_each_operation_is_stored_when_it_returns(
    client: Client, database: Database, thread: str, bind_on: Callable[[Any], Any]
) -> None:
    async with database.engine(pool_size=2) as engine:
        on_sessions = Client(saver_on(bind_on(engine)), database.backend)
        await on_sessions.setup()
        saved = await on_sessions.put(config_of(thread), checkpoint_of({"a": ["kept"]}), {}, {"a": "1"})
        await on_sessions.put_writes(saved, [("a", 1)], "task")
        await on_sessions.copy_thread(thread, f"{thread}-2")

        found = await client.load(saved)
        assert found == await on_sessions.load(saved)
        assert found.pending_writes == [("task", "a", 1)]
        assert keys_of(client, f"{thread}-2") == keys_of(client, thread)
        assert sync_engine_of(engine).pool.checkedout() == 0  # type: ignore[attr-defined]


async def test_a_graph_with_parallel_nodes_runs_on_a_sessionmaker(
    client: Client, database: Database, thread: str
) -> None:
    async with database.engine() as engine:
        on_sessions = Client(saver_on(maker_on(engine)), database.backend)
        graph: Graph = parallel_nodes().compile(checkpointer=on_sessions.saver)
        assert await on_sessions.invoke(graph, {}, config_of(thread)) == {"left": "done", "right": "done"}
        assert (await on_sessions.get_state(graph, config_of(thread))).next == ()
    assert await client.get_tuple(config_of(thread)) is not None


async def test_the_applications_session_events_see_each_operation(database: Database, thread: str) -> None:
    class Listened(Session):
        """A class of this test's own to listen on."""

    seen: list[str] = []
    for name in ("after_begin", "before_commit", "after_commit", "after_rollback"):
        event.listen(Listened, name, lambda *_, name=name: seen.append(name))
    async with database.engine() as engine:
        on_sessions = Client(saver_on(maker_on(engine, session_class=Listened)), database.backend)
        await on_sessions.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        await on_sessions.get_tuple(config_of(thread))
        assert seen == ["after_begin", "before_commit", "after_commit"] * 2
        seen.clear()
        await on_sessions.copy_thread(thread, f"{thread}-2")
        with pytest.raises(ThreadExists):
            await on_sessions.copy_thread(thread, f"{thread}-2")
        assert seen == ["after_begin", "before_commit", "after_commit", "after_begin", "after_rollback"]


class HostBase(DeclarativeBase):
    """Models of the application's, which live in another database."""


@pytest.fixture
async def two_databases(
    backend: Backend, new_url: Callable[[Backend], Any]
) -> AsyncIterator[tuple[Engine | AsyncEngine, Engine | AsyncEngine]]:
    """Two empty databases of the same kind."""
    first, second = Database(backend, new_url(backend)), Database(backend, new_url(backend))
    async with first.engine() as one, second.engine() as other:
        yield one, other


async def round_trip(bind: Any, backend: Backend) -> None:
    client = Client(saver_on(bind), backend)
    await client.setup()
    saved = await client.put(config_of("t"), checkpoint_of({"a": [1]}), {}, {"a": "1"})
    assert (await client.load(saved)).checkpoint["channel_values"] == {"a": [1]}
    assert len(await client.list(None)) == 1


async def rows_in(engine: Engine | AsyncEngine) -> int | None:
    """How many checkpoints there are; None if there is no such table."""
    async with entered(engine.connect()) as connection:
        try:
            return int((await done(connection.execute(text("SELECT count(*) FROM checkpoints")))).scalar())
        except DBAPIError:
            return None


async def test_get_bind_sends_reads_and_writes_to_the_leader(
    two_databases: tuple[Engine | AsyncEngine, Engine | AsyncEngine], backend: Backend
) -> None:
    """The recipe of SQLAlchemy's documentation: a replica would hand an agent an old state."""
    leader, replica = two_databases

    class Routing(Session):
        def get_bind(self, mapper: Any = None, clause: Any = None, **_: Any) -> Any:
            is_write = self._flushing or isinstance(clause, Update | Delete)
            return sync_engine_of(leader if is_write else replica)

    maker: Any = async_sessionmaker(sync_session_class=Routing) if backend.is_async else sessionmaker(class_=Routing)
    await round_trip(maker, backend)
    assert await rows_in(leader) == 1
    assert await rows_in(replica) is None


async def test_binds_send_our_models_to_a_database_of_their_own(
    two_databases: tuple[Engine | AsyncEngine, Engine | AsyncEngine], backend: Backend
) -> None:
    ours, hosts = two_databases
    binds = {models.Base: ours, HostBase: hosts}
    maker: Any = async_sessionmaker(binds=binds) if backend.is_async else sessionmaker(binds=binds)
    await round_trip(maker, backend)
    assert await rows_in(ours) == 1
    assert await rows_in(hosts) is None


async def test_a_sessionmaker_may_get_its_engine_and_its_options_later(
    two_databases: tuple[Engine | AsyncEngine, Engine | AsyncEngine], backend: Backend
) -> None:
    maker: Any = async_sessionmaker() if backend.is_async else sessionmaker()
    saver_on(maker)
    maker.configure(bind=two_databases[0], autobegin=False)
    await round_trip(maker, backend)
    assert await rows_in(two_databases[0]) == 1


async def test_sessions_on_one_connection_take_turns_and_leave_its_transaction_open(
    client: Client, database: Database, thread: str
) -> None:
    """How a test suite of the application's keeps its database clean: all in one transaction that is rolled back."""
    async with database.engine() as engine, entered(engine.connect()) as connection:
        await done(connection.begin())
        if database.backend.dialect == "sqlite":
            # Python's sqlite3 has not begun yet, and would commit with the first savepoint.
            await done(connection.exec_driver_sql("BEGIN"))
        maker: Any = (async_sessionmaker if database.backend.is_async else sessionmaker)(
            connection, join_transaction_mode="create_savepoint"
        )
        inside = saver_on(maker)

        def put(index: int) -> Any:
            arguments: Any = (
                config_of(thread),
                checkpoint_of({"a": [index]}, {"a": str(index)}),
                {},
                {"a": str(index)},
            )
            return inside.aput(*arguments)

        await asyncio.gather(*(put(index) for index in range(16)))
        assert len(await Client(inside, database.backend).list(config_of(thread))) == 16
        with pytest.raises(ThreadExists):
            for _ in range(2):
                await inside.acopy_thread(thread, f"{thread}-2")
        assert len(await Client(inside, database.backend).list(config_of(thread))) == 16
        await done(connection.rollback())
    assert not any(keys_of(client, thread).values())


async def test_sessions_on_one_database_in_memory_take_turns(backend: Backend) -> None:
    if backend.dialect != "sqlite":
        return  # every connection to a server has the same database
    if backend.is_async:
        engine: Any = create_async_engine("sqlite+aiosqlite://", poolclass=StaticPool)
    else:
        engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
    saver = saver_on(maker_on(engine))
    await Client(saver, backend).setup()
    await asyncio.gather(
        *(
            saver.aput(config_of("t"), checkpoint_of({"a": [index]}, {"a": str(index)}), {}, {"a": str(index)})
            for index in range(30)
        )
    )
    assert len(await Client(saver, backend).list(None)) == 30
    await done(engine.dispose())


async def test_an_operation_that_lost_against_another_is_tried_in_a_new_session(
    database: Database, thread: str
) -> None:
    if database.backend.dialect == "sqlite":
        return  # it makes its writers wait
    failures: list[str] = []
    async with database.engine(isolation_level="SERIALIZABLE", pool_size=8) as engine:
        event.listen(sync_engine_of(engine), "handle_error", lambda context: failures.append(str(context)))
        saver = saver_on(maker_on(engine))
        await asyncio.gather(*(saver.aput(config_of(thread), checkpoint_of(id="1"), {}, {}) for _ in range(8)))
        # InnoDB has those wait who store the same checkpoint, and one of two in a deadlock who make the same copy.
        copies = [saver.acopy_thread(thread, f"{thread}-2") for _ in range(8)]
        refused = [result for result in await asyncio.gather(*copies, return_exceptions=True) if result is not None]
        assert failures
        assert len(refused) == 7 and all(isinstance(error, ThreadExists) for error in refused)
        for name in (thread, f"{thread}-2"):
            assert len(await Client(saver, database.backend).list(config_of(name))) == 1


# ----------------------------------------------------------------------------------------------- row-level security

TENANT: ContextVar[str] = ContextVar("TENANT")


class TenantSession(Session):
    """The application's session: each transaction belongs to the tenant of the request."""


@event.listens_for(TenantSession, "after_begin")
def _set_tenant(_session: Session, _transaction: Any, connection: Any) -> None:
    connection.execute(text("SELECT set_config('app.tenant', :tenant, true)"), {"tenant": TENANT.get()})


POSTGRESQL = [backend for backend in BACKENDS if backend.dialect == "postgresql"]
POLICY = """
ALTER TABLE {table} ADD COLUMN tenant text;
ALTER TABLE {table} ALTER COLUMN tenant SET DEFAULT current_setting('app.tenant');
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
CREATE POLICY tenant ON {table} USING (tenant = current_setting('app.tenant'));
GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role};
"""


@pytest.mark.parametrize("backend", POSTGRESQL, ids=lambda backend: backend.id, indirect=True, scope="module")
async def test_row_level_security_of_a_tenant_set_after_begin(
    backend: Backend, new_url: Callable[[Backend], Any]
) -> None:
    url = new_url(backend)
    owner = create_engine(url.set(drivername="postgresql+psycopg"))
    migrations.upgrade(owner)
    role = f"tenant_{uuid4().hex}"
    with owner.begin() as connection:
        connection.execute(text(f"CREATE ROLE {role} LOGIN PASSWORD 'tenant'"))
        for table in models.metadata.tables:
            for statement in POLICY.format(table=table, role=role).strip().splitlines():
                connection.execute(text(statement))

    try:
        # One connection for both tenants: a tenant that outlives its transaction would be seen by the other.
        database = Database(backend, url.set(username=role, password="tenant"))
        async with database.engine(pool_size=1, max_overflow=0) as engine:
            client = Client(saver_on(maker_on(engine, session_class=TenantSession)), backend)
            saved = {}
            for tenant in ("one", "other"):
                TENANT.set(tenant)
                saved[tenant] = await client.put(
                    config_of(f"{tenant}'s"), checkpoint_of({"a": [tenant]}), {"of": tenant}, {"a": "1"}
                )
                await client.put_writes(saved[tenant], [("a", tenant)], "task")

            TENANT.set("one")
            assert [found.metadata["of"] for found in await client.list(None)] == ["one"]  # type: ignore[typeddict-item]
            assert await client.get_tuple(saved["other"]) is None
            await client.delete_thread("other's")
            await client.prune(["other's"], strategy="delete")
            await client.copy_thread("other's", "stolen")
            assert await client.get_tuple(config_of("stolen")) is None
            # Another tenant's checkpoint cannot be overwritten. Who looks for it first, does not see it.
            refusal = "duplicate key" if backend.is_portable else "row-level security"
            with pytest.raises(DBAPIError, match=refusal):
                await client.put(
                    config_of("other's"),
                    checkpoint_of({"a": ["stolen"]}, id=saved["other"]["configurable"]["checkpoint_id"]),
                    {},
                    {"a": "1"},
                )

            TENANT.set("other")
            found = await client.load(saved["other"])
            assert found.checkpoint["channel_values"] == {"a": ["other"]}
            assert found.pending_writes == [("task", "a", "other")]
    finally:
        with owner.begin() as connection:
            connection.execute(text(f"DROP OWNED BY {role}"))
            connection.execute(text(f"DROP ROLE {role}"))
        owner.dispose()
