"""SQLModel, advanced-alchemy and a scoped_session, as Flask-SQLAlchemy has one: what they make are binds.

Their rows and ours are committed together, or not at all.
"""

from __future__ import annotations

import asyncio
import warnings
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import sqlmodel
from sqlalchemy import MetaData, NullPool, String, func, select
from sqlalchemy.ext.asyncio import AsyncEngine, async_sessionmaker
from sqlalchemy.orm import Mapped, mapped_column, sessionmaker
from sqlmodel.ext.asyncio.session import AsyncSession

from tests.backends import Client, Database, done, entered, saver_on
from tests.checkpoints import checkpoint_of, config_of
from tests.hosts import scoped_on, sync_engine_of
from tests.rows import connection_of, keys_of
from tests.usage import use, use_graphs

with warnings.catch_warnings(action="ignore"):  # of SQLAlchemy 2.1, for a decorator that advanced-alchemy uses
    from advanced_alchemy.base import BigIntBase
    from advanced_alchemy.config import EngineConfig, SQLAlchemyAsyncConfig, SQLAlchemySyncConfig
    from advanced_alchemy.repository import SQLAlchemyAsyncRepository, SQLAlchemySyncRepository


class Conversation(sqlmodel.SQLModel, table=True):
    """A SQLModel of the application's."""

    id: str = sqlmodel.Field(primary_key=True)


class Chat(BigIntBase):
    """A model on one of advanced-alchemy's bases."""

    __tablename__ = "chats"

    name: Mapped[str] = mapped_column(String(100))


class ChatRepository(SQLAlchemySyncRepository[Chat]):
    model_type = Chat


class AsyncChatRepository(SQLAlchemyAsyncRepository[Chat]):
    model_type = Chat


async def create_all(engine: Any, metadata: MetaData, *names: str) -> None:
    tables = [metadata.tables[name] for name in names]
    async with entered(engine.begin()) as connection:
        if isinstance(engine, AsyncEngine):
            await connection.run_sync(metadata.create_all, tables)
        else:
            metadata.create_all(connection, tables)


def count(client: Client, column: Any, value: str) -> int:
    """The application's rows, seen from another connection."""
    with connection_of(client) as connection:
        return connection.scalar(select(func.count()).where(column == value)) or 0


async def round_trip(bind: Any, database: Database, thread: str) -> None:
    """What one call of a saver stores, the next one finds."""
    on_bind = Client(saver_on(bind), database.backend)
    saved = await on_bind.put(config_of(thread), checkpoint_of({"a": ["kept"]}), {"from": "bind"}, {"a": "1"})
    await on_bind.put_writes(saved, [("a", {"pending": None})], "task")
    (found,) = await on_bind.list(config_of(thread), filter={"from": "bind"})
    assert found.checkpoint["channel_values"] == {"a": ["kept"]}
    assert found.pending_writes == [("task", "a", {"pending": None})]
    await use(on_bind, f"{thread} all")


# ---------------------------------------------------------------------------------------------------------- SQLModel


@asynccontextmanager
async def sqlmodel_session(engine: Any) -> AsyncIterator[Any]:
    async with entered(AsyncSession(engine) if isinstance(engine, AsyncEngine) else sqlmodel.Session(engine)) as found:
        yield found


def sqlmodel_maker(engine: Any) -> Any:
    if isinstance(engine, AsyncEngine):
        return async_sessionmaker(engine, class_=AsyncSession)
    return sessionmaker(engine, class_=sqlmodel.Session)


async def test_sqlmodels_sessions_are_binds(client: Client, database: Database, thread: str) -> None:
    async with database.engine() as engine:
        await round_trip(sqlmodel_maker(engine), database, thread)
        await use_graphs(Client(saver_on(sqlmodel_maker(engine)), database.backend), thread)
        assert await client.get_tuple(config_of(thread)) is not None
        async with sqlmodel_session(engine) as session:
            await round_trip(session, database, f"{thread}-2")
            assert await client.get_tuple(config_of(f"{thread}-2")) is None
            await done(session.commit())
    assert await client.get_tuple(config_of(f"{thread}-2")) is not None


async def test_a_sqlmodel_row_goes_with_its_thread(client: Client, database: Database, thread: str) -> None:
    async with database.engine() as engine:
        await create_all(engine, sqlmodel.SQLModel.metadata, "conversation")
        for commits in (False, True):
            async with sqlmodel_session(engine) as session:
                session.add(Conversation(id=thread))
                await round_trip(session, database, thread)
                await done(session.commit() if commits else session.rollback())
            assert count(client, Conversation.id, thread) == commits
            assert bool(keys_of(client, thread)["checkpoints"]) is commits

        for commits in (False, True):
            async with sqlmodel_session(engine) as session:
                found = await done(session.exec(sqlmodel.select(Conversation).where(Conversation.id == thread)))
                await done(session.delete(found.one()))
                await Client(client.saver.using(session), database.backend).delete_thread(thread)
                await done(session.commit() if commits else session.rollback())
            assert count(client, Conversation.id, thread) != commits
            assert bool(keys_of(client, thread)["checkpoints"]) is not commits


# -------------------------------------------------------------------------------------------------- advanced-alchemy


@asynccontextmanager
async def config_for(database: Database) -> AsyncIterator[Any]:
    """Its configuration, which has made an engine with a JSON serializer of its own."""
    url = database.url.render_as_string(hide_password=False)
    config: Any
    if database.backend.is_async:
        config = SQLAlchemyAsyncConfig(connection_string=url, engine_config=EngineConfig(pool_pre_ping=True))
    else:
        config = SQLAlchemySyncConfig(connection_string=url, engine_config=EngineConfig(pool_pre_ping=True))
    try:
        yield config
    finally:
        await done(config.get_engine().dispose())


async def test_what_advanced_alchemys_configuration_makes_are_binds(
    client: Client, database: Database, thread: str
) -> None:
    async with config_for(database) as config:
        await round_trip(config.get_engine(), database, thread)
        await use_graphs(Client(saver_on(config.create_session_maker()), database.backend), thread)
        await round_trip(config.create_session_maker(), database, f"{thread}-2")
        async with entered(config.get_session()) as session:
            await round_trip(session, database, f"{thread}-3")
        pool: Any = sync_engine_of(config.get_engine()).pool
        assert isinstance(pool, NullPool) or pool.checkedout() == 0  # on aiosqlite, before SQLAlchemy 2.0.38
    assert await client.get_tuple(config_of(thread)) is not None
    assert await client.get_tuple(config_of(f"{thread}-2")) is not None
    assert await client.get_tuple(config_of(f"{thread}-3")) is None


async def test_a_repositorys_row_goes_with_its_thread(client: Client, database: Database, thread: str) -> None:
    async with config_for(database) as config:
        await create_all(config.get_engine(), Chat.metadata, "chats")
        for commits in (False, True):
            async with entered(config.get_session()) as session:
                repository: Any = (AsyncChatRepository if database.backend.is_async else ChatRepository)(
                    session=session
                )
                chat = await done(repository.add(Chat(name=thread)))
                await round_trip(session, database, thread)
                assert chat.name == thread
                await done(session.commit() if commits else session.rollback())
            assert count(client, Chat.name, thread) == commits
            assert bool(keys_of(client, thread)["checkpoints"]) is commits

        async with entered(config.get_session()) as session:
            repository = (AsyncChatRepository if database.backend.is_async else ChatRepository)(session=session)
            await done(repository.delete((await done(repository.get_one(name=thread))).id))
            await Client(client.saver.using(session), database.backend).delete_thread(thread)
            await done(session.commit())
    assert count(client, Chat.name, thread) == 0
    assert not any(keys_of(client, thread).values())


# ---------------------------------------------------------------------------------------------------- scoped_session


async def test_a_scoped_session_stands_for_its_factory(client: Client, database: Database, thread: str) -> None:
    """LangGraph calls from other threads and tasks, and the current session may have anything open."""
    async with database.engine() as engine:
        await create_all(engine, sqlmodel.SQLModel.metadata, "conversation")
        scoped = scoped_on(engine)
        on_scoped = Client(saver_on(scoped), database.backend)
        await done(scoped.execute(select(Conversation)))
        scoped.add(Conversation(id=thread))
        current = scoped()
        sync_session = getattr(current, "sync_session", current)
        transaction = sync_session.get_transaction()

        await round_trip(scoped, database, thread)
        await use_graphs(on_scoped, thread)

        assert await client.get_tuple(config_of(thread)) is not None
        assert scoped() is current and sync_session.get_transaction() is transaction
        assert [row.id for row in current.new] == [thread]
        await done(scoped.rollback())
        assert await client.get_tuple(config_of(thread)) is not None
        assert count(client, Conversation.id, thread) == 0
        await done(scoped.remove())


async def test_using_a_scoped_session_is_using_its_current_one(client: Client, database: Database, thread: str) -> None:
    async with database.engine() as engine:
        await create_all(engine, sqlmodel.SQLModel.metadata, "conversation")
        scoped = scoped_on(engine)
        # As an application has it: made once, at its start.
        saver = saver_on(scoped)
        for commits in (False, True):
            scoped.add(Conversation(id=thread))
            inside = Client(saver.using(scoped), database.backend)
            await inside.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
            assert await client.get_tuple(config_of(thread)) is None
            assert await inside.get_tuple(config_of(thread)) is not None
            await done(scoped.commit() if commits else scoped.rollback())
            await done(scoped.remove())  # at the end of a request
            assert count(client, Conversation.id, thread) == commits
            assert bool(keys_of(client, thread)["checkpoints"]) is commits

        # The next request has another session.
        await Client(saver.using(scoped), database.backend).delete_thread(thread)
        await done(scoped.commit())
        await done(scoped.remove())
        assert not any(keys_of(client, thread).values())


async def test_each_thread_or_task_has_a_current_session_of_its_own(
    client: Client, database: Database, thread: str
) -> None:
    async with database.engine() as engine:
        scoped = scoped_on(engine)
        saver = saver_on(scoped)

        async def request(name: str, commits: bool) -> None:
            inside = Client(saver.using(scoped), database.backend)
            await inside.put(config_of(name), checkpoint_of(), {}, {})
            await done(scoped.commit() if commits else scoped.rollback())
            await done(scoped.remove())

        requests = [request(f"{thread} {number}", commits=number % 2 == 0) for number in range(6)]
        if database.backend.is_async:
            await asyncio.gather(*(asyncio.create_task(each) for each in requests))
        else:
            await asyncio.gather(*(asyncio.to_thread(asyncio.run, each) for each in requests))

    stored = [await client.get_tuple(config_of(f"{thread} {number}")) is not None for number in range(6)]
    assert stored == [True, False] * 3
