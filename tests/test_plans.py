"""What the databases' planners make of the statements: each finds the rows of a thread by an index, however many there
are of others, and in one partition, where a table has them.

The statements are those that the savers send, with the values that they send. Drivers prepare what is sent often, and
PostgreSQL may then plan once for all values, so its generic plans are looked at as well.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import psycopg
import pytest
from sqlalchemy import URL, Connection, create_engine, event, insert, text

from sa_checkpoint import migrations, models
from tests.backends import BACKENDS, Backend, Client, Database, done, on_backends, saver_on, with_sync_driver
from tests.checkpoints import checkpoint_of, config_of
from tests.hosts import connection_on
from tests.rows import TABLES
from tests.usage import use

THREADS = 200
STEPS = 50
NAMESPACES = ("", "child:1")
PARTITIONS = 8
Sent = list[tuple[str, Any]]
"""Statements and their parameters, as they go to the driver."""

on_psycopg = on_backends(*(one for one in BACKENDS if one.id == "psycopg"))
on_sqlite = on_backends(*(one for one in BACKENDS if one.id == "sqlite"))


# ------------------------------------------------------------------------------------------------------------- the rows

# A thread is "thread 7", its checkpoints are "00000001" to "00000050" in each of two namespaces.
_ROWS = f"""
CREATE TEMPORARY TABLE step AS
SELECT 'thread ' || thread AS thread_id, checkpoint_ns, step,
    lpad(step::text, 8, '0') AS checkpoint_id,
    CASE WHEN step > 1 THEN lpad((step - 1)::text, 8, '0') END AS parent_checkpoint_id
FROM generate_series(1, {THREADS}) AS thread, generate_series(1, {STEPS}) AS step,
    unnest(ARRAY['{NAMESPACES[0]}', '{NAMESPACES[1]}']) AS checkpoint_ns;

INSERT INTO checkpoints (thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
SELECT thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id,
    jsonb_build_object('v', 4, 'id', checkpoint_id, 'ts', '2026-11-22T12:00:00+00:00', 'versions_seen', '{{}}'::jsonb,
        'channel_values', jsonb_build_object('inline', step, 'text', repeat('x', 200)),
        'channel_versions', jsonb_build_object('inline', checkpoint_id, 'a', checkpoint_id, 'shared', '1')),
    jsonb_build_object('source', 'loop', 'step', step, 'run_id', thread_id || ' run ' || step / 10)
FROM step;

INSERT INTO checkpoint_blobs (thread_id, checkpoint_ns, channel, version, type, blob)
SELECT thread_id, checkpoint_ns, 'a', checkpoint_id, 'bytes', repeat('x', 200)::bytea FROM step
UNION ALL
SELECT thread_id, checkpoint_ns, 'shared', '1', 'bytes', repeat('x', 200)::bytea FROM step WHERE step = 1;

INSERT INTO checkpoint_writes
    (thread_id, checkpoint_ns, checkpoint_id, task_id, idx, channel, type, blob, task_path)
SELECT thread_id, checkpoint_ns, checkpoint_id, 'task', idx, 'delta', 'bytes', repeat('x', 100)::bytea, ''
FROM step, generate_series(0, 1) AS idx;

DROP TABLE step;
"""


def fill_sqlite(connection: Connection) -> None:
    """The same rows, for SQLite."""
    steps = [
        {"thread_id": f"thread {thread}", "checkpoint_ns": checkpoint_ns, "checkpoint_id": f"{step:08}"}
        for thread in range(1, THREADS + 1)
        for checkpoint_ns in NAMESPACES
        for step in range(1, STEPS + 1)
    ]
    checkpoints, blobs, writes = [], [], []
    for key in steps:
        id = key["checkpoint_id"]
        parent = f"{int(id) - 1:08}" if int(id) > 1 else None
        checkpoint = {
            **{"v": 4, "id": id, "ts": "2026-11-22T12:00:00+00:00", "versions_seen": {}},
            "channel_values": {"inline": int(id), "text": "x" * 200},
            "channel_versions": {"inline": id, "a": id, "shared": "1"},
        }
        metadata = {"source": "loop", "step": int(id), "run_id": f"{key['thread_id']} run {int(id) // 10}"}
        checkpoints.append({**key, "parent_checkpoint_id": parent, "checkpoint": checkpoint, "metadata_": metadata})
        namespace = {name: key[name] for name in ("thread_id", "checkpoint_ns")}
        blob = {"type": "bytes", "blob": b"x" * 200}
        blobs.append({**namespace, **blob, "channel": "a", "version": id})
        if parent is None:
            blobs.append({**namespace, **blob, "channel": "shared", "version": "1"})
        write = {"task_id": "task", "channel": "delta", "task_path": "", **blob}
        writes += [{**key, **write, "idx": idx} for idx in range(2)]
    for model, rows in (
        (models.Checkpoint, checkpoints),
        (models.CheckpointBlob, blobs),
        (models.CheckpointWrite, writes),
    ):
        connection.execute(insert(model), rows)


def new_database(url: URL, *, partitioned: bool = False) -> None:
    """Make our tables, and fill them with the rows of 200 threads."""
    engine = create_engine(with_sync_driver(url))
    migrations.upgrade(engine)
    with engine.begin() as connection:
        if partitioned:
            for table in TABLES:
                partition(connection, table)
        if engine.dialect.name == "sqlite":
            fill_sqlite(connection)
        else:
            connection.exec_driver_sql(_ROWS)
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        connection.execute(text("ANALYZE"))
    engine.dispose()


def partition(connection: Connection, table: str) -> None:
    """Put a partitioned table in the place of one of ours, with the same columns, keys and indexes."""
    for statement in (
        f"ALTER TABLE {table} RENAME TO plain",
        f"CREATE TABLE {table} (LIKE plain INCLUDING ALL) PARTITION BY HASH (thread_id)",
        *(
            f"CREATE TABLE {table}_{number} PARTITION OF {table} "
            f"FOR VALUES WITH (MODULUS {PARTITIONS}, REMAINDER {number})"
            for number in range(PARTITIONS)
        ),
        "DROP TABLE plain",
    ):
        connection.execute(text(statement))


@pytest.fixture(scope="module")
def database(backend: Backend, new_url: Callable[[Backend], URL]) -> Database:
    url = new_url(backend)
    new_database(url)
    return Database(backend, url)


@pytest.fixture(scope="module")
def partitioned(backend: Backend, new_url: Callable[[Backend], URL]) -> Database:
    url = new_url(backend)
    new_database(url, partitioned=True)
    return Database(backend, url)


# ------------------------------------------------------------------------------------------------------- what is sent

Operation = Callable[[Client, str], Coroutine[Any, Any, Any]]
VALUES = {"a": [1], "b": {"c": 2}, "inline": 1}
MANY_VALUES = {f"channel {number}": [number] for number in range(20)}
LATEST, MIDDLE = f"{STEPS:08}", f"{STEPS // 2:08}"


def put(values: dict[str, Any], *, versions: Any = "1") -> Operation:
    async def call(client: Client, thread: str) -> None:
        new: Any = dict.fromkeys(values, versions)
        await client.put(config_of(thread, "", LATEST), checkpoint_of(values, new, id="00000099"), {}, new)

    return call


def put_writes(*channels: str) -> Operation:
    return lambda client, thread: client.put_writes(
        config_of(thread, "", LATEST), [(channel, 1) for channel in channels], "another task"
    )


def listed(checkpoint_ns: str | None = "", **options: Any) -> Operation:
    def call(client: Client, thread: str) -> Coroutine[Any, Any, Any]:
        config: Any = {"configurable": {"thread_id": thread}}
        if checkpoint_ns is not None:
            config["configurable"]["checkpoint_ns"] = checkpoint_ns
        return client.list(config, **options)

    return call


async def first_pages(client: Client, thread: str) -> None:
    """A list that goes on after its first page."""
    for checkpoint_ns in ({}, {"checkpoint_ns": ""}):
        number = 0
        config: Any = {"configurable": {"thread_id": thread, **checkpoint_ns}}
        async for _ in client.iterate(config):
            number += 1
        assert number >= STEPS


async def delta_history(client: Client, thread: str) -> None:
    for config in (config_of(thread), config_of(thread, "", MIDDLE)):
        history = await client.delta_history(config, ["delta", "a"])
        assert len(history["delta"]["writes"]) > STEPS / 2 and history["a"]["seed"]


async def prune_delta_channels(client: Client, thread: str) -> None:
    """Deletes what the nearest values of two channels are not needed for."""
    metadata: Any = {"counters_since_delta_snapshot": {"a": [1, 1], "delta": [1, 1]}}
    await client.put(config_of(thread, "", LATEST), checkpoint_of({}, {"a": "2"}, id="00000099"), metadata, {})
    await client.prune([thread])


OPERATIONS: Mapping[str, Operation] = {
    "put": put(VALUES),
    "put without blobs": put({"inline": 1}),
    "put of many blobs": put(MANY_VALUES),
    "put of numeric versions": put(VALUES, versions=1),
    "put_writes": put_writes("a", "b", "c"),
    "put_writes, many": put_writes(*MANY_VALUES),
    "put_writes that replace": put_writes("__error__", "__interrupt__", "__resume__"),
    "get_tuple of the latest": lambda client, thread: client.load(config_of(thread)),
    "get_tuple by id": lambda client, thread: client.load(config_of(thread, "", MIDDLE)),
    "list": listed(),
    "list of all namespaces": listed(None),
    "list with a limit": listed(limit=1),
    "list before": listed(before=config_of("", "", MIDDLE)),
    "list with a filter": listed(filter={"step": 7}),
    "list with a filter and before": listed(None, filter={"source": "loop"}, before=config_of("", "", MIDDLE), limit=3),
    "list by pages": first_pages,
    "delta history": delta_history,
    "copy_thread": lambda client, thread: client.copy_thread(thread, f"{thread} copy"),
    "prune": lambda client, thread: client.prune([thread]),
    "prune of delta channels": prune_delta_channels,
    "prune, delete": lambda client, thread: client.prune([thread], strategy="delete"),
    "delete_thread": lambda client, thread: client.delete_thread(thread),
}
# What needs a few rows of a thread, and not all of them, as a page of a list does.
OF_ONE_CHECKPOINT = ("get_tuple of the latest", "get_tuple by id", "list with a limit", "delta history")
# What is not about one thread.
LISTS_OF_ALL_THREADS: Mapping[str, Operation] = {
    "list of all threads": lambda client, _thread: client.list(None, limit=10),
    "list of all threads by run": lambda client, thread: client.list(None, filter={"run_id": f"{thread} run 1"}),
    "list of all threads by pages": lambda client, _thread: client.list(None, limit=140),
}


def delete_for_runs(client: Client, thread: str) -> Coroutine[Any, Any, None]:
    return client.delete_for_runs([f"{thread} run 1", f"{thread} run 2"])


@contextmanager
def sent_by(client: Client) -> Iterator[Sent]:
    """Collect what is sent to the driver, with the parameters."""
    found: Sent = []

    def collect(_connection: Any, _cursor: Any, statement: str, parameters: Any, *_: Any) -> None:
        found.append((statement, parameters))

    event.listen(client.sync_engine, "before_cursor_execute", collect)
    try:
        yield found
    finally:
        event.remove(client.sync_engine, "before_cursor_execute", collect)


# ---------------------------------------------------------------------------------------------------------- PostgreSQL


def explain(connection: psycopg.Connection[Any], statement: str, parameters: Any) -> Any:
    """The plan for these values."""
    cursor = connection.execute(f"EXPLAIN (FORMAT JSON) {statement}".encode(), parameters)
    (row,) = cursor.fetchall()
    return row[0][0]["Plan"]


def explain_generic(connection: psycopg.Connection[Any], statement: str, parameters: Any) -> Any:
    """The plan for any values, as it is begun with these."""
    names: list[str] = []

    def number(match: re.Match[str]) -> str:
        if match[1] not in names:
            names.append(match[1])
        return f"${names.index(match[1]) + 1}"

    prepared = re.sub(r"%\((\w+)\)s", number, statement).replace("%%", "%")
    client = psycopg.ClientCursor(connection)
    client.execute("SET LOCAL plan_cache_mode = force_generic_plan")
    client.execute(f"PREPARE the_statement AS {prepared}".encode())
    values = f"({', '.join(['%s'] * len(names))})" if names else ""
    try:
        client.execute(
            f"EXPLAIN (FORMAT JSON) EXECUTE the_statement{values}".encode(), [parameters[name] for name in names]
        )
        (row,) = client.fetchall()
        return row[0][0]["Plan"]
    finally:
        client.execute("DEALLOCATE the_statement")


EXPLAINS = {"custom": explain, "generic": explain_generic}


def nodes_of(plan: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes_of(child)


def is_ours(node: Mapping[str, Any]) -> bool:
    return re.sub(r"_\d+$", "", node.get("Relation Name", "")) in TABLES


def without_index(plan: Any) -> list[str]:
    """The nodes of a plan that read a table of ours from its beginning to its end."""
    found = [
        f"{node['Node Type']} on {node['Relation Name']}"
        for node in nodes_of(plan)
        if is_ours(node) and node["Node Type"].endswith("Seq Scan")
    ]
    return found + [
        f"{node['Node Type']} of all {node['Index Name']}"
        for node in nodes_of(plan)
        if "Index Name" in node and "Index Cond" not in node
    ]


def of_whole_threads(plan: Any) -> list[str]:
    """The nodes of a plan that read all blobs or writes of a thread or namespace, and not just the first."""
    needed = {"checkpoint_blobs_pkey": "version", "checkpoint_writes_pkey": "checkpoint_id"}
    return [
        f"{node['Node Type']} by {node.get('Index Cond')}"
        for above in nodes_of({"Node Type": "", "Plans": [plan]})
        if above["Node Type"] != "Limit"
        for node in above.get("Plans", ())
        if needed.get(node.get("Index Name", ""), "") not in node.get("Index Cond", "")
    ]


def many_partitions(plan: Any) -> list[str]:
    """The tables of which more than one partition is read."""
    found: dict[str, set[str]] = {}
    for node in nodes_of(plan):
        if is_ours(node) and node["Node Type"] != "ModifyTable":
            name = node["Relation Name"]
            found.setdefault(re.sub(r"_\d+$", "", name), set()).add(name)
    return [f"{len(names)} of {table}" for table, names in found.items() if len(names) > 1]


async def sent_on(database: Database, call: Operation, thread: str) -> Sent:
    """What an operation sends, on a pool of its own."""
    async with database.engine() as engine:
        client = Client(saver_on(engine), database.backend)
        with sent_by(client) as sent:
            await call(client, thread)
    assert sent
    return sent


@contextmanager
def look_at(database: Database) -> Iterator[psycopg.Connection[Any]]:
    """A connection in whose transaction plans are asked for, and nothing is changed."""
    url = database.url.set(drivername="postgresql").render_as_string(hide_password=False)
    with psycopg.connect(url) as connection:
        yield connection
        connection.rollback()


_NUMBERS = iter(range(1, THREADS))


@pytest.fixture
def filled() -> str:
    """A thread with rows, that no other test uses."""
    return f"thread {next(_NUMBERS)}"


Look = Callable[[Any], list[str]]
"""What is wrong with a plan."""


def faults(database: Database, sent: Sent, planned: str, look: Look) -> list[tuple[str, list[str]]]:
    """The statements whose plans something is wrong with, and what that is."""
    with look_at(database) as connection:
        found = [
            (" ".join(statement.split()), look(EXPLAINS[planned](connection, statement, parameters)))
            for statement, parameters in sent
        ]
    return [(statement, wrong) for statement, wrong in found if wrong]


@on_psycopg
@pytest.mark.parametrize("planned", EXPLAINS)
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_every_statement_about_a_thread_finds_its_rows_by_an_index(
    database: Database, filled: str, operation: str, planned: str
) -> None:
    sent = await sent_on(database, OPERATIONS[operation], filled)
    assert faults(database, sent, planned, without_index) == []


@on_psycopg
@pytest.mark.parametrize("planned", EXPLAINS)
async def test_the_threads_of_runs_are_found_by_an_index(database: Database, filled: str, planned: str) -> None:
    sent = await sent_on(database, delete_for_runs, filled)
    assert faults(database, sent, planned, without_index) == []


@on_psycopg
@pytest.mark.parametrize("planned", EXPLAINS)
@pytest.mark.parametrize("operation", LISTS_OF_ALL_THREADS)
async def test_a_list_of_all_threads_reads_no_table_but_checkpoints_to_its_end(
    database: Database, filled: str, operation: str, planned: str
) -> None:
    """No index is by the id alone: it would cost each put more than such a list, which is for administrators."""
    sent = await sent_on(database, LISTS_OF_ALL_THREADS[operation], filled)
    for _statement, wrong in faults(database, sent, planned, without_index):
        assert wrong == ["Seq Scan on checkpoints"]


@on_psycopg
@pytest.mark.parametrize("planned", EXPLAINS)
@pytest.mark.parametrize("operation", OF_ONE_CHECKPOINT)
async def test_blobs_and_writes_are_looked_up_by_checkpoint(
    database: Database, filled: str, operation: str, planned: str
) -> None:
    """Known fault: a join that reads all of a thread's, when there seem to be few of them."""
    sent = await sent_on(database, OPERATIONS[operation], filled)
    assert faults(database, sent, planned, of_whole_threads) == []


@on_psycopg
async def test_the_steps_of_a_channel_without_blobs_look_for_none(database: Database, filled: str) -> None:
    sent = await sent_on(database, delta_history, filled)
    with look_at(database) as connection:
        for statement, parameters in sent:
            cursor = connection.execute(f"EXPLAIN (ANALYZE, FORMAT JSON) {statement}".encode(), parameters)
            ((plan,),) = cursor.fetchall()
            nodes = list(nodes_of(plan[0]["Plan"]))
            steps = max(node["Actual Rows"] for node in nodes if node["Node Type"] == "CTE Scan")
            looked = sum(node["Actual Loops"] for node in nodes if node.get("Index Name") == "checkpoint_blobs_pkey")
            assert steps >= STEPS / 2
            # A few times for each channel, and for channel "a", whose value is at the first step.
            assert looked < 10


@on_psycopg
@pytest.mark.parametrize("limit", [1, 3])
async def test_a_short_list_is_planned_once(database: Database, filled: str, limit: int) -> None:
    """To make a plan takes longer than to read a few checkpoints by one. For all of a thread it goes by its length."""
    async with database.engine(pool_size=1) as engine:
        client = Client(saver_on(engine), database.backend)
        for _ in range(20):
            assert len(await client.list(config_of(filled), limit=limit)) == limit
        async with connection_on(engine) as connection:
            statement = text("SELECT custom_plans, generic_plans FROM pg_prepared_statements ORDER BY prepare_time")
            ((custom, generic),) = (await done(connection.execute(statement))).all()
    assert custom <= 5 < generic  # PostgreSQL makes five before it compares


@on_psycopg
@pytest.mark.parametrize("planned", EXPLAINS)
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_every_statement_about_a_thread_reads_one_partition_of_each_table(
    partitioned: Database, filled: str, operation: str, planned: str
) -> None:
    sent = await sent_on(partitioned, OPERATIONS[operation], filled)
    assert faults(partitioned, sent, planned, many_partitions) == []


@on_psycopg
@pytest.mark.parametrize("planned", EXPLAINS)
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_every_statement_about_a_thread_finds_its_rows_in_a_partition_by_an_index(
    partitioned: Database, filled: str, operation: str, planned: str
) -> None:
    sent = await sent_on(partitioned, OPERATIONS[operation], filled)
    assert faults(partitioned, sent, planned, without_index) == []


@on_psycopg
async def test_partitioned_tables_serve_every_operation(partitioned: Database, thread: str) -> None:
    async with partitioned.engine() as engine:
        client = Client(saver_on(engine), partitioned.backend)
        for number in range(PARTITIONS):
            await use(client, f"{thread} {number}")
        await client.setup()


# -------------------------------------------------------------------------------------------------------------- SQLite


def scans(connection: Connection, statement: str, parameters: Any) -> list[str]:
    """The steps of a plan that read a table of ours from its beginning to its end."""
    if statement.endswith("WHERE 0 = 1"):
        return []  # takes a lock, and reads nothing
    tables = "|".join(TABLES)
    aliases = re.findall(rf"\b(?:{tables})\b AS \"?(\w+)\"?", statement)
    names = {*TABLES, *aliases}
    values = parameters[0] if isinstance(parameters, list) else parameters
    plan: Sequence[Any] = connection.exec_driver_sql(f"EXPLAIN QUERY PLAN {statement}", values).all()
    return [row.detail for row in plan if (found := re.match(r"SCAN (\w+)", row.detail)) and found[1] in names]


async def scans_on(database: Database, call: Operation, thread: str) -> list[tuple[str, list[str]]]:
    """The statements of an operation that read a table from its beginning to its end."""
    sent = await sent_on(database, call, thread)
    engine = create_engine(database.url)
    with engine.connect() as connection:
        found = [
            (" ".join(statement.split()), scans(connection, statement, parameters)) for statement, parameters in sent
        ]
    engine.dispose()
    return [(statement, steps) for statement, steps in found if steps]


@on_sqlite
@pytest.mark.parametrize("operation", OPERATIONS)
async def test_every_statement_about_a_thread_on_sqlite_finds_its_rows_by_an_index(
    database: Database, filled: str, operation: str
) -> None:
    assert await scans_on(database, OPERATIONS[operation], filled) == []


@on_sqlite
async def test_the_threads_of_runs_are_found_by_an_index_on_sqlite(database: Database, filled: str) -> None:
    assert await scans_on(database, delete_for_runs, filled) == []


@on_sqlite
@pytest.mark.parametrize("operation", LISTS_OF_ALL_THREADS)
async def test_a_list_of_all_threads_on_sqlite_reads_no_table_but_checkpoints_to_its_end(
    database: Database, filled: str, operation: str
) -> None:
    for _statement, steps in await scans_on(database, LISTS_OF_ALL_THREADS[operation], filled):
        assert steps == ["SCAN checkpoints"]
