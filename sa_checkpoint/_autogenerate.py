"""What Alembic's autogenerate leaves out of an application's own revisions on SQLite: our index on an expression.

SQLAlchemy cannot reflect such an index there, so Alembic compares none and creates none. This looks for it by name.
"""

from __future__ import annotations

from typing import Any

from alembic.autogenerate import comparators
from alembic.autogenerate.api import AutogenContext
from alembic.operations.ops import CreateIndexOp, ModifyTableOps
from sqlalchemy import Column, MetaData, String, Table, select

from sa_checkpoint.models import RUN_ID_INDEX


@comparators.dispatch_for("table")
def add_run_id_index(
    context: AutogenContext,
    changes: ModifyTableOps,
    schema: str | None,
    _name: Any,
    _reflected: Table | None,
    table: Table | None,
) -> None:
    """Create the index with the table, or where an older revision has left it out.

    Args:
        context: The database that is compared.
        changes: What autogenerate does to the table.
        schema: The table's schema.
        table: The table in the application's metadata, or None if it is not there.
    """
    indexes = table.indexes if table is not None else ()
    index = next((index for index in indexes if index.name == RUN_ID_INDEX.name), None)
    if index is None or context.dialect is None or context.dialect.name != "sqlite" or context.connection is None:
        return
    existing = Table("sqlite_master", MetaData(), Column("type", String), Column("name", String), schema=schema)
    found = select(existing.c.name).where(existing.c.type == "index", existing.c.name == index.name)
    if context.connection.scalar(found) is None:
        changes.ops.append(CreateIndexOp.from_index(index))
