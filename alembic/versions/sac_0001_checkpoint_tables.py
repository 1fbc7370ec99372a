"""Create the checkpoints, checkpoint_blobs and checkpoint_writes tables, or adopt those that are there.

Revision ID: sac_0001
Revises:
Create Date: 2026-11-22
"""

from typing import Any

import sqlalchemy as sa
from alembic import op

from sa_checkpoint import _adoption, _schema
from sa_checkpoint._types import BLOB, DOCUMENT, TABLE_OPTIONS, TEXT, Default, key

revision: str = "sac_0001"
down_revision: str | None = None
branch_labels: tuple[str, ...] = ("sa_checkpoint",)
depends_on: str | None = None


def definitions() -> dict[str, list[sa.Column[Any]]]:
    return {
        "checkpoints": [
            sa.Column("thread_id", key("thread_id"), primary_key=True),
            sa.Column("checkpoint_ns", key("checkpoint_ns"), primary_key=True, server_default=Default("''")),
            sa.Column("checkpoint_id", key("checkpoint_id"), primary_key=True),
            sa.Column("parent_checkpoint_id", key("checkpoint_id")),
            sa.Column("type", TEXT),
            sa.Column("checkpoint", DOCUMENT, nullable=False),
            sa.Column("metadata", DOCUMENT, server_default=Default("'{}'"), nullable=False),
        ],
        "checkpoint_blobs": [
            sa.Column("thread_id", key("thread_id"), primary_key=True),
            sa.Column("checkpoint_ns", key("checkpoint_ns"), primary_key=True, server_default=Default("''")),
            sa.Column("channel", key("channel"), primary_key=True),
            sa.Column("version", key("version"), primary_key=True),
            sa.Column("type", TEXT, nullable=False),
            sa.Column("blob", BLOB),
        ],
        "checkpoint_writes": [
            sa.Column("thread_id", key("thread_id"), primary_key=True),
            sa.Column("checkpoint_ns", key("checkpoint_ns"), primary_key=True, server_default=Default("''")),
            sa.Column("checkpoint_id", key("checkpoint_id"), primary_key=True),
            sa.Column("task_id", key("task_id"), primary_key=True),
            sa.Column("idx", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("channel", TEXT, nullable=False),
            sa.Column("type", TEXT),
            sa.Column("blob", BLOB, nullable=False),
            sa.Column("task_path", TEXT, server_default=Default("''"), nullable=False),
        ],
    }


def upgrade() -> None:
    schema = _adoption.schema_of_revision()
    is_offline = op.get_context().as_sql
    _schema.create_schema(op.get_context(), schema)
    existing = set() if is_offline else _adoption.adopt(definitions())
    for name, columns in definitions().items():
        if name not in existing:
            op.create_table(name, *columns, schema=schema, **TABLE_OPTIONS)


def downgrade() -> None:
    if op.get_context().as_sql:
        raise RuntimeError(
            "A script cannot tell which tables the upgrade created and which it adopted: run `alembic downgrade` "
            "without --sql."
        )
    adopted = _adoption.adopted()
    for name in reversed(definitions()):
        if name not in adopted:
            op.drop_table(name, schema=_adoption.schema_of_revision(), if_exists=True)
    _adoption.forget()
