"""What each of the savers' methods does, once, for sync and async alike.

A function here checks its arguments and serialises, all before a connection is needed, and returns an `Operation`.
The saver runs it: `execute` on a Connection, which is held for just that, then `decode` when it has been given back.
Errors of the caller are therefore raised at the call, before anything is written.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Any, Generic, TypeVar, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    WRITES_IDX_MAP,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    get_checkpoint_id,
    get_serializable_checkpoint_metadata,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from sqlalchemy import Connection
from sqlalchemy.exc import DBAPIError

from sa_checkpoint import _codec, _filters
from sa_checkpoint._postgresql import PostgreSQLStatements
from sa_checkpoint._records import Record, Rows, config_of, records_of
from sa_checkpoint._sqlite import SQLiteStatements
from sa_checkpoint._statements import Call, ReadShape, Statements
from sa_checkpoint._tables import TABLES
from sa_checkpoint.errors import (
    InvalidConfig,
    InvalidValue,
    SchemaOutOfDate,
    UnsupportedDatabase,
    is_schema_error,
)

T = TypeVar("T")

PAGE_SIZE = 100
_STRATEGIES: Mapping[str, type[Statements]] = {
    "postgresql": PostgreSQLStatements,
    "sqlite": SQLiteStatements,
}


@cache
def statements_for(dialect: str) -> Statements:
    """The statements of a dialect, built at first use.

    Args:
        dialect: SQLAlchemy's name of it.

    Raises:
        UnsupportedDatabase: There are none.
    """
    if dialect not in _STRATEGIES:
        raise UnsupportedDatabase(
            f"sa_checkpoint has no statements for {dialect!r} yet: use an engine for "
            + " or ".join(sorted(_STRATEGIES))
            + "."
        )
    return _STRATEGIES[dialect](TABLES)


@dataclass(frozen=True)
class Operation(Generic[T]):
    """One unit of work of a saver.

    Attributes:
        calls: The statements to execute, for a dialect's strategy.
        decode: What to make of the rows of the last one.
    """

    calls: Callable[[Statements], list[Call]]
    decode: Callable[[Rows], T]

    def execute(self, connection: Connection) -> Rows:
        """Execute the statements and fetch what they return; the transaction is the caller's.

        Raises:
            SchemaOutOfDate: A table or column is missing.
        """
        rows: Rows = ()
        try:
            for call in self.calls(statements_for(connection.dialect.name)):
                result = connection.execute(call.statement, call.parameters)
                rows = result.fetchall() if result.returns_rows else ()
        except DBAPIError as error:
            if is_schema_error(error):
                url = connection.engine.url.render_as_string(hide_password=True)
                raise SchemaOutOfDate(
                    f"The checkpoint tables in {url} are missing or older than this version of sa_checkpoint "
                    f"({error.orig}). Run `alembic upgrade head`, or call the saver's setup()."
                ) from error
            raise
        return rows


def _nothing(_rows: Rows) -> None:
    return None


def _configurable(config: RunnableConfig | None) -> Mapping[str, Any]:
    configurable = (config or {}).get("configurable") or {}
    if "thread_id" not in configurable or configurable["thread_id"] is None:
        raise InvalidConfig(
            "The config has no thread_id, so there is no thread to read or write: pass "
            '{"configurable": {"thread_id": "..."}}.'
        )
    return configurable


def _key(config: RunnableConfig) -> dict[str, str]:
    """thread_id and checkpoint_ns of a config, as their columns hold them."""
    configurable = _configurable(config)
    return {
        "thread_id": _codec.identifier("thread_id", configurable["thread_id"]),
        "checkpoint_ns": _codec.identifier("checkpoint_ns", configurable.get("checkpoint_ns") or ""),
    }


def _checkpoint_id(config: RunnableConfig) -> str | None:
    checkpoint_id = get_checkpoint_id(config)
    return _codec.identifier("checkpoint_id", checkpoint_id) if checkpoint_id else None


def put(
    serde: SerializerProtocol,
    config: RunnableConfig,
    checkpoint: Checkpoint,
    metadata: CheckpointMetadata,
    new_versions: ChannelVersions,
) -> Operation[RunnableConfig]:
    """Store a checkpoint and the blobs of the channels that it changed, in one statement or transaction."""
    key = _key(config)
    checkpoint_id = _codec.identifier("checkpoint id", checkpoint["id"])
    inline, blob_values = _codec.split_values(serde, checkpoint["channel_values"])
    row = {
        **key,
        "checkpoint_id": checkpoint_id,
        "parent_checkpoint_id": _checkpoint_id(config),
        "checkpoint": _codec.dump_json("checkpoint", {**checkpoint, "channel_values": inline}),
        "metadata": _codec.dump_json(
            "metadata", cast(Mapping[str, Any], get_serializable_checkpoint_metadata(config, metadata))
        ),
    }
    blobs = []
    for channel, version in new_versions.items():
        text = _codec.version_text(channel, version)
        if channel in blob_values:
            tag, data = _codec.dump_value(serde, blob_values[channel])
            name = _codec.identifier("channel", channel)
            blobs.append({"channel": name, "version": text, "type": tag, "blob": data})
    saved = config_of(**key, checkpoint_id=checkpoint_id)
    return Operation(lambda statements: statements.put(row, blobs), lambda _rows: saved)


def put_writes(
    serde: SerializerProtocol,
    config: RunnableConfig,
    writes: Sequence[tuple[str, Any]],
    task_id: str,
    task_path: str = "",
) -> Operation[None]:
    """Store a task's writes: a batch of special channels replaces earlier ones, any other keeps them.

    Within one batch the same holds for an index that comes twice, which is what running the writes one after
    another would give.
    """
    checkpoint_id = _checkpoint_id(config)
    if checkpoint_id is None:
        raise InvalidConfig(
            "put_writes needs the checkpoint that the task belongs to: pass a config with a checkpoint_id, such as "
            "the one that put returned."
        )
    task = {
        **_key(config),
        "checkpoint_id": checkpoint_id,
        "task_id": _codec.identifier("task_id", task_id),
        "task_path": _codec.identifier("task_path", task_path),
    }
    replaces = all(channel in WRITES_IDX_MAP for channel, _ in writes)
    rows: dict[int, dict[str, Any]] = {}
    for position, (channel, value) in enumerate(writes):
        idx = WRITES_IDX_MAP.get(channel, position)
        tag, data = _codec.dump_value(serde, value)
        row = {"idx": idx, "channel": _codec.identifier("channel", channel), "type": tag, "blob": data}
        if replaces or idx not in rows:
            rows[idx] = row
    if not rows:
        return Operation(lambda _statements: [], _nothing)
    batch = list(rows.values())
    return Operation(lambda statements: statements.put_writes(task, batch, replace=replaces), _nothing)


def delete_thread(thread_id: str) -> Operation[None]:
    """Delete a thread's checkpoints, blobs and writes in all its namespaces."""
    thread = _codec.identifier("thread_id", thread_id)
    return Operation(lambda statements: statements.delete_thread(thread), _nothing)


def get_tuple(serde: SerializerProtocol, config: RunnableConfig) -> Operation[CheckpointTuple | None]:
    """Read the checkpoint that the config names, or the thread's latest one in that namespace."""
    parameters = _key(config)
    checkpoint_id = _checkpoint_id(config)
    if checkpoint_id is not None:
        parameters["checkpoint_id"] = checkpoint_id
    shape = ReadShape(checkpoint_id=checkpoint_id is not None)

    def decode(rows: Rows) -> CheckpointTuple | None:
        return next((record.load(serde) for record in records_of(rows)), None)

    return Operation(lambda statements: [statements.read(shape, parameters, limit=1)], decode)


@dataclass(frozen=True)
class Page:
    """A part of a list: its checkpoints, still to be deserialised, and where the list goes on."""

    records: Sequence[Record]
    rest: Listing | None


@dataclass(frozen=True)
class Listing:
    """What is left of a list: its conditions, and how many checkpoints are still wanted (None for all)."""

    shape: ReadShape
    parameters: Mapping[str, str]
    filter: Mapping[str, Any]
    limit: int | None

    def page(self) -> Operation[Page]:
        """Read the next checkpoints, at most a page of them, skipping those that only nearly fit the filter."""
        size = PAGE_SIZE if self.limit is None else min(PAGE_SIZE, self.limit)

        def decode(rows: Rows) -> Page:
            records = records_of(rows)
            found = [record for record in records if _filters.contains(record.metadata, self.filter)]
            wanted = None if self.limit is None else self.limit - len(found)
            if len(records) < size or wanted == 0:
                return Page(found, None)
            return Page(found, self._after(records[-1], wanted))

        return Operation(lambda statements: [statements.read(self.shape, self.parameters, size, self.filter)], decode)

    def _after(self, last: Record, limit: int | None) -> Listing:
        key = {
            "after_thread_id": last.thread_id,
            "after_checkpoint_ns": last.checkpoint_ns,
            "after_checkpoint_id": last.checkpoint_id,
        }
        return replace(self, shape=replace(self.shape, after=True), parameters={**self.parameters, **key}, limit=limit)


def listing(
    config: RunnableConfig | None,
    *,
    filter: Mapping[str, Any] | None = None,
    before: RunnableConfig | None = None,
    limit: int | None = None,
) -> Listing | None:
    """Check the arguments of `list`. None if nothing was asked for, with a limit of 0."""
    parameters: dict[str, str] = {}
    if config:
        configurable = _configurable(config)
        for name in ("thread_id", "checkpoint_ns"):
            if configurable.get(name) is not None:
                parameters[name] = _codec.identifier(name, configurable[name])
        if (checkpoint_id := _checkpoint_id(config)) is not None:
            parameters["checkpoint_id"] = checkpoint_id
    if before and (before_id := _checkpoint_id(before)) is not None:
        parameters["before"] = before_id
    if filter:
        _codec.dump_json("filter", filter)
    if limit is not None and limit < 0:
        raise InvalidValue(f"limit is {limit}: pass a number of checkpoints, or None for all of them.")
    if limit == 0:
        return None
    names = ("thread_id", "checkpoint_ns", "checkpoint_id", "before")
    shape = ReadShape(**{name: name in parameters for name in names}, ordered=True)
    return Listing(shape, parameters, filter or {}, limit)
