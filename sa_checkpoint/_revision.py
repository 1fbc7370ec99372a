"""At which revision of ours a database is, without running Alembic, and what to do if it is the wrong one."""

from __future__ import annotations

from sqlalchemy import Column, Connection, MetaData, String, Table, inspect, select

from sa_checkpoint import _tables
from sa_checkpoint._schema import schema_in
from sa_checkpoint.errors import SchemaOutOfDate

VERSION_TABLE = "sa_checkpoint_alembic_version"
# Where a host keeps the versions of all its branches, ours among them if it has made it one.
_HOST_VERSION_TABLE = "alembic_version"

REVISIONS = ("sac_0001", "sac_0002")
"""Our revisions, oldest first."""
HEAD = REVISIONS[-1]


def current(connection: Connection, schema: str | None) -> str | None:
    """The revision in the version table of our own lineage, else in the application's.

    Args:
        connection: The database.
        schema: The schema of the checkpoint tables, or None for unqualified ones.

    Returns:
        None if no version table names one of ours.
    """
    for revision in _versions(connection, VERSION_TABLE, schema):
        return revision
    ours = [revision for revision in _versions(connection, _HOST_VERSION_TABLE, None) if revision in REVISIONS]
    return max(ours, key=REVISIONS.index, default=None)


def _versions(connection: Connection, name: str, schema: str | None) -> list[str]:
    if not inspect(connection).has_table(name, schema=schema_in(connection, schema)):
        return []
    table = Table(name, MetaData(), Column("version_num", String), schema=schema)
    return list(connection.scalars(select(table.c.version_num)))


def missing(connection: Connection, schema: str | None) -> list[str]:
    """The checkpoint tables and columns that the database lacks."""
    inspector = inspect(connection)
    where = schema_in(connection, schema)
    found = []
    for table in _tables.metadata_in(None).sorted_tables:
        if not inspector.has_table(table.name, schema=where):
            found.append(f"no table {table.name}")
            continue
        columns = {column["name"] for column in inspector.get_columns(table.name, schema=where)}
        found += [f"no column {table.name}.{column.name}" for column in table.columns if column.name not in columns]
    return found


def out_of_date(connection: Connection, schema: str | None, reason: str | None = None) -> SchemaOutOfDate:
    """The error of a database that this version of the code does not fit.

    Args:
        connection: The database.
        schema: The schema of the checkpoint tables, or None for unqualified ones.
        reason: What was seen.
    """
    url = connection.engine.url.render_as_string(hide_password=True)
    place = url if schema is None else f"schema {schema!r} of {url}"
    at = current(connection, schema)
    seen = f" ({reason})" if reason else ""
    if at is not None and at not in REVISIONS:
        return SchemaOutOfDate(
            f"The checkpoint tables in {place} are at revision {at}, which this version of sa_checkpoint does not "
            f"know: its head is {HEAD}{seen}. Install the version that created it, or a later one."
        )
    return SchemaOutOfDate(
        f"The checkpoint tables in {place} are at revision {at or 'none'}, and this version of sa_checkpoint needs "
        f"{HEAD}{seen}. Run `alembic upgrade head` (`heads` where our revisions are a branch of yours), or "
        "`sa-checkpoint upgrade`, or call the saver's setup()."
    )
