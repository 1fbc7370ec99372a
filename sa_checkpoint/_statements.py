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
from typing import Any, ClassVar

from langgraph.checkpoint.serde.types import TASKS
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
    Numeric,
    Select,
    Text,
    Update,
    and_,
    bindparam,
    cast,
    delete,
    literal_column,
    null,
    select,
    tuple_,
    union_all,
)

from sa_checkpoint._codec import BLOB_VERSIONS, EMPTY
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
    ANCESTOR = 4
    """A step of a walk along parent links, for one channel."""


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

    `after` continues a list below the key (`after_checkpoint_id`, `after_thread_id`, `after_checkpoint_ns`). `many`
    asks for up to `limit` checkpoints, newest first, instead of the latest one.
    """

    thread_id: bool = True
    checkpoint_ns: bool = True
    checkpoint_id: bool = False
    before: bool = False
    after: bool = False
    many: bool = False


def text_parameter(name: str) -> BindParameter[str]:
    """A bound parameter for text, whatever the type of the column it meets: JSON crosses as text, too."""
    return bindparam(name, type_=Text())


class Statements(ABC):
    """A dialect family's statements on one set of tables."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables
        # Bound methods cached per instance: the shapes are few, and each is built once.
        self._cached_read = cache(self._build_read)

    filters_exactly: ClassVar[bool]
    """Whether the database expresses all of a metadata filter."""

    @abstractmethod
    def put(self, checkpoint: Parameters, blobs: Sequence[Parameters], *, shared: bool) -> list[Call]:
        """Insert or replace a checkpoint, and insert the blobs that are not there yet.

        Args:
            checkpoint: thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata; the last
                two are JSON text.
            blobs: For each: channel, version, type, blob.
            shared: Whether a blob may be there for another checkpoint, and must not be deleted with that meanwhile.
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
    def lock_thread(self, thread_id: str) -> Call:
        """Let no other maintenance of this thread run at the same time, until the transaction ends."""

    @abstractmethod
    def together(self, *changes: Insert | Update | Delete) -> list[Executable]:
        """Statements that make these changes, each as if none of the others had been made before it.

        The order given has to be one in which that holds when they run one after another.
        """

    @abstractmethod
    def rows(self, name: str, *columns: str) -> FromClause:
        """A FROM element of any number of rows of text, bound as the parameters that `row_values` makes."""

    @abstractmethod
    def row_values(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[str]]) -> Parameters:
        """The parameters for `rows`."""

    @abstractmethod
    def json_text(self, column: ColumnElement[Any], *keys: str) -> ColumnElement[str]:
        """The text of what is under these keys, one inside the other, in a JSON column."""

    @abstractmethod
    def entries(self, column: ColumnElement[Any], *fields: str) -> FromClause:
        """The entries of these objects in a JSON column, a later one's instead of an earlier one's.

        Columns: `key`, and `value`, which is text when it is cast to text.
        """

    @abstractmethod
    def _read_filtered(self, shape: ReadShape, filter: Mapping[str, Any]) -> tuple[Executable, Parameters]:
        """The reading statement for checkpoints whose metadata contains the filter, and its values."""

    def blob_versions(self, column: ColumnElement[Any]) -> FromClause:
        """For each channel of a checkpoint the version of its blob: `_codec.blob_versions_of`, in SQL."""
        return self.entries(column, "channel_versions", BLOB_VERSIONS)

    def delete_thread(self, thread_id: str) -> list[Call]:
        """Delete everything of a thread."""
        return [Call(statement, {"thread_id": thread_id}) for statement in self._delete_thread]

    @cached_property
    def _delete_thread(self) -> list[Executable]:
        tables = (self.tables.blobs, self.tables.writes, self.tables.checkpoints)
        return self.together(
            *(delete(table).where(table.c.thread_id == text_parameter("thread_id")) for table in tables)
        )

    def read(self, shape: ReadShape, parameters: Parameters, filter: Mapping[str, Any] | None = None) -> Call:
        """Read checkpoints with all that belongs to them.

        Args:
            shape: The conditions.
            parameters: A value for each of them.
            filter: What their metadata contains; others come back, too, unless `filters_exactly`.
        """
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
        if not shape.many:
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
        # A constant where it can be one: the planner then knows that what follows is for a single row.
        limit = bindparam("limit", type_=Integer()) if shape.many else literal_column("1")
        return statement.order_by(*(column.desc() for column in key)).limit(limit).cte("target")

    def branch(self, kind: RowKind, columns: Mapping[str, ColumnElement[Any]]) -> Select[Any]:
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
        return self.branch(
            RowKind.CHECKPOINT,
            {
                **columns,
                "checkpoint": cast(target.c.checkpoint, Text),
                "metadata": cast(target.c.metadata, Text),
            },
        )

    def _blob_rows(self, target: CTE, shape: ReadShape) -> Select[Any]:
        versions = self.blob_versions(target.c.checkpoint)
        named = (
            select(
                target.c.thread_id,
                target.c.checkpoint_ns,
                versions.c.key.label("channel"),
                cast(versions.c.value, Text).label("version"),
            )
            .distinct()
            .subquery("named")
        )
        blobs = self.tables.blobs.c
        is_named = and_(
            self._same_namespace(blobs, named.c, shape),
            blobs.channel == named.c.channel,
            blobs.version == named.c.version,
            blobs.type != literal_column(f"'{EMPTY}'"),
        )
        found, source = self._look_up(named, is_named)
        columns = {name: named.c[name] for name in ("thread_id", "checkpoint_ns", "channel", "version")}
        return self.branch(RowKind.BLOB, {**columns, "type": found.c.type, "blob": found.c.blob}).select_from(source)

    def _look_up(self, named: FromClause, is_named: ColumnElement[bool]) -> tuple[FromClause, FromClause]:
        """The blobs that are named, and the join that finds them."""
        return self.tables.blobs, named.join(self.tables.blobs, is_named)

    def _write_rows(self, target: CTE, shape: ReadShape) -> Select[Any]:
        writes = self.tables.writes.c
        return self.branch(RowKind.WRITE, self._write_columns(writes.checkpoint_id)).where(
            self._same_namespace(writes, target.c, shape), writes.checkpoint_id == target.c.checkpoint_id
        )

    def _send_rows(self, target: CTE, shape: ReadShape) -> Select[Any]:
        writes = self.tables.writes.c
        return self.branch(RowKind.SEND, self._write_columns(target.c.checkpoint_id)).where(
            self._same_namespace(writes, target.c, shape),
            writes.checkpoint_id == target.c.parent_checkpoint_id,
            writes.channel == literal_column(f"'{TASKS}'"),
            cast(self.json_text(target.c.checkpoint, "v"), Numeric) < literal_column("4"),
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
