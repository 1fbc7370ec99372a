"""What Alembic's autogenerate does not know of our tables when it writes an application's own revisions.

SQLAlchemy cannot reflect an index on an expression on SQLite, so Alembic creates none there; and it does not ask
which databases an index is for (`ddl_if`). MySQL has our defaults in words of its own. Our types have to be imported.
"""

from __future__ import annotations

import re
from functools import partial
from typing import Any

from alembic import util
from alembic.autogenerate import comparators
from alembic.autogenerate.api import AutogenContext
from alembic.operations.ops import AlterColumnOp, CreateIndexOp, MigrateOperation, ModifyTableOps, UpgradeOps
from sqlalchemy import Column, MetaData, String, Table, select

from sa_checkpoint import _types
from sa_checkpoint.models import RUN_ID_DIALECTS, RUN_ID_INDEX

# Before 1.18 Alembic calls what is registered last, last.
_LAST: Any = {"priority": util.DispatchPriority.LAST} if hasattr(util, "DispatchPriority") else {}


@comparators.dispatch_for("table", **_LAST)
def compare(
    context: AutogenContext,
    changes: ModifyTableOps,
    schema: str | None,
    _name: Any,
    _reflected: Table | None,
    table: Table | None,
) -> None:
    """Correct what autogenerate does to a table.

    Args:
        context: The database that is compared.
        changes: What autogenerate does to the table.
        schema: The table's schema.
        table: The table in the application's metadata, or None if it is not there.
    """
    if context.dialect is None or context.connection is None:
        return
    changes.ops[:] = [change for change in changes.ops if not _is_needless(change, context.dialect.name)]
    indexes = table.indexes if table is not None else ()
    index = next((index for index in indexes if index.name == RUN_ID_INDEX.name), None)
    if index is None or context.dialect.name != "sqlite":
        return
    # The index may be missing from the table if an older revision has left it out.
    existing = Table("sqlite_master", MetaData(), Column("type", String), Column("name", String), schema=schema)
    found = select(existing.c.name).where(existing.c.type == "index", existing.c.name == index.name)
    if context.connection.scalar(found) is None:
        changes.ops.append(CreateIndexOp.from_index(index))


def _is_needless(change: MigrateOperation, dialect: str) -> bool:
    if isinstance(change, CreateIndexOp):
        return change.index_name == RUN_ID_INDEX.name and dialect not in RUN_ID_DIALECTS
    if not isinstance(change, AlterColumnOp):
        return False
    default = getattr(change.modify_server_default, "arg", None)
    existing = getattr(change.existing_server_default, "arg", None)
    if isinstance(default, _types.Default) and existing is not None:
        if re.sub(r"^\((?:_utf8mb4)?(.*)\)$", r"\1", str(existing)) == default.literal:
            change.modify_server_default = False
    return not change.has_changes()


@comparators.dispatch_for("schema")
def import_types(context: AutogenContext, _changes: UpgradeOps, _schemas: Any) -> None:
    """Have a revision import our types where it names them."""
    context.opts["render_item"] = partial(_render, context.opts.get("render_item"))


def _render(hosts: Any, kind: str, item: Any, context: AutogenContext) -> Any:
    """As Alembic renders it, unless the host does otherwise."""
    rendered = hosts(kind, item, context) if hosts else False
    if rendered is False and kind == "type" and type(item).__module__ == _types.__name__:
        context.imports.add(f"import {_types.__name__}")
    return rendered
