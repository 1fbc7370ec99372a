"""Create the checkpoints, checkpoint_blobs and checkpoint_writes tables, or adopt those that are there.

Revision ID: sac_0001
Revises:
Create Date: 2026-11-22
"""

from typing import Any

import sqlalchemy as sa
from alembic import op
from sqlalchemy.dialects.postgresql import JSONB

from sa_checkpoint import _adoption, _schema

revision: str = "sac_0001"
down_revision: str | None = None
branch_labels: tuple[str, ...] = ("sa_checkpoint",)
depends_on: str | None = None

_JSON = sa.JSON().with_variant(JSONB(), "postgresql")


def definitions() -> dict[str, list[sa.Column[Any]]]:
    return {
        "checkpoints": [
            sa.Column("thread_id", sa.Text, primary_key=True),
            sa.Column("checkpoint_ns", sa.Text, primary_key=True, server_default=sa.text("''")),
            sa.Column("checkpoint_id", sa.Text, primary_key=True),
            sa.Column("parent_checkpoint_id", sa.Text),
            sa.Column("type", sa.Text),
            sa.Column("checkpoint", _JSON, nullable=False),
            sa.Column("metadata", _JSON, server_default=sa.text("'{}'"), nullable=False),
        ],
        "checkpoint_blobs": [
            sa.Column("thread_id", sa.Text, primary_key=True),
            sa.Column("checkpoint_ns", sa.Text, primary_key=True, server_default=sa.text("''")),
            sa.Column("channel", sa.Text, primary_key=True),
            sa.Column("version", sa.Text, primary_key=True),
            sa.Column("type", sa.Text, nullable=False),
            sa.Column("blob", sa.LargeBinary),
        ],
        "checkpoint_writes": [
            sa.Column("thread_id", sa.Text, primary_key=True),
            sa.Column("checkpoint_ns", sa.Text, primary_key=True, server_default=sa.text("''")),
            sa.Column("checkpoint_id", sa.Text, primary_key=True),
            sa.Column("task_id", sa.Text, primary_key=True),
            sa.Column("idx", sa.Integer, primary_key=True, autoincrement=False),
            sa.Column("channel", sa.Text, nullable=False),
            sa.Column("type", sa.Text),
            sa.Column("blob", sa.LargeBinary, nullable=False),
            sa.Column("task_path", sa.Text, server_default=sa.text("''"), nullable=False),
        ],
    }


def upgrade() -> None:
    schema = _adoption.schema_of_revision()
    is_offline = op.get_context().as_sql
    _schema.create_schema(op.get_context(), schema)
    existing = set() if is_offline else _adoption.adopt(definitions())
    for name, columns in definitions().items():
        if name not in existing:
            op.create_table(name, *columns, schema=schema)


def downgrade() -> None:
    if op.get_context().as_sql:
        raise RuntimeError(
            "A script cannot tell which tables the upgrade created and which it adopted: run `alembic downgrade` "
            "without --sql."
        )
    adopted = _adoption.adopted()
    for name in reversed(definitions()):
        if name not in adopted:
            op.drop_table(name, schema=_adoption.schema_of_revision())
