"""`python -m benchmarks scale`: whether calls stay as fast as a PostgreSQL database grows.

The rows are made inside the database, in threads of 100 checkpoints, each checkpoint with a blob and two writes; the
keys and indexes after them. The databases lie on one server, and are measured in turn.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import TypedDict
from uuid import UUID

from rich.progress import Progress
from sqlalchemy import Connection, text
from sqlalchemy.schema import CreateIndex, DropIndex

from benchmarks import servers
from benchmarks.contestants import ENTRIES, Contestant, Saver, opened
from benchmarks.data import WINDOW, config_of, conversation, message
from benchmarks.servers import looking_at
from benchmarks.workloads import BATCH_SIZE, per_operation
from sa_checkpoint import metadata

THREAD_LENGTH = 100
LEAST_ROWS = 10 * THREAD_LENGTH
PARTITIONS = 16
WARM_UP = 10
LISTED = 10
DELETES = 5
_PART = 500_000

_ROWS = f"""
    SELECT n, md5((n / {THREAD_LENGTH})::text)::uuid::text AS thread_id, n % {THREAD_LENGTH} AS step,
        {{id}} AS checkpoint_id, {{parent}} AS parent_checkpoint_id,
        lpad((n % {THREAD_LENGTH} + 2)::text, 32, '0') || '.0.' || lpad(n::text, 16, '0') AS version,
        md5((n / 10)::text)::uuid AS run_id
    FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint), CAST(:every AS bigint)) n
""".format(
    # Ordered by n, as the ids of LangGraph are by time, and below those of today.
    id="'1e0' || regexp_replace(lpad(to_hex(n), 12, '0'), '(.{5})(.{4})(.{3})', '\\1-\\2-6\\3-8000-')"
    " || left(md5(n::text), 12)",
    parent=f"CASE n % {THREAD_LENGTH} WHEN 0 THEN NULL ELSE '1e0' || "
    "regexp_replace(lpad(to_hex(n - 1), 12, '0'), '(.{5})(.{4})(.{3})', '\\1-\\2-6\\3-8000-') "
    "|| left(md5((n - 1)::text), 12) END",
)

_CHECKPOINTS = f"""
    INSERT INTO checkpoints (thread_id, checkpoint_id, parent_checkpoint_id, checkpoint, metadata)
    SELECT thread_id, checkpoint_id, parent_checkpoint_id,
        jsonb_build_object(
            'v', 4, 'id', checkpoint_id, 'ts', '2026-01-01T00:00:00+00:00', 'channel_values', jsonb_build_object(),
            'channel_versions', jsonb_build_object('messages', version),
            'versions_seen', jsonb_build_object('model', jsonb_build_object('branch:to:model', version)),
            'updated_channels', jsonb_build_array('messages')),
        jsonb_build_object('source', 'loop', 'step', step, 'parents', jsonb_build_object(), 'run_id', run_id)
    FROM ({_ROWS}) AS rows
"""
_BLOBS = f"""
    INSERT INTO checkpoint_blobs (thread_id, channel, version, type, blob)
    SELECT thread_id, 'messages', version, :type, CAST(:blob AS bytea) FROM ({_ROWS}) AS rows
"""
_WRITES = f"""
    INSERT INTO checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, type, blob, task_path)
    SELECT thread_id, checkpoint_id, md5(n::text)::uuid, idx, 'messages', :type, CAST(:blob AS bytea), '~__pregel_pull'
    FROM ({_ROWS}) AS rows, generate_series(0, 1) idx
"""


class Scale(TypedDict):
    """One operation on one database."""

    operation: str
    rows: int
    partitions: int
    """Of each table; 0 if it is not partitioned."""
    database_bytes: int
    median_ms: float
    ratio: float
    """By the median on the smallest database."""


class ScaleReport(TypedDict):
    """What was measured on which server."""

    server: str
    settings: dict[str, str]
    scale: list[Scale]


@dataclass(frozen=True, order=True)
class Shape:
    """How large a database is, and how its tables are made."""

    rows: int
    partitions: int = 0

    def __str__(self) -> str:
        return f"{self.rows:,} checkpoints" + (f", {self.partitions} partitions" if self.partitions else "")


@dataclass(frozen=True)
class _Filled:
    """A database, and the saver that is measured on it."""

    shape: Shape
    contestant: Contestant
    with_blobs: bool

    @property
    def saver(self) -> Saver:
        return self.contestant.saver

    def fill(self, progress: Progress) -> None:
        task = progress.add_task(str(self.shape), total=self.shape.rows)
        with looking_at(self.contestant.url).connect() as connection:
            connection.execute(text("SET synchronous_commit = off"))
            connection.execute(text("SET maintenance_work_mem = '1GB'"))
            _partition(connection, self.shape.partitions) if self.shape.partitions else _drop_keys(connection)
            for first in range(0, self.shape.rows, _PART):
                last = min(self.shape.rows, first + _PART) - 1
                self._make(connection, first, last)
                progress.update(task, completed=last + 1)
            _add_keys(connection)
            _settle(connection)

    def restore(self, numbers: Sequence[int]) -> None:
        """Make deleted threads again."""
        with looking_at(self.contestant.url).connect() as connection:
            for number in numbers:
                self._make(connection, number * THREAD_LENGTH, (number + 1) * THREAD_LENGTH - 1)

    def _make(self, connection: Connection, first: int, last: int) -> None:
        """Make checkpoints of whole threads, by number. Without blobs, only the last one of each thread has one."""
        connection.execute(text(_CHECKPOINTS), {"first": first, "last": last, "every": 1})
        type_, blob = self.saver.serde.dumps_typed([message(1)])
        part = {"first": first, "last": last, "every": 1, "type": type_, "blob": blob}
        if not self.with_blobs:
            part |= {"first": first + THREAD_LENGTH - 1, "every": THREAD_LENGTH}
        for statement in (_BLOBS, _WRITES):
            connection.execute(text(statement), part)

    def size(self) -> int:
        with looking_at(self.contestant.url).connect() as connection:
            return int(connection.scalar(text("SELECT pg_database_size(current_database())")) or 0)


def scale(
    rows: Sequence[int],
    partitioned: Sequence[int],
    rounds: int,
    *,
    with_blobs: bool,
    durable: bool,
    progress: Progress,
) -> ScaleReport:
    """Fill a database for each size, and measure.

    Args:
        rows: How many checkpoints each database has.
        partitioned: The same of the databases whose tables are hash-partitioned by thread.
        rounds: How many batches of each operation are measured.
        with_blobs: Whether all checkpoints have blobs and writes, or only the latest of each thread.
        durable: As in `servers.started`.
        progress: Where to show what is going on.
    """
    shapes = sorted({*map(Shape, rows), *(Shape(size, PARTITIONS) for size in partitioned)})
    entry = ENTRIES[0]
    with (
        servers.started("postgresql", durable=durable) as server,
        asyncio.Runner() as runner,
        opened([entry] * len(shapes), server.new_url, lambda url: url, runner) as contestants,
    ):
        filled = [_Filled(*both, with_blobs) for both in zip(shapes, contestants[False], strict=True)]
        for database in filled:
            database.fill(progress)
        bytes_of = {database.shape: database.size() for database in filled}
        times = _measure(filled, rounds, progress)
    medians = {key: median(values) for key, values in times.items()}
    figures: list[Scale] = [
        {
            "operation": operation,
            "rows": shape.rows,
            "partitions": shape.partitions,
            "database_bytes": bytes_of[shape],
            "median_ms": milliseconds,
            "ratio": milliseconds / medians[operation, shapes[0]],
        }
        for (operation, shape), milliseconds in medians.items()
    ]
    return {"server": server.version, "settings": server.settings, "scale": figures}


# ------------------------------------------------------------------------------------------------------- the database


def _drop_keys(connection: Connection) -> None:
    for table in metadata.sorted_tables:
        connection.execute(text(f"ALTER TABLE {table.name} DROP CONSTRAINT {table.name}_pkey"))
        for index in table.indexes:
            connection.execute(DropIndex(index))


def _partition(connection: Connection, partitions: int) -> None:
    """Put partitioned tables without keys in the place of ours."""
    for table in (table.name for table in metadata.sorted_tables):
        for statement in (
            f"ALTER TABLE {table} RENAME TO plain",
            f"CREATE TABLE {table} (LIKE plain INCLUDING DEFAULTS) PARTITION BY HASH (thread_id)",
            *(
                f"CREATE TABLE {table}_{number} PARTITION OF {table} "
                f"FOR VALUES WITH (MODULUS {partitions}, REMAINDER {number})"
                for number in range(partitions)
            ),
            "DROP TABLE plain",
        ):
            connection.execute(text(statement))


def _add_keys(connection: Connection) -> None:
    for table in metadata.sorted_tables:
        columns = ", ".join(table.primary_key.columns.keys())
        connection.execute(text(f"ALTER TABLE {table.name} ADD PRIMARY KEY ({columns})"))
        for index in table.indexes:
            connection.execute(CreateIndex(index))


def _settle(connection: Connection) -> None:
    """Do at once what autovacuum and the checkpointer would do while we measure."""
    connection.execute(text("VACUUM ANALYZE"))
    connection.execute(text("CHECKPOINT"))


# ---------------------------------------------------------------------------------------------------------- operations


def _put(database: _Filled, numbers: Sequence[int]) -> float:
    saver = database.saver
    steps = [conversation(saver, 1, _thread(number), messages=WINDOW)[0] for number in numbers]
    return per_operation([partial(saver.put, *step.put) for step in steps])


def _put_writes(database: _Filled, numbers: Sequence[int]) -> float:
    saver = database.saver
    steps = [conversation(saver, 1, _thread(number), messages=WINDOW)[0] for number in numbers]
    return per_operation([partial(saver.put_writes, *step.put_writes) for step in steps])


def _get_tuple(database: _Filled, numbers: Sequence[int]) -> float:
    return per_operation([partial(database.saver.get_tuple, config_of(_thread(number))) for number in numbers])


def _list(database: _Filled, numbers: Sequence[int]) -> float:
    return per_operation([partial(_listed, database.saver, _thread(number)) for number in numbers])


def _listed(saver: Saver, thread: str) -> None:
    found = list(saver.list(config_of(thread), limit=LISTED))
    assert len(found) == LISTED


def _delete_thread(database: _Filled, numbers: Sequence[int]) -> float:
    deleted = list(dict.fromkeys(numbers))[:DELETES]
    milliseconds = per_operation([partial(database.saver.delete_thread, _thread(number)) for number in deleted])
    database.restore(deleted)
    return milliseconds


# Threads that are written to grow, more in a small database than in a large one, so those that are read are others.
_KINDS = 3
_WRITTEN, _READ, _DELETED = range(_KINDS)
_OPERATIONS: dict[str, tuple[Callable[[_Filled, Sequence[int]], float], int]] = {
    "put": (_put, _WRITTEN),
    "put_writes": (_put_writes, _WRITTEN),
    "get_tuple": (_get_tuple, _READ),
    f"list(limit={LISTED})": (_list, _READ),
    f"delete_thread of {THREAD_LENGTH} checkpoints": (_delete_thread, _DELETED),
}


def _measure(databases: Sequence[_Filled], rounds: int, progress: Progress) -> dict[tuple[str, Shape], list[float]]:
    """The milliseconds of an operation in threads chosen at random, by operation and database."""
    chance = random.Random(0)
    times: dict[tuple[str, Shape], list[float]] = {
        (name, database.shape): [] for name in _OPERATIONS for database in databases
    }
    for number in progress.track(range(WARM_UP + rounds), description="rounds"):
        for name, (operation, kind) in _OPERATIONS.items():
            for database in databases if number % 2 else reversed(databases):
                threads = database.shape.rows // THREAD_LENGTH
                numbers = [chance.randrange(threads // _KINDS) * _KINDS + kind for _ in range(BATCH_SIZE)]
                milliseconds = operation(database, numbers)
                if number >= WARM_UP:
                    times[name, database.shape].append(milliseconds)
    return times


def _thread(number: int) -> str:
    """As the statements name it."""
    return str(UUID(hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()))
