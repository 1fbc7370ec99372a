"""SQLite's statements. The database is in the same process: a statement more costs no round trip, only a call."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

from sqlalchemy import (
    ColumnElement,
    Delete,
    Executable,
    FromClause,
    Insert,
    Join,
    Table,
    Text,
    Update,
    delete,
    false,
    func,
    literal_column,
    select,
)
from sqlalchemy.dialects import sqlite
from sqlalchemy.dialects.sqlite import insert
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler

from sa_checkpoint import _thread_statements as thread_statements
from sa_checkpoint._filters import sqlite_contains
from sa_checkpoint._sql_strategy import SQLStrategy, SQLThread
from sa_checkpoint._strategy import Call, Executor, Key, Parameters, ReadShape, Thread, text_parameter
from sa_checkpoint._tables import Tables

_EMPTY_OBJECT: ColumnElement[Any] = literal_column("'{}'")


def _upsert(statement: sqlite.Insert, table: Table, columns: Sequence[str]) -> Executable:
    return statement.on_conflict_do_update(
        index_elements=table.primary_key, set_={name: statement.excluded[name] for name in columns}
    )


class _CrossJoin(Join):
    """A join that SQLite begins with its left side (https://www.sqlite.org/optoverview.html#crossjoin)."""

    inherit_cache = True


@compiles(_CrossJoin)
def _compile_cross_join(
    join: _CrossJoin, compiler: SQLCompiler, asfrom: bool = False, from_linter: Any = None, **kw: Any
) -> str:
    left, right = (compiler.process(side, asfrom=True, **kw) for side in (join.left, join.right))
    return f"{left} CROSS JOIN {right} ON {compiler.process(cast(Any, join.onclause), **kw)}"


def _delete_by(table: Table, *names: str) -> Delete:
    """A DELETE of the rows that have these values, which are parameters."""
    return delete(table).where(*(table.c[name] == text_parameter(name) for name in names))


class SQLiteStrategy(SQLStrategy):
    """One statement for each table that an operation changes, run for all its rows at once."""

    filters_exactly = False

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
        self._lock = delete(tables.checkpoints).where(false())
        namespace = ("thread_id", "checkpoint_ns")
        self.delete_blobs = _delete_by(tables.blobs, *namespace, "channel", "version")
        self.delete_checkpoints = [
            _delete_by(table, *namespace, "checkpoint_id") for table in (tables.writes, tables.checkpoints)
        ]
        self.delete_namespaces = [_delete_by(table, *namespace) for table in (tables.blobs, tables.writes)]

    def put(
        self,
        executor: Executor,
        checkpoint: Parameters,
        blobs: Sequence[Parameters],
        named: Sequence[tuple[str, str]],
        *,
        shared: bool,
    ) -> None:
        calls = [Call(self._put_checkpoint, checkpoint, is_constant=True)]
        if blobs:
            key = {name: checkpoint[name] for name in ("thread_id", "checkpoint_ns")}
            calls.insert(0, Call(self._put_blobs, [{**key, **blob} for blob in blobs], is_constant=True))
        executor.run(*calls)

    def put_writes(self, executor: Executor, task: Parameters, writes: Sequence[Parameters], *, replace: bool) -> None:
        statement = self._replace_writes if replace else self._insert_writes
        executor.run(Call(statement, [{**task, **write} for write in writes], is_constant=True))

    def _read_filtered(self, shape: ReadShape, filter: Mapping[str, Any]) -> tuple[Executable, Parameters]:
        return self._build_read(shape, sqlite_contains(self.tables.checkpoints.c.metadata, filter)), {}

    def lock_thread(self, executor: Executor, thread_id: str) -> None:
        # Deletes nothing, but takes the write lock. A transaction that reads first cannot write any more when another
        # has written meanwhile, however long it waits.
        executor.run(Call(self._lock, {}))

    def thread(self, executor: Executor, thread_id: str) -> Thread:
        return SQLiteThread(self, executor, thread_id)

    def look_up(
        self, source: FromClause, table: Table, condition: ColumnElement[bool], *columns: str, is_outer: bool = False
    ) -> tuple[FromClause, FromClause]:
        # An outer join begins with its left side anyway.
        return table, source.outerjoin(table, condition) if is_outer else _CrossJoin(source, table, condition)

    def together(self, *changes: Insert | Update | Delete) -> list[Executable]:
        return list(changes)

    def rows(self, name: str, *columns: str) -> FromClause:
        each = func.json_each(text_parameter(name)).table_valued("value", joins_implicitly=True)
        values = (
            func.json_extract(each.c.value, literal_column(f"'$[{index}]'"), type_=Text()).label(column)
            for index, column in enumerate(columns)
        )
        return select(*values).subquery(name)

    def row_values(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Parameters:
        return {name: json.dumps(rows)}

    def json_text(self, column: ColumnElement[Any], *keys: str) -> ColumnElement[str]:
        path = "".join(f'."{key}"' for key in keys)
        return func.json_extract(column, literal_column(f"'${path}'"), type_=Text())

    def entries(self, column: ColumnElement[Any], *fields: str) -> FromClause:
        first, *others = (literal_column(f"'$.{field}'", Text) for field in fields)
        if not others:
            return func.json_each(column, first).table_valued("key", "value", joins_implicitly=True)
        merged: ColumnElement[Any] = func.coalesce(func.json_extract(column, first), _EMPTY_OBJECT)
        for other in others:
            merged = func.json_patch(merged, func.coalesce(func.json_extract(column, other), _EMPTY_OBJECT))
        return func.json_each(merged).table_valued("key", "value", joins_implicitly=True)


class SQLiteThread(SQLThread):
    """A thread whose rows are deleted key by key.

    A DELETE that looks for them in JSON takes twice as long: since functions of JSON may fail, SQLite copies each page
    that it changes to a statement journal (https://www.sqlite.org/tempfiles.html), a temporary file.
    """

    def __init__(self, strategy: SQLiteStrategy, executor: Executor, thread_id: str) -> None:
        super().__init__(strategy, executor, thread_id)
        self._statements = strategy

    def delete(self, doomed: Sequence[Key], dead: Sequence[str]) -> None:
        parameters = self.strategy.row_values("doomed", thread_statements.DOOMED, doomed)
        unnamed = self._fetch(thread_statements.unnamed_blobs(self.strategy), parameters)
        blobs = [{"checkpoint_ns": ns, "channel": channel, "version": version} for ns, channel, version in unnamed]
        checkpoints = [{"checkpoint_ns": ns, "checkpoint_id": id_} for ns, id_ in doomed]
        self._delete([self._statements.delete_blobs], blobs)
        self._delete(self._statements.delete_checkpoints, checkpoints)
        self._delete(self._statements.delete_namespaces, [{"checkpoint_ns": ns} for ns in dead])
        clearing = thread_statements.clear_parents(self.strategy)
        self.executor.run(Call(clearing, {"thread": self.thread_id, **parameters}, is_constant=True))

    def _delete(self, statements: Sequence[Delete], keys: Sequence[Parameters]) -> None:
        rows = [{"thread_id": self.thread_id, **key} for key in keys]
        if rows:
            self.executor.run(*(Call(statement, rows, is_constant=True) for statement in statements))
