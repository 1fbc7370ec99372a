"""What is special about MySQL and MariaDB: their keys, modes, isolation levels, deadlocks and character sets."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from threading import Barrier
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.serde.types import ERROR
from sqlalchemy import URL, Connection, create_engine, event, text
from sqlalchemy.dialects import mysql
from sqlalchemy.exc import OperationalError
from sqlalchemy.schema import CreateTable

from sa_checkpoint import AsyncSQLAlchemySaver, SQLAlchemySaver, _filters, metadata, migrations
from sa_checkpoint._mysql import MySQLStrategy
from sa_checkpoint._strategy import ReadShape
from sa_checkpoint._tables import tables_in
from sa_checkpoint.errors import InvalidBind, InvalidConfig, UnsupportedDatabase
from tests.backends import BACKENDS, Backend, Client, Database, done, on_strategies, saver_on, with_sync_driver
from tests.checkpoints import checkpoint_of, config_of
from tests.hosts import sync_engine_of
from tests.rows import connection_of, keys_of, statements_of
from tests.usage import use, use_graphs

on_mysql = on_strategies("mysql")
on_limited_keys = on_strategies("mysql", "portable")

SCRIPTS = ["a", "é", "汉", "😀"]


# -------------------------------------------------------------------------------------------------------------- keys


@on_limited_keys
@pytest.mark.parametrize("letter", SCRIPTS)
async def test_keys_of_full_length_in_any_script_are_told_apart(client: Client, thread: str, letter: str) -> None:
    """Known fault elsewhere: a namespace of more than 2,000 characters, or a thread of more than 150, is an error."""
    threads = [thread + letter * (255 - len(thread) - 1) + last for last in "xX"]
    namespaces = [letter * 3999 + last for last in ("x", "X", "é", " ")] + [letter * 255, letter * 254, "", "x", "x "]
    for name in threads:
        for number, namespace in enumerate(namespaces):
            saved = await client.put(
                config_of(name, namespace), checkpoint_of({"a": [number]}), {"number": number}, {"a": "1"}
            )
            await client.put_writes(saved, [("a", number)], letter * 128)
    for name in threads:
        found = await client.list(config_of(name, checkpoint_ns=None))  # type: ignore[arg-type]
        seen = {one.config["configurable"]["checkpoint_ns"]: one for one in found}
        assert set(seen) == set(namespaces)
        for number, namespace in enumerate(namespaces):
            one = await client.load(config_of(name, namespace))
            assert one == seen[namespace]
            assert one.checkpoint["channel_values"] == {"a": [number]}
            assert one.pending_writes == [(letter * 128, "a", number)]
    await client.copy_thread(threads[0], f"{thread} copy")
    await client.delete_thread(threads[0])
    await client.prune([threads[1], f"{thread} copy"])
    assert await client.get_tuple(config_of(threads[0])) is None
    for name in (threads[1], f"{thread} copy"):
        assert len(await client.list(config_of(name, checkpoint_ns=None))) == len(namespaces)  # type: ignore[arg-type]


@on_limited_keys
async def test_channels_and_versions_of_any_length_are_told_apart(client: Client, thread: str) -> None:
    names = [f"join:{'node+' * 1000}:end {last}" for last in "xX"] + ["c" * 150, "c" * 151, "sha256:", "c", "C", "c "]
    values = {name: [name] for name in names}
    long_versions = {name: f"{'0' * 300}{number}" for number, name in enumerate(names)}
    config: Any = config_of(thread)
    for versions in (dict.fromkeys(names, "1"), long_versions, dict.fromkeys(names, "1 ")):
        config = await client.put(config, checkpoint_of(values, versions), {}, versions)
        await client.put_writes(config, [(name, name) for name in names], "task")
    listed = await client.list(config_of(thread))
    assert [one.checkpoint["channel_values"] for one in listed] == [values] * 3
    assert listed[0].pending_writes == [("task", name, name) for name in names]
    history = await client.delta_history(config, names)
    assert {name: len(history[name]["writes"]) for name in names} == dict.fromkeys(names, 1)
    assert all(history[name]["seed"] == [name] for name in names)
    await client.prune([thread])
    assert (await client.load(config_of(thread))).checkpoint["channel_values"] == values
    assert len(keys_of(client, thread)["checkpoint_blobs"]) == len(names)


@on_limited_keys
async def test_what_looks_like_a_hash_is_not_taken_for_one(client: Client, thread: str) -> None:
    long = "n" * 4000
    saved = await client.put(config_of(thread, long), checkpoint_of({"a": [1]}), {}, {"a": "1"})
    ((hashed, _),) = keys_of(client, thread)["checkpoints"]
    assert hashed != long
    assert await client.get_tuple(config_of(thread, hashed)) is None
    await client.put(config_of(thread, hashed), checkpoint_of({"a": [2]}), {}, {"a": "1"})
    assert (await client.load(saved)).checkpoint["channel_values"] == {"a": [1]}
    assert (await client.load(config_of(thread, hashed))).config["configurable"]["checkpoint_ns"] == hashed


@on_limited_keys
@pytest.mark.parametrize("sql_mode", ["", "STRICT_ALL_TABLES"])
async def test_a_key_that_is_too_long_is_an_error_at_the_call(database: Database, thread: str, sql_mode: str) -> None:
    """Without a strict mode the server would cut it off."""
    async with database.engine() as engine:
        if database.backend.dialect == "mysql":
            set_variables(engine, sql_mode=sql_mode)
        client = Client(saver_on(engine), database.backend)
        saved = await client.put(config_of(thread), checkpoint_of(), {}, {})
        calls: list[Callable[[], Any]] = [
            lambda: client.put(config_of("t" * 256), checkpoint_of(), {}, {}),
            lambda: client.put(config_of(thread), checkpoint_of(id="i" * 129), {}, {}),
            lambda: client.put(config_of(thread, "", "i" * 129), checkpoint_of(), {}, {}),
            lambda: client.put_writes(config_of(thread, "", "i" * 129), [("a", 1)], "task"),
            lambda: client.put_writes(saved, [("a", 1)], "t" * 129),
            lambda: client.get_tuple(config_of("t" * 256)),
            lambda: client.list(config_of("t" * 256)),
            lambda: client.delete_thread("t" * 256),
            lambda: client.prune(["t" * 256]),
            lambda: client.copy_thread(thread, "t" * 256),
        ]
        for call in calls:
            with pytest.raises(InvalidConfig, match="characters, and keys of this database hold"):
                await call()
        assert len(keys_of(client, thread)["checkpoints"]) == 1
        assert not any(keys_of(client, "t" * 255, "t" * 256).values())
        # What is no key has no limit.
        await client.put_writes(saved, [("c" * 70_000, 1)], "task", "p" * 70_000)
        assert (await client.load(saved)).pending_writes == [("task", "c" * 70_000, 1)]


# ------------------------------------------------------------------------------------------------- the server's modes


def set_variables(engine: Any, **variables: Any) -> None:
    """A listener of the application's that sets these on each new connection."""

    @event.listens_for(sync_engine_of(engine), "connect")
    def _set(dbapi_connection: Any, _record: Any) -> None:
        cursor = dbapi_connection.cursor()
        for name, value in variables.items():
            cursor.execute(f"SET SESSION {name} = {value!r}")
        cursor.close()


MODES = [
    "",
    "ANSI_QUOTES",
    "NO_BACKSLASH_ESCAPES",
    "ANSI,NO_BACKSLASH_ESCAPES,PIPES_AS_CONCAT,TRADITIONAL",
    "ORACLE",  # in which MariaDB's blocks are others
]


@on_strategies("mysql", "portable")
@pytest.mark.parametrize("sql_mode", MODES)
async def test_every_method_works_in_any_sql_mode(database: Database, thread: str, sql_mode: str) -> None:
    """asyncmy escapes bytes with backslashes whatever the mode is, and they would be others in the database."""
    if database.backend.dialect != "mysql":
        return
    async with database.engine() as engine:
        set_variables(engine, sql_mode=sql_mode)
        await use(Client(saver_on(engine), database.backend), thread)


@on_mysql
async def test_rows_of_before_a_blob_list_are_read(client: Client, thread: str) -> None:
    """An application that brings its own rows does not know of the list of blobs in the JSON."""
    tag, blob = client.saver.serde.dumps_typed(["value"])
    with connection_of(client) as connection:
        connection.execute(
            text(
                "INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint, metadata) "
                "VALUES (:thread, '1', :checkpoint, '{}')"
            ),
            {"thread": thread, "checkpoint": json.dumps({**checkpoint_of(id="1"), "channel_versions": {"a": "1"}})},
        )
        connection.execute(
            text(
                "INSERT INTO checkpoint_blobs (thread_id, channel, version, type, `blob`) VALUES (:t, 'a', '1', :y, :b)"
            ),
            {"t": thread, "y": tag, "b": blob},
        )
    assert (await client.load(config_of(thread))).checkpoint["channel_values"] == {"a": ["value"]}


@on_mysql
@pytest.mark.parametrize("charset", ["utf8", "latin1"])
async def test_a_character_set_that_loses_characters_is_refused(database: Database, charset: str) -> None:
    url = database.url.update_query_dict({"charset": charset})
    async with Database(database.backend, url).engine() as engine:
        client = Client(saver_on(engine), database.backend)
        with pytest.raises(UnsupportedDatabase, match=r"charset=utf8mb4"):
            await client.put(config_of("t"), checkpoint_of(), {}, {})


@on_mysql
@pytest.mark.parametrize(("is_mariadb", "version"), [(True, (10, 5, 27)), (False, (8, 0, 16)), (False, (5, 7, 44))])
def test_a_server_that_is_too_old_is_refused_by_the_upgrade(
    database: Database, monkeypatch: pytest.MonkeyPatch, is_mariadb: bool, version: tuple[int, ...]
) -> None:
    """There is none to try it on: what the dialect has found out is all that decides."""
    engine = create_engine(with_sync_driver(database.url))
    with engine.connect():
        monkeypatch.setattr(engine.dialect, "is_mariadb", is_mariadb)
        monkeypatch.setattr(engine.dialect, "server_version_info", version)
    with pytest.raises(UnsupportedDatabase, match="upgrade the server"):
        migrations.upgrade(engine)
    engine.dispose()


def compiled(statement: Any, dialect: Any) -> str:
    return str(statement.compile(dialect=dialect))


def test_mysqls_own_words_are_used_where_they_differ_from_mariadbs() -> None:
    dialect = mysql.dialect()
    dialect._requires_alias_for_on_duplicate_key = True
    strategy = MySQLStrategy(tables_in(None))
    tables = [str(CreateTable(table).compile(dialect=dialect)) for table in metadata.sorted_tables]
    assert all("utf8mb4_0900_bin" in table and "nopad" not in table for table in tables)
    put = compiled(strategy._build_put_checkpoint(), dialect)
    assert "AS new ON DUPLICATE KEY UPDATE checkpoint = new.checkpoint" in put
    read = compiled(strategy._build_read(ReadShape(many=True)), dialect)
    assert "COLLATE utf8mb4_0900_bin PATH" in read


@on_mysql
@pytest.mark.parametrize(
    ("statement", "message"),
    [
        ("SET collation_connection = latin1_swedish_ci", "SET NAMES utf8mb4"),
        ("SET NAMES latin1", "SET NAMES utf8mb4"),
        ("SET sql_mode = 'EMPTY_STRING_IS_NULL'", "leave it out"),
    ],
)
async def test_a_connection_that_a_listener_makes_lossy_is_refused(
    database: Database, thread: str, statement: str, message: str
) -> None:
    """Two threads in other scripts were one and the same there."""
    async with database.engine() as engine:

        @event.listens_for(sync_engine_of(engine), "connect")
        def _make_lossy(dbapi_connection: Any, _record: Any) -> None:
            cursor = dbapi_connection.cursor()
            cursor.execute(statement)
            cursor.close()

        client = Client(saver_on(engine), database.backend)
        for _ in range(2):
            with pytest.raises(UnsupportedDatabase, match=message):
                await client.put(config_of(thread), checkpoint_of(), {}, {})


@on_limited_keys
async def test_a_checkpoint_nested_more_deeply_than_mariadb_reads_comes_back(client: Client, thread: str) -> None:
    """It must not make the lists of all threads fail, either."""
    nested: Any = "leaf"
    for _ in range(60):
        nested = [nested]
    checkpoint: Any = {**checkpoint_of({"a": [1]}), "extra": nested}
    saved = await client.put(config_of(thread), checkpoint, {"step": 1}, {"a": "1"})
    await client.put_writes(saved, [("a", 2)], "task")
    found = await client.load(saved)
    assert found.checkpoint == checkpoint and found.pending_writes == [("task", "a", 2)]
    assert found == await client.load(config_of(thread))
    for options in ({}, {"limit": 1}, {"filter": {"step": 1}}, {"limit": 2}):
        assert await client.list(config_of(thread), **options) == [found]
    await client.prune([thread])
    assert await client.load(saved) == found
    await client.delete_thread(thread)


@on_mysql
async def test_many_large_values_are_several_statements(client: Client, thread: str) -> None:
    """All in one would be more than the server's max_allowed_packet."""
    values = {f"c{number}": b"x" * 400_000 for number in range(6)} | {"small": [1]}
    with statements_of(client) as statements:
        saved = await client.put(config_of(thread), checkpoint_of(values), {}, dict.fromkeys(values, "1"))
        await client.put_writes(saved, list(values.items()), "task")
    assert [statement.count("from_base64") for statement in statements] == [2, 2, 3, 0, 2, 2, 3]
    assert (await client.load(saved)).checkpoint["channel_values"] == values


@on_mysql
@pytest.mark.parametrize("option", [{}, {"schema_translate_map": {}}, {"schema_translate_map": {"other": None}}])
async def test_mariadb_is_sent_a_put_or_a_deletion_as_one_statement(
    database: Database, thread: str, option: dict[str, Any]
) -> None:
    """A round trip takes longer than what it asks for."""
    async with database.engine(execution_options=option) as engine:
        client = Client(saver_on(engine), database.backend)
        with statements_of(client) as statements:
            saved = await client.put(config_of(thread), checkpoint_of({"a": ["%s:x"]}), {"b": "%"}, {"a": "1"})
            await client.delete_thread(f"{thread} 2")
        assert (await client.load(saved)).checkpoint["channel_values"] == {"a": ["%s:x"]}
    assert [statement[:16] == "BEGIN NOT ATOMIC" for statement in statements] == [True, True]


@on_mysql
@pytest.mark.parametrize("is_oracle", [True, False])
async def test_where_there_are_no_such_blocks_each_table_has_its_statement(
    database: Database, thread: str, monkeypatch: pytest.MonkeyPatch, is_oracle: bool
) -> None:
    async with database.engine() as engine:
        client = Client(saver_on(engine), database.backend)
        if is_oracle:
            set_variables(engine, sql_mode="ORACLE")
        else:
            await client.get_tuple(config_of(thread))
            await done(engine.dispose())
            monkeypatch.setattr(sync_engine_of(engine).dialect, "is_mariadb", False)
        with statements_of(client) as statements:
            await client.put(config_of(thread), checkpoint_of({"a": ["value"]}), {}, {"a": "1"})
            await client.delete_thread(f"{thread} 2")
    assert [statement[:11] for statement in statements] == ["INSERT INTO"] * 2 + ["DELETE FROM"] * 3


# ------------------------------------------------------------------------------- isolation, deadlocks, and lock waits


@on_strategies("mysql", "portable")
@pytest.mark.parametrize("isolation_level", ["READ COMMITTED", "REPEATABLE READ", "SERIALIZABLE"])
async def test_sixteen_writers_of_the_same_rows_succeed(database: Database, thread: str, isolation_level: str) -> None:
    """InnoDB lets one of two that insert the same rows fail with a deadlock; nobody sees that."""
    if database.backend.dialect == "sqlite" and isolation_level != "SERIALIZABLE":
        return
    options: dict[str, Any] = {"connect_args": {"timeout": 30}} if database.backend.dialect == "sqlite" else {}
    async with database.engine(isolation_level=isolation_level, pool_size=16, **options) as engine:
        client = Client(saver_on(engine), database.backend)
        saver = client.saver
        values = {f"c{number}": [number] for number in range(5)}
        checkpoint = checkpoint_of(values)

        async def write(number: int) -> None:
            for step in range(3):
                saved = await saver.aput(config_of(thread), checkpoint, {}, dict.fromkeys(values, "1"))
                await saver.aput_writes(saved, [(name, number) for name in values], "task")
                await saver.aput_writes(saved, [(ERROR, f"{number} {step}")], "task")
                if number % 4 == 0:
                    await saver.aprune([thread])

        await asyncio.gather(*map(write, range(16)))

        (found,) = await client.list(config_of(thread))
        assert found.checkpoint["channel_values"] == values
        writes = {channel: value for _, channel, value in found.pending_writes or ()}
        assert len(found.pending_writes or ()) == 6
        # All of one writer's batch, not some of each.
        assert len({writes[name] for name in values}) == 1


@on_mysql
async def test_a_foreign_checkpoint_that_is_deleted_while_it_is_read_is_not_read_in_part(
    client: Client, thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without our list of its blobs, they are read by another statement, which may see a later state."""
    for name in (thread, f"{thread} stays"):
        await client.put(config_of(name), checkpoint_of({"a": [1]}), {}, {"a": "1"})
    with connection_of(client) as connection:
        remove = "JSON_REMOVE(checkpoint, '$.sa_checkpoint_named_blobs')"
        connection.execute(text(f"UPDATE checkpoints SET checkpoint = {remove}"))
    assert (await client.load(config_of(f"{thread} stays"))).checkpoint["channel_values"] == {"a": [1]}
    assert (await client.load(config_of(thread))).checkpoint["channel_values"] == {"a": [1]}
    blobs_of = MySQLStrategy._blobs_of

    def late(self: MySQLStrategy, *args: Any) -> Any:
        with connection_of(client) as other:
            for table in ("checkpoints", "checkpoint_blobs"):
                other.execute(text(f"DELETE FROM {table} WHERE thread_id = :thread"), {"thread": thread})
        return blobs_of(self, *args)

    monkeypatch.setattr(MySQLStrategy, "_blobs_of", late)
    found = await client.get_tuple(config_of(thread))
    # In one snapshot all of it is still there.
    assert found is None or found.checkpoint["channel_values"] == {"a": [1]}


@on_limited_keys
async def test_a_checkpoint_stored_during_a_copy_is_not_copied_in_part(database: Database, thread: str) -> None:
    if database.backend.is_async or database.backend.dialect != "mysql":
        return
    async with database.engine(isolation_level="READ COMMITTED") as engine, database.engine() as other:
        client, writing = (Client(saver_on(one), database.backend) for one in (engine, other))
        await client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        copying: list[str] = []

        @event.listens_for(sync_engine_of(engine), "after_cursor_execute")
        def put(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
            if statement.startswith("INSERT") and "SELECT" in statement:
                copying.append(statement)
                later = checkpoint_of({"a": [len(copying) + 1]}, {"a": f"{len(copying) + 1}"})
                assert isinstance(writing.saver, SQLAlchemySaver)
                writing.saver.put(config_of(thread), later, {}, {"a": f"{len(copying) + 1}"})

        await client.copy_thread(thread, f"{thread} copy")
        event.remove(sync_engine_of(engine), "after_cursor_execute", put)
        assert len(copying) == 3
        found = await client.list(config_of(f"{thread} copy"))
        assert found and all("a" in one.checkpoint["channel_values"] for one in found)


@on_mysql
def test_a_migration_is_refused_where_rows_are_locked_for_the_caller(database: Database, thread: str) -> None:
    """PyMySQL does not hear of a transaction that has only read."""
    engine = create_engine(with_sync_driver(database.url))
    with engine.connect() as connection:
        connection.execute(text("SELECT * FROM checkpoints WHERE thread_id = :t FOR UPDATE"), {"t": thread})
        with pytest.raises(InvalidBind, match="migrate on the Engine"):
            migrations.upgrade(connection)
    engine.dispose()


@on_mysql
async def test_a_lock_wait_is_waited_for_again(database: Database, thread: str) -> None:
    async with database.engine() as engine:
        set_variables(engine, innodb_lock_wait_timeout=1)
        client = Client(saver_on(engine), database.backend)
        checkpoint = checkpoint_of({"a": [1]})
        await client.put(config_of(thread), checkpoint, {}, {"a": "1"})
        with connection_of(client) as other:
            other.execute(text("DELETE FROM checkpoints WHERE thread_id = :thread"), {"thread": thread})
            putting = asyncio.create_task(client.saver.aput(config_of(thread), checkpoint, {"step": 7}, {"a": "1"}))
            await asyncio.sleep(1.5)
            assert not putting.done()
        await putting
        assert (await client.load(config_of(thread))).metadata["step"] == 7


@on_mysql
async def test_in_the_callers_transaction_a_lock_wait_is_the_callers_to_see(database: Database, thread: str) -> None:
    async with database.engine() as engine:
        set_variables(engine, innodb_lock_wait_timeout=1)
        client = Client(saver_on(engine), database.backend)
        await client.put(config_of(thread), checkpoint_of(id="1"), {}, {})
        sync = create_engine(with_sync_driver(database.url))
        set_variables(sync, innodb_lock_wait_timeout=1)
        with connection_of(client) as other, sync.connect() as connection:
            saver = SQLAlchemySaver(connection)
            saver.put(config_of(f"~{thread}"), checkpoint_of(), {}, {})
            other.execute(text("DELETE FROM checkpoints WHERE thread_id = :thread"), {"thread": thread})
            with pytest.raises(OperationalError, match="1205"):
                saver.put(config_of(thread), checkpoint_of(id="1"), {}, {})
            connection.commit()
        sync.dispose()
        assert await client.get_tuple(config_of(f"~{thread}")) is not None


@on_mysql
async def test_a_deadlock_in_the_callers_transaction_is_seen_as_that(database: Database, thread: str) -> None:
    """It rolls back all of the transaction, our savepoint included, which must not be the error that is seen."""
    engine = create_engine(with_sync_driver(database.url))
    savers = [SQLAlchemySaver(engine)] * 2
    for name in "ab":
        savers[0].put(config_of(f"{thread} {name}"), checkpoint_of(id="1"), {}, {})

    def put_both(connection: Connection, names: str, barrier: Barrier) -> None:
        saver = SQLAlchemySaver(connection)
        saver.put(config_of(f"{thread} {names[0]}"), checkpoint_of(id="1"), {}, {})
        barrier.wait(timeout=10)
        saver.put(config_of(f"{thread} {names[1]}"), checkpoint_of(id="1"), {}, {})
        connection.commit()

    barrier = Barrier(2)
    with engine.connect() as one, engine.connect() as other:
        outcomes = await asyncio.gather(
            asyncio.to_thread(put_both, one, "ab", barrier),
            asyncio.to_thread(put_both, other, "ba", barrier),
            return_exceptions=True,
        )
        (error,) = (outcome for outcome in outcomes if outcome is not None)
        assert isinstance(error, OperationalError) and error.orig is not None and error.orig.args[0] == 1213
    engine.dispose()


# ------------------------------------------------------------------------------------------------------------- URLs


@pytest.mark.parametrize("scheme", ["mysql", "mariadb", "mysql+pymysql", "mariadb+pymysql"])
def test_a_url_of_either_name_is_taken(new_mysql: Callable[[], URL], scheme: str) -> None:
    url = new_mysql().set(drivername="mysql").render_as_string(hide_password=False)
    with SQLAlchemySaver.from_conn_string(url.replace("mysql", scheme, 1)) as saver:
        saver.setup()
        saved = saver.put(config_of("t"), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        found = saver.get_tuple(saved)
    assert found is not None and found.checkpoint["channel_values"] == {"a": [1]}


@pytest.mark.parametrize("scheme", ["mysql", "mariadb", "mysql+pymysql", "mysql+asyncmy", "mariadb+asyncmy"])
async def test_the_async_saver_takes_them_too(new_mysql: Callable[[], URL], thread: str, scheme: str) -> None:
    url = new_mysql().set(drivername="mysql").render_as_string(hide_password=False)
    async with AsyncSQLAlchemySaver.from_conn_string(url.replace("mysql", scheme, 1)) as saver:
        await saver.setup()
        backend = next(backend for backend in BACKENDS if backend.id == "asyncmy")
        await use(Client(saver, backend), thread)


@pytest.mark.parametrize("id", ["pymysql", "asyncmy"])
async def test_sqlalchemys_mariadb_dialect_is_served(new_url: Callable[[Backend], URL], thread: str, id: str) -> None:
    """Its name is another, for the same driver and database."""
    backend = next(backend for backend in BACKENDS if backend.id == id)
    url = new_url(backend)
    async with Database(backend, url.set(drivername=url.drivername.replace("mysql", "mariadb", 1))).engine() as engine:
        client = Client(saver_on(engine), backend)
        assert client.sync_engine.dialect.name == "mariadb"
        await client.setup()
        await use(client, thread)
        await use_graphs(client, thread)


# ----------------------------------------------------------------------------------------------------------- filters

JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-3, 3)
    | st.sampled_from([1.0, 1.5, 1e20, 2**63, "", "1", "a", "A", "a ", "é"]),
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(["a", "b", 'k"\\', "é"]), inner, max_size=3)
    ),
    max_leaves=6,
)
OBJECTS = st.dictionaries(st.sampled_from(["a", "b", 'k"\\', "é"]), JSON, max_size=3)


async def test_the_filter_in_sql_never_misses_what_python_finds(new_mysql: Callable[[], URL]) -> None:
    """JSON_CONTAINS narrows; Python decides. What it leaves out is never looked at again."""
    engine = create_engine(new_mysql())
    with engine.connect() as connection:
        statement = text("SELECT COALESCE(JSON_CONTAINS(:value, :part), 1)")

        @settings(max_examples=400, deadline=None, suppress_health_check=list(HealthCheck))
        @given(OBJECTS, OBJECTS)
        def check(value: dict[str, Any], part: dict[str, Any]) -> None:
            for given_, wanted in ((value, part), ({**value, **part}, part), ({"a": [value, part]}, {"a": [part]})):
                dumped = {
                    "value": json.dumps(given_, ensure_ascii=False),
                    "part": json.dumps(wanted, ensure_ascii=False),
                }
                if _filters.contains(given_, wanted):
                    assert connection.scalar(statement, dumped) == 1, dumped

        await asyncio.to_thread(check)
    engine.dispose()


@on_mysql
async def test_metadata_nested_more_deeply_than_mariadb_reads_is_stored_and_found(client: Client, thread: str) -> None:
    nested: Any = "leaf"
    for _ in range(60):
        nested = {"a": nested}
    saved = await client.put(config_of(thread), checkpoint_of(), {"nested": nested, "b": 1}, {})
    assert (await client.load(saved)).metadata["nested"] == nested  # type: ignore[typeddict-item]
    assert len(await client.list(config_of(thread), filter={"b": 1})) == 1
    assert len(await client.list(config_of(thread), filter={"nested": nested})) == 1
    assert await client.list(config_of(thread), filter={"b": 2}) == []
