"""SQLite's statements. The database is in the same process: a statement more costs no round trip, only a call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import CTE, ColumnElement, Executable, Table, Text, cast, delete, func, literal_column
from sqlalchemy.dialects.sqlite import Insert, insert
from sqlalchemy.sql.selectable import TableValuedAlias

from sa_checkpoint._filters import sqlite_contains
from sa_checkpoint._statements import Call, Parameters, ReadShape, Statements, text_parameter
from sa_checkpoint._tables import Tables


def _upsert(statement: Insert, table: Table, columns: Sequence[str]) -> Executable:
    return statement.on_conflict_do_update(
        index_elements=table.primary_key, set_={name: statement.excluded[name] for name in columns}
    )


class SQLiteStatements(Statements):
    """One statement for each table that an operation changes, run for all its rows at once."""

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        self._put_blobs = insert(tables.blobs).on_conflict_do_nothing(index_elements=tables.blobs.primary_key)
        # Text for the JSON columns: their own type would serialise it once more.
        json_text = {name: text_parameter(name) for name in ("checkpoint", "metadata")}
        names = ("thread_id", "checkpoint_ns", "checkpoint_id", "parent_checkpoint_id")
        self._put_checkpoint = _upsert(
            insert(tables.checkpoints).values({**{name: text_parameter(name) for name in names}, **json_text}),
            tables.checkpoints,
            list(json_text),
        )
        self._insert_writes = insert(tables.writes).on_conflict_do_nothing(index_elements=tables.writes.primary_key)
        self._replace_writes = _upsert(insert(tables.writes), tables.writes, ("channel", "type", "blob"))
        self._delete_thread = [
            delete(table).where(table.c.thread_id == text_parameter("thread_id"))
            for table in (tables.checkpoints, tables.blobs, tables.writes)
        ]

    def put(self, checkpoint: Parameters, blobs: Sequence[Parameters]) -> list[Call]:
        calls = [Call(self._put_checkpoint, checkpoint)]
        if blobs:
            key = {name: checkpoint[name] for name in ("thread_id", "checkpoint_ns")}
            calls.insert(0, Call(self._put_blobs, [{**key, **blob} for blob in blobs]))
        return calls

    def put_writes(self, task: Parameters, writes: Sequence[Parameters], *, replace: bool) -> list[Call]:
        statement = self._replace_writes if replace else self._insert_writes
        return [Call(statement, [{**task, **write} for write in writes])]

    def delete_thread(self, thread_id: str) -> list[Call]:
        return [Call(statement, {"thread_id": thread_id}) for statement in self._delete_thread]

    def _read_filtered(self, shape: ReadShape, filter: Mapping[str, Any]) -> tuple[Executable, Parameters]:
        return self._build_read(shape, sqlite_contains(self.tables.checkpoints.c.metadata, filter)), {}

    def _channel_versions(self, target: CTE) -> tuple[TableValuedAlias, ColumnElement[str]]:
        entries = func.json_each(target.c.checkpoint, literal_column("'$.channel_versions'")).table_valued(
            "key", "value", name="versions", joins_implicitly=True
        )
        return entries, cast(entries.c.value, Text)

    def _format(self, target: CTE) -> ColumnElement[Any]:
        return func.json_extract(target.c.checkpoint, literal_column("'$.v'"))
