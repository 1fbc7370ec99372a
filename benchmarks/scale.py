"""`python -m benchmarks scale`: whether calls stay as fast as a PostgreSQL database grows.

The rows are made inside the database, in threads of 100 checkpoints, each checkpoint with a blob and two writes. The
databases lie on one server, and are measured in turn.
"""

from __future__ import annotations

import asyncio
import hashlib
import random
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import TypedDict
from uuid import UUID

from rich.progress import Progress
from sqlalchemy import Connection, text

from benchmarks import servers
from benchmarks.contestants import ENTRIES, Contestant, Saver, opened
from benchmarks.data import WINDOW, config_of, conversation, message
from benchmarks.servers import looking_at
from benchmarks.workloads import BATCH_SIZE, per_operation

THREAD_LENGTH = 100
WARM_UP = 5
_PART = 500_000

_ROWS = f"""
    SELECT n, md5((n / {THREAD_LENGTH})::text)::uuid::text AS thread_id, n % {THREAD_LENGTH} AS step,
        {{id}} AS checkpoint_id, {{parent}} AS parent_checkpoint_id,
        lpad((n % {THREAD_LENGTH} + 2)::text, 32, '0') || '.0.' || lpad(n::text, 16, '0') AS version,
        md5((n / 10)::text)::uuid AS run_id
    FROM generate_series(CAST(:first AS bigint), CAST(:last AS bigint)) n
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
    """One operation on one size."""

    operation: str
    rows: int
    database_bytes: int
    median_ms: float
    ratio: float
    """By the median on the smallest size."""


class ScaleReport(TypedDict):
    """What was measured on which server."""

    server: str
    settings: dict[str, str]
    scale: list[Scale]


def scale(rows: Sequence[int], rounds: int, *, with_blobs: bool, durable: bool, progress: Progress) -> ScaleReport:
    """Fill a database for each size, and measure.

    Args:
        rows: How many checkpoints each database has.
        rounds: How many batches of each operation are measured.
        with_blobs: Whether the checkpoints have blobs and writes.
        durable: As in `servers.started`.
        progress: Where to show what is going on.
    """
    sizes = sorted(rows)
    entry = ENTRIES[0]
    with (
        servers.started("postgresql", durable=durable) as server,
        asyncio.Runner() as runner,
        opened([entry] * len(sizes), server.new_url, lambda url: url, runner) as contestants,
    ):
        savers = dict(zip(sizes, contestants[False], strict=True))
        for size, contestant in savers.items():
            _fill(contestant, size, with_blobs, progress)
        times = _measure({size: contestant.saver for size, contestant in savers.items()}, rounds, progress)
        bytes_of = {size: _database_size(contestant) for size, contestant in savers.items()}
    medians = {key: median(values) for key, values in times.items()}
    figures: list[Scale] = [
        {
            "operation": operation,
            "rows": size,
            "database_bytes": bytes_of[size],
            "median_ms": milliseconds,
            "ratio": milliseconds / medians[operation, sizes[0]],
        }
        for (operation, size), milliseconds in medians.items()
    ]
    return {"server": server.version, "settings": server.settings, "scale": figures}


def _fill(contestant: Contestant, size: int, with_blobs: bool, progress: Progress) -> None:
    type_, blob = contestant.saver.serde.dumps_typed([message(1)])
    task = progress.add_task(f"{size:,} checkpoints", total=size)
    with looking_at(contestant.url).connect() as connection:
        for first in range(0, size, _PART):
            part = {"first": first, "last": min(size, first + _PART) - 1}
            connection.execute(text(_CHECKPOINTS), part)
            for statement in (_BLOBS, _WRITES) if with_blobs else ():
                connection.execute(text(statement), {**part, "type": type_, "blob": blob})
            progress.update(task, completed=part["last"] + 1)
        _settle(connection)


def _settle(connection: Connection) -> None:
    """Do at once what autovacuum and the checkpointer would do while we measure."""
    connection.execute(text("VACUUM ANALYZE"))
    connection.execute(text("CHECKPOINT"))


def _database_size(contestant: Contestant) -> int:
    with looking_at(contestant.url).connect() as connection:
        return int(connection.scalar(text("SELECT pg_database_size(current_database())")) or 0)


def _put(saver: Saver, threads: list[str]) -> float:
    steps = [conversation(saver, 1, thread, messages=WINDOW)[0] for thread in threads]
    return per_operation([partial(saver.put, *step.put) for step in steps])


def _put_writes(saver: Saver, threads: list[str]) -> float:
    steps = [conversation(saver, 1, thread, messages=WINDOW)[0] for thread in threads]
    return per_operation([partial(saver.put_writes, *step.put_writes) for step in steps])


def _get_tuple(saver: Saver, threads: list[str]) -> float:
    return per_operation([partial(saver.get_tuple, config_of(thread)) for thread in threads])


_OPERATIONS: dict[str, Callable[[Saver, list[str]], float]] = {
    "put": _put,
    "put_writes": _put_writes,
    "get_tuple": _get_tuple,
}


def _measure(savers: dict[int, Saver], rounds: int, progress: Progress) -> dict[tuple[str, int], list[float]]:
    """The milliseconds of an operation in threads chosen at random, by operation and size."""
    chance = random.Random(0)
    times: dict[tuple[str, int], list[float]] = {(name, size): [] for name in _OPERATIONS for size in savers}
    for number in progress.track(range(WARM_UP + rounds), description="rounds"):
        sizes = list(savers) if number % 2 else list(reversed(savers))
        for name, operation in _OPERATIONS.items():
            for size in sizes:
                threads = [_thread(chance.randrange(max(1, size // THREAD_LENGTH))) for _ in range(BATCH_SIZE)]
                milliseconds = operation(savers[size], threads)
                if number >= WARM_UP:
                    times[name, size].append(milliseconds)
    return times


def _thread(number: int) -> str:
    """As the statements name it."""
    return str(UUID(hashlib.md5(str(number).encode(), usedforsecurity=False).hexdigest()))
