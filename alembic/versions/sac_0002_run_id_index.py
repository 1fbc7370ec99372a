"""Index checkpoints by the run that stored them, where an expression can be indexed.

On a large table that is in use, build the index beforehand without blocking writes, and the upgrade takes it as it is:

    CREATE INDEX CONCURRENTLY checkpoints_run_id_idx ON checkpoints
    USING hash ((metadata ->> 'run_id')) WHERE (metadata ->> 'run_id') IS NOT NULL;

Revision ID: sac_0002
Revises: sac_0001
Create Date: 2026-11-22
"""

import sqlalchemy as sa
from alembic import op

from sa_checkpoint import _adoption
from sa_checkpoint.models import RUN_ID_DIALECTS

revision: str = "sac_0002"
down_revision: str | None = "sac_0001"
branch_labels: tuple[str, ...] | None = None
depends_on: str | None = None

NAME = "checkpoints_run_id_idx"


def upgrade() -> None:
    if op.get_context().dialect.name not in RUN_ID_DIALECTS:
        return
    if op.get_context().dialect.name == "sqlite":
        run_id = """json_extract(metadata, '$."run_id"')"""
    else:
        run_id = "(metadata ->> 'run_id')"
    is_online_postgresql = op.get_context().dialect.name == "postgresql" and not op.get_context().as_sql
    # IF NOT EXISTS would ask for the owner's rights even where there is nothing to do.
    if is_online_postgresql and _adoption.has_index("checkpoints", NAME):
        return
    present = sa.text(f"{run_id} IS NOT NULL")
    op.create_index(
        NAME,
        "checkpoints",
        [sa.text(run_id)],
        postgresql_using="hash",
        postgresql_where=present,
        sqlite_where=present,
        schema=_adoption.schema_of_revision(),
        if_not_exists=True,
    )


def downgrade() -> None:
    if op.get_context().dialect.name in RUN_ID_DIALECTS:
        op.drop_index(NAME, "checkpoints", schema=_adoption.schema_of_revision(), if_exists=True)
