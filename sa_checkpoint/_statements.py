"""The statements that the savers run: what is common to all databases, and the interface of a dialect's strategy.

`_operations` says what it means ("put this checkpoint with these blobs") and gets a list of calls to execute in one
transaction; how many there are is the strategy's affair (`_postgresql`, `_sqlite`). Statements are built once, with
bound parameters for every value, so that SQLAlchemy compiles and the driver prepares each only once.

Reading is one statement on every database, for one checkpoint as for a page of a list: a common table expression
finds the checkpoints, and a UNION ALL brings them, the blobs that they name (once, however many checkpoints share one),
their pending writes, and the sends that a checkpoint older than format 4 left with its parent.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import IntEnum
from functools import cache, cached_property
from typing import Any

from langgraph.checkpoint.serde.types import TASKS
from sqlalchemy import (
    CTE,
    BindParameter,
    ColumnElement,
    Executable,
    Integer,
    LargeBinary,
    Select,
    Text,
    and_,
    bindparam,
    cast,
    literal_column,
    null,
    select,
    tuple_,
    union_all,
)
from sqlalchemy.sql.selectable import TableValuedAlias

from sa_checkpoint._codec import EMPTY
from sa_checkpoint._tables import Tables

Parameters = Mapping[str, Any]


@dataclass(frozen=True)
class Call:
    """A statement and what to execute it with: one set of parameters, or several for an executemany."""

    statement: Executable
    parameters: Parameters | Sequence[Parameters]


class RowKind(IntEnum):
    """What a row of the reading statement holds, in its first column. The other columns: `READ_COLUMNS`."""

    CHECKPOINT = 0
    BLOB = 1
    WRITE = 2
    SEND = 3
    """A TASKS write of the parent; `checkpoint_id` is the child's."""


READ_COLUMNS: Mapping[str, type[Text] | type[LargeBinary] | type[Integer]] = {
    "thread_id": Text,
    "checkpoint_ns": Text,
    "checkpoint_id": Text,
    "parent_checkpoint_id": Text,
    "checkpoint": Text,
    "metadata": Text,
    "channel": Text,
    "version": Text,
    "type": Text,
    "blob": LargeBinary,
    "task_id": Text,
    "task_path": Text,
    "idx": Integer,
}


@dataclass(frozen=True)
class ReadShape:
    """Which conditions a reading statement has. Each stands for a bound parameter of the same name.

    `after` continues a list below the key (`after_checkpoint_id`, `after_thread_id`, `after_checkpoint_ns`), and
    `ordered` asks for rows newest first, which one checkpoint does not need.
    """

    thread_id: bool = True
    checkpoint_ns: bool = True
    checkpoint_id: bool = False
    before: bool = False
    after: bool = False
    ordered: bool = False


def text_parameter(name: str) -> BindParameter[str]:
    """A bound parameter for text, whatever the type of the column it meets: JSON crosses as text, too."""
    return bindparam(name, type_=Text())


class Statements(ABC):
    """A dialect family's statements on one set of tables."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        # Bound methods cached per instance: the shapes are few, and each is built once.
        self._cached_read = cache(self._build_read)

    @abstractmethod
    def put(self, checkpoint: Parameters, blobs: Sequence[Parameters]) -> list[Call]:
        """Insert or replace a checkpoint, and insert the blobs that are not there yet.

        Args:
            checkpoint: thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata; the last
                two are JSON text.
            blobs: For each: channel, version, type, blob.
        """

    @abstractmethod
    def put_writes(self, task: Parameters, writes: Sequence[Parameters], *, replace: bool) -> list[Call]:
        """Insert a task's writes.

        Args:
            task: thread_id, checkpoint_ns, checkpoint_id, task_id, task_path.
            writes: For each: idx, channel, type, blob; no idx twice.
            replace: Whether a write that is already there is replaced or kept.
        """

    @abstractmethod
    def delete_thread(self, thread_id: str) -> list[Call]:
        """Delete everything of a thread."""

    @abstractmethod
    def _read_filtered(self, shape: ReadShape, filter: Mapping[str, Any]) -> tuple[Executable, Parameters]:
        """The reading statement for checkpoints whose metadata contains the filter, and its values.

        It may bring others, too, where the database cannot express all of a filter.
        """

    @abstractmethod
    def _channel_versions(self, target: CTE) -> tuple[TableValuedAlias, ColumnElement[str]]:
        """The entries of a checkpoint's channel_versions: a FROM element with a column `key`, the version's text."""

    @abstractmethod
    def _format(self, target: CTE) -> ColumnElement[Any]:
        """The format number (`v`) of a checkpoint."""

    def read(
        self, shape: ReadShape, parameters: Parameters, limit: int, filter: Mapping[str, Any] | None = None
    ) -> Call:
        """Read at most `limit` checkpoints with all that belongs to them.

        Args:
            shape: The conditions.
            parameters: A value for each of them.
            limit: How many checkpoints.
            filter: What their metadata contains; a superset may come back, see `_read_filtered`.
        """
        parameters = {**parameters, "limit": limit}
        if not filter:
            return Call(self._cached_read(shape), parameters)
        statement, values = self._read_filtered(shape, filter)
        return Call(statement, {**parameters, **values})

    def _build_read(self, shape: ReadShape, condition: ColumnElement[bool] | None = None) -> Executable:
        target = self._target(shape, condition)
        rows = union_all(
            self._checkpoint_rows(target),
            self._blob_rows(target, shape),
            self._write_rows(target, shape),
            self._send_rows(target, shape),
        )
        if not shape.ordered:
            return rows
        columns = rows.selected_columns
        return rows.order_by(columns.checkpoint_id.desc(), columns.thread_id.desc(), columns.checkpoint_ns.desc())

    def _target(self, shape: ReadShape, condition: ColumnElement[bool] | None) -> CTE:
        columns = self.tables.checkpoints.c
        conditions = [
            columns[name] == text_parameter(name)
            for name in ("thread_id", "checkpoint_ns", "checkpoint_id")
            if getattr(shape, name)
        ]
        # What the conditions leave open tells checkpoints with the same id apart: a copied thread keeps its ids.
        key = [columns.checkpoint_id] + [
            columns[name] for name in ("thread_id", "checkpoint_ns") if not getattr(shape, name)
        ]
        if shape.before:
            conditions.append(columns.checkpoint_id < text_parameter("before"))
        if shape.after:
            after = [text_parameter(f"after_{column.name}") for column in key]
            conditions.append(tuple_(*key) < tuple_(*after) if len(key) > 1 else key[0] < after[0])
        if condition is not None:
            conditions.append(condition)
        statement = select(
            columns.thread_id,
            columns.checkpoint_ns,
            columns.checkpoint_id,
            columns.parent_checkpoint_id,
            columns.checkpoint,
            columns.metadata,
        )
        if conditions:
            statement = statement.where(and_(*conditions))
        return (
            statement.order_by(*(column.desc() for column in key))
            .limit(bindparam("limit", type_=Integer()))
            .cte("target")
        )

    def _rows(self, kind: RowKind, columns: Mapping[str, ColumnElement[Any]]) -> Select[Any]:
        """A branch of the union: the given columns, and a typed NULL for each of the others."""
        return select(
            literal_column(str(int(kind)), Integer).label("kind"),
            *(columns.get(name, self._nulls[name]).label(name) for name in READ_COLUMNS),
        )

    @cached_property
    def _nulls(self) -> Mapping[str, ColumnElement[Any]]:
        return {name: cast(null(), type_) for name, type_ in READ_COLUMNS.items()}

    def _checkpoint_rows(self, target: CTE) -> Select[Any]:
        columns = {name: target.c[name] for name in list(READ_COLUMNS)[:4]}
        return self._rows(
            RowKind.CHECKPOINT,
            {
                **columns,
                "checkpoint": cast(target.c.checkpoint, Text),
                "metadata": cast(target.c.metadata, Text),
            },
        )

    def _blob_rows(self, target: CTE, shape: ReadShape) -> Select[Any]:
        entries, version = self._channel_versions(target)
        named = (
            select(
                target.c.thread_id,
                target.c.checkpoint_ns,
                entries.c.key.label("channel"),
                version.label("version"),
            )
            .distinct()
            .subquery("named")
        )
        blobs = self.tables.blobs.c
        columns = {name: blobs[name] for name in ("thread_id", "checkpoint_ns", "channel", "version", "type", "blob")}
        return self._rows(RowKind.BLOB, columns).where(
            self._same_namespace(blobs, named.c, shape),
            blobs.channel == named.c.channel,
            blobs.version == named.c.version,
            blobs.type != literal_column(f"'{EMPTY}'"),
        )

    def _write_rows(self, target: CTE, shape: ReadShape) -> Select[Any]:
        writes = self.tables.writes.c
        return self._rows(RowKind.WRITE, self._write_columns(writes.checkpoint_id)).where(
            self._same_namespace(writes, target.c, shape), writes.checkpoint_id == target.c.checkpoint_id
        )

    def _send_rows(self, target: CTE, shape: ReadShape) -> Select[Any]:
        writes = self.tables.writes.c
        return self._rows(RowKind.SEND, self._write_columns(target.c.checkpoint_id)).where(
            self._same_namespace(writes, target.c, shape),
            writes.checkpoint_id == target.c.parent_checkpoint_id,
            writes.channel == literal_column(f"'{TASKS}'"),
            self._format(target) < literal_column("4"),
        )

    def _write_columns(self, checkpoint_id: ColumnElement[str]) -> dict[str, ColumnElement[Any]]:
        writes = self.tables.writes.c
        names = ("thread_id", "checkpoint_ns", "channel", "type", "blob", "task_id", "task_path", "idx")
        return {"checkpoint_id": checkpoint_id, **{name: writes[name] for name in names}}

    def _same_namespace(self, columns: Any, target: Any, shape: ReadShape) -> ColumnElement[bool]:
        """The join on thread and namespace, with the thread as a parameter where it is known.

        A partitioned or sharded database then goes to one place for this table as well.
        """
        thread_id = text_parameter("thread_id") if shape.thread_id else target.thread_id
        return and_(columns.thread_id == thread_id, columns.checkpoint_ns == target.checkpoint_ns)
