"""How Alembic is run: one migration at a time in a process, and one at a time in a database."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from hashlib import sha1
from pathlib import Path
from threading import Lock
from typing import Any

from alembic import command, context
from alembic.config import Config
from alembic.ddl.impl import DefaultImpl
from sqlalchemy import BigInteger, Connection, Dialect, Engine, func, literal, select
from sqlalchemy.exc import DBAPIError
from sqlalchemy.util import greenlet_spawn

from sa_checkpoint import _transactions
from sa_checkpoint._binds import Bind, async_bind, running_loop, sync_bind
from sa_checkpoint._cancellation import Cancellation, finished
from sa_checkpoint._direct import BUFFERED
from sa_checkpoint._schema import check_schema, schema_in
from sa_checkpoint._types import MYSQL
from sa_checkpoint.errors import InvalidBind, MigrationUnderWay, SyncCallOnEventLoop, UnsupportedDatabase

Job = Callable[[Config], Any]
"""A command of Alembic's, to be run with a Config."""

# Any number will do, as long as all versions of this package use the same one.
_ADVISORY_LOCK = int.from_bytes(b"sa_check", "big")

# Alembic keeps the migration that is under way in module globals, so a process can run only one at a time.
_PROCESS_LOCK = Lock()
_POLL_SECONDS = 0.01
# An execution option of a connection that is in a transaction of ours with the lock.
_PREPARED = "sa_checkpoint_prepared"
# MySQL waits without end for a negative number, MariaDB does not.
_LONG_SECONDS = 365 * 24 * 3600
# The event loop that the lock's holder runs on, if it does.
_holder: asyncio.AbstractEventLoop | None = None


def script_location() -> Path:
    """The folder with `env.py` and the revisions: inside the package in a wheel, beside it in a checkout."""
    package = Path(__file__).parent
    inside = package / "alembic"
    return inside if inside.is_dir() else package.parent / "alembic"


def alembic_config(bind: Engine | Connection | None = None, *, schema: str | None = None) -> Config:
    """An Alembic `Config` of our lineage, for `alembic.command`.

    Args:
        bind: What to run on. Without one, the database is that of `$SA_CHECKPOINT_URL`, or
            `sqlite:///checkpoints.db`.
        schema: The schema of the checkpoint tables and the version table. None for unqualified ones.

    Raises:
        InvalidSchema: `schema` is not an identifier.
    """
    config = Config()
    # Config interpolates "%" in option values.
    config.set_main_option("script_location", str(script_location()).replace("%", "%%"))
    config.attributes["connection"] = bind
    config.attributes["schema"] = check_schema(schema)
    return config


def upgrading(revision: str = "head") -> Job:
    """`alembic upgrade`."""
    return lambda config: command.upgrade(config, revision)


def downgrading(revision: str) -> Job:
    """`alembic downgrade`."""
    return lambda config: command.downgrade(config, revision)


def stamping(revision: str) -> Job:
    """`alembic stamp`."""
    return lambda config: command.stamp(config, revision)


def run(bind: Any, schema: str | None, job: Job) -> None:
    """Run a command of Alembic's on what a sync saver takes, and wait for it."""
    cancellation = Cancellation()
    while True:
        with _exclusively():
            _refuse_inside_another()
            if _run(sync_bind(bind), schema, job, cancellation):
                return
        time.sleep(_POLL_SECONDS)


async def arun(bind: Any, schema: str | None, job: Job) -> None:
    """Run a command of Alembic's on what an async saver takes, and await it."""
    cancellation = Cancellation()
    while True:
        async with _aexclusively():
            _refuse_inside_another()
            if await finished(greenlet_spawn(_run, async_bind(bind), schema, job, cancellation), cancellation):
                return
        await asyncio.sleep(_POLL_SECONDS)


def _run(bind: Bind, schema: str | None, job: Job, cancellation: Cancellation) -> bool:
    """Run a command, if nobody else migrates the database; returns whether it has run.

    Waiting in the database while holding the process's lock would be for ever where the one who holds the database's
    lock, in a transaction of its own, wants the process's once more.
    """
    schema = check_schema(schema)
    try:
        with bind.migrating(cancellation) as target, transaction(target, schema, waits=False) as connection:
            job(alembic_config(connection, schema=schema))
            cancellation.check()
    except _AnotherMigration:
        return False
    return True


def _refuse_inside_another() -> None:
    """Make sure that no env.py is being run: the host's, since ours only runs under the process's lock.

    Raises:
        MigrationUnderWay: One is.
    """
    try:
        context.is_offline_mode()
    except (NameError, AttributeError):  # what Alembic raises before the first env.py, and after one
        return
    raise MigrationUnderWay(
        "Alembic is running a migration in this process already, and cannot run another one inside it. In a "
        "revision, say depends_on = 'sac_0002' and have our revisions in version_locations. In env.py it is too "
        "early or too late: call this before Alembic's command starts, or after it has ended."
    )


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


class _AnotherMigration(Exception):
    """Somebody else migrates the database, and nobody waits for that here."""


@contextmanager
def transaction(bind: Engine | Connection, schema: str | None, *, waits: bool = True) -> Iterator[Connection]:
    """A Connection in a transaction in which no other process migrates this database; `env.py` works in it.

    Args:
        bind: An Engine, on which the transaction is committed at the end; or a Connection, on which it is not, and
            which is as it was before if the migration fails. MySQL has no such transactions.
        schema: The schema of the checkpoint tables.
        waits: Whether to wait in the database for another migration to end.
    """
    if isinstance(bind, Connection):
        if bind.get_execution_options().get(_PREPARED):  # env.py, on what this has yielded before
            yield bind
            return
        with _callers(bind, schema, waits=waits):
            yield bind
        return
    dialect = bind.dialect.name
    # Whatever the application has set, a server-side cursor is for queries only.
    with bind.connect().execution_options(**BUFFERED, **{_PREPARED: True}) as connection:
        if dialect in MYSQL:
            with _without_transaction(connection, schema, waits=waits):
                yield connection
            return
        if dialect == "postgresql" and _transactions.has_isolation_level(connection):
            # SQLAlchemy goes back to it afterwards; and a host's listener may query before a level could be set.
            connection.execution_options(isolation_level="READ COMMITTED")
        # The lock goes with the transaction, so there has to be one in autocommit, too.
        with connection.begin(), _transactions.whole(connection, writes=True):
            if dialect == "postgresql":
                # What others did while we waited for the lock has to be seen, which REPEATABLE READ would not.
                connection.exec_driver_sql("SET TRANSACTION ISOLATION LEVEL READ COMMITTED")
                _lock(connection, waits=waits)
            elif dialect == "sqlite":
                _transactions.begin_immediately(connection)
            yield connection


@contextmanager
def _callers(connection: Connection, schema: str | None, *, waits: bool) -> Iterator[None]:
    """Work in a transaction of the caller's, and leave it as it was if the migration fails.

    Raises:
        InvalidBind: The database would commit it.
    """
    if connection.dialect.name not in MYSQL:
        with _transactions.savepoint(connection, writes=True):
            if connection.dialect.name == "postgresql":
                _lock(connection, waits=waits)
            yield
        return
    # PyMySQL learns of a transaction from what is not a query only.
    connection.exec_driver_sql("DO 0")
    if _transactions.is_in_transaction(connection):
        raise InvalidBind(
            "This connection is in a transaction, and MySQL and MariaDB commit one with every CREATE TABLE: commit or "
            "roll it back first, or migrate on the Engine."
        )
    with _without_transaction(connection, schema, waits=waits):
        yield


def _lock(connection: Connection, *, waits: bool) -> None:
    """Take PostgreSQL's lock until the transaction ends. SQLite's transactions have it anyway.

    Raises:
        _AnotherMigration: It is not free, and nobody waits.
    """
    key = literal(_ADVISORY_LOCK, BigInteger)
    if waits:
        connection.execute(select(func.pg_advisory_xact_lock(key)))
    elif not connection.scalar(select(func.pg_try_advisory_xact_lock(key))):
        raise _AnotherMigration


@contextmanager
def _without_transaction(connection: Connection, schema: str | None, *, waits: bool) -> Iterator[None]:
    """Work on MySQL or MariaDB, where every CREATE TABLE is a COMMIT: hold a lock, and leave nothing uncommitted.

    Alembic's notes of what it has done belong to that, even if what it did next has failed.

    Raises:
        _AnotherMigration: The lock is not free, and nobody waits.
    """
    _check_server(connection)
    # Names are the server's, and of at most 64 characters.
    database = schema_in(connection, schema) or connection.scalar(select(func.database()))
    name = sha1(f"sa_checkpoint {database}".encode()).hexdigest()  # noqa: S324 (no secret)
    if not connection.scalar(select(func.get_lock(name, _LONG_SECONDS if waits else 0))):
        raise _AnotherMigration
    try:
        # What others did while we waited has to be seen, even if a host's listener has read something before.
        connection.exec_driver_sql("COMMIT")
        try:
            yield
        finally:
            if not connection.invalidated:
                connection.exec_driver_sql("COMMIT")
    finally:
        if not connection.invalidated:
            with suppress(DBAPIError):
                connection.execute(select(func.release_lock(name)))


def _check_server(connection: Connection) -> None:
    """Refuse a MySQL or MariaDB that lacks JSON_TABLE, or a collation that compares as bytes without padding."""
    is_mariadb = getattr(connection.dialect, "is_mariadb", False)
    oldest = (10, 6) if is_mariadb else (8, 0, 17)
    version = connection.dialect.server_version_info
    if version is not None and version < oldest:
        found, needed = (".".join(map(str, numbers)) for numbers in (version, oldest))
        raise UnsupportedDatabase(
            f"This is {'MariaDB' if is_mariadb else 'MySQL'} {found}, and checkpoint tables need {needed} or later: "
            "upgrade the server, or use another one."
        )


def know_dialect(dialect: Dialect) -> None:
    """Have Alembic run on a dialect that it has no rules for, with its default ones.

    Args:
        dialect: SQLAlchemy's, of any database.
    """
    try:
        DefaultImpl.get_by_dialect(dialect)
    except KeyError:
        type("OtherImpl", (DefaultImpl,), {"__dialect__": dialect.name})  # which registers it
