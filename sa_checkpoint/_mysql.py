"""MySQL's and MariaDB's statements: one for each table that an operation writes to, and one for all that it reads.

MariaDB is sent what puts a checkpoint, or deletes a thread, as one block.
Which blobs a checkpoint has is a list of its own in the JSON, because the keys of an object cannot be made rows.
Maintenance is that of `_portable`, which reads what it has to know.

Values cross in Base64. Whatever the server's `sql_mode` is, no driver escapes that wrongly: asyncmy 0.2 escapes bytes
with backslashes even where the server does not read them so.
"""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Iterator, Mapping, Sequence
from functools import cache, cached_property
from typing import Any, cast
from weakref import WeakKeyDictionary

from sqlalchemy import (
    ClauseElement,
    ColumnElement,
    Connection,
    Executable,
    FromClause,
    Integer,
    Select,
    Table,
    Text,
    and_,
    bindparam,
    case,
    func,
    literal_column,
    null,
    or_,
    select,
    union_all,
)
from sqlalchemy.dialects.mysql import Insert, insert
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler
from sqlalchemy.sql.functions import FunctionElement

from sa_checkpoint import _codec, _direct
from sa_checkpoint._json import dump_json
from sa_checkpoint._keys import LENGTHS, MARK, stored_keys
from sa_checkpoint._portable import PortableStrategy, by_namespace
from sa_checkpoint._statements import Statements
from sa_checkpoint._strategy import (
    LARGE_BYTES,
    READ_COLUMNS,
    Call,
    Executor,
    Parameters,
    ReadRow,
    ReadShape,
    RowKind,
    Rows,
    batches,
    numbered,
    text_parameter,
)
from sa_checkpoint._tables import Tables
from sa_checkpoint._types import BytewiseText, json_to_text
from sa_checkpoint.errors import UnsupportedDatabase, is_too_deep

_CHECKED: WeakKeyDictionary[Any, bool] = WeakKeyDictionary()
"""The drivers' connections that lose nothing, and whether they take a `_Block`."""

_DRIVERS = frozenset({"pymysql", "asyncmy"})
"""Drivers known to send a `_Block` as the one text that it is. mysql-connector-python cuts up what has semicolons."""

_NAMESPACE = ("thread_id", "checkpoint_ns")

_CHECKPOINT = ReadRow._fields.index("checkpoint")

_ROWS = 16
"""How many rows a statement inserts at most: each number is a statement of its own to compile."""


class _JSONTable(FunctionElement[Any]):
    """`JSON_TABLE` of an array of arrays: each of these is a row of text, and its elements are the columns.

    Its clauses are the JSON, the path of the array as a literal, and the names of the columns.
    """

    name = "json_table"
    inherit_cache = True


@compiles(_JSONTable)
def _compile_json_table(element: _JSONTable, compiler: SQLCompiler, **kw: Any) -> str:
    document, path = (compiler.process(clause, **kw) for clause in element.clauses.clauses[:2])
    names = (compiler.preparer.quote(clause.name) for clause in element.clauses.clauses[2:])
    type_ = BytewiseText().compile(dialect=compiler.dialect)
    columns = ", ".join(f"{name} {type_} PATH '$[{index}]'" for index, name in enumerate(names))
    return f"JSON_TABLE({document}, {path} COLUMNS ({columns}))"


def _rows(document: ColumnElement[Any], path: str, columns: Sequence[str]) -> FromClause:
    """The rows of an array of arrays in JSON."""
    table = _JSONTable(document, literal_column(f"'{path}'"), *(literal_column(name) for name in columns))
    return table.table_valued(*columns, joins_implicitly=True)


class _Block(Executable, ClauseElement):
    """Statements in one round trip: MariaDB's `BEGIN NOT ATOMIC`, which begins no transaction.

    After a statement that fails, it runs no other one, and does not commit.
    """

    inherit_cache = False

    def __init__(self, *statements: ClauseElement, commits: bool) -> None:
        self.statements = statements
        self.commits = commits


@compiles(_Block)
def _compile_block(block: _Block, compiler: SQLCompiler, **kw: Any) -> str:
    texts = [compiler.process(statement, **kw) for statement in block.statements]
    compiler.isinsert = compiler.isdelete = False  # SQLAlchemy asks of those what a block does not have
    if block.commits:
        texts.append("COMMIT")
    return f"BEGIN NOT ATOMIC {'; '.join(texts)}; END"


def _sent(value: Any) -> Any:
    return b64encode(value).decode() if isinstance(value, bytes) else value


def _values(rows: Sequence[Parameters]) -> dict[str, Any]:
    """The values of the parameters that `_value` makes."""
    return {name: _sent(value) for name, value in numbered(rows).items()}


def _value(name: str, number: int) -> ColumnElement[Any]:
    """The parameter for a column of one of several rows."""
    if name == "idx":
        return bindparam(f"idx_{number}", type_=Integer())
    value = text_parameter(f"{name}_{number}")
    return func.from_base64(value) if name == "blob" else value


class MySQLStrategy(Statements, PortableStrategy):
    """One statement for each table that an operation writes to, and one for all that it reads."""

    filters_exactly = False
    looks_first = False

    def __init__(self, tables: Tables) -> None:
        super().__init__(tables)
        self._cached_read_filtered = cache(self._build_read_filtered)
        self._upsert_checkpoint = self._build_put_checkpoint()
        self._insert = cache(self._build_insert)
        self._block = cache(_Block)

    def check(self, connection: Connection) -> None:
        # Once for each connection of the pool, past SQLAlchemy: it is no statement of an operation's.
        driver_connection = connection.connection.driver_connection
        if driver_connection in _CHECKED:
            return
        question = "SELECT @@character_set_client, @@character_set_connection, @@character_set_results, @@sql_mode"
        ((*charsets, sql_mode),) = _direct.execute(connection, question, (), fetch=True, direct=True)
        for charset in charsets:
            if charset != "utf8mb4":
                raise UnsupportedDatabase(
                    f"The connection's character set is {charset}, which does not have every character: add "
                    "?charset=utf8mb4 to the URL of the engine, or SET NAMES utf8mb4 on each new connection."
                )
        if "EMPTY_STRING_IS_NULL" in sql_mode:
            raise UnsupportedDatabase(
                "With EMPTY_STRING_IS_NULL in the sql_mode, MariaDB keeps an empty text as NULL, and the namespace of "
                "a root graph is empty: leave it out on this engine."
            )
        # In MariaDB's ORACLE mode a block is another one.
        is_mariadb = getattr(connection.dialect, "is_mariadb", False)
        takes_blocks = is_mariadb and connection.dialect.driver in _DRIVERS and "ORACLE" not in sql_mode
        _CHECKED[driver_connection] = takes_blocks

    # ------------------------------------------------------------------------------------------------------- writing

    def _insertions(
        self, table: Table, shared: Parameters, rows: Sequence[Parameters], *, replace: bool = False
    ) -> Iterator[Call]:
        """What inserts rows that have some columns in common, or keeps or replaces those that are there."""
        for some in batches(rows, _ROWS):
            statement = self._insert(table, tuple(shared), tuple(some[0]), len(some), replace)
            yield Call(statement, {**shared, **_values(some)}, is_constant=True)

    def _finish(self, executor: Executor, statements: Sequence[Executable], parameters: Parameters) -> None:
        """Execute the last statements of an operation: as one where there are blocks, and with the COMMIT if it may."""
        if self._takes_blocks(executor) and (len(statements) > 1 or executor.may_commit):
            executor.run(self._together(statements, parameters, commits=executor.may_commit))
        else:
            executor.run(*(Call(statement, parameters, is_constant=True) for statement in statements))

    def _together(self, statements: Sequence[Executable], parameters: Parameters, *, commits: bool) -> Call:
        return Call(self._block(*statements, commits=commits), parameters, is_constant=True, commits=commits)

    def _takes_blocks(self, executor: Executor) -> bool:
        return _CHECKED[executor.connection.connection.driver_connection]

    def _build_insert(
        self, table: Table, shared: Sequence[str], columns: Sequence[str], rows: int, replace: bool
    ) -> Insert:
        """INSERT … VALUES …, …

        A row that is there already is set to itself, or to what is new. INSERT IGNORE would ignore all errors.
        """
        in_common = {name: text_parameter(name) for name in shared}
        statement = insert(table).values(
            [{**in_common, **{name: _value(name, number) for name in columns}} for number in range(rows)]
        )
        if not replace:
            return statement.on_duplicate_key_update({"thread_id": table.c.thread_id})
        return statement.on_duplicate_key_update({name: statement.inserted[name] for name in columns if name != "idx"})

    def _build_put_checkpoint(self) -> Insert:
        names = ("thread_id", "checkpoint_ns", "checkpoint_id", "parent_checkpoint_id", "checkpoint", "metadata")
        statement = insert(self.tables.checkpoints).values({name: text_parameter(name) for name in names})
        return statement.on_duplicate_key_update({name: statement.inserted[name] for name in names[-2:]})

    def _members(self, checkpoint_ns: str, named: Sequence[tuple[str, str]]) -> dict[str, Any]:
        return {**super()._members(checkpoint_ns, named), _codec.NAMED_BLOBS: named}

    def _put_rows(self, executor: Executor, row: Parameters, blobs: Sequence[Parameters]) -> None:
        namespace = {name: row[name] for name in _NAMESPACE}
        insertions = self._insertions(self.tables.blobs, namespace, blobs) if blobs else iter(())
        size = sum(len(blob["blob"]) for blob in blobs) + len(row["checkpoint"]) + len(row["metadata"])
        if 0 < len(blobs) <= _ROWS and size <= LARGE_BYTES:
            (insert_blobs,) = insertions
            parameters = {**row, **cast(Parameters, insert_blobs.parameters)}
            self._finish(executor, [insert_blobs.statement, self._upsert_checkpoint], parameters)
            return
        for call in insertions:
            executor.run(call)
        self._finish(executor, [self._upsert_checkpoint], row)

    def put_writes(self, executor: Executor, task: Parameters, writes: Sequence[Parameters], *, replace: bool) -> None:
        insertions = self._insertions(self.tables.writes, stored_keys(task), writes, replace=replace)
        last = next(insertions)
        for call in insertions:
            executor.run(last)
            last = call
        self._finish(executor, [last.statement], cast(Parameters, last.parameters))

    def delete_thread(self, executor: Executor, thread_id: str) -> None:
        self._finish(executor, self._delete_thread, stored_keys({"thread_id": thread_id}))

    # ------------------------------------------------------------------------------------------------------- reading

    def read(
        self, executor: Executor, shape: ReadShape, parameters: Parameters, filter: Mapping[str, Any] | None = None
    ) -> Rows:
        is_one = shape.many and parameters["limit"] == 1 and shape.thread_id and shape.checkpoint_ns and not filter
        key = stored_keys(parameters)
        try:
            rows = super().read(executor, shape._replace(many=False) if is_one else shape, key, filter)
        except DBAPIError as error:
            if not is_too_deep(error):
                raise
            # The server does not look into JSON that is nested so deeply.
            return PortableStrategy.read(self, executor, shape, parameters, filter)
        # Rows that have come here without this package do not have the list that the statement goes by.
        foreign = [
            ReadRow(*row) for row in rows if row[0] == RowKind.CHECKPOINT and _codec.NAMED_BLOBS not in row[_CHECKPOINT]
        ]
        blobs = [blob for found in by_namespace(foreign) for blob in self._blobs_of(executor, found)]
        if all(self._are_there(executor, found) for found in by_namespace(foreign)):
            return [*rows, *blobs]
        # Somebody has deleted them meanwhile.
        return PortableStrategy.read(self, executor, shape, parameters, filter)

    def _reading(self, executor: Executor, statement: Executable, parameters: Parameters) -> Call:
        if self._takes_blocks(executor) and executor.may_commit:
            return self._together([statement], parameters, commits=True)
        return super()._reading(executor, statement, parameters)

    def _read_filtered(self, shape: ReadShape, filter: Mapping[str, Any]) -> tuple[Executable, Parameters]:
        return self._cached_read_filtered(shape), {"filter": dump_json("filter", filter)}

    def _build_read_filtered(self, shape: ReadShape) -> Executable:
        # Other than PostgreSQL's containment, this finds a scalar in an array. It is NULL for JSON that is nested more
        # deeply than MariaDB reads (32 levels).
        contained = func.json_contains(json_to_text(self.tables.checkpoints.c.metadata), text_parameter("filter"))
        one: ColumnElement[int] = literal_column("1")
        return self._build_read(shape, func.coalesce(contained, one) == one)

    def _build_read(self, shape: ReadShape, condition: ColumnElement[bool] | None = None) -> Executable:
        if shape.many:
            return super()._build_read(shape, condition)
        # MariaDB runs a common table expression again for each branch. This way each looks up one row by its key.
        table = self.tables.checkpoints
        key = and_(
            *(table.c[name] == self._key_value(name, shape) for name in table.primary_key.columns.keys()),
            *self._bounds(table.c, shape),
        )
        rows = (self._checkpoint_rows, self._blob_rows_of_one, self._write_rows, self._send_rows)
        return union_all(*(branch(table, shape).where(key) for branch in rows))

    def _key_value(self, name: str, shape: ReadShape) -> ColumnElement[str]:
        if getattr(shape, name):
            return text_parameter(name)
        latest = self.tables.checkpoints.alias("latest").c
        is_here = [latest[name] == text_parameter(name) for name in ("thread_id", "checkpoint_ns")]
        bounds = self._bounds(latest, shape)
        return select(func.max(latest.checkpoint_id)).where(*is_here, *bounds).scalar_subquery()

    def _bounds(self, columns: Any, shape: ReadShape) -> Sequence[ColumnElement[bool]]:
        names = [("before", shape.before), ("after_checkpoint_id", shape.after)]
        return [columns.checkpoint_id < text_parameter(name) for name, is_given in names if is_given]

    def _blob_rows_of_one(self, target: FromClause, shape: ReadShape) -> Select[Any]:
        """The blobs of one checkpoint, which names none twice."""
        versions = self.blob_versions(target.c.checkpoint)
        names = {"thread_id": target.c.thread_id, "checkpoint_ns": target.c.checkpoint_ns}
        blobs = self.tables.blobs.c
        values = {"channel": versions.c.key, "version": versions.c.value, "type": blobs.type, "blob": blobs.blob}
        return (
            self.branch(RowKind.BLOB, {**names, **values})
            .select_from(target, versions, self.tables.blobs)
            .where(self._is_named(target, versions.c.key, versions.c.value, shape))
        )

    def as_text(self, column: ColumnElement[Any]) -> ColumnElement[str]:
        return json_to_text(column)

    def json_text(self, column: ColumnElement[Any], *keys: str) -> ColumnElement[str]:
        path = "".join(f'."{key}"' for key in keys)
        text = func.json_unquote(func.json_extract(column, literal_column(f"'${path}'")), type_=Text())
        return func.nullif(text, literal_column("'null'"), type_=Text())

    def blob_versions(self, column: ColumnElement[Any]) -> FromClause:
        return _rows(column, f"$.{_codec.NAMED_BLOBS}[*]", ("key", "value"))

    def version_text(self, value: ColumnElement[Any]) -> ColumnElement[str]:
        return value  # a cast would be to the connection's collation, to which "a " may be "A"

    def stored(self, name: str, value: ColumnElement[str]) -> ColumnElement[str]:
        """`_keys.stored_key` in SQL."""
        mark: ColumnElement[str] = literal_column(f"'{MARK}'")
        is_hashed = or_(
            func.char_length(value) > literal_column(str(LENGTHS[name])),
            func.left(value, literal_column(str(len(MARK)))) == mark,
        )
        return case((is_hashed, func.concat(mark, func.sha2(value, literal_column("256")))), else_=value)

    @cached_property
    def _nulls(self) -> Mapping[str, ColumnElement[Any]]:
        # A cast would be to the connection's collation, which columns cannot be in a union with.
        return dict.fromkeys(READ_COLUMNS, null())

    # --------------------------------------------------------------------------------------------------- maintenance

    def _locking(self, statement: Select[Any]) -> Select[Any]:
        # Under REPEATABLE READ others see what the transaction saw first.
        return statement.with_for_update()
