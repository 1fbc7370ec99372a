"""The ORM models of the three checkpoint tables, and the metadata that Alembic compares with a database.

The savers do not go through these classes: they run Core statements on the same tables (`_tables`). The models are
for `alembic check`, for autogenerate in a host application, and for applications that query checkpoints themselves.

Names, columns, types and primary keys are those of langgraph-checkpoint-postgres 3.x on PostgreSQL
(`langgraph.checkpoint.postgres.base.MIGRATIONS`), so its savers work on these tables and ours on theirs; other
databases have the same columns in types of their own (`_types`). There are no foreign keys, because LangGraph may
commit a task's writes before the checkpoint that they belong to.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy import Index, MetaData, Text
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from sa_checkpoint._types import BLOB, DOCUMENT, TABLE_OPTIONS, TEXT, Default, key


class Base(DeclarativeBase):
    """The declarative base of the checkpoint models, with a `MetaData` of its own."""


class Checkpoint(Base):
    """One checkpoint: the state of a thread's namespace after a step, without the values that are blobs."""

    __tablename__ = "checkpoints"
    __table_args__ = TABLE_OPTIONS

    thread_id: Mapped[str] = mapped_column(key("thread_id"), primary_key=True)
    checkpoint_ns: Mapped[str] = mapped_column(key("checkpoint_ns"), primary_key=True, server_default=Default("''"))
    checkpoint_id: Mapped[str] = mapped_column(key("checkpoint_id"), primary_key=True)
    parent_checkpoint_id: Mapped[str | None] = mapped_column(key("checkpoint_id"))
    type: Mapped[str | None] = mapped_column(TEXT)
    checkpoint: Mapped[dict[str, Any]] = mapped_column(DOCUMENT)
    # `metadata` is taken on a declarative class: it is the class's MetaData.
    metadata_: Mapped[dict[str, Any]] = mapped_column("metadata", DOCUMENT, server_default=Default("'{}'"))


class CheckpointBlob(Base):
    """One serialised channel value, shared by all checkpoints that name this channel at this version."""

    __tablename__ = "checkpoint_blobs"
    __table_args__ = TABLE_OPTIONS

    thread_id: Mapped[str] = mapped_column(key("thread_id"), primary_key=True)
    checkpoint_ns: Mapped[str] = mapped_column(key("checkpoint_ns"), primary_key=True, server_default=Default("''"))
    channel: Mapped[str] = mapped_column(key("channel"), primary_key=True)
    version: Mapped[str] = mapped_column(key("version"), primary_key=True)
    type: Mapped[str] = mapped_column(TEXT)
    blob: Mapped[bytes | None] = mapped_column(BLOB)


class CheckpointWrite(Base):
    """One pending write of a task: what it wrote to a channel after the checkpoint and before the next one."""

    __tablename__ = "checkpoint_writes"
    __table_args__ = TABLE_OPTIONS

    thread_id: Mapped[str] = mapped_column(key("thread_id"), primary_key=True)
    checkpoint_ns: Mapped[str] = mapped_column(key("checkpoint_ns"), primary_key=True, server_default=Default("''"))
    checkpoint_id: Mapped[str] = mapped_column(key("checkpoint_id"), primary_key=True)
    task_id: Mapped[str] = mapped_column(key("task_id"), primary_key=True)
    idx: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    channel: Mapped[str] = mapped_column(TEXT)
    type: Mapped[str | None] = mapped_column(TEXT)
    blob: Mapped[bytes] = mapped_column(BLOB)
    task_path: Mapped[str] = mapped_column(TEXT, server_default=Default("''"))


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


RUN_ID_DIALECTS = ("postgresql", "sqlite")
"""The databases that can index an expression, all of them that are supported."""

_run_id = _RunId(Checkpoint.__table__.c.metadata)
# A hash index takes text of any length, and is smaller than a B-tree. Most checkpoints have no run_id.
RUN_ID_INDEX = Index(
    "checkpoints_run_id_idx",
    _run_id,
    postgresql_using="hash",
    postgresql_where=_run_id.is_not(None),
    sqlite_where=_run_id.is_not(None),
).ddl_if(dialect=RUN_ID_DIALECTS)  # type: ignore[arg-type]

metadata: MetaData = Base.metadata
