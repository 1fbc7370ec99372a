"""The checkpoint tables' Alembic lineage, from Python: how to run it, and how to live with it in an application's own.

DDL is in the revisions (`alembic/versions`) and nowhere else. They run the same way from `alembic.ini`, from here and
from the savers' `setup()`: in one transaction that also holds a lock, so any number of processes may start at once.

Each function takes what a saver takes. On an Engine or sessionmaker it is one transaction; on a Connection or Session
it works in the caller's, which stays the caller's to commit or roll back. The application's logging is left alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from sqlalchemy import Connection, Engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker
from sqlalchemy.util import greenlet_spawn

from sa_checkpoint import _alembic, _revision
from sa_checkpoint._adoption import NOTE
from sa_checkpoint._alembic import alembic_config, script_location
from sa_checkpoint._binds import Bind, async_bind, sync_bind
from sa_checkpoint._cancellation import Cancellation, finished
from sa_checkpoint._revision import HEAD, VERSION_TABLE
from sa_checkpoint._schema import check_schema
from sa_checkpoint.models import metadata

if TYPE_CHECKING:
    from sqlalchemy.ext.asyncio import (
        AsyncConnection,
        AsyncEngine,
        AsyncSession,
        async_scoped_session,
        async_sessionmaker,
    )

    SyncBind = Engine | sessionmaker[Any] | scoped_session[Any] | Connection | Session
    AsyncBind = AsyncEngine | async_sessionmaker[Any] | async_scoped_session[Any] | AsyncConnection | AsyncSession

__all__ = [
    "HEAD",
    "VERSION_TABLE",
    "acheck",
    "acurrent",
    "adowngrade",
    "alembic_config",
    "astamp",
    "aupgrade",
    "check",
    "current",
    "downgrade",
    "include_name",
    "script_location",
    "stamp",
    "upgrade",
]


def upgrade(bind: SyncBind, revision: str = "head", *, schema: str | None = None) -> None:
    """Create or upgrade the checkpoint tables.

    Args:
        bind: What a `SQLAlchemySaver` takes.
        revision: An Alembic revision of our lineage.
        schema: The schema of the tables and of the version table, which is created. None for unqualified ones.

    Raises:
        InvalidBind: `bind` is of another kind.
        InvalidSchema: `schema` is not an identifier; or, on SQLite, not an attached database.
        SchemaMismatch: There are tables of these names with another shape. Nothing has been changed.
        MigrationUnderWay: This is called inside another migration, such as a revision of the application's.
    """
    _alembic.run(bind, schema, _alembic.upgrading(revision))


async def aupgrade(bind: AsyncBind, revision: str = "head", *, schema: str | None = None) -> None:
    """The async twin of `upgrade`, on what an `AsyncSQLAlchemySaver` takes."""
    await _alembic.arun(bind, schema, _alembic.upgrading(revision))


def downgrade(bind: SyncBind, revision: str, *, schema: str | None = None) -> None:
    """Go back to an earlier revision. "base" drops the tables that the upgrade created, with all that is in them.

    Args:
        bind: As in `upgrade`.
        revision: An Alembic revision of our lineage.
        schema: As in `upgrade`. It is not dropped.

    Raises:
        InvalidBind: `bind` is of another kind.
        InvalidSchema: `schema` is not an identifier.
        MigrationUnderWay: This is called inside another migration.
    """
    _alembic.run(bind, schema, _alembic.downgrading(revision))


async def adowngrade(bind: AsyncBind, revision: str, *, schema: str | None = None) -> None:
    """The async twin of `downgrade`."""
    await _alembic.arun(bind, schema, _alembic.downgrading(revision))


def stamp(bind: SyncBind, revision: str = "head", *, schema: str | None = None) -> None:
    """Write a revision into the version table without running it, for tables that came about in another way.

    Args:
        bind: As in `upgrade`.
        revision: An Alembic revision of our lineage; "base" for none.
        schema: As in `upgrade`.

    Raises:
        InvalidBind: `bind` is of another kind.
        InvalidSchema: `schema` is not an identifier; or, on SQLite, not an attached database.
        MigrationUnderWay: This is called inside another migration.
    """
    _alembic.run(bind, schema, _alembic.stamping(revision))


async def astamp(bind: AsyncBind, revision: str = "head", *, schema: str | None = None) -> None:
    """The async twin of `stamp`."""
    await _alembic.arun(bind, schema, _alembic.stamping(revision))


def current(bind: SyncBind, *, schema: str | None = None) -> str | None:
    """The revision that the database is at.

    Args:
        bind: As in `upgrade`.
        schema: As in `upgrade`.

    Returns:
        What the version table of our lineage says; without one, what the application's `alembic_version` says of our
        branch. None if neither names a revision of ours, which a branch that another revision depends on does not.

    Raises:
        InvalidBind: `bind` is of another kind.
        InvalidSchema: `schema` is not an identifier.
    """
    return _current(sync_bind(bind), check_schema(schema), Cancellation())


async def acurrent(bind: AsyncBind, *, schema: str | None = None) -> str | None:
    """The async twin of `current`."""
    cancellation = Cancellation()
    call = greenlet_spawn(_current, async_bind(bind), check_schema(schema), cancellation)
    revision: str | None = await finished(call, cancellation)
    return revision


def check(bind: SyncBind, *, schema: str | None = None) -> None:
    """Make sure that the savers will find the tables that they need. For a program's start; the savers never call it.

    Tables whose revision no version table names, such as those that the application's own revisions have created, are
    checked by their columns alone.

    Args:
        bind: As in `upgrade`.
        schema: As in `upgrade`.

    Raises:
        SchemaOutOfDate: They are at another revision than `HEAD`, or incomplete. The message names both revisions and
            the command to run.
        InvalidBind: `bind` is of another kind.
        InvalidSchema: `schema` is not an identifier.
    """
    _check(sync_bind(bind), check_schema(schema), Cancellation())


async def acheck(bind: AsyncBind, *, schema: str | None = None) -> None:
    """The async twin of `check`."""
    cancellation = Cancellation()
    await finished(greenlet_spawn(_check, async_bind(bind), check_schema(schema), cancellation), cancellation)


def _current(bind: Bind, schema: str | None, cancellation: Cancellation) -> str | None:
    with bind.connect(cancellation, writes=False) as connection:
        return _revision.current(connection, schema)


def _check(bind: Bind, schema: str | None, cancellation: Cancellation) -> None:
    with bind.connect(cancellation, writes=False) as connection:
        missing = _revision.missing(connection, schema)
        if missing or _revision.current(connection, schema) not in (None, HEAD):
            raise _revision.out_of_date(connection, schema, ", ".join(missing))


def include_name(name: str | None, type_: str, parent_names: Any, *, schema: str | None = None) -> bool:
    """For `context.configure(include_name=...)` in an application's env.py: leave the checkpoint tables alone.

    Without it, `alembic revision --autogenerate` would drop tables that are in the database and not in the
    application's metadata. It is composed with a rule of the application's like this:
    `lambda *args: migrations.include_name(*args) and my_rule(*args)`; and for tables in a schema with
    `functools.partial(migrations.include_name, schema="agents")`.

    Args:
        name: The name of a table, or of something else, in the database.
        type_: What it is, as Alembic calls it.
        parent_names: The names of what it is in, as Alembic passes them.
        schema: The schema of the checkpoint tables, or None for the default one.

    Returns:
        False for a checkpoint table, our version table and our note of adopted tables.
    """
    is_ours = type_ == "table" and name in {*metadata.tables, VERSION_TABLE, NOTE}
    return not (is_ours and parent_names.get("schema_name") == schema)
