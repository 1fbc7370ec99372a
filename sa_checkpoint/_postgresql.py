"""PostgreSQL's statements: each operation is one, atomic by itself.

A few rows cross as VALUES, which drivers encode and the server plans fastest. More of them cross as arrays (`unnest`),
so the number of statements that drivers prepare stays small. JSON crosses as text cast to JSONB and back, so a host's
`json_serializer` and the drivers' JSON adapters have no part in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from sqlalchemy import (
    CTE,
    BindParameter,
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
    case,
    cast,
    column,
    func,
    literal_column,
    select,
    text,
    true,
    type_coerce,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB, insert
from sqlalchemy.sql.selectable import TableValuedAlias
from sqlalchemy.types import TypeEngine

from sa_checkpoint._codec import BLOB_VERSIONS
from sa_checkpoint._json import dump_json
from sa_checkpoint._sql_strategy import SQLStrategy
from sa_checkpoint._strategy import (
    Call,
    Executor,
    Parameters,
    ReadShape,
    Rows,
    batches,
    is_large,
    numbered,
    text_parameter,
)
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


# Up to so many rows of an INSERT are VALUES: with each number of them it is another statement.
_FEW = 8
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


def _few_rows(shared: Mapping[str, BindParameter[str]], columns: Mapping[str, TypeEngine[Any]], few: int) -> Any:
    """A VALUES list of so many rows, which have some columns in common, with the parameters that `numbered` makes.

    As text, since SQLAlchemy compiles an `insert().values()` of several rows anew for each execution.
    """
    own = [{f"{name}_{number}": type_ for name, type_ in columns.items()} for number in range(few)]
    lists = (", ".join(f":{name}" for name in (*shared, *row)) for row in own)
    parameters = (bindparam(name, type_=type_) for row in own for name, type_ in row.items())
    values = text("VALUES " + ", ".join(f"({names})" for names in lists)).bindparams(*shared.values(), *parameters)
    return values.columns(*(column(name) for name in (*shared, *columns)))


class PostgreSQLStrategy(SQLStrategy):
    """One statement for each operation."""

    filters_exactly = True
    is_one_statement = True

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        key = func.hashtextextended(text_parameter("thread_id"), literal_column(str(_LOCK_SEED)))
        self._lock_thread = select(func.pg_advisory_xact_lock(key))
        self._lock_thread_shared = select(func.pg_advisory_xact_lock_shared(key).label("lock"))
        self._put = cache(self._build_put)
        self._put_blobs = cache(self._build_put_blobs)
        self._put_writes = cache(self._build_put_writes)
        self._cached_read_filtered = cache(self._build_read_filtered)
        self._pairs = cache(self._build_pairs)

    def put(
        self,
        executor: Executor,
        checkpoint: Parameters,
        blobs: Sequence[Parameters],
        named: Sequence[tuple[str, str]],
        *,
        shared: bool,
    ) -> None:
        if is_large(blobs):
            if shared:
                executor.run(Call(self._lock_thread_shared, {"thread_id": checkpoint["thread_id"]}))
            *others, blobs = batches(blobs, _FEW)
            key = {name: checkpoint[name] for name in ("thread_id", "checkpoint_ns")}
            for some in others:
                executor.run(Call(self._put_blobs(len(some)), {**key, **numbered(some)}, is_constant=True))
            shared = False
        few = len(blobs) <= _FEW and not (blobs and shared)
        statement = self._put(few=len(blobs)) if few else self._put(locked=shared)
        parameters = {**checkpoint, **(numbered(blobs) if few else _arrays(_BLOB, blobs))}
        executor.run(Call(statement, parameters, is_constant=True))

    def put_writes(self, executor: Executor, task: Parameters, writes: Sequence[Parameters], *, replace: bool) -> None:
        for some in batches(writes, _FEW) if is_large(writes) else [writes]:
            few = len(some) <= _FEW
            statement = self._put_writes(few=len(some) if few else None, replace=replace)
            parameters = {**task, **(numbered(some) if few else _arrays(_WRITE, some))}
            executor.run(Call(statement, parameters, is_constant=True))

    def read(
        self, executor: Executor, shape: ReadShape, parameters: Parameters, filter: Mapping[str, Any] | None = None
    ) -> Rows:
        # At most a page, so there are not many of these statements. A plan for any limit would be made for a tenth of
        # the thread, and PostgreSQL would rather make one anew each time, which takes longer than a short list.
        if shape.many and not filter:
            shape = shape._replace(size=parameters["limit"])
        return super().read(executor, shape, parameters, filter)

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
        if len(columns) == 1:
            # The planner takes an array for fewer rows than JSON, and then looks up each by an index.
            array = bindparam(f"{name}_{columns[0]}", type_=ARRAY(Text()))
            return func.unnest(array).table_valued(*columns, joins_implicitly=True).render_derived(name=name)
        return self._pairs(name, *columns)

    def _build_pairs(self, name: str, *columns: str) -> FromClause:
        # Of pairs there may be thousands: one text, since psycopg makes arrays in Python. A common table expression,
        # so that it is parsed once, however often a statement has it.
        each = func.jsonb_array_elements(cast(text_parameter(name), JSONB)).table_valued("value", joins_implicitly=True)
        values = (
            each.c.value.op("->>", return_type=Text())(literal_column(str(index))).label(column)
            for index, column in enumerate(columns)
        )
        return select(*values).cte(name)

    def row_values(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Parameters:
        if len(columns) == 1:
            return {f"{name}_{columns[0]}": [value for (value,) in rows]}
        return {name: json.dumps(rows)}

    def look_up(
        self, source: FromClause, table: Table, condition: ColumnElement[bool], *columns: str, is_outer: bool = False
    ) -> tuple[FromClause, FromClause]:
        # OFFSET keeps the planner from making one join of both.
        found = select(*(table.c[name] for name in columns)).where(condition).offset(literal_column("0")).lateral()
        return found, source.join(found, true(), isouter=is_outer)

    def json_text(self, column: ColumnElement[Any], *keys: str) -> ColumnElement[str]:
        for key in keys[:-1]:
            column = column.op("->")(_quoted(key))
        return column.op("->>", return_type=Text())(_quoted(keys[-1]))

    def entries(self, column: ColumnElement[Any], *fields: str) -> FromClause:
        first, *others = (func.coalesce(column.op("->")(_quoted(field)), _EMPTY_OBJECT) for field in fields)
        merged: ColumnElement[Any] = first
        for other in others:
            merged = merged.op("||")(other)
        return func.jsonb_each_text(merged).table_valued("key", "value", joins_implicitly=True)

    def blob_version(self, column: ColumnElement[Any], channel: ColumnElement[str]) -> ColumnElement[str]:
        own = column.op("->")(_quoted("channel_versions")).op("->>", return_type=Text())(channel)
        other = column.op("->")(_quoted(BLOB_VERSIONS)).op("->>", return_type=Text())(channel)
        return case((self.has_entry(column, BLOB_VERSIONS, channel), other), else_=own)

    def has_entry(self, column: ColumnElement[Any], field: str, key: ColumnElement[str]) -> ColumnElement[bool]:
        return column.op("->")(_quoted(field)).bool_op("?")(key)

    def _insert(
        self,
        table: Table,
        keys: Sequence[str],
        columns: Mapping[str, TypeEngine[Any]],
        *,
        few: int | None,
        lock: CTE | None = None,
    ) -> Any:
        """INSERT of rows that share the key columns given as parameters.

        Args:
            table: Where to.
            keys: The shared columns.
            columns: The others.
            few: How many rows, as VALUES; None for any number, as arrays.
            lock: No row is inserted before it is held. For arrays only.
        """
        shared = {key: text_parameter(key) for key in keys}
        if few is not None:
            return insert(table).from_select([*keys, *columns], _few_rows(shared, columns, few))
        rows = _rows(columns)
        source = select(*shared.values(), *(rows.c[name] for name in columns))
        if lock is not None:
            source = source.select_from(lock.join(rows, true()))
        return insert(table).from_select([*keys, *columns], source)

    def _build_put(self, *, few: int | None = None, locked: bool = False) -> Any:
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
        upsert: Any = statement.on_conflict_do_update(
            index_elements=table.primary_key, set_={"checkpoint": new.checkpoint, "metadata": new.metadata}
        )
        if few == 0:
            return upsert
        return upsert.add_cte(self._build_put_blobs(few, locked=locked).cte("new_blobs"))

    def _build_put_blobs(self, few: int | None, *, locked: bool = False) -> Any:
        lock = self._lock_thread_shared.cte("locked") if locked else None
        blobs = self._insert(self.tables.blobs, ("thread_id", "checkpoint_ns"), _BLOB, few=few, lock=lock)
        return blobs.on_conflict_do_nothing(index_elements=self.tables.blobs.primary_key)

    def _build_put_writes(self, *, few: int | None, replace: bool) -> Executable:
        table = self.tables.writes
        task = ("thread_id", "checkpoint_ns", "checkpoint_id", "task_id", "task_path")
        statement = self._insert(table, task, _WRITE, few=few)
        if not replace:
            inserted: Executable = statement.on_conflict_do_nothing(index_elements=table.primary_key)
            return inserted
        new = statement.excluded
        replaced: Executable = statement.on_conflict_do_update(
            index_elements=table.primary_key,
            set_={"channel": new.channel, "type": new.type, "blob": new.blob},
        )
        return replaced
