"""A saver in the application's own transaction: what is committed together, and what a failure leaves behind."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any, TypedDict

import pytest
from langgraph.graph import StateGraph
from sqlalchemy import String, create_engine, event, func, select, text
from sqlalchemy.exc import DBAPIError, ResourceClosedError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from sa_checkpoint import AsyncSQLAlchemySaver, SQLAlchemySaver
from sa_checkpoint._turns import turn
from sa_checkpoint.errors import ThreadExists
from tests import triggers
from tests.backends import Client, Database, done, entered, saver_on, with_sync_driver
from tests.checkpoints import checkpoint_of, config_of
from tests.hosts import connection_on, engine_on, session_on
from tests.rows import connection_of, keys_of, statements_of


class Base(DeclarativeBase):
    """The application's models."""


class Conversation(Base):
    __tablename__ = "conversations"

    id: Mapped[str] = mapped_column(String(64), primary_key=True)


@pytest.fixture(scope="module")
def database(database: Database) -> Database:
    """A database with the application's table beside ours, that refuses checkpoints of some threads."""
    engine = create_engine(with_sync_driver(database.url))
    Base.metadata.create_all(engine)
    with engine.begin() as connection:
        # An error after the operation's first statement, where it has several.
        triggers.before("INSERT", connection, "NEW.thread_id LIKE 'refused%'", triggers.refusing())
    engine.dispose()
    return database


Owner = Any
"""What owns the transaction: a Connection or Session, sync or async."""


OWNERS = pytest.mark.parametrize("owned", [connection_on, session_on], ids=["connection", "session"])


async def add(owner: Owner, thread: str) -> None:
    """The application's own row."""
    await done(owner.execute(text("INSERT INTO conversations VALUES (:id)"), {"id": thread}))


def has_row(client: Client, thread: str) -> bool:
    with connection_of(client) as connection:
        return bool(connection.scalar(select(func.count()).where(Conversation.id == thread)))


async def stored(client: Client, thread: str) -> Any:
    return await client.put(config_of(thread), checkpoint_of({"a": ["kept"]}), {}, {"a": "1"})


@OWNERS
@pytest.mark.parametrize("ours_first", [True, False])
async def test_the_callers_row_and_ours_are_committed_together_or_not_at_all(
    client: Client, database: Database, thread: str, owned: Callable[[Any], Any], ours_first: bool
) -> None:
    async with database.engine() as engine:
        for commits in (False, True):
            async with owned(engine) as owner:
                inside = Client(saver_on(owner), database.backend)
                if not ours_first:
                    await add(owner, thread)
                saved = await stored(inside, thread)
                await inside.put_writes(saved, [("a", ["pending"])], "task")
                if ours_first:
                    await add(owner, thread)

                assert (await inside.load(saved)).pending_writes == [("task", "a", ["pending"])]
                assert not has_row(client, thread)
                assert await client.get_tuple(saved) is None
                await done(owner.commit() if commits else owner.rollback())

            assert has_row(client, thread) is commits
            assert (await client.get_tuple(saved) is not None) is commits
            assert all(keys_of(client, thread).values()) is commits


@OWNERS
async def test_what_is_never_committed_is_lost_with_the_connection(
    client: Client, database: Database, thread: str, owned: Callable[[Any], Any]
) -> None:
    """On SQLite a savepoint outside of a transaction would be committed by its release."""
    async with database.engine() as engine, owned(engine) as owner:
        await stored(Client(saver_on(owner), database.backend), thread)
    assert not any(keys_of(client, thread).values())


@OWNERS
async def test_a_failed_operation_leaves_the_callers_transaction_as_it_was(
    client: Client, database: Database, thread: str, owned: Callable[[Any], Any]
) -> None:
    refused = f"refused-{thread}"
    async with database.engine() as engine, owned(engine) as owner:
        inside = Client(saver_on(owner), database.backend)
        await add(owner, thread)
        await stored(inside, thread)

        with pytest.raises(DBAPIError, match="refused"):
            await inside.put(config_of(refused), checkpoint_of({"a": ["blob"]}), {}, {"a": "1"})
        with pytest.raises(DBAPIError, match="refused"):
            await inside.copy_thread(thread, refused)
        await stored(inside, f"{thread}-2")
        with pytest.raises(ThreadExists):
            await inside.copy_thread(thread, f"{thread}-2")

        assert await inside.get_tuple(config_of(thread)) is not None
        await done(owner.commit())

    assert has_row(client, thread)
    assert await client.get_tuple(config_of(thread)) is not None
    assert await client.get_tuple(config_of(f"{thread}-2")) is not None
    assert not any(keys_of(client, refused).values())


@OWNERS
async def test_a_savepoint_of_the_callers_can_undo_ours(
    client: Client, database: Database, thread: str, owned: Callable[[Any], Any]
) -> None:
    async with database.engine() as engine, owned(engine) as owner:
        inside = Client(saver_on(owner), database.backend)
        await add(owner, thread)
        savepoint = await done(owner.begin_nested())
        await stored(inside, thread)
        await done(savepoint.rollback())
        await stored(inside, f"{thread}-2")
        await done(owner.commit())

    assert has_row(client, thread)
    assert await client.get_tuple(config_of(thread)) is None
    assert await client.get_tuple(config_of(f"{thread}-2")) is not None


async def test_a_session_is_neither_flushed_nor_committed_nor_closed(
    client: Client, database: Database, thread: str
) -> None:
    async with database.engine() as engine, session_on(engine) as session:
        sync_session = session.sync_session if isinstance(session, AsyncSession) else session
        seen: list[str] = []
        for name in ("before_flush", "before_commit", "after_commit", "after_rollback", "after_soft_rollback"):
            event.listen(sync_session, name, lambda *_, name=name: seen.append(name))
        conversation = Conversation(id=thread)
        session.add(conversation)
        inside = Client(client.saver.using(session), database.backend)

        saved = await stored(inside, thread)
        await inside.put_writes(saved, [("a", 1)], "task")
        await inside.list(config_of(thread))
        await inside.copy_thread(thread, f"{thread}-2")
        await inside.prune([thread])
        with pytest.raises(ThreadExists):
            await inside.copy_thread(thread, f"{thread}-2")

        assert not seen
        assert conversation in session.new
        assert session.in_transaction()
        await done(session.commit())
        assert "before_flush" in seen
    assert has_row(client, thread)
    assert await client.get_tuple(config_of(f"{thread}-2")) is not None


async def test_using_deletes_copies_and_prunes_with_the_callers_rows(
    client: Client, database: Database, thread: str
) -> None:
    fork = f"{thread}-fork"
    config: Any = config_of(thread)
    for number in ("1", "2"):
        config = await client.put(config, checkpoint_of({"a": [number]}, {"a": number}), {}, {"a": number})
    async with database.engine() as engine:
        async with session_on(engine) as session:
            session.add(Conversation(id=thread))
            await done(session.commit())
        before = keys_of(client, thread)

        for commits in (False, True):
            async with session_on(engine) as session:
                inside = Client(client.saver.using(session), database.backend)
                session.add(Conversation(id=fork))
                await inside.copy_thread(thread, fork)
                await inside.prune([fork])
                await done(session.delete(await done(session.get(Conversation, thread))))
                await inside.delete_thread(thread)
                await done(session.commit() if commits else session.rollback())

            assert has_row(client, thread) is not commits
            assert has_row(client, fork) is commits
            if not commits:
                assert keys_of(client, thread) == before
                assert not any(keys_of(client, fork).values())

    assert not any(keys_of(client, thread).values())
    assert len(keys_of(client, fork)["checkpoints"]) == 1
    assert (await client.load(config_of(fork))).checkpoint["channel_values"] == {"a": ["2"]}


async def test_using_asks_nothing_of_the_database_and_keeps_the_serde(client: Client, database: Database) -> None:
    async with database.engine() as engine, session_on(engine) as session:
        sync_engine = engine.sync_engine if isinstance(engine, AsyncEngine) else engine
        other = Client(saver_on(engine, serde=client.saver.serde), database.backend)
        with statements_of(other) as statements:
            savers = [other.saver.using(session) for _ in range(3)]
        assert not statements
        assert all(saver.serde is other.saver.serde and type(saver) is type(other.saver) for saver in savers)
        assert other.sync_engine is sync_engine
        assert not session.in_transaction()


class State(TypedDict, total=False):
    left: str
    right: str


def parallel_nodes() -> StateGraph[State]:
    """A graph with two nodes in one step."""
    builder = StateGraph(State)
    for name in ("left", "right"):
        builder.add_node(name, lambda _state, name=name: {name: "done"})
        builder.set_entry_point(name)
    return builder


@OWNERS
async def test_a_graph_with_parallel_nodes_runs_on_one_transaction(
    client: Client, database: Database, thread: str, owned: Callable[[Any], Any]
) -> None:
    """LangGraph calls the saver from several threads or tasks at once."""
    builder = parallel_nodes()
    async with database.engine() as engine:
        for commits in (False, True):
            async with owned(engine) as owner:
                await add(owner, thread)
                inside = Client(client.saver.using(owner), database.backend)
                graph = builder.compile(checkpointer=inside.saver)
                assert await inside.invoke(graph, {}, config_of(thread)) == {"left": "done", "right": "done"}
                await done(owner.commit() if commits else owner.rollback())
            assert has_row(client, thread) is commits
            found = await client.get_tuple(config_of(thread))
            assert (found is not None) is commits


@pytest.mark.parametrize("has_begun", [False, True])
async def test_operations_on_one_session_take_turns(
    client: Client, database: Database, thread: str, has_begun: bool
) -> None:
    async with database.engine() as engine, session_on(engine) as session:
        savers = [client.saver.using(session), saver_on(session)]
        if has_begun:  # a saver on the session's connection is on the same one
            savers.append(client.saver.using(await done(session.connection())))

        def put(index: int) -> Any:
            checkpoint = checkpoint_of({"a": [index]}, {"a": str(index)})
            saver = savers[index % len(savers)]
            arguments: Any = (config_of(thread), checkpoint, {}, {"a": str(index)})
            if isinstance(saver, AsyncSQLAlchemySaver):
                return saver.aput(*arguments)
            return asyncio.to_thread(saver.put, *arguments)

        await asyncio.gather(*(put(index) for index in range(30)))
        assert len(await Client(savers[0], database.backend).list(config_of(thread))) == 30
        await done(session.rollback())
    assert not any(keys_of(client, thread).values())


async def test_in_autocommit_each_operation_is_stored_at_once_and_as_a_whole(
    client: Client, database: Database, thread: str
) -> None:
    refused = f"refused-{thread}"
    async with database.engine(isolation_level="AUTOCOMMIT") as engine, connection_on(engine) as connection:
        inside = Client(client.saver.using(connection), database.backend)
        await stored(inside, thread)
        assert await client.get_tuple(config_of(thread)) is not None

        with pytest.raises(DBAPIError, match="refused"):
            await inside.put(config_of(refused), checkpoint_of({"a": ["blob"]}), {}, {"a": "1"})
        with pytest.raises(DBAPIError, match="refused"):
            await inside.copy_thread(thread, refused)
        await inside.copy_thread(thread, f"{thread}-2")

        assert not any(keys_of(client, refused).values())
        assert keys_of(client, thread) == keys_of(client, f"{thread}-2")


async def test_reading_on_a_callers_connection_keeps_nobody_from_writing(
    client: Client, database: Database, thread: str
) -> None:
    """On SQLite a transaction that has begun with a read cannot write once another one has."""
    async with database.engine() as engine, connection_on(engine) as connection:
        inside = Client(client.saver.using(connection), database.backend)
        assert await inside.get_tuple(config_of(thread)) is None
        await stored(client, f"{thread}-2")
        await stored(inside, thread)
        await done(connection.commit())
    assert await client.get_tuple(config_of(thread)) is not None


async def test_a_session_that_begins_nothing_by_itself_is_the_callers_to_begin(
    client: Client, database: Database, thread: str
) -> None:
    async with database.engine() as engine:
        session = (
            AsyncSession(engine, autobegin=False)
            if isinstance(engine, AsyncEngine)
            else Session(engine, autobegin=False)
        )
        inside = Client(saver_on(session), database.backend)
        with pytest.raises(Exception, match=r"session\.begin\(\)"):
            await inside.get_tuple(config_of(thread))
        async with entered(session.begin()):
            await stored(inside, thread)
        await done(session.close())
    assert await client.get_tuple(config_of(thread)) is not None


async def test_the_caller_may_go_on_after_its_commit(client: Client, database: Database, thread: str) -> None:
    async with database.engine() as engine, session_on(engine) as session:
        saver: SQLAlchemySaver | AsyncSQLAlchemySaver = client.saver.using(session)
        inside = Client(saver, database.backend)
        for number in ("1", "2"):
            await inside.put(config_of(thread), checkpoint_of({"a": [number]}, {"a": number}), {}, {"a": number})
            await done(session.commit())
        await done(session.rollback())
        assert len(await inside.list(config_of(thread))) == 2


async def test_a_transaction_that_the_caller_begins_in_autocommit_is_the_callers(
    client: Client, database: Database, thread: str
) -> None:
    async with database.engine(isolation_level="AUTOCOMMIT") as engine, connection_on(engine) as connection:
        inside = Client(saver_on(connection), database.backend)
        for end in ("ROLLBACK", "COMMIT"):
            await done(connection.exec_driver_sql("BEGIN"))
            await add(connection, thread)
            await stored(inside, thread)
            with pytest.raises(DBAPIError, match="refused"):
                await inside.put(config_of(f"refused-{thread}"), checkpoint_of({"a": [1]}), {}, {"a": "1"})
            await done(connection.exec_driver_sql(end))

            assert has_row(client, thread) is (end == "COMMIT")
            assert (await client.get_tuple(config_of(thread)) is not None) is (end == "COMMIT")


async def test_an_interrupt_in_autocommit_is_seen_as_that(client: Client, database: Database, thread: str) -> None:
    def interrupt(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if "INSERT INTO checkpoints" in statement:
            raise KeyboardInterrupt

    async with database.engine(isolation_level="AUTOCOMMIT", pool_size=1) as engine:
        inside = Client(saver_on(engine), database.backend)
        if database.backend.is_async:
            return  # a KeyboardInterrupt ends the event loop
        event.listen(inside.sync_engine, "before_cursor_execute", interrupt)
        with pytest.raises(KeyboardInterrupt):
            await inside.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        event.remove(inside.sync_engine, "before_cursor_execute", interrupt)
        assert inside.sync_engine.pool.checkedout() == 0  # type: ignore[attr-defined]
        await stored(inside, f"{thread}-2")
    assert not any(keys_of(client, thread).values())
    assert await client.get_tuple(config_of(f"{thread}-2")) is not None


@pytest.mark.parametrize("bind_on", [connection_on, engine_on], ids=["connection", "engine"])
async def test_a_commit_that_fails_in_autocommit_leaves_no_transaction_open(
    client: Client, database: Database, thread: str, bind_on: Callable[[Any], Any]
) -> None:
    if database.backend.dialect != "sqlite":
        return  # PostgreSQL ends a transaction whose COMMIT fails
    options = {"isolation_level": "AUTOCOMMIT", "pool_size": 1, "connect_args": {"timeout": 0}}
    async with database.engine(**options) as engine, bind_on(engine) as bind:
        inside = Client(saver_on(bind), database.backend)
        with connection_of(client) as reader:  # SQLite without WAL cannot commit while somebody reads
            reader.exec_driver_sql("BEGIN")
            reader.execute(text("SELECT count(*) FROM checkpoints"))
            with pytest.raises(DBAPIError, match="locked"):
                await stored(inside, thread)
        await stored(inside, f"{thread}-2")
        assert await client.get_tuple(config_of(f"{thread}-2")) is not None
    assert not any(keys_of(client, thread).values())


async def test_a_listener_of_the_applications_may_call_the_saver_in_the_same_transaction(
    client: Client, database: Database, thread: str
) -> None:
    if database.backend.is_async:
        return  # a listener cannot await
    async with database.engine() as engine, session_on(engine) as session:
        saver: Any = saver_on(session)

        @event.listens_for(session, "before_commit")
        def delete_copy(_session: Session) -> None:
            saver.delete_thread(f"{thread}-2")

        await stored(Client(saver, database.backend), thread)
        saver.copy_thread(thread, f"{thread}-2")
        with turn(session):  # as inside a call of the saver's
            session.commit()
    assert await client.get_tuple(config_of(thread)) is not None
    assert not any(keys_of(client, f"{thread}-2").values())


async def test_the_blocking_methods_of_using_work_on_the_loop_of_the_session(
    client: Client, database: Database, thread: str
) -> None:
    if not database.backend.is_async:
        return  # there is no loop
    async with database.engine() as engine:
        # Made where no loop runs, as at import.
        saver: Any = await asyncio.to_thread(saver_on, engine)
        async with session_on(engine) as session:
            assert await asyncio.to_thread(saver.using(session).get_tuple, config_of(thread)) is None


async def test_reading_in_psycopgs_pipeline_is_an_error_with_a_listener_and_never_nothing(
    client: Client, database: Database, thread: str
) -> None:
    if database.backend.id != "psycopg":
        return  # it is a feature of this driver
    await stored(client, thread)
    there = await client.load(config_of(thread))
    async with database.engine() as engine, connection_on(engine) as connection:
        saver: Any = saver_on(connection)
        connection.exec_driver_sql("SELECT 1")
        with connection.connection.driver_connection.pipeline():
            assert saver.get_tuple(config_of(thread)) == there
        event.listen(connection, "after_cursor_execute", lambda *_: None)
        with connection.connection.driver_connection.pipeline(), pytest.raises(ResourceClosedError):
            saver.get_tuple(config_of(thread))  # SQLAlchemy looks for columns before the result has come
