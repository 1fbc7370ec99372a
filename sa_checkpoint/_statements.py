"""Reading in one statement, for databases that look into JSON: for one checkpoint as for a page of a list.

A common table expression finds the checkpoints, and a UNION ALL brings them, the blobs that they name (once, however
many checkpoints share one), their pending writes, and the sends that a checkpoint older than format 4 left with its
parent.

Statements are built once, with bound parameters for every value, so that SQLAlchemy compiles and the driver prepares
each only once.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from functools import cache, cached_property
from typing import Any

from langgraph.checkpoint.serde.types import TASKS
from sqlalchemy import (
    CTE,
    ColumnElement,
    Delete,
    Executable,
    FromClause,
    Insert,
    Integer,
    Numeric,
    Select,
    Table,
    Text,
    Update,
    and_,
    cast,
    exists,
    literal_column,
    null,
    select,
    tuple_,
    union_all,
)

from sa_checkpoint._codec import BLOB_VERSIONS, EMPTY
from sa_checkpoint._strategy import (
    READ_COLUMNS,
    Call,
    Executor,
    Parameters,
    ReadShape,
    RowKind,
    Rows,
    Strategy,
    text_parameter,
)
from sa_checkpoint._tables import Tables


class Statements(Strategy):
    """A strategy that reads in one statement."""

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        # Bound methods cached per instance: the shapes are few, and each is built once.
        self._cached_read = cache(self._build_read)

    @abstractmethod
    def json_text(self, column: ColumnElement[Any], *keys: str) -> ColumnElement[str]:
        """The text of what is under these keys, one inside the other, in a JSON column."""

    @abstractmethod
    def blob_versions(self, column: ColumnElement[Any]) -> FromClause:
        """For each channel of a checkpoint the version of its blob: `_codec.blob_versions_of`, in SQL.

        Columns: `key`, and `value`, of which `version_text` makes text.
        """

    @abstractmethod
    def _read_filtered(self, shape: ReadShape, filter: Mapping[str, Any]) -> tuple[Executable, Parameters]:
        """The reading statement for checkpoints whose metadata contains the filter, and its values."""

    def look_up(
        self, source: FromClause, table: Table, condition: ColumnElement[bool], *columns: str, is_outer: bool = False
    ) -> tuple[FromClause, FromClause]:
        """Columns of the rows of a table that meet a condition for a row of a source, and the join that finds them.

        The condition has the beginning of one of the table's indexes. A planner that does not know better, because a
        thread has just grown, may begin with the other side of a join, and read all of the thread each time. The join
        has a row for each of the source's, if `is_outer`, with NULL where no row of the table is found.
        """
        return table, source.join(table, condition, isouter=is_outer)

    def as_text(self, column: ColumnElement[Any]) -> ColumnElement[str]:
        """A JSON column as text."""
        return cast(column, Text)

    def version_text(self, value: ColumnElement[Any]) -> ColumnElement[str]:
        """A version in a checkpoint's JSON as text."""
        return cast(value, Text)

    def stored(self, name: str, value: ColumnElement[str]) -> ColumnElement[str]:
        """A channel or version from a checkpoint as the column of this name holds it."""
        return value

    def read(
        self, executor: Executor, shape: ReadShape, parameters: Parameters, filter: Mapping[str, Any] | None = None
    ) -> Rows:
        if not filter:
            return executor.fetch(self._reading(executor, self._cached_read(shape), parameters))
        statement, values = self._read_filtered(shape, filter)
        return executor.fetch(Call(statement, {**parameters, **values}))

    def _reading(self, executor: Executor, statement: Executable, parameters: Parameters) -> Call:
        return Call(statement, parameters, is_constant=True)

    def _build_read(self, shape: ReadShape, condition: ColumnElement[bool] | None = None) -> Executable:
        target = self._target(shape, condition)
        rows = union_all(
            self._checkpoint_rows(target, shape),
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
        conditions = shape.conditions(columns)
        key = [columns[name] for name in shape.key()]
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
        return statement.order_by(*(column.desc() for column in key)).limit(shape.limit()).cte("target")

    def branch(self, kind: RowKind, columns: Mapping[str, ColumnElement[Any]]) -> Select[Any]:
        """A branch of the union: the given columns, and a NULL for each of the others, which is typed in the first one.

        psycopg parses a statement of more than 4,096 characters anew each time, so there is not much to spare.
        """
        is_first = kind in (RowKind.CHECKPOINT, RowKind.ANCESTOR)
        nulls = self._nulls if is_first else dict.fromkeys(READ_COLUMNS, null())
        return select(
            literal_column(str(int(kind)), Integer).label("kind"),
            *(columns.get(name, nulls[name]).label(name) for name in READ_COLUMNS),
        )

    @cached_property
    def _nulls(self) -> Mapping[str, ColumnElement[Any]]:
        return {name: cast(null(), type_) for name, type_ in READ_COLUMNS.items()}

    def _checkpoint_rows(self, target: FromClause, shape: ReadShape) -> Select[Any]:
        columns = {name: target.c[name] for name in list(READ_COLUMNS)[:4]}
        return self.branch(
            RowKind.CHECKPOINT,
            {
                **columns,
                "checkpoint": self.as_text(target.c.checkpoint),
                "metadata": self.as_text(target.c.metadata),
            },
        )

    def _blob_rows(self, target: CTE, shape: ReadShape) -> Select[Any]:
        versions = self.blob_versions(target.c.checkpoint)
        names = select(
            target.c.thread_id,
            target.c.checkpoint_ns,
            versions.c.key.label("channel"),
            self.version_text(versions.c.value).label("version"),
        )
        named = (names.distinct() if shape.many else names).subquery("named")
        is_named = self._is_named(named, named.c.channel, named.c.version, shape)
        found, source = self.look_up(named, self.tables.blobs, is_named, "type", "blob")
        columns = {name: named.c[name] for name in ("thread_id", "checkpoint_ns", "channel", "version")}
        return self.branch(RowKind.BLOB, {**columns, "type": found.c.type, "blob": found.c.blob}).select_from(source)

    def _is_named(
        self, namespace: FromClause, channel: ColumnElement[str], version: ColumnElement[str], shape: ReadShape
    ) -> ColumnElement[bool]:
        """Whether a blob has a channel and version, and is in the namespace of a row."""
        blobs = self.tables.blobs.c
        return and_(
            self._same_namespace(blobs, namespace.c, shape),
            blobs.channel == self.stored("channel", channel),
            blobs.version == self.stored("version", version),
            blobs.type != literal_column(f"'{EMPTY}'"),
        )

    def _write_rows(self, target: FromClause, shape: ReadShape) -> Select[Any]:
        writes = self.tables.writes
        of_checkpoint = and_(
            self._same_namespace(writes.c, target.c, shape), writes.c.checkpoint_id == target.c.checkpoint_id
        )
        return self._written(RowKind.WRITE, target, of_checkpoint)

    def _send_rows(self, target: FromClause, shape: ReadShape) -> Select[Any]:
        writes = self.tables.writes
        of_parent = and_(
            self._same_namespace(writes.c, target.c, shape),
            writes.c.checkpoint_id == target.c.parent_checkpoint_id,
            writes.c.channel == literal_column(f"'{TASKS}'"),
            cast(self.json_text(target.c.checkpoint, "v"), Numeric) < literal_column("4"),
        )
        return self._written(RowKind.SEND, target, of_parent)

    def _written(self, kind: RowKind, target: FromClause, condition: ColumnElement[bool]) -> Select[Any]:
        names = ("channel", "type", "blob", "task_id", "task_path", "idx")
        found, source = self.look_up(target, self.tables.writes, condition, *names)
        key = {name: target.c[name] for name in ("thread_id", "checkpoint_ns", "checkpoint_id")}
        return self.branch(kind, {**key, **{name: found.c[name] for name in names}}).select_from(source)

    def _same_namespace(self, columns: Any, target: Any, shape: ReadShape) -> ColumnElement[bool]:
        """The join on thread and namespace, with the thread as a parameter where it is known.

        A partitioned or sharded database then goes to one place for this table as well.
        """
        thread_id = text_parameter("thread_id") if shape.thread_id else target.thread_id
        return and_(columns.thread_id == thread_id, columns.checkpoint_ns == target.checkpoint_ns)


class JSONStatements(Statements):
    """A strategy that maintains threads inside the database, too (`_thread_statements`): what those are built from."""

    def read(
        self, executor: Executor, shape: ReadShape, parameters: Parameters, filter: Mapping[str, Any] | None = None
    ) -> Rows:
        # For a single checkpoint the limit is a constant: a plan for any limit is not as good, and PostgreSQL would
        # rather make one anew each time.
        is_one = shape.many and parameters["limit"] == 1
        return super().read(executor, shape._replace(many=False, size=None) if is_one else shape, parameters, filter)

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
    def entries(self, column: ColumnElement[Any], *fields: str) -> FromClause:
        """The entries of these objects in a JSON column, a later one's instead of an earlier one's.

        Columns: `key`, and `value`, which is text when it is cast to text.
        """

    def blob_versions(self, column: ColumnElement[Any]) -> FromClause:
        return self.entries(column, "channel_versions", BLOB_VERSIONS)

    def blob_version(self, column: ColumnElement[Any], channel: ColumnElement[str]) -> ColumnElement[str]:
        """The version of one channel's blob, of those."""
        versions = self.blob_versions(column)
        version = select(self.version_text(versions.c.value)).select_from(versions).where(versions.c.key == channel)
        return version.correlate_except(versions).scalar_subquery()

    def has_entry(self, column: ColumnElement[Any], field: str, key: ColumnElement[str]) -> ColumnElement[bool]:
        """Whether an object in a JSON column has a key."""
        entries = self.entries(column, field)
        return exists().select_from(entries).where(entries.c.key == key).correlate_except(entries)
