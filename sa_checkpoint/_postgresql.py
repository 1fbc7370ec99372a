"""PostgreSQL's statements: each operation is one, atomic by itself.

Rows cross as arrays (`unnest`), so the text of a statement does not change with their number; JSON crosses as text
cast to JSONB and back, so a host's `json_serializer` and the drivers' JSON adapters have no part in it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    ColumnElement,
    Executable,
    Integer,
    LargeBinary,
    Numeric,
    Table,
    Text,
    bindparam,
    cast,
    delete,
    func,
    literal_column,
    select,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlalchemy.sql.selectable import TableValuedAlias
from sqlalchemy.types import TypeEngine

from sa_checkpoint._codec import dump_json
from sa_checkpoint._statements import Call, Parameters, ReadShape, Statements, text_parameter
from sa_checkpoint._tables import Tables

_BLOB: Mapping[str, TypeEngine[Any]] = {
    "channel": Text(),
    "version": Text(),
    "type": Text(),
    "blob": LargeBinary(),
}
_WRITE: Mapping[str, TypeEngine[Any]] = {
    "idx": Integer(),
    "channel": Text(),
    "type": Text(),
    "blob": LargeBinary(),
}


def _rows(columns: Mapping[str, TypeEngine[Any]]) -> TableValuedAlias:
    """A FROM element of any number of rows, given as one array for each column, named like it with an "s"."""
    arrays = (bindparam(f"{name}s", type_=ARRAY(type_)) for name, type_ in columns.items())
    return func.unnest(*arrays).table_valued(*columns).render_derived(name="new")


def _arrays(columns: Mapping[str, Any], rows: Sequence[Parameters]) -> dict[str, list[Any]]:
    return {f"{name}s": [row[name] for row in rows] for name in columns}


class PostgreSQLStatements(Statements):
    """One statement for each operation."""

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        self._put = self._build_put()
        self._insert_writes = self._build_put_writes(replace=False)
        self._replace_writes = self._build_put_writes(replace=True)
        self._delete_thread = self._build_delete_thread()
        self._cached_read_filtered = cache(self._build_read_filtered)

    def put(self, checkpoint: Parameters, blobs: Sequence[Parameters]) -> list[Call]:
        return [Call(self._put, {**checkpoint, **_arrays(_BLOB, blobs)})]

    def put_writes(self, task: Parameters, writes: Sequence[Parameters], *, replace: bool) -> list[Call]:
        statement = self._replace_writes if replace else self._insert_writes
        return [Call(statement, {**task, **_arrays(_WRITE, writes)})]

    def delete_thread(self, thread_id: str) -> list[Call]:
        return [Call(self._delete_thread, {"thread_id": thread_id})]

    def _read_filtered(self, shape: ReadShape, filter: Mapping[str, Any]) -> tuple[Executable, Parameters]:
        return self._cached_read_filtered(shape), {"filter": dump_json("filter", filter)}

    def _build_read_filtered(self, shape: ReadShape) -> Executable:
        metadata = self.tables.checkpoints.c.metadata
        return self._build_read(shape, type_coerce(metadata, JSONB).contains(cast(text_parameter("filter"), JSONB)))

    def _channel_versions(self, target: CTE) -> tuple[TableValuedAlias, ColumnElement[str]]:
        versions = target.c.checkpoint.op("->")(literal_column("'channel_versions'"))
        entries = func.jsonb_each_text(versions).table_valued("key", "value", name="versions", joins_implicitly=True)
        return entries, entries.c.value

    def _format(self, target: CTE) -> ColumnElement[Any]:
        return cast(target.c.checkpoint.op("->>")(literal_column("'v'")), Numeric)

    def _insert(self, table: Table, keys: Sequence[str], columns: Mapping[str, TypeEngine[Any]]) -> Any:
        """INSERT … SELECT of any number of rows that share the key columns given as parameters."""
        rows = _rows(columns)
        return insert(table).from_select(
            [*keys, *columns],
            select(*(text_parameter(key) for key in keys), *(rows.c[name] for name in columns)),
        )

    def _build_put(self) -> Executable:
        blobs = self._insert(self.tables.blobs, ("thread_id", "checkpoint_ns"), _BLOB)
        blobs = blobs.on_conflict_do_nothing(index_elements=self.tables.blobs.primary_key)
        table = self.tables.checkpoints
        statement = insert(table).values(
            thread_id=text_parameter("thread_id"),
            checkpoint_ns=text_parameter("checkpoint_ns"),
            checkpoint_id=text_parameter("checkpoint_id"),
            parent_checkpoint_id=text_parameter("parent_checkpoint_id"),
            checkpoint=cast(text_parameter("checkpoint"), JSONB),
            metadata=cast(text_parameter("metadata"), JSONB),
        )
        new = statement.excluded
        return statement.on_conflict_do_update(
            index_elements=table.primary_key, set_={"checkpoint": new.checkpoint, "metadata": new.metadata}
        ).add_cte(blobs.cte("new_blobs"))

    def _build_put_writes(self, *, replace: bool) -> Executable:
        table = self.tables.writes
        task = ("thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "task_path")
        statement = self._insert(table, task, _WRITE)
        if not replace:
            inserted: Executable = statement.on_conflict_do_nothing(index_elements=table.primary_key)
            return inserted
        new = statement.excluded
        replaced: Executable = statement.on_conflict_do_update(
            index_elements=table.primary_key,
            set_={"channel": new.channel, "type": new.type, "blob": new.blob},
        )
        return replaced

    def _build_delete_thread(self) -> Executable:
        tables = self.tables
        checkpoints, blobs, writes = (
            delete(table).where(table.c.thread_id == text_parameter("thread_id"))
            for table in (tables.checkpoints, tables.blobs, tables.writes)
        )
        return checkpoints.add_cte(blobs.cte("deleted_blobs"), writes.cte("deleted_writes"))
