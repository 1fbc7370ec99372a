"""The ORM models of the three checkpoint tables, and the metadata that Alembic compares with a database.

The savers do not go through these classes: they run Core statements on the same tables (`_tables`). The models are
for `alembic check`, for autogenerate in a host application, and for applications that query checkpoints themselves.

Names, columns, types and primary keys are those of langgraph-checkpoint-postgres 3.x on PostgreSQL
(`langgraph.checkpoint.postgres.base.MIGRATIONS`), so its savers work on these tables and ours on theirs. There are no
foreign keys, because LangGraph may commit a task's writes before the checkpoint that they belong to.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import JSON, Index, LargeBinary, MetaData, Text, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement


class _JSONB(JSONB):
    """JSONB as Alembic can write it into a revision on another database: it would not import JSONB's argument."""

    __module__ = JSONB.__module__  # where Alembic imports it from

    def __repr__(self) -> str:
        return "JSONB()"


_JSON = JSON().with_variant(_JSONB(), "postgresql")


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


class _RunId(FunctionElement[str]):
    """The `run_id` in a checkpoint's metadata, as text: what `delete_for_runs` looks for."""

    type = Text()
    name = "run_id"
    inherit_cache = True


@compiles(_RunId)
def _compile_run_id(element: _RunId, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({compiler.process(element.clauses, **kw)} ->> 'run_id')"


@compiles(_RunId, "sqlite")
def _compile_run_id_sqlite(element: _RunId, compiler: SQLCompiler, **kw: Any) -> str:
    # SQLite knows ->> since 3.38 only.
    return f"json_extract({compiler.process(element.clauses, **kw)}, '$.\"run_id\"')"


_run_id = _RunId(Checkpoint.__table__.c.metadata)
# A hash index takes text of any length, and is smaller than a B-tree. Most checkpoints have no run_id.
RUN_ID_INDEX = Index(
    "checkpoints_run_id_idx",
    _run_id,
    postgresql_using="hash",
    postgresql_where=_run_id.is_not(None),
    sqlite_where=_run_id.is_not(None),
)

metadata: MetaData = Base.metadata
