"""A large state to store: 50 MB, which no database or driver can compress."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from random import Random
from typing import Any

from langgraph.checkpoint.base import Checkpoint
from sqlalchemy import create_engine, text

from tests.backends import Database, with_sync_driver
from tests.checkpoints import checkpoint_of

CHUNKS = 50
CHUNK_BYTES = 1_000_000
SIZE = CHUNKS * CHUNK_BYTES


def large_values(*, channels: int = 1) -> dict[str, Any]:
    """Channel values of 50 objects of 1 MB of bytes, in lists that are of equal length."""
    chunks = [Random(number).randbytes(CHUNK_BYTES) for number in range(CHUNKS)]
    return {f"channel {number}": chunks[number::channels] for number in range(channels)}


def large_checkpoint(values: dict[str, Any]) -> tuple[Checkpoint, dict[str, str | int | float]]:
    """A checkpoint with values, and the versions of all its channels as new ones."""
    checkpoint = checkpoint_of(values)
    return checkpoint, dict(checkpoint["channel_versions"])


@contextmanager
def large_packets(database: Database) -> Iterator[Database]:
    """Have MySQL or MariaDB take statements of this size, on connections that are made in the block."""
    if database.backend.dialect != "mysql":
        yield database
        return
    engine = create_engine(with_sync_driver(database.url), isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        usual = connection.scalar(text("SELECT @@GLOBAL.max_allowed_packet"))
        connection.execute(text("SET GLOBAL max_allowed_packet = 1073741824"))
        yield database
        connection.execute(text(f"SET GLOBAL max_allowed_packet = {usual}"))
    engine.dispose()
