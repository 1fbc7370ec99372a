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
    Delete,
    Executable,
    FromClause,
    Insert,
    Integer,
    LargeBinary,
    Table,
    Text,
    Update,
    bindparam,
    cast,
    func,
    literal_column,
    select,
    true,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlalchemy.sql.selectable import TableValuedAlias
from sqlalchemy.types import TypeEngine

from sa_checkpoint._json import dump_json
from sa_checkpoint._sql_strategy import SQLStrategy
from sa_checkpoint._strategy import Call, Executor, Parameters, ReadShape, text_parameter
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


# Keeps our advisory locks on threads apart from those of others who hash text.
_LOCK_SEED = int.from_bytes(b"sa_threa", "big")
_EMPTY_OBJECT: ColumnElement[Any] = literal_column("'{}'::jsonb")


def _quoted(name: str) -> ColumnElement[str]:
    """A name of ours as a literal."""
    return literal_column(f"'{name}'")


def _rows(columns: Mapping[str, TypeEngine[Any]]) -> TableValuedAlias:
    """A FROM element of any number of rows, given as one array for each column, named like it with an "s"."""
    arrays = (bindparam(f"{name}s", type_=ARRAY(type_)) for name, type_ in columns.items())
    return func.unnest(*arrays).table_valued(*columns).render_derived(name="new")


def _arrays(columns: Mapping[str, Any], rows: Sequence[Parameters]) -> dict[str, list[Any]]:
    return {f"{name}s": [row[name] for row in rows] for name in columns}


class PostgreSQLStrategy(SQLStrategy):
    """One statement for each operation."""

    filters_exactly = True

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        key = func.hashtextextended(text_parameter("thread_id"), literal_column(str(_LOCK_SEED)))
        self._lock_thread = select(func.pg_advisory_xact_lock(key))
        self._put = self._build_put(None)
        self._put_locked = self._build_put(select(func.pg_advisory_xact_lock_shared(key).label("lock")).cte("locked"))
        self._insert_writes = self._build_put_writes(replace=False)
        self._replace_writes = self._build_put_writes(replace=True)
        self._cached_read_filtered = cache(self._build_read_filtered)

    def put(
        self,
        executor: Executor,
        checkpoint: Parameters,
        blobs: Sequence[Parameters],
        named: Sequence[tuple[str, str]],
        *,
        shared: bool,
    ) -> None:
        statement = self._put_locked if shared else self._put
        executor.run(Call(statement, {**checkpoint, **_arrays(_BLOB, blobs)}))

    def put_writes(self, executor: Executor, task: Parameters, writes: Sequence[Parameters], *, replace: bool) -> None:
        statement = self._replace_writes if replace else self._insert_writes
        executor.run(Call(statement, {**task, **_arrays(_WRITE, writes)}))

    def _read_filtered(self, shape: ReadShape, filter: Mapping[str, Any]) -> tuple[Executable, Parameters]:
        return self._cached_read_filtered(shape), {"filter": dump_json("filter", filter)}

    def _build_read_filtered(self, shape: ReadShape) -> Executable:
        metadata = self.tables.checkpoints.c.metadata
        return self._build_read(shape, type_coerce(metadata, JSONB).contains(cast(text_parameter("filter"), JSONB)))

    def lock_thread(self, executor: Executor, thread_id: str) -> None:
        executor.run(Call(self._lock_thread, {"thread_id": thread_id}))

    def together(self, *changes: Insert | Update | Delete) -> list[Executable]:
        # The parts of one statement see the database as it was before it.
        *others, last = changes
        return [last.add_cte(*(change.cte(f"change_{number}") for number, change in enumerate(others)))]

    def rows(self, name: str, *columns: str) -> FromClause:
        arrays = (bindparam(f"{name}_{column}", type_=ARRAY(Text())) for column in columns)
        return func.unnest(*arrays).table_valued(*columns, joins_implicitly=True).render_derived(name=name)

    def row_values(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Parameters:
        return {f"{name}_{column}": [row[index] for row in rows] for index, column in enumerate(columns)}

    def json_text(self, column: ColumnElement[Any], *keys: str) -> ColumnElement[str]:
        for key in keys[:-1]:
            column = column.op("->")(_quoted(key))
        return column.op("->>", return_type=Text())(_quoted(keys[-1]))

    def entries(self, column: ColumnElement[Any], *fields: str) -> FromClause:
        merged: ColumnElement[Any] = _EMPTY_OBJECT
        for field in fields:
            merged = merged.op("||")(func.coalesce(column.op("->")(_quoted(field)), _EMPTY_OBJECT))
        return func.jsonb_each_text(merged).table_valued("key", "value", joins_implicitly=True)

    def _look_up(self, named: FromClause, is_named: ColumnElement[bool]) -> tuple[FromClause, FromClause]:
        # One by one: a join is planned from the number of blobs in the thread, and reads them all when there are many.
        blobs = self.tables.blobs.c
        found = select(blobs.type, blobs.blob).where(is_named).limit(literal_column("1")).lateral("found")
        return found, named.join(found, true())

    def _insert(
        self, table: Table, keys: Sequence[str], columns: Mapping[str, TypeEngine[Any]], lock: CTE | None = None
    ) -> Any:
        """INSERT … SELECT of any number of rows that share the key columns given as parameters.

        With a lock, no row is inserted before it is held.
        """
        rows = _rows(columns)
        source = select(*(text_parameter(key) for key in keys), *(rows.c[name] for name in columns))
        if lock is not None:
            source = source.select_from(lock.join(rows, true()))
        return insert(table).from_select([*keys, *columns], source)

    def _build_put(self, lock: CTE | None) -> Executable:
        blobs = self._insert(self.tables.blobs, ("thread_id", "checkpoint_ns"), _BLOB, lock)
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
