"""Bad input: each kind has its own error, raised at the call, that says what to do next."""

from __future__ import annotations

import asyncio
import re
import traceback
from collections.abc import AsyncIterator, Awaitable, Callable
from enum import Enum
from functools import partial
from importlib.metadata import requires
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import URL, StaticPool, create_engine, text
from sqlalchemy.exc import DBAPIError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker, create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

from sa_checkpoint import AsyncSQLAlchemySaver, SQLAlchemySaver, _urls, migrations
from sa_checkpoint.errors import (
    CheckpointerError,
    InvalidBind,
    InvalidConfig,
    InvalidSchema,
    InvalidValue,
    MissingDriver,
    SchemaOutOfDate,
    SyncCallOnEventLoop,
    UnsupportedDatabase,
)
from tests.backends import Backend, Client, Database, saver_on, with_sync_driver
from tests.checkpoints import checkpoint_of, config_of


@pytest.fixture
async def empty(backend: Backend, new_url: Callable[[Backend], URL]) -> AsyncIterator[Client]:
    """A saver on a database without our tables."""
    async with Database(backend, new_url(backend)).engine() as engine:
        yield Client(saver_on(engine), backend)


# ---------------------------------------------------------------------------------------------------------- binds


def test_the_sync_saver_says_which_class_takes_an_async_bind() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    maker = async_sessionmaker(engine)
    binds = (engine, engine.connect(), maker, maker(), async_scoped_session(maker, lambda: 1), engine.sync_engine)
    for bind in (*binds, sessionmaker(engine.sync_engine)):
        with pytest.raises(InvalidBind, match="AsyncSQLAlchemySaver"):
            SQLAlchemySaver(bind)  # type: ignore[arg-type]


def test_the_async_saver_says_which_class_takes_a_sync_bind(tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/a.db")
    with engine.connect() as connection:
        maker = sessionmaker(engine)
        for bind in (engine, connection, maker, maker(), scoped_session(maker)):
            with pytest.raises(InvalidBind, match=r"is for SQLAlchemySaver.*create_async_engine"):
                AsyncSQLAlchemySaver(bind)  # type: ignore[arg-type]
    engine.dispose()


@pytest.mark.parametrize("bind", ["sqlite:///a.db", None, 7, Session, AsyncSession, object()])
@pytest.mark.parametrize("saver", [SQLAlchemySaver, AsyncSQLAlchemySaver])
def test_what_is_no_bind_is_refused(saver: Any, bind: Any) -> None:
    takes = rf"{saver.__name__} takes SQLAlchemy's (Async)?Engine, .* or (Async)?Session, not"
    with pytest.raises(InvalidBind, match=takes):
        saver(bind)


def test_autocommit_is_for_engines() -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    with engine.connect() as connection, Session(engine) as session:
        for bind in (connection, session, sessionmaker(engine)):
            SQLAlchemySaver(bind, autocommit=False)
            with pytest.raises(InvalidBind, match=r"autocommit=True is for an Engine, .* leave it out"):
                SQLAlchemySaver(bind, autocommit=True)
    async_engine = create_async_engine("sqlite+aiosqlite://")
    AsyncSQLAlchemySaver(async_engine, autocommit=True)
    with pytest.raises(InvalidBind, match="autocommit=True is for an Engine"):
        AsyncSQLAlchemySaver(async_sessionmaker(async_engine), autocommit=True)
    with pytest.raises(InvalidBind, match="pass True, False, or None"):
        SQLAlchemySaver(engine, autocommit="AUTOCOMMIT")  # type: ignore[arg-type]


def test_a_url_as_bind_is_sent_to_from_conn_string() -> None:
    with pytest.raises(InvalidBind, match=re.escape("SQLAlchemySaver.from_conn_string(url)")):
        SQLAlchemySaver("sqlite:///a.db")  # type: ignore[arg-type]


def test_an_async_connection_that_was_not_started_is_refused() -> None:
    with pytest.raises(InvalidBind, match="async with"):
        AsyncSQLAlchemySaver(create_async_engine("sqlite+aiosqlite://").connect())


def test_an_engine_with_a_memory_database_for_each_thread_is_refused() -> None:
    with pytest.raises(InvalidBind, match="StaticPool"):
        SQLAlchemySaver(create_engine("sqlite://"))
    SQLAlchemySaver(create_engine("sqlite://", poolclass=StaticPool))


async def test_a_session_without_an_engine_is_told_where_to_get_one() -> None:
    with pytest.raises(InvalidBind, match=r"no engine for the checkpoint tables.*models\.Base"):
        SQLAlchemySaver(sessionmaker()).get_tuple(config_of("t"))
    with pytest.raises(InvalidBind, match=r"no engine for the checkpoint tables.*models\.Base"):
        await AsyncSQLAlchemySaver(AsyncSession()).aget_tuple(config_of("t"))


def test_using_refuses_what_has_no_transaction_of_the_callers(tmp_path: Path) -> None:
    engine, async_engine = create_engine(f"sqlite:///{tmp_path}/a.db"), create_async_engine("sqlite+aiosqlite://")
    saver, async_saver = SQLAlchemySaver(engine), AsyncSQLAlchemySaver(async_engine)
    for bind in (engine, sessionmaker(engine)):
        with pytest.raises(InvalidBind, match="transaction of yours"):
            saver.using(bind)  # type: ignore[arg-type]
    for async_bind in (async_engine, async_sessionmaker(async_engine)):
        with pytest.raises(InvalidBind, match="transaction of yours"):
            async_saver.using(async_bind)  # type: ignore[arg-type]
    with pytest.raises(InvalidBind, match="AsyncSession is for AsyncSQLAlchemySaver"):
        saver.using(AsyncSession(async_engine))  # type: ignore[arg-type]
    with pytest.raises(InvalidBind, match="Session is for SQLAlchemySaver"):
        async_saver.using(Session(engine))  # type: ignore[arg-type]
    engine.dispose()


@pytest.mark.parametrize("schema", ["", "a\x00b", "\ud800", "x" * 64, "ü" * 32, 7, b"agents"])
def test_what_is_no_schema_is_refused(schema: Any, tmp_path: Path) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/a.db")
    with pytest.raises(InvalidSchema, match=r"schema is .*: (pass|PostgreSQL would cut)"):
        SQLAlchemySaver(engine, schema=schema)
    with pytest.raises(InvalidSchema, match=r"schema is "):
        migrations.upgrade(engine, schema=schema)
    engine.dispose()


def test_a_database_that_loses_values_is_refused_at_the_first_call() -> None:
    engine = create_engine("sqlite://", poolclass=StaticPool)
    engine.dialect.name = "oracle"
    with pytest.raises(UnsupportedDatabase, match="Oracle keeps an empty text as NULL"):
        SQLAlchemySaver(engine).get_tuple(config_of("t"))


# ----------------------------------------------------------------------------------------------------------- URLs


def test_an_async_url_for_the_sync_saver_is_sent_to_the_other_class() -> None:
    for url in ("sqlite+aiosqlite:///a.db", "postgresql+asyncpg://localhost/a", "mysql+asyncmy://localhost/a"):
        with pytest.raises(InvalidBind, match="AsyncSQLAlchemySaver"), SQLAlchemySaver.from_conn_string(url):
            pass


async def test_a_driver_without_async_mode_is_refused_by_the_async_saver() -> None:
    with pytest.raises(InvalidBind, match=r"psycopg2.*has no async mode.*asyncpg"):
        async with AsyncSQLAlchemySaver.from_conn_string("postgresql+psycopg2://localhost/a"):
            pass


@pytest.mark.parametrize(
    "url", ["checkpoints.db", "", "/tmp/checkpoints.db", "postgresql:/u:secret@h/db", "postgresql://u:secret@h:port/db"]
)
def test_what_is_no_url_is_refused_without_showing_its_password(url: str) -> None:
    with (
        pytest.raises(InvalidConfig, match=re.escape("sqlite:///checkpoints.db")) as raised,
        SQLAlchemySaver.from_conn_string(url),
    ):
        pass
    assert "secret" not in "".join(traceback.format_exception(raised.value)).replace(repr(url), "")


def test_every_extra_that_an_error_names_brings_the_driver() -> None:
    requirements = requires("sa-checkpoint") or []
    for driver, extra in _urls._EXTRAS.items():
        brought = [line for line in requirements if re.match(rf"{driver}\b.*extra == ['\"]{extra}['\"]", line)]
        assert len(brought) == 1, (driver, extra)


def test_a_driver_that_we_have_no_extra_for_is_named_too() -> None:
    with (
        pytest.raises(MissingDriver, match='pip install "MySQLdb"'),
        SQLAlchemySaver.from_conn_string("mysql+mysqldb://u:p@localhost/a"),
    ):
        pass


@pytest.mark.parametrize(
    ("url", "driver", "extra"),
    [
        ("postgresql://localhost/a", "psycopg", "postgres"),
        ("postgres://localhost/a", "psycopg", "postgres"),
        ("postgresql+psycopg2://localhost/a", "psycopg2", "psycopg2"),
        ("mysql://localhost/a", "pymysql", "mysql"),
        ("mariadb://localhost/a", "pymysql", "mysql"),
    ],
)
def test_a_driver_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, url: str, driver: str, extra: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, driver, None)
    with (
        pytest.raises(MissingDriver, match=re.escape(f'pip install "sa-checkpoint[{extra}]"')),
        SQLAlchemySaver.from_conn_string(url),
    ):
        pass


@pytest.mark.parametrize(
    ("url", "missing", "extra"),
    [
        ("postgresql+asyncpg://localhost/a", "asyncpg", "asyncpg"),
        ("sqlite:///a.db", "aiosqlite", "sqlite-async"),
        ("mysql://localhost/a", "asyncmy", "mysql-async"),
        ("mariadb+pymysql://localhost/a", "asyncmy", "mysql-async"),
        ("postgresql://localhost/a", "greenlet", "asyncio"),
    ],
)
async def test_an_async_driver_that_is_not_installed_is_named_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, url: str, missing: str, extra: str
) -> None:
    monkeypatch.setitem(__import__("sys").modules, missing, None)
    with pytest.raises(MissingDriver, match=re.escape(f'pip install "sa-checkpoint[{extra}]"')):
        async with AsyncSQLAlchemySaver.from_conn_string(url):
            pass


# ------------------------------------------------------------------------------------------------------ arguments


@pytest.mark.parametrize("config", [{}, {"configurable": {}}, {"configurable": {"thread_id": None}}])
async def test_a_config_without_a_thread_is_refused(client: Client, config: Any) -> None:
    writes_config = {"configurable": {"checkpoint_id": "1", **config.get("configurable", {})}}
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: client.put(config, checkpoint_of(), {}, {}),
        lambda: client.put_writes(writes_config, [("a", 1)], "task"),
        lambda: client.get_tuple(config),
    ]
    if config:  # a list with an empty config is one of all threads
        calls.append(lambda: client.list(config))
    for call in calls:
        with pytest.raises(InvalidConfig, match="no thread_id"):
            await call()


@pytest.mark.parametrize("bad", ["a\0b", "a\ud800b"])
async def test_an_identifier_that_no_column_can_hold_is_refused(client: Client, bad: str) -> None:
    for config in (config_of(bad), config_of("t", bad), config_of("t", "", bad)):
        name = next(name for name, value in config["configurable"].items() if value == bad)
        writes_config = {"configurable": {"checkpoint_id": "1", **config["configurable"]}}
        calls: list[Callable[[], Awaitable[Any]]] = [
            partial(client.put, config, checkpoint_of(), {}, {}),
            partial(client.put_writes, writes_config, [("a", 1)], "task"),
            partial(client.get_tuple, config),
            partial(client.list, config),
        ]
        for call in calls:
            with pytest.raises(InvalidConfig, match=f"{name}.*NUL character or a lone surrogate"):
                await call()
    with pytest.raises(InvalidConfig, match="checkpoint id"):
        await client.put(config_of("t"), checkpoint_of(id=bad), {}, {})
    with pytest.raises(InvalidConfig, match="thread_id"):
        await client.delete_thread(bad)
    with pytest.raises(InvalidConfig, match="task_id"):
        await client.put_writes(config_of("t", "", "1"), [("a", 1)], bad)


@pytest.mark.parametrize("bad", [1.5, True, b"t", ["t"]])
async def test_an_identifier_of_another_type_is_refused(client: Client, bad: Any) -> None:
    with pytest.raises(InvalidConfig, match="thread_id must be a str"):
        await client.get_tuple(config_of(bad))


class Name(str, Enum):  # noqa: UP042 (str() of it is the member's name)
    ALICE = "alice"


@pytest.mark.parametrize(
    ("given", "stored"),
    [
        (12, "12"),
        (UUID("12345678123456781234567812345678"), "12345678-1234-5678-1234-567812345678"),
        (Name.ALICE, "alice"),
    ],
)
async def test_an_int_or_uuid_thread_is_taken_as_its_text(client: Client, given: Any, stored: str) -> None:
    saved = await client.put(config_of(given), checkpoint_of(), {"step": 1}, {})
    await client.put_writes(saved, [("a", 1)], "task")

    assert saved["configurable"]["thread_id"] == stored
    assert await client.load(config_of(given)) == await client.load(config_of(stored))
    assert [found.config for found in await client.list(config_of(given))] == [saved]
    await client.delete_thread(given)
    assert await client.get_tuple(config_of(stored)) is None


async def test_writes_without_a_checkpoint_are_refused(client: Client) -> None:
    with pytest.raises(InvalidConfig, match="checkpoint_id"):
        await client.put_writes(config_of("t"), [("a", 1)], "task")


@pytest.mark.parametrize(
    ("metadata", "path"),
    [
        ({"run": {"tags": ["a", object()]}}, r"metadata\['run'\]\['tags'\]\[1\]"),
        ({"score": float("nan")}, r"metadata\['score'\]"),
        ({"a": {"b": "x\0"}}, r"metadata\['a'\]\['b'\]"),
        ({"a": ["\ud800"]}, r"metadata\['a'\]\[0\]"),
        ({"a": {"k\0": 1}}, r"metadata\['a'\]\['k\\x00'\]"),
    ],
)
async def test_metadata_that_json_cannot_hold_is_refused_with_its_path(
    client: Client, thread: str, metadata: Any, path: str
) -> None:
    with pytest.raises(InvalidValue, match=path):
        await client.put(config_of(thread), checkpoint_of({"a": [1]}), metadata, {"a": "1"})
    assert await client.get_tuple(config_of(thread)) is None


async def test_a_filter_or_limit_that_cannot_be_is_refused(client: Client) -> None:
    with pytest.raises(InvalidValue, match=r"filter\['a'\]"):
        await client.list(None, filter={"a": object()})
    for limit in (-1, "5"):
        with pytest.raises(InvalidValue, match=f"limit is {limit!r}"):
            await client.list(None, limit=limit)
    with pytest.raises(InvalidValue, match=r"filter is \[1\]"):
        await client.list(None, filter=[1])


@pytest.mark.parametrize("version", [None, True, 0.1 + 0.2, 1e16, 2**70, "1\0", [1]])
async def test_a_version_that_databases_print_differently_is_refused(client: Client, version: Any) -> None:
    with pytest.raises(InvalidValue, match="get_next_version"):
        await client.put(config_of("t"), checkpoint_of({"a": [1]}, {}), {}, {"a": version})


# ------------------------------------------------------------------------------------------------------- database


async def test_missing_tables_are_an_error_that_names_the_upgrade(empty: Client) -> None:
    calls: list[Callable[[], Awaitable[Any]]] = [
        lambda: empty.put(config_of("t"), checkpoint_of({"a": [1]}), {}, {"a": "1"}),
        lambda: empty.put_writes(config_of("t", "", "1"), [("a", 1)], "task"),
        lambda: empty.get_tuple(config_of("t")),
        lambda: empty.list(None),
        lambda: empty.delete_thread("t"),
    ]
    for call in calls:
        with pytest.raises(SchemaOutOfDate, match=r"alembic upgrade head.*setup\(\)") as raised:
            await call()
        assert isinstance(raised.value.__cause__, DBAPIError)


async def test_tables_older_than_the_code_are_an_error_that_names_the_upgrade(empty: Client) -> None:
    """Tables of langgraph-checkpoint-postgres before its migration 9 have no task_path."""
    await empty.setup()
    await empty.put(config_of("t"), checkpoint_of(), {}, {})
    engine = create_engine(with_sync_driver(empty.sync_engine.url))
    with engine.begin() as connection:
        connection.execute(text("ALTER TABLE checkpoint_writes DROP COLUMN task_path"))
    engine.dispose()

    with pytest.raises(SchemaOutOfDate, match="alembic upgrade head"):
        await empty.put_writes(config_of("t", "", "1"), [("a", 1)], "task")
    with pytest.raises(SchemaOutOfDate, match="alembic upgrade head"):
        await empty.get_tuple(config_of("t"))


async def test_the_password_is_not_in_the_error(empty: Client) -> None:
    with pytest.raises(SchemaOutOfDate) as raised:
        await empty.get_tuple(config_of("t"))
    password = empty.sync_engine.url.password
    assert not password or password not in str(raised.value)


def test_an_unreachable_database_raises_sqlalchemys_own_error(tmp_path: Path) -> None:
    for url in (
        f"sqlite:///{tmp_path}/missing/a.db",
        "postgresql+psycopg2://u@127.0.0.1:9/a",
        "postgresql://u@127.0.0.1:9/a",
        "mysql://u@127.0.0.1:9/a",
    ):
        with pytest.raises(OperationalError) as raised, SQLAlchemySaver.from_conn_string(url) as saver:
            saver.get_tuple(config_of("t"))
        assert not isinstance(raised.value, CheckpointerError)


# ----------------------------------------------------------------------------------------------------- event loop


async def test_a_blocking_call_on_the_savers_own_loop_is_an_error_and_no_hang(tmp_path: Path) -> None:
    async with AsyncSQLAlchemySaver.from_conn_string(f"sqlite:///{tmp_path}/a.db") as saver:
        await saver.setup()
        calls: list[Callable[[], Any]] = [
            lambda: saver.put(config_of("t"), checkpoint_of(), {}, {}),
            lambda: saver.put_writes(config_of("t", "", "1"), [("a", 1)], "task"),
            lambda: saver.get_tuple(config_of("t")),
            lambda: next(saver.list(None)),
            lambda: saver.delete_thread("t"),
        ]
        for call in calls:
            with pytest.raises(SyncCallOnEventLoop, match=r"await saver\.aget_tuple"):
                call()


def test_a_blocking_call_without_any_loop_is_an_error() -> None:
    engine = create_async_engine("sqlite+aiosqlite://")
    with pytest.raises(SyncCallOnEventLoop, match="SQLAlchemySaver in a program without one"):
        AsyncSQLAlchemySaver(engine).get_tuple(config_of("t"))


async def test_blocking_calls_of_the_async_saver_work_from_other_threads(tmp_path: Path) -> None:
    async with AsyncSQLAlchemySaver.from_conn_string(f"sqlite:///{tmp_path}/a.db") as saver:
        await saver.setup()

        def use() -> list[Any]:
            saved = saver.put(config_of("t"), checkpoint_of({"a": [1]}), {}, {"a": "1"})
            saver.put_writes(saved, [("a", 2)], "task")
            found = [saver.get_tuple(saved), *saver.list(config_of("t"))]
            saver.delete_thread("t")
            return found

        one, two = await asyncio.to_thread(use)
        assert one == two
        assert one.pending_writes == [("task", "a", 2)]
        assert await saver.aget_tuple(config_of("t")) is None


def test_a_migration_says_what_it_takes() -> None:
    engine = create_engine("sqlite://")
    with pytest.raises(InvalidBind, match="create_async_engine"):
        asyncio.run(migrations.aupgrade(engine))  # type: ignore[arg-type]
