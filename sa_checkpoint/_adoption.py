"""Taking over checkpoint tables that are there already, as langgraph-checkpoint-postgres sets them up.

The first revision calls this. All is verified before anything is changed, and a note of what was adopted stays in a
table of its own, so that a downgrade never drops what the upgrade did not create.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from alembic import op
from sqlalchemy import Column, Connection, Inspector, MetaData, Table, Text, Unicode, inspect, select

from sa_checkpoint._schema import check_schema, current_schema, schema_in
from sa_checkpoint._types import MYSQL, Default
from sa_checkpoint.errors import SchemaMismatch

_LOG = logging.getLogger("alembic.sa_checkpoint")

NOTE = "sa_checkpoint_adopted"
_NAME = Unicode(64).with_variant(Text(), "postgresql", "sqlite")

# A table that langgraph-checkpoint-mysql has, and its namesake for PostgreSQL, too.
_LANGGRAPH_MIGRATIONS = "checkpoint_migrations"


def schema_of_revision() -> str | None:
    """The schema that env.py has a revision of ours work in: `context.configure(sa_checkpoint_schema=...)`."""
    return check_schema(op.get_context().opts.get("sa_checkpoint_schema"))


def adopt(definitions: Mapping[str, Sequence[Column[Any]]]) -> set[str]:
    """Verify those of the tables that exist, and add what older versions of them lack.

    Added are the column `task_path` of checkpoint_writes, which langgraph-checkpoint-postgres has since its migration
    9, and the permission of NULL for the blob of checkpoint_blobs, since its migration 4.

    Args:
        definitions: The columns of each table, as the revision would create it.

    Returns:
        The names of the tables that exist.

    Raises:
        SchemaMismatch: A table has another shape; nothing has been changed.
    """
    connection = op.get_bind()
    inspector = inspect(connection)
    schema = _schema(connection)
    tables = (Table(name, MetaData(), *columns) for name, columns in definitions.items())
    existing = [table for table in tables if inspector.has_table(table.name, schema=schema)]
    columns = {
        table.name: {column["name"]: column for column in inspector.get_columns(table.name, schema=schema)}
        for table in existing
    }
    differences = [
        f"{table.name}: {difference}"
        for table in existing
        for difference in _differences(connection, inspector, table, columns[table.name], schema)
    ]
    if differences:
        raise SchemaMismatch(
            "There are tables of these names with another shape, so nothing was changed:\n"
            + "\n".join(f"  - {difference}" for difference in differences)
            + _remedy(connection, inspector.has_table(_LANGGRAPH_MIGRATIONS, schema=schema))
        )
    for table in existing:
        _complete(table, columns[table.name])
        _LOG.info("Adopted the existing table %s with all its rows", table.name)
    names = {table.name for table in existing}
    if names:
        _note(names)
    return names


def _remedy(connection: Connection, is_langgraph: bool) -> str:
    if connection.dialect.name in MYSQL and is_langgraph:
        return (
            "\nThey are those of langgraph-checkpoint-mysql, which cannot be taken over as they are. Put ours into "
            "another database on the server, which --schema or schema= names and the upgrade creates, and copy the "
            "threads over: docs/guides/mysql.md has the code."
        )
    return "\nRename or drop them, or put the checkpoint tables into another schema or database, and upgrade again."


def _note(names: set[str]) -> None:
    # Our own lineage may have adopted them before, if it is a branch of the host's now.
    column = Column("table_name", _NAME, primary_key=True)
    note = op.create_table(NOTE, column, schema=schema_of_revision(), if_not_exists=True)
    noted = set(op.get_bind().scalars(select(note.c.table_name)))
    op.bulk_insert(note, [{"table_name": name} for name in sorted(names - noted)])


def adopted() -> set[str]:
    """The tables that `adopt` found, which are not ours to drop."""
    if not _has_note():
        return set()
    note = Table(NOTE, MetaData(), Column("table_name", _NAME), schema=schema_of_revision())
    return set(op.get_bind().scalars(select(note.c.table_name)))


def forget() -> None:
    """Drop the note of them: last of all, because a downgrade that fails halfway on MySQL is run again."""
    if _has_note():
        op.drop_table(NOTE, schema=schema_of_revision())


def _has_note() -> bool:
    connection = op.get_bind()
    return inspect(connection).has_table(NOTE, schema=_schema(connection))


def has_index(table: str, name: str) -> bool:
    """Whether an index of this name is there already, which its owner may have built beforehand."""
    connection = op.get_bind()
    return name in {index["name"] for index in inspect(connection).get_indexes(table, schema=_schema(connection))}


def _schema(connection: Connection) -> str | None:
    """Where the revision creates tables: those of a schema further down the `search_path` are somebody else's."""
    return schema_in(connection, schema_of_revision()) or current_schema(connection)


def _complete(table: Table, found: dict[str, Any]) -> None:
    for column in table.columns:
        if column.name not in found:  # task_path, by what _differences lets pass
            task_path = Column(column.name, column.type, server_default=Default("''"), nullable=False)
            op.add_column(table.name, task_path, schema=schema_of_revision())
            _LOG.info("Added the column %s to %s", column.name, table.name)
        elif _may_become_nullable(column, found[column.name]):
            op.alter_column(
                table.name, column.name, nullable=True, existing_type=column.type, schema=schema_of_revision()
            )
            _LOG.info("Permitted NULL in the column %s of %s", column.name, table.name)


def _may_be_missing(column: Column[Any]) -> bool:
    return (column.table.name, column.name) == ("checkpoint_writes", "task_path")


def _may_become_nullable(column: Column[Any], found: dict[str, Any]) -> bool:
    is_blob = (column.table.name, column.name) == ("checkpoint_blobs", "blob")
    return is_blob and not found["nullable"]


def _ddl(type_: Any, connection: Connection) -> str:
    # MariaDB shows the width that an integer is displayed with.
    return re.sub(r"^INTEGER\(\d+\)$", "INTEGER", type_.compile(connection.dialect))


def _differences(
    connection: Connection, inspector: Inspector, table: Table, found: dict[str, Any], schema: str | None
) -> Iterator[str]:
    for column in table.columns:
        if column.name not in found:
            if not _may_be_missing(column):
                yield f"there is no column {column.name}"
            continue
        there = found[column.name]
        expected, actual = (_ddl(type_, connection) for type_ in (column.type, there["type"]))
        if expected != actual:
            yield f"{column.name} is {actual} instead of {expected}"
        if bool(there["nullable"]) != bool(column.nullable) and not _may_become_nullable(column, there):
            yield f"{column.name} {'permits' if there['nullable'] else 'does not permit'} NULL"
    for name, there in found.items():
        if name not in table.columns and not there["nullable"] and there["default"] is None:
            yield f"the column {name} needs a value that sa_checkpoint does not know"
    key = inspector.get_pk_constraint(table.name, schema=schema)["constrained_columns"]
    expected_key = [column.name for column in table.primary_key.columns]
    if key != expected_key:
        yield f"the primary key is ({', '.join(key)}) instead of ({', '.join(expected_key)})"
