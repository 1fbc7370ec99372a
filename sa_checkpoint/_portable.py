"""Statements that any SQL database understands: no upsert, no arrays, no RETURNING, no JSON functions.

What other strategies ask the database, this one reads and finds out in Python. It is all there is for dialects without
a strategy of their own.

A row that may be there is looked for before it is inserted. If another transaction inserts it in between, the database
refuses ours, and the whole operation is done again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import Any

from langgraph.checkpoint.serde.types import TASKS
from sqlalchemy import (
    ColumnElement,
    Connection,
    Delete,
    Executable,
    Integer,
    Select,
    and_,
    bindparam,
    delete,
    insert,
    literal_column,
    or_,
    select,
    update,
)

from sa_checkpoint import _codec, _filters
from sa_checkpoint._json import dump_json, load_json
from sa_checkpoint._keys import stored_key, stored_keys
from sa_checkpoint._lookups import CHUNK, Lookups, namespace_of
from sa_checkpoint._portable_threads import PortableThread, Walk
from sa_checkpoint._strategy import (
    Call,
    Executor,
    Key,
    Parameters,
    ReadRow,
    ReadShape,
    RowKind,
    Rows,
    Strategy,
    Thread,
    text_parameter,
)
from sa_checkpoint._tables import Tables
from sa_checkpoint._thread_statements import copy_rows
from sa_checkpoint._types import json_to_text, text_to_json
from sa_checkpoint.errors import UnsupportedDatabase

_CHECKPOINT = ("thread_id", "checkpoint_ns", "checkpoint_id")
_TARGET = (*_CHECKPOINT, "parent_checkpoint_id")
_DOCUMENTS = ("checkpoint", "metadata")
_TASK = (*_CHECKPOINT, "task_id")
_VALUE = ("channel", "type", "blob")


class PortableStrategy(Strategy):
    """Several statements for each operation."""

    filters_exactly = True
    looks_first = True

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        self._lookups = Lookups(tables)
        self._targets = cache(self._build_targets)
        self._runs = cache(self._build_runs)

    def check(self, connection: Connection) -> None:
        if connection.dialect.name == "oracle":
            raise UnsupportedDatabase(
                "Oracle keeps an empty text as NULL, and the namespace of a root graph is empty: use another database "
                "for the checkpoint tables."
            )

    # ------------------------------------------------------------------------------------------------------- writing

    def put(
        self,
        executor: Executor,
        checkpoint: Parameters,
        blobs: Sequence[Parameters],
        named: Sequence[tuple[str, str]],
        *,
        shared: bool,
    ) -> None:
        row = {**stored_keys(checkpoint), **self._documents(checkpoint, named)}
        if shared:
            self.lock_thread(executor, row["thread_id"])
        self._put_rows(executor, row, [stored_keys(blob) for blob in blobs])

    def _put_rows(self, executor: Executor, row: Parameters, blobs: Sequence[Parameters]) -> None:
        if blobs:
            self._put_blobs(executor, row, blobs)
        self._put_checkpoint(executor, row)

    def _documents(self, checkpoint: Parameters, named: Sequence[tuple[str, str]]) -> dict[str, str]:
        """The JSON columns: the checkpoint's with what this strategy has to find in it again."""
        members = self._members(checkpoint["checkpoint_ns"], named)
        document = checkpoint["checkpoint"]
        if members:
            document = f"{document[:-1]},{dump_json('checkpoint', members)[1:]}"
        return {"checkpoint": document, "metadata": checkpoint["metadata"]}

    def _members(self, checkpoint_ns: str, named: Sequence[tuple[str, str]]) -> dict[str, Any]:
        return {_codec.NAMESPACE: checkpoint_ns} if stored_key("checkpoint_ns", checkpoint_ns) != checkpoint_ns else {}

    def _put_blobs(self, executor: Executor, row: Parameters, blobs: Sequence[Parameters]) -> None:
        keyed = {(blob["channel"], blob["version"]): blob for blob in blobs}
        found = self._lookups.blob_keys(
            executor, {"thread": row["thread_id"], "namespace": row["checkpoint_ns"]}, keyed, empty=True
        )
        namespace = {name: row[name] for name in ("thread_id", "checkpoint_ns")}
        missing = [{**namespace, **blob} for key, blob in keyed.items() if key not in found]
        if missing:
            executor.run(Call(insert(self.tables.blobs), missing))

    def _put_checkpoint(self, executor: Executor, row: Parameters) -> None:
        if executor.fetch(Call(self._find_checkpoint, {name: row[name] for name in _CHECKPOINT})):
            # SQLAlchemy takes parameters named like columns for values to set.
            key = {f"key_{name}": row[name] for name in _CHECKPOINT}
            executor.run(Call(self._update_checkpoint, {**key, **{name: row[name] for name in _DOCUMENTS}}))
        else:
            executor.run(Call(self._insert_checkpoint, row))

    @cached_property
    def _find_checkpoint(self) -> Executable:
        columns = self.tables.checkpoints.c
        return select(columns.checkpoint_id).where(_has_key(columns, _CHECKPOINT))

    @cached_property
    def _update_checkpoint(self) -> Executable:
        table = self.tables.checkpoints
        return (
            update(table)
            .where(_has_key(table.c, _CHECKPOINT, "key_"))
            .values({name: text_to_json(text_parameter(name)) for name in _DOCUMENTS})
        )

    @cached_property
    def _insert_checkpoint(self) -> Executable:
        documents = {name: text_to_json(text_parameter(name)) for name in _DOCUMENTS}
        return insert(self.tables.checkpoints).values({**{name: text_parameter(name) for name in _TARGET}, **documents})

    def put_writes(self, executor: Executor, task: Parameters, writes: Sequence[Parameters], *, replace: bool) -> None:
        task = stored_keys(task)
        found = {row.idx for row in executor.fetch(Call(self._find_writes, {name: task[name] for name in _TASK}))}
        old = [write for write in writes if write["idx"] in found]
        new = [{**task, **write} for write in writes if write["idx"] not in found]
        if old and replace:
            key = {f"key_{name}": task[name] for name in _TASK}
            values = [{"key_idx": write["idx"], **{name: write[name] for name in _VALUE}} for write in old]
            executor.run(Call(self._update_writes, [{**key, **value} for value in values]))
        if new:
            executor.run(Call(insert(self.tables.writes), new))

    @cached_property
    def _find_writes(self) -> Executable:
        columns = self.tables.writes.c
        return select(columns.idx).where(_has_key(columns, _TASK))

    @cached_property
    def _update_writes(self) -> Executable:
        table = self.tables.writes
        return (
            update(table)
            .where(_has_key(table.c, _TASK, "key_"), table.c.idx == bindparam("key_idx", type_=Integer()))
            .values({name: bindparam(name, type_=table.c[name].type) for name in _VALUE})
        )

    def delete_thread(self, executor: Executor, thread_id: str) -> None:
        parameters = stored_keys({"thread_id": thread_id})
        executor.run(*(Call(statement, parameters) for statement in self._delete_thread))

    @cached_property
    def _delete_thread(self) -> Sequence[Delete]:
        tables = (self.tables.blobs, self.tables.writes, self.tables.checkpoints)
        return [delete(table).where(table.c.thread_id == text_parameter("thread_id")) for table in tables]

    # ------------------------------------------------------------------------------------------------------- reading

    def read(
        self, executor: Executor, shape: ReadShape, parameters: Parameters, filter: Mapping[str, Any] | None = None
    ) -> Rows:
        parameters = stored_keys(parameters)
        while True:
            targets = self._read_targets(executor, shape, parameters, filter or {})
            columns = (*_TARGET, *_DOCUMENTS)
            rows = [ReadRow(RowKind.CHECKPOINT, **{name: getattr(row, name) for name in columns}) for row in targets]
            namespaces = by_namespace(targets)
            for found in namespaces:
                rows += self._blobs_of(executor, found)
                rows += self._writes_of(executor, found)
            if all(self._are_there(executor, found) for found in namespaces):
                return rows

    def _are_there(self, executor: Executor, targets: Sequence[Any]) -> bool:
        ids = [row.checkpoint_id for row in targets]
        return self._lookups.are_there(executor, namespace_of(targets[0]), ids)

    def _blobs_of(self, executor: Executor, targets: Sequence[Any]) -> Iterator[Any]:
        """The blobs that some checkpoints of one namespace name."""
        named = {name for row in targets for name in _codec.named_blobs(load_json(row.checkpoint))}
        return self._lookups.blobs(executor, namespace_of(targets[0]), named)

    def _writes_of(self, executor: Executor, targets: Sequence[Any]) -> Iterator[Any]:
        """The pending writes of some checkpoints of one namespace, and the sends of those that are old."""
        namespace = namespace_of(targets[0])
        yield from self._lookups.writes(executor, namespace, [row.checkpoint_id for row in targets])
        # Before format 4, a checkpoint's sends were its parent's TASKS writes.
        old = [row for row in targets if _is_old(load_json(row.checkpoint).get("v"))]
        children = [row for row in old if row.parent_checkpoint_id]
        parents = sorted({row.parent_checkpoint_id for row in children})
        sends = [row for row in self._lookups.writes(executor, namespace, parents) if row.channel == TASKS]
        for child in children:
            for row in sends:
                if row.checkpoint_id == child.parent_checkpoint_id:
                    yield row._replace(kind=RowKind.SEND, checkpoint_id=child.checkpoint_id)

    def _read_targets(
        self, executor: Executor, shape: ReadShape, parameters: Parameters, filter: Mapping[str, Any]
    ) -> list[Any]:
        """The checkpoints alone. With a filter they are read on until there are enough that fit."""
        if not filter:
            return list(executor.fetch(Call(self._targets(shape), parameters)))
        found: list[Any] = []
        while True:
            page = executor.fetch(Call(self._targets(shape), {**parameters, "limit": CHUNK}))
            found += [row for row in page if _filters.contains(load_json(row.metadata), filter)]
            if len(page) < CHUNK or len(found) >= parameters["limit"]:
                return found[: parameters["limit"]]
            after = {f"after_{name}": getattr(page[-1], name) for name in _CHECKPOINT}
            shape, parameters = shape._replace(after=True), {**parameters, **after}

    def _build_targets(self, shape: ReadShape) -> Executable:
        columns = self.tables.checkpoints.c
        conditions = shape.conditions(columns)
        key = [columns[name] for name in shape.key()]
        if shape.after:
            conditions.append(_comes_after(key))
        statement = select(
            *(columns[name] for name in _TARGET),
            json_to_text(columns.checkpoint).label("checkpoint"),
            json_to_text(columns.metadata).label("metadata"),
        )
        return statement.where(*conditions).order_by(*(column.desc() for column in key)).limit(shape.limit())

    # --------------------------------------------------------------------------------------------------- maintenance

    def lock_thread(self, executor: Executor, thread_id: str) -> None:
        executor.run(Call(self._lock, stored_keys({"key_thread_id": thread_id}), is_constant=True))

    @cached_property
    def _lock(self) -> Executable:
        # Changes nothing, but no database lets two transactions update a row at the same time.
        table = self.tables.checkpoints
        return (
            update(table)
            .where(table.c.thread_id == text_parameter("key_thread_id"))
            .values(thread_id=table.c.thread_id)
        )

    def has_rows(self, executor: Executor, thread_id: str) -> bool:
        parameters = stored_keys({"thread_id": thread_id})
        return any(executor.fetch(Call(statement, parameters)) for statement in self._any_row)

    @cached_property
    def _any_row(self) -> Sequence[Executable]:
        tables = (self.tables.checkpoints, self.tables.blobs, self.tables.writes)
        one: ColumnElement[int] = literal_column("1")
        found = (select(table.c.thread_id).where(table.c.thread_id == text_parameter("thread_id")) for table in tables)
        return [self._locking(statement.limit(one)) for statement in found]

    def copy(self, executor: Executor, source: str, target: str) -> None:
        parameters = {"source": stored_key("thread_id", source), "target": stored_key("thread_id", target)}
        self.lock_thread(executor, source)
        executor.run(*(Call(statement, parameters) for statement in self._copy))

    @cached_property
    def _copy(self) -> Sequence[Executable]:
        # The checkpoints first: of one that is stored meanwhile, its blobs may be copied, but never it without them.
        return [copy_rows(table) for table in (self.tables.checkpoints, self.tables.blobs, self.tables.writes)]

    def threads_of_runs(self, executor: Executor, run_ids: Sequence[str]) -> Sequence[str]:
        found = (row.thread_id for run_id in run_ids for row in self._of_run(executor, run_id, None))
        return list(dict.fromkeys(found))

    def checkpoints_of_runs(self, executor: Executor, thread_id: str, run_ids: Sequence[str]) -> Sequence[Key]:
        found = (row for run_id in run_ids for row in self._of_run(executor, run_id, thread_id))
        return [(row.checkpoint_ns, row.checkpoint_id) for row in found]

    def _of_run(self, executor: Executor, run_id: str, thread_id: str | None) -> Iterator[Any]:
        """A run's checkpoints. Their metadata contains the run's id as JSON text; whether it is that, Python looks."""
        parameters: dict[str, str] = {"pattern": "%" + re.sub("[^0-9A-Za-z-]+", "%", run_id) + "%"}
        if thread_id is not None:
            parameters["thread_id"] = stored_key("thread_id", thread_id)
        for row in executor.fetch(Call(self._runs(thread_id is not None), parameters)):
            found = load_json(row.metadata).get("run_id")
            if run_id == found or (not isinstance(found, str | None) and run_id == json.dumps(found)):
                yield row

    def _build_runs(self, of_thread: bool) -> Executable:
        columns = self.tables.checkpoints.c
        metadata = json_to_text(columns.metadata)
        found = select(columns.thread_id, columns.checkpoint_ns, columns.checkpoint_id, metadata.label("metadata"))
        found = found.where(metadata.like(text_parameter("pattern")))
        return found.where(columns.thread_id == text_parameter("thread_id")) if of_thread else found

    def thread(self, executor: Executor, thread_id: str) -> Thread:
        return PortableThread(self._lookups, executor, stored_key("thread_id", thread_id), self._locking)

    def _locking(self, statement: Select[Any]) -> Select[Any]:
        """Have a SELECT see what a transaction at the same time has just committed, where it might not."""
        return statement

    def delta_history(self, executor: Executor, parameters: Parameters, channels: Sequence[str]) -> Rows:
        return Walk(self._lookups, executor, stored_keys(parameters)).rows(channels)


def _has_key(columns: Any, names: Sequence[str], prefix: str = "") -> ColumnElement[bool]:
    """The condition that a row has the key given as parameters, which are named like its columns."""
    return and_(*(columns[name] == text_parameter(prefix + name) for name in names))


def _is_old(format: Any) -> bool:
    return isinstance(format, int | float) and format < 4


def by_namespace(rows: Sequence[Any]) -> list[Sequence[Any]]:
    """Rows of checkpoints, those of one namespace together."""
    found: dict[tuple[str, str], list[Any]] = {}
    for row in rows:
        found.setdefault((row.thread_id, row.checkpoint_ns), []).append(row)
    return list(found.values())


def _comes_after(key: Sequence[ColumnElement[Any]]) -> ColumnElement[bool]:
    """The condition that a row comes after the parameters in descending order; not all databases compare tuples."""
    first, *rest = key
    is_less = first < text_parameter(f"after_{first.name}")
    if not rest:
        return is_less
    return or_(is_less, and_(first == text_parameter(f"after_{first.name}"), _comes_after(rest)))
