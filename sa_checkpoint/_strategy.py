"""What the savers need of a database: the interface of a dialect family's strategy, and what it is given and returns.

`_operations` says what it means ("put this checkpoint with these blobs"), in one transaction; how many statements that
is, is the strategy's affair. `_postgresql`, `_sqlite` and `_mysql` are strategies; `_portable` serves other dialects.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from enum import IntEnum
from typing import Any, ClassVar, NamedTuple, Protocol

from sqlalchemy import (
    BindParameter,
    ColumnElement,
    Connection,
    Executable,
    Integer,
    LargeBinary,
    Text,
    bindparam,
    literal_column,
)

from sa_checkpoint._tables import Tables

Parameters = Mapping[str, Any]
Rows = Sequence[Any]
Key = tuple[str, str]
"""A checkpoint of a thread: its namespace, as its column holds it, and its id."""


class Call(NamedTuple):
    """A statement and what to execute it with: one set of parameters, or several for an executemany.

    A constant statement is one object for all calls, so that its text is worth keeping. One that commits ends the
    transaction, which the executor has to allow.
    """

    statement: Executable
    parameters: Parameters | Sequence[Parameters]
    is_constant: bool = False
    commits: bool = False


class Executor(Protocol):
    """What executes calls: a connection in a transaction."""

    @property
    def connection(self) -> Connection:
        """That connection: what it is may decide which calls it takes."""

    @property
    def may_commit(self) -> bool:
        """Whether a call that commits may come last."""

    def run(self, *calls: Call) -> None:
        """Execute calls in order."""

    def fetch(self, call: Call) -> Rows:
        """Execute a call, and fetch its rows."""


class RowKind(IntEnum):
    """What a row of `Strategy.read` or `delta_history` holds, as its `kind`. The other columns: `READ_COLUMNS`."""

    CHECKPOINT = 0
    BLOB = 1
    WRITE = 2
    SEND = 3
    """A TASKS write of the parent; `checkpoint_id` is the child's."""
    ANCESTOR = 4
    """A step of a walk along parent links, for one channel, with one of its writes if there are any."""
    SEED = 5
    """The step where a channel's value is, with its blob if it is one."""


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


class ReadRow(NamedTuple):
    """A row that was put together in Python, like those that a database returns."""

    kind: RowKind
    thread_id: str | None = None
    checkpoint_ns: str | None = None
    checkpoint_id: str | None = None
    parent_checkpoint_id: str | None = None
    checkpoint: str | None = None
    metadata: str | None = None
    channel: str | None = None
    version: str | None = None
    type: str | None = None
    blob: bytes | None = None
    task_id: str | None = None
    task_path: str | None = None
    idx: int | None = None


START = "start"
"""The `version` of the ANCESTOR rows of a walk's first step."""


class ReadShape(NamedTuple):
    """Which conditions a reading statement has. Each stands for a bound parameter of the same name.

    `after` continues a list below the key (`after_checkpoint_id`, `after_thread_id`, `after_checkpoint_ns`). `many`
    asks for up to `limit` checkpoints, newest first, instead of the latest one; `size` is that limit as a constant, if
    it is to be one.
    """

    thread_id: bool = True
    checkpoint_ns: bool = True
    checkpoint_id: bool = False
    before: bool = False
    after: bool = False
    many: bool = False
    size: int | None = None

    def key(self) -> list[str]:
        """The columns that tell the checkpoints found apart, and order them: a copied thread keeps its ids."""
        return ["checkpoint_id"] + [name for name in ("thread_id", "checkpoint_ns") if not getattr(self, name)]

    def conditions(self, columns: Any) -> list[ColumnElement[bool]]:
        """The conditions on the columns of checkpoints, but for `after`, which not all databases express alike."""
        names = ("thread_id", "checkpoint_ns", "checkpoint_id")
        conditions = [columns[name] == text_parameter(name) for name in names if getattr(self, name)]
        return [*conditions, columns.checkpoint_id < text_parameter("before")] if self.before else conditions

    def limit(self) -> ColumnElement[int]:
        """A constant where it can be one: a planner then knows for how many rows what follows is."""
        if not self.many:
            return literal_column("1")
        return bindparam("limit", type_=Integer()) if self.size is None else literal_column(f"{self.size:d}")


LARGE_BYTES = 1_000_000
"""How much a statement should hold at most: a driver may copy it several times, and holds up an event loop as long.

It also has to fit MySQL's max_allowed_packet.
"""


def is_large(rows: Sequence[Parameters]) -> bool:
    """Whether the blobs of some rows are too much for one statement."""
    size = 0
    for row in rows:
        size += len(row["blob"])
    return size > LARGE_BYTES


def batches(rows: Sequence[Parameters], most: int) -> Iterator[Sequence[Parameters]]:
    """Rows in parts of at most so many, and that are not large, unless a single row is."""
    batch: list[Parameters] = []
    size = 0
    for row in rows:
        if batch and (len(batch) == most or size + len(row["blob"]) > LARGE_BYTES):
            yield batch
            batch, size = [], 0
        batch.append(row)
        size += len(row["blob"])
    yield batch


def numbered(rows: Sequence[Parameters]) -> dict[str, Any]:
    """The parameters of a statement with several rows: "blob_0", say, is the blob of the first one."""
    return {f"{name}_{number}": value for number, row in enumerate(rows) for name, value in row.items()}


def text_parameter(name: str) -> BindParameter[str]:
    """A bound parameter for text, whatever the type of the column it meets: JSON crosses as text, too."""
    return bindparam(name, type_=Text())


class Thread(ABC):
    """A thread under maintenance. Checkpoints are named by their keys."""

    @abstractmethod
    def outline(self) -> Rows:
        """Its checkpoints without their contents, by namespace, newest first: what a prune is planned from.

        Columns: checkpoint_ns, namespace (which the former may be a hash of), checkpoint_id, parent_checkpoint_id;
        `format`, the number "v" of the checkpoint; `root`, the checkpoint of the root graph that it belongs to; and
        two JSON texts of LangGraph's in the metadata, delta_counters and delta_versioned.
        """

    @abstractmethod
    def with_sends(self, keys: Sequence[Key]) -> Rows:
        """Those of some checkpoints that have TASKS writes. Columns: checkpoint_ns, checkpoint_id."""

    @abstractmethod
    def with_values(self, channels: Sequence[tuple[str, str]]) -> Rows:
        """For channels of namespaces: the checkpoints that hold a value of them, inline or as a blob.

        Columns: checkpoint_ns, checkpoint_id, channel.
        """

    @abstractmethod
    def channels_of(self, keys: Sequence[Key]) -> Rows:
        """The channels that some checkpoints have versions of. Columns: checkpoint_ns, channel."""

    @abstractmethod
    def delete(self, doomed: Sequence[Key], dead: Sequence[str]) -> None:
        """Delete the doomed checkpoints, with their writes and the blobs that no other checkpoint names.

        A blob that no checkpoint has ever named may go, too: a checkpoint is stored together with its blobs. Of dead
        namespaces, blobs and writes go without asking who names them. A checkpoint that stays and whose parent is
        deleted is left without a parent. What is neither doomed nor dead is not touched else, so what a run stores
        meanwhile stays, whatever its id; a run's next checkpoint names blobs of its own and of its parent, which is
        kept.
        """


class Strategy(ABC):
    """What the savers do in a database, on one set of tables, in a transaction that the executor is in."""

    filters_exactly: ClassVar[bool]
    """Whether `read` returns no checkpoint but those that fit the filter."""

    looks_first: ClassVar[bool] = False
    """Whether rows are inserted because they were not there, so that the database refuses one that comes in between.

    The operation can then be done again.
    """

    is_one_statement: ClassVar[bool] = False
    """Whether each method but those for the maintenance of threads is one statement, atomic by itself.

    But for rows that are `is_large`.
    """

    def __init__(self, tables: Tables) -> None:
        self.tables = tables

    def check(self, connection: Connection) -> None:  # noqa: B027 (most connections will do)
        """Refuse a connection over which values would be lost.

        Raises:
            UnsupportedDatabase: The message says what has to be different.
        """

    @abstractmethod
    def put(
        self,
        executor: Executor,
        checkpoint: Parameters,
        blobs: Sequence[Parameters],
        named: Sequence[tuple[str, str]],
        *,
        shared: bool,
    ) -> None:
        """Insert or replace a checkpoint, and insert the blobs that are not there yet.

        Args:
            executor: The transaction.
            checkpoint: thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, checkpoint, metadata; the last
                two are JSON text.
            blobs: For each: channel, version, type, blob.
            named: Channel and version of every blob that this checkpoint may have.
            shared: Whether a blob may be there for another checkpoint, and must not be deleted with that meanwhile.
        """

    @abstractmethod
    def put_writes(self, executor: Executor, task: Parameters, writes: Sequence[Parameters], *, replace: bool) -> None:
        """Insert a task's writes.

        Args:
            executor: The transaction.
            task: thread_id, checkpoint_ns, checkpoint_id, task_id, task_path.
            writes: For each: idx, channel, type, blob; no idx twice.
            replace: Whether a write that is already there is replaced or kept.
        """

    @abstractmethod
    def delete_thread(self, executor: Executor, thread_id: str) -> None:
        """Delete everything of a thread."""

    @abstractmethod
    def read(
        self, executor: Executor, shape: ReadShape, parameters: Parameters, filter: Mapping[str, Any] | None = None
    ) -> Rows:
        """Read checkpoints with all that belongs to them.

        Args:
            executor: The transaction.
            shape: The conditions.
            parameters: A value for each of them.
            filter: What their metadata contains; others come back, too, unless `filters_exactly`.
        """

    @abstractmethod
    def lock_thread(self, executor: Executor, thread_id: str) -> None:
        """Let no other maintenance of this thread run at the same time, until the transaction ends."""

    @abstractmethod
    def has_rows(self, executor: Executor, thread_id: str) -> bool:
        """Whether anything is stored for a thread."""

    @abstractmethod
    def copy(self, executor: Executor, source: str, target: str) -> None:
        """Copy every row of a thread to another, inside the database."""

    @abstractmethod
    def threads_of_runs(self, executor: Executor, run_ids: Sequence[str]) -> Sequence[str]:
        """The threads in which runs stored checkpoints."""

    @abstractmethod
    def checkpoints_of_runs(self, executor: Executor, thread_id: str, run_ids: Sequence[str]) -> Sequence[Key]:
        """The checkpoints of a thread that runs stored."""

    @abstractmethod
    def thread(self, executor: Executor, thread_id: str) -> Thread:
        """A thread under maintenance."""

    @abstractmethod
    def delta_history(self, executor: Executor, parameters: Parameters, channels: Sequence[str]) -> Rows:
        """Walk from a checkpoint's parent to each channel's nearest stored value, or to the root.

        The rows are of two kinds (`RowKind`): an ANCESTOR for each step and channel, `version` START for the first one,
        and each write to the channel there, or none; and a SEED where the value is, with the checkpoint's JSON, and the
        `type` and `blob` of a value that is one.

        Args:
            executor: The transaction.
            parameters: thread_id, checkpoint_ns, and checkpoint_id unless it is the latest one.
            channels: Their names, each once.
        """
