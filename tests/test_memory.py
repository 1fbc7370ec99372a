"""How much memory an operation takes at most, as the operating system sees it: drivers allocate outside of Python.

Each is done in a process of its own, whose peak of resident memory is compared with what it had before.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import create_engine, insert

from sa_checkpoint import models
from tests.backends import BACKENDS, Client, Database, on_backends, with_sync_driver
from tests.checkpoints import config_of
from tests.large import SIZE, large_checkpoint, large_packets, large_values

pytestmark = pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux to say what a peak is")

MB = 1_000_000
CHECKPOINTS = 10_000
CHILD = """
import asyncio
import sys
from pathlib import Path

from sqlalchemy import create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from tests.backends import BACKENDS, Client, saver_on
from tests.checkpoints import checkpoint_of, config_of
from tests.large import large_checkpoint, large_values


def peak_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))


async def put(client, thread):
    values = large_values(channels=50)

    async def work():
        checkpoint, versions = large_checkpoint(values)
        await client.put(config_of(thread), checkpoint, {}, versions)

    return work


async def get_tuple(client, thread):
    async def work():
        found = await client.load(config_of(thread))
        assert len(found.checkpoint["channel_values"]) == 50

    return work


async def iterate(client, thread):
    async def work():
        number = 0
        async for _ in client.iterate(config_of(thread)):
            number += 1
        assert number == 10_000

    return work


async def main(backend_id, url, operation, thread):
    backend = next(one for one in BACKENDS if one.id == backend_id)
    engine = create_async_engine(url) if backend.is_async else create_engine(url)
    client = Client(saver_on(engine), backend)
    # What is made once: connections, statements, what they are compiled to.
    for _ in range(8):
        await client.put(config_of(f"{thread} small"), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        await client.load(config_of(f"{thread} small"))
        await client.list(config_of(f"{thread} small"))
    work = await operation(client, thread)
    Path("/proc/self/clear_refs").write_text("5")
    before = peak_bytes()
    await work()
    print(peak_bytes() - before)


asyncio.run(main(sys.argv[1], sys.argv[2], globals()[sys.argv[3]], sys.argv[4]))
"""

on_drivers = on_backends(
    *(one for one in BACKENDS if one.id in ("sqlite", "psycopg", "asyncpg", "psycopg2", "pymysql"))
)


@pytest.fixture(scope="module")
def database(database: Database) -> Iterator[Database]:
    """A database that takes statements of this size."""
    with large_packets(database):
        yield database


def extra_bytes(database: Database, operation: str, thread: str) -> int:
    """By how much the resident memory of a process grows at most while it does something."""
    arguments = [database.backend.id, database.url.render_as_string(hide_password=False), operation, thread]
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", CHILD, *arguments],
        cwd=Path(__file__).parent.parent,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return int(done.stdout)


@on_drivers
async def test_storing_a_large_state_takes_at_most_three_times_its_size(
    database: Database, thread: str, record_property: Any
) -> None:
    extra = extra_bytes(database, "put", thread)
    record_property("extra MB", extra // MB)
    assert extra <= 3 * SIZE, f"{extra / SIZE:.1f} times"


@on_drivers
async def test_reading_a_large_state_takes_at_most_three_times_its_size(
    database: Database, client: Client, thread: str, record_property: Any
) -> None:
    checkpoint, versions = large_checkpoint(large_values(channels=50))
    await client.put(config_of(thread), checkpoint, {}, versions)
    extra = extra_bytes(database, "get_tuple", thread)
    record_property("extra MB", extra // MB)
    # psycopg2's results are hexadecimal, and twice as long.
    times = 4 if database.backend.id == "psycopg2" else 3
    assert extra <= times * SIZE, f"{extra / SIZE:.1f} times"


def insert_checkpoints(database: Database, thread: str) -> None:
    """Many checkpoints of 3 kB in one thread, past the savers: each with a blob and a write of its own."""
    versions = {"shared": "1", **{f"channel {number}": "1" for number in range(10)}}
    values = {f"channel {number}": "x" * 100 for number in range(10)}
    keys = [{"thread_id": thread, "checkpoint_ns": "", "checkpoint_id": f"{n:08}"} for n in range(CHECKPOINTS)]
    checkpoints = [
        {
            **key,
            "checkpoint": {
                **{"v": 4, "id": key["checkpoint_id"], "ts": "2026-11-22T12:00:00+00:00", "versions_seen": {}},
                "channel_values": values,
                "channel_versions": {**versions, "own": key["checkpoint_id"]},
                "sa_checkpoint_named_blobs": [["shared", "1"], ["own", key["checkpoint_id"]]],
            },
            "metadata_": {"source": "loop", "step": 1},
        }
        for key in keys
    ]
    blob = {"thread_id": thread, "checkpoint_ns": "", "type": "bytes", "blob": b"x" * 1000}
    blobs = [{**blob, "channel": "own", "version": key["checkpoint_id"]} for key in keys]
    blobs.append({**blob, "channel": "shared", "version": "1"})
    writes = [
        {**key, "task_id": "task", "idx": 0, "channel": "own", "type": "bytes", "blob": b"x" * 100, "task_path": ""}
        for key in keys
    ]
    engine = create_engine(with_sync_driver(database.url))
    with engine.begin() as connection:
        for model, rows in (
            (models.Checkpoint, checkpoints),
            (models.CheckpointBlob, blobs),
            (models.CheckpointWrite, writes),
        ):
            connection.execute(insert(model), rows)
    engine.dispose()


@on_drivers
async def test_listing_10_000_checkpoints_takes_at_most_50_mb(
    database: Database, client: Client, thread: str, record_property: Any
) -> None:
    insert_checkpoints(database, thread)
    (first, *_) = await client.list(config_of(thread), limit=1)
    assert {"shared", "own", "channel 0"} <= first.checkpoint["channel_values"].keys() and first.pending_writes
    extra = extra_bytes(database, "iterate", thread)
    record_property("extra MB", extra // MB)
    assert extra <= 50 * MB, f"{extra / MB:.0f} MB"
