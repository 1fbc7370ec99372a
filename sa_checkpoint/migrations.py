"""The checkpoint tables' Alembic lineage, from Python: where its revisions are, and how to run them.

DDL is in the revisions (`alembic/versions`) and nowhere else. They run the same way from `alembic.ini`, from here and
from the savers' `setup()`: in one transaction that also holds a lock, so any number of processes may start at once.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from threading import Lock
from typing import TYPE_CHECKING, Any

from alembic import command
from alembic.config import Config
from sqlalchemy import BigInteger, Connection, Engine, func, literal, select
from sqlalchemy.util import greenlet_spawn

from sa_checkpoint._binds import async_bind, running_loop
from sa_checkpoint.errors import SyncCallOnEventLoop
from sa_checkpoint.models import metadata

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine

VERSION_TABLE = "sa_checkpoint_alembic_version"

# Any number will do, as long as all versions of this package use the same one.
_ADVISORY_LOCK = int.from_bytes(b"sa_check", "big")

# Alembic keeps the migration that is under way in module globals, so a process can run only one at a time.
_PROCESS_LOCK = Lock()
_POLL_SECONDS = 0.01
# The event loop that the lock's holder runs on, if it does.
_holder: asyncio.AbstractEventLoop | None = None


def script_location() -> Path:
    """The folder with `env.py` and the revisions: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "alembic"
    return inside if inside.is_dir() else package.parent / "alembic"


def alembic_config(bind: Engine | Connection | None = None) -> Config:
    """An Alembic `Config` of our lineage, for `alembic.command`.

    Args:
        bind: What to run on. Without one, the database is that of `$SA_CHECKPOINT_URL`, or
            `sqlite:///checkpoints.db`.
    """
    config = Config()
    # Config interpolates "%" in option values.
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    config.attributes["connection"] = bind
    return config


def upgrade(bind: Engine | Connection, revision: str = "head") -> None:
    """Create or upgrade the checkpoint tables.

    Args:
        bind: An Engine, on which this is one transaction; or a Connection, whose transaction stays the caller's to
            commit or roll back.
        revision: An Alembic revision of our lineage.
    """
    with _exclusively():
        command.upgrade(alembic_config(bind), revision)


def downgrade(bind: Engine | Connection, revision: str) -> None:
    """Go back to an earlier revision. "base" drops the tables with all that is in them.

    Args:
        bind: As in `upgrade`.
        revision: An Alembic revision of our lineage.
    """
    with _exclusively():
        command.downgrade(alembic_config(bind), revision)


async def aupgrade(bind: AsyncEngine | AsyncConnection, revision: str = "head") -> None:
    """The async twin of `upgrade`.

    Args:
        bind: An AsyncEngine, on which this is one transaction; or an AsyncConnection, whose transaction stays the
            caller's to commit or roll back.
        revision: An Alembic revision of our lineage.
    """
    source = async_bind(bind).source
    async with _aexclusively():
        await greenlet_spawn(command.upgrade, alembic_config(source), revision)


@contextmanager
def _exclusively() -> Iterator[None]:
    """Hold the process's lock."""
    if not _PROCESS_LOCK.acquire(blocking=False):
        if _holder is not None and _holder is running_loop():
            raise SyncCallOnEventLoop(
                "A migration is under way on this event loop, and waiting for it here would stop it for ever: await "
                "AsyncSQLAlchemySaver.setup() or migrations.aupgrade() instead, or call this in another thread."
            )
        _PROCESS_LOCK.acquire()
    try:
        yield
    finally:
        _PROCESS_LOCK.release()


@asynccontextmanager
async def _aexclusively() -> AsyncIterator[None]:
    """Hold the process's lock without blocking the event loop, on which its holder may have to go on."""
    global _holder
    while not _PROCESS_LOCK.acquire(blocking=False):  # noqa: ASYNC110 (other threads hold it, too)
        await asyncio.sleep(_POLL_SECONDS)
    _holder = asyncio.get_running_loop()
    try:
        yield
    finally:
        _holder = None
        _PROCESS_LOCK.release()


@contextmanager
def transaction(bind: Engine | Connection) -> Iterator[Connection]:
    """A Connection in a transaction in which no other process migrates this database; `env.py` works in it.

    Args:
        bind: An Engine, on which the transaction is committed at the end; or a Connection, on which it is not.
    """
    if isinstance(bind, Connection):
        _lock(bind)
        yield bind
        return
    with bind.connect() as connection:
        if bind.dialect.name == "postgresql":
            # The lock goes with the transaction, so there has to be one; and what others did while we waited for the
            # lock has to be seen, which REPEATABLE READ would not.
            connection.execution_options(isolation_level="READ COMMITTED")
        with connection.begin():
            _lock(connection)
            yield connection


def _lock(connection: Connection) -> None:
    if connection.dialect.name == "postgresql":
        connection.execute(select(func.pg_advisory_xact_lock(literal(_ADVISORY_LOCK, BigInteger))))
    elif connection.dialect.name == "sqlite":
        # Python's sqlite3 begins no transaction before DDL, and one that reads first could not write after another
        # writer: this one begins with the write lock. Some hosts have it begin otherwise, and then it has begun.
        if not connection.connection.driver_connection.in_transaction:  # type: ignore[union-attr]
            connection.exec_driver_sql("BEGIN IMMEDIATE")


def version_table_schema(connection: Connection) -> str | None:
    """Where the version table is, if the host's `schema_translate_map` puts unqualified tables in a schema.

    Alembic creates the table through the map, but looks for it without.
    """
    schemas: Mapping[str | None, str | None] = connection.get_execution_options().get("schema_translate_map") or {}
    return schemas.get(None)


def include_name(name: str | None, type_: str, parent_names: Any) -> bool:
    """For Alembic's `include_name`: of the tables in a database, only ours are compared with the models."""
    return type_ != "table" or name in metadata.tables


def include_object(object_: Any, name: str | None, type_: str, reflected: bool, compare_to: Any) -> bool:
    """For Alembic's `include_object`: the indexes that langgraph-checkpoint-postgres has besides are not compared."""
    return type_ != "index" or name in {index.name for table in metadata.tables.values() for index in table.indexes}
