"""The ORM models of the three checkpoint tables, and the metadata that Alembic compares with a database.

The savers do not go through these classes: they run Core statements on the same tables (`_tables`). The models are
for `alembic check`, for autogenerate in a host application, and for applications that query checkpoints themselves.

Names, columns, types and primary keys are those of langgraph-checkpoint-postgres 3.x on PostgreSQL
(`langgraph.checkpoint.postgres.base.MIGRATIONS`), so its savers work on these tables and ours on theirs. There are no
foreign keys, because LangGraph may commit a task's writes before the checkpoint that they belong to.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, LargeBinary, MetaData, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column

_JSON = JSON().with_variant(JSONB(), "postgresql")


class Base(DeclarativeBase):
    """The declarative base of the checkpoint models, with a `MetaData` of its own."""


class Checkpoint(Base):
    """One checkpoint: the state of a thread's namespace after a step, without the values that are blobs."""

    __tablename__ = "checkpoints"

    thread_id: Mapped[str] = mapped_column(Text, primary_key=True)
    checkpoint_ns: Mapped[str] = mapped_column(Text, primary_key=True, server_default=text("''"))
    checkpoint_id: Mapped[str] = mapped_column(Text, primary_key=True)
    parent_checkpoint_id: Mapped[str | None] = mapped_column(Text)
    type: Mapped[str | None] = mapped_column(Text)
    checkpoint: Mapped[dict[str, Any]] = mapped_column(_JSON)
    # `metadata` is taken on a declarative class: it is the class's MetaData.
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", _JSON, server_default=text("'{}'"))


class CheckpointBlob(Base):
    """One serialised channel value, shared by all checkpoints that name this channel at this version."""

    __tablename__ = "checkpoint_blobs"

    thread_id: Mapped[str] = mapped_column(Text, primary_key=True)
    checkpoint_ns: Mapped[str] = mapped_column(Text, primary_key=True, server_default=text("''"))
    channel: Mapped[str] = mapped_column(Text, primary_key=True)
    version: Mapped[str] = mapped_column(Text, primary_key=True)
    type: Mapped[str] = mapped_column(Text)
    blob: Mapped[bytes | None] = mapped_column(LargeBinary)


class CheckpointWrite(Base):
    """One pending write of a task: what it wrote to a channel after the checkpoint and before the next one."""

    __tablename__ = "checkpoint_writes"

    thread_id: Mapped[str] = mapped_column(Text, primary_key=True)
    checkpoint_ns: Mapped[str] = mapped_column(Text, primary_key=True, server_default=text("''"))
    checkpoint_id: Mapped[str] = mapped_column(Text, primary_key=True)
    task_id: Mapped[str] = mapped_column(Text, primary_key=True)
    idx: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    channel: Mapped[str] = mapped_column(Text)
    type: Mapped[str | None] = mapped_column(Text)
    blob: Mapped[bytes] = mapped_column(LargeBinary)
    task_path: Mapped[str] = mapped_column(Text, server_default=text("''"))


metadata: MetaData = Base.metadata
