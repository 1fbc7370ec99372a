"""What a chat of 200 turns takes on the disk, and in PostgreSQL's write-ahead log. It is the same in every run."""

from __future__ import annotations

from typing import TypedDict
from uuid import uuid4

from sqlalchemy import Connection, text

from benchmarks import graphs
from benchmarks.contestants import Contestant
from benchmarks.servers import looking_at

TURNS = 200


class Storage(TypedDict):
    """Bytes that one contestant needs."""

    database: str
    contestant: str
    is_ours: bool
    disk_bytes: int
    wal_bytes: int | None


def storage(contestant: Contestant) -> Storage:
    """Run the chat, and measure before and after. Nothing else may run on the server meanwhile."""
    graph = graphs.chain(contestant.saver, 1)
    with looking_at(contestant.url).connect() as connection:
        wal = _wal_position(connection)
        disk = _size(connection)
        thread_id = str(uuid4())
        for turn in range(TURNS):
            graphs.run(graph, thread_id, question=turn)
        return {
            "database": contestant.url.get_backend_name(),
            "contestant": contestant.name,
            "is_ours": contestant.is_ours,
            "disk_bytes": _size(connection) - disk,
            "wal_bytes": _wal_position(connection) - wal if contestant.url.get_backend_name() == "postgresql" else None,
        }


def _wal_position(connection: Connection) -> int:
    if connection.dialect.name != "postgresql":
        return 0
    return int(connection.scalar(text("SELECT pg_current_wal_lsn() - '0/0'::pg_lsn")) or 0)


def _size(connection: Connection) -> int:
    """The size of the tables with their indexes and what is stored out of line."""
    if connection.dialect.name == "sqlite":
        statement = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size"
    else:
        connection.execute(text("CHECKPOINT"))  # so that every page is written to the log in full once
        statement = (
            "SELECT sum(pg_total_relation_size(oid)) FROM pg_class WHERE relname LIKE 'checkpoint%' AND relkind = 'r'"
        )
    return int(connection.scalar(text(statement)) or 0)
