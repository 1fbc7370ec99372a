"""The host's engine is left alone: nothing on it is changed, and whatever the host has set on it does no harm to us.

Each option of SQLAlchemy's and of the drivers' that an application may have is a case here, on every backend that has
it, with one use of everything that a saver does.
"""

from __future__ import annotations

import asyncio
import json
import logging
import sqlite3
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar
from uuid import UUID

import psycopg
import psycopg2.extensions  # type: ignore[import-untyped]
import psycopg2.extras  # type: ignore[import-untyped]
import pymysql.cursors
import pytest
import sqlalchemy
from psycopg.adapt import PyFormat
from psycopg.pq import Format
from sqlalchemy import (
    JSON,
    URL,
    AssertionPool,
    Column,
    Connection,
    Engine,
    Integer,
    MetaData,
    NullPool,
    StaticPool,
    Table,
    Text,
    cast,
    create_engine,
    event,
    func,
    select,
    text,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine

from sa_checkpoint.errors import ThreadExists
from tests import tenants, triggers
from tests.backends import (
    BACKENDS,
    Backend,
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
from tests.hosts import sync_engine_of
from tests.rows import connection_of, keys_of
from tests.usage import put_chain, use, use_graphs

T = TypeVar("T")

VERSION = tuple(int(number) for number in sqlalchemy.__version__.split(".")[:3] if number.isdigit())
ONE = {"pool_size": 1, "max_overflow": 0, "pool_timeout": 20}


def on(*dialects: str) -> pytest.MarkDecorator:
    """Run a test on the backends of some databases only, whichever statements they use."""
    chosen = [one for one in BACKENDS if one.dialect in dialects]
    return on_backends(*chosen)


async def on_connection(engine: Engine | AsyncEngine, work: Callable[[Connection], T]) -> T:
    """What the application itself does in a transaction on its engine."""
    if isinstance(engine, AsyncEngine):
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    with engine.begin() as sync_connection:
        return work(sync_connection)


UNSTORABLE, UNDELETABLE, DEADLY = "no insert", "no delete", "deadly"
"""What the name of a thread ends with whose checkpoints the database refuses to store or delete, or dies of."""


_DYING = {
    "postgresql": "PERFORM pg_terminate_backend(pg_backend_pid())",
    "mysql": "KILL CONNECTION_ID()",
}


def refuse_some_threads(database: Database) -> None:
    """Let every operation on these threads fail at its last table."""
    engine = create_engine(with_sync_driver(database.url))
    refusing = triggers.refusing()
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE host (id TEXT)"))
        triggers.before("INSERT", connection, f"NEW.thread_id LIKE '%{UNSTORABLE}'", refusing)
        triggers.before("DELETE", connection, f"OLD.thread_id LIKE '%{UNDELETABLE}'", refusing)
        triggers.before("INSERT", connection, f"NEW.channel = '{UNSTORABLE}'", refusing, table="checkpoint_writes")
        if database.backend.dialect in _DYING:
            triggers.before("INSERT", connection, f"NEW.thread_id LIKE '%{DEADLY}'", _DYING)
    engine.dispose()


@pytest.fixture(scope="module")
def database(database: Database) -> Database:
    """A database with our tables and one of the application's, that refuses some threads."""
    refuse_some_threads(database)
    return database


def on_connect(engine: Engine | AsyncEngine, *statements: str) -> None:
    """A listener of the application's, which executes these on each new connection."""

    def listen(dbapi_connection: Any, _record: Any) -> None:
        cursor = dbapi_connection.cursor()
        for statement in statements:
            cursor.execute(statement)
        cursor.close()
        dbapi_connection.commit()

    event.listen(sync_engine_of(engine), "connect", listen)


# ------------------------------------------------------------------------------------------------- before and after


def listeners(target: Any) -> dict[str, list[Any]]:
    """Whoever listens to an engine, a pool or a dialect."""
    return {name: list(getattr(target.dispatch, name)) for name in target.dispatch._event_names}


def settings_of(engine: Engine) -> dict[str, Any]:
    """What an engine, its pool and its dialect have been given, without SQLAlchemy's own memos."""
    parts = {"engine": engine, "pool": engine.pool, "dialect": engine.dialect}
    return {
        **{f"{part}.{name}": value for part, target in parts.items() for name, value in vars(target).items()},
        **{f"listeners of {part}": listeners(target) for part, target in parts.items()},
        "options": dict(engine.get_execution_options()),
    }


SQLITE_ATTRIBUTES = ("isolation_level", "row_factory", "text_factory", "in_transaction", "autocommit")
PSYCOPG_ATTRIBUTES = (
    "autocommit isolation_level read_only deferrable row_factory cursor_factory prepare_threshold prepared_max "
    "_notice_handlers _notify_handlers"
).split()
PSYCOPG2_ATTRIBUTES = (
    "autocommit isolation_level readonly deferrable cursor_factory encoding string_types binary_types notices notifies"
).split()
ASYNCPG_ATTRIBUTES = (
    "_listeners _log_listeners _cancellations _termination_listeners _query_loggers _top_xact _config _params"
).split()
PYMYSQL_ATTRIBUTES = (
    "autocommit_mode charset client_flag collation cursorclass decoders encoders encoding init_command sql_mode "
    "use_unicode"
).split()
ASYNCMY_ATTRIBUTES = (
    "autocommit_mode _charset _client_flag _cursor_cls _decoders _encoders _encoding _init_command _sql_mode "
    "_use_unicode"
).split()
ATTRIBUTES = {
    "pysqlite": SQLITE_ATTRIBUTES,
    "aiosqlite": SQLITE_ATTRIBUTES,
    "psycopg": PSYCOPG_ATTRIBUTES,
    "psycopg2": PSYCOPG2_ATTRIBUTES,
    "asyncpg": ASYNCPG_ATTRIBUTES,
    "pymysql": PYMYSQL_ATTRIBUTES,
    "asyncmy": ASYNCMY_ATTRIBUTES,
}
# Those that take no argument and do no work.
PRAGMAS = (
    "analysis_limit application_id auto_vacuum automatic_index busy_timeout cache_size cache_spill cell_size_check "
    "checkpoint_fullfsync data_version database_list defer_foreign_keys encoding foreign_keys fullfsync "
    "hard_heap_limit ignore_check_constraints journal_mode journal_size_limit legacy_alter_table locking_mode "
    "max_page_count mmap_size page_size query_only read_uncommitted recursive_triggers reverse_unordered_selects "
    "secure_delete soft_heap_limit synchronous temp_store threads trusted_schema user_version wal_autocheckpoint "
    "collation_list"
).split()
TYPES = (str, bytes, int, float, list, UUID)
# Values of the types that the drivers have adapters for, as a result has them.
POSTGRESQL_VALUES = """SELECT '{"a": [1, 1.50]}'::json, '{"a": [1, 1.50]}'::jsonb, '\\x00ff'::bytea, 'text',
1.50::numeric, '2026-11-22 12:00:00+00'::timestamptz, '00000000-0000-0000-0000-000000000007'::uuid,
ARRAY['a', NULL], ARRAY[1, 2]"""
MYSQL_VALUES = """SELECT JSON_ARRAY(1.50), x'00ff', 'text', 1.50, 1e0, 7, b'1', DATE'2026-11-22',
TIMESTAMP'2026-11-22 12:00:00', TIME'12:00:00'"""
# Those of a session that no two statements have the same.
CLOCKS = {"rand_seed1", "rand_seed2", "timestamp"}


def driver_state(connection: Connection) -> dict[str, Any]:
    """What the driver's connection is set to: as the driver says, and as SQLAlchemy does."""
    driver: Any = connection.connection.driver_connection
    state = {name: getattr(driver, name, None) for name in ATTRIBUTES[connection.dialect.driver]}
    state["options"] = dict(connection.get_execution_options())
    state["info"] = dict(connection.info)
    if connection.dialect.driver == "psycopg":
        state["transaction"] = driver.info.transaction_status
        state["dumpers"] = [driver.adapters.get_dumper(type_, PyFormat.AUTO) for type_ in TYPES]
        state["loaders"] = [
            (entry.name, driver.adapters.get_loader(entry.oid, format_))
            for entry in psycopg.adapters.types
            for format_ in Format
        ]
    if connection.dialect.driver == "psycopg2":
        extensions = psycopg2.extensions
        state["global adapters"] = (dict(extensions.string_types), dict(extensions.adapters))
        state["transaction"] = driver.get_transaction_status()
    if connection.dialect.name == "mysql":
        state["transaction"] = driver.server_status & 3  # SERVER_STATUS_IN_TRANS, SERVER_STATUS_AUTOCOMMIT
    state["isolation level"] = connection.get_isolation_level()
    state["default isolation level"] = connection.default_isolation_level
    return {name: dict(value) if isinstance(value, dict) else value for name, value in state.items()}


def server_state(connection: Connection) -> dict[str, Any]:
    """What the database says of the connection's session."""
    if connection.dialect.name == "sqlite":
        return {
            "temporary": connection.exec_driver_sql("SELECT * FROM temp.sqlite_master").all(),
            "functions": sorted(connection.exec_driver_sql("SELECT * FROM pragma_function_list").all()),
            **{name: connection.exec_driver_sql(f"PRAGMA {name}").all() for name in PRAGMAS},
        }
    if connection.dialect.name == "mysql":
        return {
            **{
                name: value
                for name, value in connection.exec_driver_sql("SHOW SESSION VARIABLES")
                if name not in CLOCKS
            },
            "session": connection.exec_driver_sql("SELECT user(), current_user(), database(), connection_id()").all(),
            "values": [(type(value), value) for value in connection.exec_driver_sql(MYSQL_VALUES).one()],
        }
    return {
        **{name: setting for name, setting, _ in connection.exec_driver_sql("SHOW ALL")},
        "session": connection.exec_driver_sql(
            "SELECT current_user, session_user, current_schemas(true)::text, pg_my_temp_schema(), pg_backend_pid()"
        ).all(),
        "listens to": connection.exec_driver_sql("SELECT pg_listening_channels()").all(),
        # psycopg2's and asyncpg's own are gone by now.
        "cursors": connection.exec_driver_sql("SELECT name FROM pg_cursors WHERE is_holdable").all(),
        "values": [
            (type(value), bytes(value) if isinstance(value, memoryview) else value)
            for value in connection.exec_driver_sql(POSTGRESQL_VALUES).one()
        ],
    }


def leftovers(client: Client) -> list[Any]:
    """What a transaction that has not been ended, or a lock, would leave: seen from outside."""
    with connection_of(client) as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("PRAGMA busy_timeout = 0")
            connection.exec_driver_sql("BEGIN EXCLUSIVE")  # fails if anybody holds a lock
            return []
        if connection.dialect.name == "mysql":
            return [
                *connection.exec_driver_sql(
                    "SELECT t.* FROM information_schema.innodb_trx t "
                    "JOIN information_schema.processlist p ON p.id = t.trx_mysql_thread_id WHERE p.db = database()"
                ),
                *connection.exec_driver_sql(
                    "SELECT * FROM information_schema.processlist WHERE db = database() AND id <> connection_id() "
                    "AND command <> 'Sleep'"
                ),
                *connection.exec_driver_sql(
                    "SELECT 1 FROM dual WHERE is_used_lock(sha1(concat('sa_checkpoint ', database()))) IS NOT NULL"
                ),
            ]
        return [
            *connection.exec_driver_sql("SELECT * FROM pg_prepared_xacts WHERE database = current_database()"),
            *connection.exec_driver_sql(
                "SELECT l.* FROM pg_locks l JOIN pg_database d ON d.oid = l.database "
                "WHERE l.locktype = 'advisory' AND d.datname = current_database()"
            ),
            *connection.exec_driver_sql(
                "SELECT pid, state, query FROM pg_stat_activity WHERE datname = current_database() "
                "AND pid <> pg_backend_pid() AND backend_type = 'client backend' AND state <> 'idle'"
            ),
        ]


async def test_heavy_use_changes_nothing_that_the_host_has_set(database: Database, thread: str) -> None:
    """Known fault elsewhere: adapters, row factories and autocommit are set on connections of the host's."""
    async with database.engine(**ONE, json_serializer=json.dumps, json_deserializer=json.loads) as engine:
        sync_engine = sync_engine_of(engine)
        connections: list[Any] = []

        def state_of(connection: Connection) -> dict[str, Any]:
            connections.append(connection.connection.driver_connection)
            return {**driver_state(connection), **server_state(connection)}

        before = await on_connection(engine, state_of)
        settings = settings_of(sync_engine)
        pool = sync_engine.pool

        client = Client(saver_on(engine), database.backend)
        await client.setup()
        await use(client, thread)
        await use_graphs(client, thread)

        assert await on_connection(engine, state_of) == before
        assert {name: value for name, value in settings_of(sync_engine).items() if name in settings} == settings
        # Neither disposed of nor given away: it is the same connection, in the same pool.
        assert connections[0] is connections[1]
        assert sync_engine.pool is pool
        assert pool.checkedout() == 0  # type: ignore[attr-defined]
        assert leftovers(client) == []


# ---------------------------------------------------------------------------------------------- options of the host's

SYNC_SQLITE = ("sqlite", "portable-sqlite")
SQLITE = (*SYNC_SQLITE, "aiosqlite")
PSYCOPG = ("psycopg", "psycopg-async")
ASYNCPG = ("asyncpg", "portable-postgresql")
POSTGRESQL = (*PSYCOPG, *ASYNCPG, "psycopg2")
PYMYSQL = ("pymysql", "portable-mariadb")
MYSQL = (*PYMYSQL, "asyncmy")
SERVERS = POSTGRESQL + MYSQL
EVERY = SQLITE + SERVERS


@dataclass(frozen=True)
class Setting:
    """Something that an application may have set.

    Attributes:
        name: What a test case is called.
        options: For `create_engine`.
        execution: For `Engine.execution_options`.
        connected: Statements that a listener of the application's executes on each new connection.
        on: The backends that have it.
        with_graphs: Whether it matters for graphs with parallel nodes, which take several connections at once.
    """

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)
    execution: Mapping[str, Any] = field(default_factory=dict)
    connected: tuple[str, ...] = ()
    on: tuple[str, ...] = EVERY
    with_graphs: bool = False


def connect_args(name: str, on: tuple[str, ...], **arguments: Any) -> Setting:
    return Setting(name, options={"connect_args": arguments}, on=on)


def server_settings(**settings: str) -> list[Setting]:
    """Settings of PostgreSQL that a connection starts with."""
    name = " ".join(f"{name}={value}" for name, value in settings.items())
    flags = " ".join(f"-c {name}={value}" for name, value in settings.items())
    return [
        connect_args(name, (*PSYCOPG, "psycopg2"), options=flags),
        connect_args(name, ASYNCPG, server_settings=settings),
    ]


def refuse(value: Any) -> Any:
    raise AssertionError(f"This is not the application's: {value!r}")


SETTINGS = (
    # Transactions
    *(
        Setting(level, options={"isolation_level": level}, on=on, with_graphs=level in ("AUTOCOMMIT", "SERIALIZABLE"))
        for levels, on in (
            (("AUTOCOMMIT", "READ UNCOMMITTED", "SERIALIZABLE"), SQLITE),
            (("AUTOCOMMIT", "READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"), SERVERS),
            (("READ UNCOMMITTED",), MYSQL),
        )
        for level in levels
    ),
    Setting("AUTOCOMMIT on a copy", execution={"isolation_level": "AUTOCOMMIT"}),
    Setting("SERIALIZABLE on a copy", execution={"isolation_level": "SERIALIZABLE"}),
    Setting(
        "SERIALIZABLE on a copy of AUTOCOMMIT",
        options={"isolation_level": "AUTOCOMMIT"},
        execution={"isolation_level": "SERIALIZABLE"},
    ),
    *server_settings(default_transaction_isolation="serializable"),
    connect_args("the driver's autocommit", (*PSYCOPG, *MYSQL), autocommit=True),
    *(
        connect_args(f"sqlite3's isolation_level {level}", SQLITE, isolation_level=level)
        for level in (None, "IMMEDIATE", "EXCLUSIVE")
    ),
    *(
        connect_args(f"sqlite3's autocommit {value}", on, autocommit=value)
        for value, on in ((True, SYNC_SQLITE), (False, SQLITE))
        if sys.version_info >= (3, 12)
    ),
    *(
        Setting("skip_autocommit_rollback", options={"isolation_level": "AUTOCOMMIT", "skip_autocommit_rollback": True})
        for _ in range(VERSION >= (2, 0, 43))
    ),
    # Pools
    Setting("a pool of one", options=ONE, with_graphs=True),
    Setting("NullPool", options={"poolclass": NullPool}, with_graphs=True),
    Setting("StaticPool", options={"poolclass": StaticPool}, on=(*SERVERS, "aiosqlite"), with_graphs=True),
    Setting(
        "StaticPool for threads",
        options={"poolclass": StaticPool, "connect_args": {"check_same_thread": False}},
        on=SYNC_SQLITE,
        with_graphs=True,
    ),
    Setting("AssertionPool", options={"poolclass": AssertionPool}, on=(*SYNC_SQLITE, *PYMYSQL, "psycopg", "psycopg2")),
    Setting(
        "pool_pre_ping, pool_recycle, pool_use_lifo",
        options={**ONE, "pool_pre_ping": True, "pool_recycle": 0, "pool_use_lifo": True},
    ),
    *(
        Setting(f"pool_reset_on_return {reset}", options={**ONE, "pool_reset_on_return": reset})
        for reset in (None, "commit")
    ),
    Setting(
        "pool_reset_on_return None in AUTOCOMMIT",
        options={**ONE, "pool_reset_on_return": None, "isolation_level": "AUTOCOMMIT"},
    ),
    # Statements
    Setting("stream_results", execution={"stream_results": True}),
    Setting("yield_per", execution={"yield_per": 1}),
    Setting("compiled_cache", execution={"compiled_cache": None}),
    Setting(
        "insertmanyvalues_page_size, preserve_rowcount, no_parameters, logging_token",
        execution={
            "insertmanyvalues_page_size": 1,
            "preserve_rowcount": True,
            "no_parameters": True,
            "logging_token": "tenant 7",
        },
    ),
    Setting("use_insertmanyvalues, query_cache_size", options={"use_insertmanyvalues": False, "query_cache_size": 0}),
    Setting("label_length, enable_from_linting", options={"label_length": 6, "enable_from_linting": False}),
    Setting("schema_translate_map", execution={"schema_translate_map": {"host": "public", None: None}}, on=SERVERS),
    *(
        Setting(f"paramstyle {style}", options={"paramstyle": style}, on=SQLITE)
        for style in ("named", "numeric")
        # Python's sqlite3 warns of how SQLAlchemy does the latter.
        if style == "named" or sys.version_info < (3, 12)
    ),
    *(
        Setting(f"paramstyle {style}", options={"paramstyle": style}, on=(*PSYCOPG, *PYMYSQL, "psycopg2"))
        for style in ("format", "pyformat")
    ),
    # JSON
    Setting("json_serializer", options={"json_serializer": refuse, "json_deserializer": refuse}),
    # Drivers
    *(connect_args(f"prepare_threshold {count}", PSYCOPG, prepare_threshold=count) for count in (0, None)),
    connect_args("cursors that bind in the client", ("psycopg",), cursor_factory=psycopg.ClientCursor),
    connect_args("async cursors that bind in the client", ("psycopg-async",), cursor_factory=psycopg.AsyncClientCursor),
    connect_args("statement_cache_size", ASYNCPG, statement_cache_size=0, prepared_statement_cache_size=0),
    connect_args("a cursor of the host's", ("psycopg2",), cursor_factory=psycopg2.extras.NamedTupleCursor),
    Setting("executemany_mode", options={"executemany_mode": "values_plus_batch"}, on=("psycopg2",)),
    *server_settings(bytea_output="escape", timezone="Asia/Kathmandu"),
    connect_args("detect_types", SQLITE, detect_types=sqlite3.PARSE_DECLTYPES | sqlite3.PARSE_COLNAMES),
    Setting("native_datetime", options={"native_datetime": True}, on=SQLITE),
    Setting(
        "PRAGMAs",
        connected=(
            "PRAGMA foreign_keys = ON",
            "PRAGMA case_sensitive_like = ON",
            "PRAGMA recursive_triggers = ON",
            "PRAGMA reverse_unordered_selects = ON",
        ),
        on=SQLITE,
    ),
    Setting(
        "SET on connect",
        connected=(
            "SET SESSION CHARACTERISTICS AS TRANSACTION ISOLATION LEVEL SERIALIZABLE",
            "SET statement_timeout = '20s'",
        ),
        on=POSTGRESQL,
    ),
    connect_args("a cursor that does not buffer", PYMYSQL, cursorclass=pymysql.cursors.SSCursor),
    connect_args("binary_prefix", MYSQL, binary_prefix=True),
    connect_args("sql_mode", MYSQL, sql_mode="ANSI"),
    connect_args("init_command", MYSQL, init_command="SET SESSION TRANSACTION ISOLATION LEVEL SERIALIZABLE"),
    Setting(
        "SET on connect",
        connected=(
            "SET NAMES utf8mb4 COLLATE utf8mb4_turkish_ci",
            "SET SESSION sql_safe_updates = 1",
            "SET SESSION innodb_lock_wait_timeout = 20",
            "SET SESSION time_zone = '+05:45'",
        ),
        on=MYSQL,
    ),
)


@pytest.mark.parametrize(
    ("backend", "setting"),
    [
        pytest.param(backend, setting, id=f"{backend.id}-{setting.name}")
        for backend in BACKENDS
        for setting in SETTINGS
        if backend.id in setting.on
    ],
    indirect=["backend"],
    scope="module",
)
async def test_whatever_the_host_has_set_everything_works(database: Database, setting: Setting, thread: str) -> None:
    async with database.engine(**setting.options) as engine:
        on_connect(engine, *setting.connected)
        copy = engine.execution_options(**setting.execution) if setting.execution else engine
        client = Client(saver_on(copy), database.backend)
        # From the second time on: SQLAlchemy itself goes back to a level by setting it, which has not been set before.
        await on_connection(copy, driver_state)
        before = await on_connection(copy, driver_state)

        await client.setup()
        await use(client, thread)
        if setting.with_graphs:
            await use_graphs(client, thread, runs=2)

        assert await on_connection(copy, driver_state) == before
        assert leftovers(client) == []


async def test_the_hosts_json_goes_its_own_way(database: Database, thread: str) -> None:
    """Known fault elsewhere: what is set for ours with the driver holds for the host's columns, too."""
    columns = [
        Column("id", Integer, primary_key=True),
        Column("a", JSON),
        Column("b", JSON().with_variant(JSONB(), "postgresql")),
    ]
    documents = Table("documents", MetaData(), *columns)

    def own(connection: Connection) -> Any:
        documents.create(connection, checkfirst=True)
        connection.execute(documents.insert().values(a={"key": 1}, b=[2]))
        _, a, b = documents.c
        return connection.execute(select(a, b)).all()[-1], connection.execute(
            select(cast(a, Text), cast(b, Text))
        ).all()[-1]

    async with database.engine(
        **ONE,
        json_serializer=lambda value: json.dumps({"host's": value}),
        json_deserializer=lambda text: ("host's", json.loads(text)["host's"]),
    ) as engine:
        client = Client(saver_on(engine), database.backend)
        before = await on_connection(engine, own)
        await use(client, thread)
        await use_graphs(client, thread, runs=1)

        assert await on_connection(engine, own) == before
        assert before == ((("host's", {"key": 1}), ("host's", [2])), ('{"host\'s": {"key": 1}}', '{"host\'s": [2]}'))


async def test_one_connection_is_enough_for_everything_at_once(database: Database, thread: str) -> None:
    """Known fault elsewhere: a call that waits for a second connection while it holds one waits for ever."""
    async with database.engine(pool_size=1, max_overflow=0, pool_timeout=5) as engine:
        client = Client(saver_on(engine), database.backend)
        await client.setup()
        await use_graphs(client, thread, runs=8)
        chain = await put_chain(client, thread)
        async for found in client.iterate(config_of(thread)):
            await client.setup()
            await use(client, f"{thread} inside")
            await client.put(found.config, checkpoint_of({"a": [1]}), {}, {"a": "1"})
        assert len(await client.list(config_of(thread))) == 2 * len(chain)


async def test_the_hosts_log_has_our_statements_without_values_that_it_hides(
    database: Database, thread: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    # echo adds a handler that prints, unless there is one.
    monkeypatch.setattr(logging.getLogger("sqlalchemy"), "handlers", [logging.NullHandler()])
    async with database.engine(echo=True, echo_pool="debug", hide_parameters=True, logging_name="host") as engine:
        client = Client(saver_on(engine), database.backend)
        with pytest.raises(DBAPIError) as caught:
            await client.put(
                config_of(f"{thread} {UNSTORABLE}"), checkpoint_of({"a": "secret"}), {"b": "secret"}, {"a": "1"}
            )
        await use(client, thread)

    assert "INSERT INTO checkpoints" in caplog.text and "checked out from pool" in caplog.text
    assert {record.name for record in caplog.records if "INSERT INTO" in record.getMessage()} == {
        "sqlalchemy.engine.Engine.host"
    }
    assert "secret" not in caplog.text and thread not in caplog.text
    assert "secret" not in str(caught.value)


# ------------------------------------------------------------------------------------------------ the host's listeners


async def test_a_listener_may_rewrite_every_statement_of_ours(database: Database, thread: str) -> None:
    """As OpenTelemetry does with a comment that names the trace."""
    comment = "/*traceparent='00-5bd66ef5095369c7b0d1f8f4bd33716a-c532cb4098ac3dd2-01'*/"
    before: list[str] = []
    after: list[str] = []
    compiled: list[Any] = []

    async with database.engine() as engine:
        sync_engine = sync_engine_of(engine)

        @event.listens_for(sync_engine, "before_execute", retval=True)
        def see(_connection: Any, element: Any, many: Any, one: Any, _options: Any) -> Any:
            compiled.append(element)
            return element, many, one

        @event.listens_for(sync_engine, "before_cursor_execute", retval=True)
        def add(_connection: Any, _cursor: Any, statement: str, parameters: Any, _context: Any, _many: bool) -> Any:
            before.append(statement)
            return f"{statement} {comment}", parameters

        @event.listens_for(sync_engine, "after_cursor_execute")
        def end(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            after.append(statement)

        @event.listens_for(sync_engine, "handle_error")
        def fail(context: Any) -> None:  # in a deadlock of InnoDB, after which the operation is done again
            after.append(context.statement)

        client = Client(saver_on(engine), database.backend)
        await client.setup()
        await use(client, thread)
        await use_graphs(client, thread, runs=1)

    assert Counter(after) == Counter(f"{statement} {comment}" for statement in before)
    assert len(compiled) > 20
    for part in ("INSERT INTO checkpoints ", "INSERT INTO checkpoint_writes ", "DELETE FROM checkpoint_blobs "):
        assert any(part in statement for statement in before)


@pytest.mark.parametrize("isolation_level", [None, "AUTOCOMMIT"])
async def test_listeners_see_one_checkout_and_one_transaction_for_each_call(
    database: Database, thread: str, isolation_level: str | None
) -> None:
    seen: list[str] = []
    options = {"isolation_level": isolation_level} if isolation_level else {}
    async with database.engine(**ONE, **options) as engine:
        sync_engine = sync_engine_of(engine)
        client = Client(saver_on(engine), database.backend)
        saved = await client.put(config_of(thread), checkpoint_of(), {"run_id": thread}, {})
        await client.put(config_of(f"{thread} other"), checkpoint_of(), {}, {})
        for name in ("begin", "commit", "rollback", "savepoint", "prepare_twophase"):
            event.listen(sync_engine, name, lambda *_, name=name: seen.append(name))
        for name in ("checkout", "checkin", "invalidate", "connect", "close"):
            event.listen(sync_engine.pool, name, lambda *_, name=name: seen.append(name))

        # On MySQL, where a COMMIT would be one more round trip.
        end_of_reading = "rollback" if database.backend.dialect == "mysql" else "commit"
        for end, call in (
            ("commit", lambda: client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})),
            ("commit", lambda: client.put_writes(saved, [("a", 1), ("b", 2)], "task")),
            (end_of_reading, lambda: client.get_tuple(config_of(thread))),
            (end_of_reading, lambda: client.list(config_of(thread))),
            (end_of_reading, lambda: client.delta_history(config_of(thread), ["a"])),
            ("commit", lambda: client.copy_thread(thread, f"{thread} copy")),
            ("commit", lambda: client.prune([thread])),
            ("commit", lambda: client.delete_thread(f"{thread} copy")),
        ):
            seen.clear()
            await call()
            assert seen == ["checkout", "begin", end, "checkin"]

        seen.clear()
        with pytest.raises(DBAPIError):
            await client.put(config_of(f"{thread} {UNSTORABLE}"), checkpoint_of(), {}, {})
        assert seen == ["checkout", "begin", "rollback", "checkin"]
        seen.clear()
        with pytest.raises(ThreadExists):
            await client.copy_thread(thread, f"{thread} other")
        assert seen == ["checkout", "begin", "rollback", "checkin"]


async def test_a_large_state_that_is_refused_leaves_nothing(database: Database, thread: str) -> None:
    """It is several statements, of which the last one fails."""
    values = {f"channel {number}": b"x" * 600_000 for number in range(5)}
    async with database.engine(**ONE) as engine:
        client = Client(saver_on(engine), database.backend)
        refused = f"{thread} {UNSTORABLE}"
        with pytest.raises(DBAPIError):
            await client.put(config_of(refused), checkpoint_of(values), {}, dict.fromkeys(values, "1"))
        assert not any(keys_of(client, refused).values())
        writes = [*values.items(), (UNSTORABLE, b"x" * 600_000)]
        saved = await client.put(config_of(thread), checkpoint_of(), {}, {})
        with pytest.raises(DBAPIError):
            await client.put_writes(saved, writes, "task")
        assert keys_of(client, thread)["checkpoint_writes"] == set()


@on_backends(*(one for one in BACKENDS if one.drivername == "postgresql+psycopg"))
async def test_psycopgs_cursors_are_as_before_and_the_hosts_own_kind_is_left_alone(
    database: Database, thread: str
) -> None:
    usual, own = (
        (psycopg.AsyncCursor, psycopg.AsyncClientCursor)
        if database.backend.is_async
        else (psycopg.Cursor, psycopg.ClientCursor)
    )
    for factory, options in ((usual, {}), (own, {"connect_args": {"cursor_factory": own}})):
        found: list[Any] = []
        async with database.engine(**ONE, **options) as engine:
            sync_engine = sync_engine_of(engine)

            @event.listens_for(sync_engine, "before_cursor_execute")
            def look(_connection: Any, cursor: Any, *_: Any) -> None:
                found.append(type(getattr(cursor, "_cursor", cursor)))  # noqa: B023

            @event.listens_for(sync_engine.pool, "checkin")
            def look_again(_dbapi_connection: Any, record: Any) -> None:
                found.append(record.driver_connection.cursor_factory)  # noqa: B023

            await use(Client(saver_on(engine), database.backend), f"{thread} {factory.__name__}")
        kinds = {kind for kind in found if kind is not factory}
        assert found[-1] is factory
        assert {kind.__name__.replace("Binary", "") for kind in kinds} == (
            {usual.__name__} if factory is usual else set()
        )


class HostError(Exception):
    """What an application turns database errors into."""


async def test_handle_error_of_the_hosts_sees_our_errors_and_may_replace_them(database: Database, thread: str) -> None:
    async with database.engine() as engine:
        client = Client(saver_on(engine), database.backend)
        seen: list[Any] = []
        event.listen(sync_engine_of(engine), "handle_error", seen.append)
        with pytest.raises(DBAPIError) as caught:
            await client.put(config_of(f"{thread} {UNSTORABLE}"), checkpoint_of(), {}, {})
        assert [context.sqlalchemy_exception for context in seen] == [caught.value]

        @event.listens_for(sync_engine_of(engine), "handle_error")
        def replace(context: Any) -> None:
            raise HostError("The application's own") from context.original_exception

        with pytest.raises(HostError, match="The application's own"):
            await client.put(config_of(f"{thread} {UNSTORABLE}"), checkpoint_of(), {}, {})
        assert leftovers(client) == []


@pytest.fixture
def guarded(backend: Backend, new_url: Callable[[Backend], URL]) -> Iterator[tuple[Database, str]]:
    """A database in which a role sees the rows of `app.tenant` only."""
    url = new_url(backend)
    with tenants.guarded(url) as role:
        yield Database(backend, url), role


@on("postgresql")
@pytest.mark.parametrize("isolation_level", [None, "REPEATABLE READ"])
async def test_a_tenant_set_by_a_begin_listener_has_its_own_threads_only(
    guarded: tuple[Database, str], isolation_level: str | None
) -> None:
    """A single connection serves both tenants: what outlives a transaction would be seen by the other one.

    The tenant is an option of an engine's copy. LangGraph stores what parallel nodes write from threads that do not
    have the context variables of the run.
    """
    database, role = guarded
    options = {"isolation_level": isolation_level} if isolation_level else {}
    async with database.engine(**ONE, **options) as engine:
        on_connect(engine, f"SET ROLE {role}")

        @event.listens_for(sync_engine_of(engine), "begin")
        def set_tenant(connection: Connection) -> None:
            tenant = connection.get_execution_options()["tenant"]
            connection.execute(select(func.set_config("app.tenant", tenant, True)))

        clients = {
            tenant: Client(saver_on(engine.execution_options(tenant=tenant)), database.backend)
            for tenant in ("acme", "globex")
        }

        async def work(tenant: str) -> None:
            client = clients[tenant]
            await client.setup()
            await use(client, f"{tenant}:1")
            await use_graphs(client, f"{tenant}:2")
            await put_chain(client, f"{tenant}:3")

        await asyncio.gather(*map(work, clients))

        for tenant, client in clients.items():
            threads = [found.config["configurable"]["thread_id"] for found in await client.list(None)]
            assert threads == [f"{tenant}:3"] * 3
        acme, globex = clients.values()
        theirs = await globex.list(config_of("globex:3"))
        assert await acme.get_tuple(theirs[0].config) is None
        await acme.copy_thread("globex:3", "acme:4")
        assert await acme.list(config_of("acme:4")) == []
        await acme.delete_for_runs(["globex:3 first", "globex:3 second"])
        await acme.prune(["globex:3"])
        await acme.delete_thread("globex:3")
        with pytest.raises(DBAPIError, match="row-level security"):
            await acme.put(config_of("globex:3"), checkpoint_of(), {}, {})
        assert await globex.list(config_of("globex:3")) == theirs


# --------------------------------------------------------------------------------------------------- pysqlite's recipe


def follow_the_recipe(engine: Engine | AsyncEngine, begin: str) -> None:
    """SQLAlchemy's recipe for transactions and savepoints that work: sqlite3 begins nothing, and a listener does."""
    event.listen(sync_engine_of(engine), "connect", lambda driver, _: setattr(driver, "isolation_level", None))
    event.listen(sync_engine_of(engine), "begin", lambda connection: connection.exec_driver_sql(begin))


@on("sqlite")
@pytest.mark.parametrize("begin", ["BEGIN", "BEGIN IMMEDIATE"])
async def test_a_host_that_begins_sqlites_transactions_itself_is_served(
    database: Database, thread: str, begin: str
) -> None:
    async with database.engine(connect_args={"timeout": 20}) as engine:
        follow_the_recipe(engine, begin)
        client = Client(saver_on(engine), database.backend)
        await client.setup()
        await use(client, thread)
        await use_graphs(client, thread, runs=6)
        await all_or_nothing(client, thread)


@on_strategies("sqlite")  # what is portable reads first
@pytest.mark.parametrize("recipe", [False, True])
async def test_another_process_may_write_between_any_two_statements(
    backend: Backend, new_url: Callable[[Backend], URL], recipe: bool
) -> None:
    """A transaction that has begun to read cannot write after another one did, however long it waits."""
    database = Database(backend, new_url(backend))
    written: list[bool] = []
    async with database.engine() as engine:
        on_connect(engine, "PRAGMA journal_mode = WAL")
        if recipe:
            follow_the_recipe(engine, "BEGIN")
        other = sqlite3.connect(str(database.url.database), timeout=0, check_same_thread=False)
        other.execute("CREATE TABLE host (id TEXT)")
        other.commit()

        @event.listens_for(sync_engine_of(engine), "before_cursor_execute")
        def write(*_: Any) -> None:
            try:
                with other:
                    other.execute("INSERT INTO host VALUES ('x')")
            except sqlite3.OperationalError:  # locked: it has to wait for us
                written.append(False)
            else:
                written.append(True)

        client = Client(saver_on(engine), backend)
        await client.setup()
        await use(client, "t")
        other.close()
    assert written.count(True) > 10 and written.count(False) > 10


# ---------------------------------------------------------------------------------------------------------- autocommit


async def all_or_nothing(client: Client, thread: str) -> None:
    """Let each operation fail after its first changes; nothing of it may stay."""
    kept, stuck, refused = (f"{thread} {name}" for name in ("kept", UNDELETABLE, UNSTORABLE))
    for name in (kept, stuck):
        chain = await put_chain(client, name)
    before = keys_of(client, kept, stuck, refused)
    for call in (
        lambda: client.put(config_of(refused), checkpoint_of({"a": [1]}), {}, {"a": "1"}),
        lambda: client.put_writes(chain[0], [("a", 1), ("b", 2), (UNSTORABLE, 3)], "another task"),
        lambda: client.copy_thread(kept, refused),
        lambda: client.prune([stuck]),
        lambda: client.prune([stuck], strategy="delete"),
        lambda: client.delete_thread(stuck),
        lambda: client.delete_for_runs([f"{stuck} second"]),
    ):
        with pytest.raises(DBAPIError, match="refused"):
            await call()
        assert keys_of(client, kept, stuck, refused) == before
        assert leftovers(client) == []
    await client.delete_thread(kept)


AUTOCOMMIT: Mapping[str, Callable[[Any, Any], None]] = {
    "sqlite": lambda connection, _: setattr(connection, "isolation_level", None),
    "postgresql": lambda connection, _: setattr(connection, "autocommit", True),
    "mysql": lambda connection, _: connection.autocommit(True),
}


@pytest.mark.parametrize("set_on", [None, "engine", "copy", "driver"])
async def test_each_call_is_all_or_nothing_in_autocommit_too(
    database: Database, thread: str, set_on: str | None
) -> None:
    level = {"isolation_level": "AUTOCOMMIT"}
    async with database.engine(**ONE, **(level if set_on == "engine" else {})) as engine:
        if set_on == "driver":
            event.listen(sync_engine_of(engine), "connect", AUTOCOMMIT[database.backend.dialect])
        copy = engine.execution_options(**level) if set_on == "copy" else engine
        client = Client(saver_on(copy), database.backend)
        await on_connection(copy, driver_state)
        before = await on_connection(copy, driver_state)

        await client.setup()
        await all_or_nothing(client, thread)

        assert await on_connection(copy, driver_state) == before
        # The host's own statement is committed at once, or not.
        async with entered(copy.connect()) as connection:
            await done(connection.exec_driver_sql(f"INSERT INTO host VALUES ('{thread}')"))
        with connection_of(client) as outside:
            rows = outside.exec_driver_sql(f"SELECT 1 FROM host WHERE id = '{thread}'").all()
        assert bool(rows) is bool(set_on)


@on("postgresql", "mysql")
@pytest.mark.parametrize("isolation_level", ["READ COMMITTED", "AUTOCOMMIT"])
async def test_a_connection_that_is_lost_is_reported_as_that(
    database: Database, thread: str, isolation_level: str
) -> None:
    async with database.engine(**ONE, isolation_level=isolation_level) as engine:
        client = Client(saver_on(engine), database.backend)
        with pytest.raises(DBAPIError) as caught:
            await client.put(config_of(f"{thread} {DEADLY}"), checkpoint_of(), {}, {})
        assert caught.value.connection_invalidated
        await use(client, thread)
