"""The database schema of the checkpoint tables: its name as users give it, where it is, and how it comes about."""

from __future__ import annotations

from collections.abc import Mapping

from alembic.migration import MigrationContext
from sqlalchemy import Connection, func, inspect, select
from sqlalchemy.schema import CreateSchema
from sqlalchemy.sql import quoted_name

from sa_checkpoint._text import is_storable_text
from sa_checkpoint._types import MYSQL
from sa_checkpoint.errors import InvalidSchema

# PostgreSQL cuts a longer one off, so that two names can be one schema; MySQL's limit is one character more.
_MAX_BYTES = 63


def check_schema(name: str | None) -> str | None:
    """Check the name of a schema, and have it quoted wherever it is used.

    Args:
        name: Any identifier of at most 63 bytes, or None for unqualified tables.

    Raises:
        InvalidSchema: It is not an identifier.
    """
    if name is None:
        return None
    if not isinstance(name, str) or not name or not is_storable_text(name):
        raise InvalidSchema(
            f"schema is {name!r}: pass a string of at least one character, without NUL, or None for the schema that "
            "the search_path or a schema_translate_map decides."
        )
    if len(name.encode()) > _MAX_BYTES:
        raise InvalidSchema(
            f"schema is {name!r}, which has {len(name.encode())} bytes: PostgreSQL would cut it off at {_MAX_BYTES}. "
            "Choose a shorter name."
        )
    return quoted_name(name, quote=True)


def schema_in(connection: Connection, schema: str | None) -> str | None:
    """The schema to look for tables in: SQLAlchemy's inspector does not know of the host's `schema_translate_map`.

    Args:
        connection: The database.
        schema: A schema's name, or None for unqualified tables.

    Returns:
        None if the database decides.
    """
    return _translations(connection).get(schema, schema)


def _translations(connection: Connection) -> Mapping[str | None, str | None]:
    return connection.get_execution_options().get("schema_translate_map") or {}


def current_schema(connection: Connection) -> str | None:
    """Where unqualified tables are created now: the inspector says where that was on the engine's first connection."""
    if connection.dialect.name == "postgresql":
        return connection.scalar(select(func.current_schema()))
    if connection.dialect.name in MYSQL:
        return connection.scalar(select(func.database()))
    return inspect(connection).default_schema_name


def schema_of_versions(connection: Connection, schema: str | None) -> str | None:
    """Where Alembic keeps our version table: in the schema that it creates tables in.

    It creates the table through the host's `schema_translate_map`, but looks for it without, and wherever the
    `search_path` leads: in the schema of a tenant whose tables are still to be made it would find another one's.
    """
    name = schema_in(connection, schema)
    if name is not None or connection.dialect.name != "postgresql":
        return name
    name = current_schema(connection)
    return None if name in _translations(connection) else name


def create_schema(context: MigrationContext, schema: str | None) -> None:
    """Create a schema that does not exist; whoever upgrades an existing one needs no right to.

    Args:
        context: What Alembic is running: on a database, or printing a script.
        schema: None for unqualified tables.

    Raises:
        InvalidSchema: It is SQLite, where a schema is a database that has been attached.
    """
    is_sqlite = context.dialect.name == "sqlite"
    if schema is None or (context.as_sql and is_sqlite):
        return
    if context.as_sql:
        context.execute(CreateSchema(schema, if_not_exists=True))
        return
    name = schema_in(context.connection, schema)  # type: ignore[arg-type]
    if name is None or inspect(context.connection).has_schema(name):
        return
    if is_sqlite:
        raise InvalidSchema(
            f"There is no schema {name!r}: in SQLite that is an attached database. Run ATTACH DATABASE on every new "
            "connection, in a listener for the engine's connect event, or pass no schema."
        )
    if not context.opts.get("dont_mutate"):  # as `alembic current` says
        context.execute(CreateSchema(name))
