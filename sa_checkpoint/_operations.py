"""What each of the savers' methods does, once, for sync and async alike.

A function here checks its arguments and serialises, all before a connection is needed, and returns an `Operation`.
The saver runs it: `execute` on a Connection, which is held for just that, then `decode` when it has been given back.
Errors of the caller are therefore raised at the call, before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

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

from sa_checkpoint import _codec, _filters
from sa_checkpoint._execution import Operation, Transaction, writing
from sa_checkpoint._json import dump_json, load_json
from sa_checkpoint._messages import reading
from sa_checkpoint._records import Record, config_of, records_of, weight_of
from sa_checkpoint._repeats import remembering
from sa_checkpoint._strategy import ReadShape, Rows
from sa_checkpoint._text import identifier
from sa_checkpoint.errors import InvalidConfig, InvalidValue

# More than the 100 that are often asked for: a page that is not full is the last one.
PAGE_SIZE = 128


def nothing(_result: Any) -> None:
    """The result of an operation that has none."""


def _configurable(config: RunnableConfig | None) -> Mapping[str, Any]:
    configurable = (config or {}).get("configurable") or {}
    if "thread_id" not in configurable or configurable["thread_id"] is None:
        raise InvalidConfig(
            "The config has no thread_id, so there is no thread to read or write: pass "
            '{"configurable": {"thread_id": "..."}}.'
        )
    return configurable


def key_of(config: RunnableConfig) -> dict[str, str]:
    """thread_id and checkpoint_ns of a config, as their columns hold them."""
    configurable = _configurable(config)
    return {
        "thread_id": identifier("thread_id", configurable["thread_id"]),
        "checkpoint_ns": identifier("checkpoint_ns", configurable.get("checkpoint_ns") or ""),
    }


def checkpoint_id_of(config: RunnableConfig) -> str | None:
    checkpoint_id = get_checkpoint_id(config)
    return identifier("checkpoint_id", checkpoint_id) if checkpoint_id else None


def put(
    serde: SerializerProtocol,
    config: RunnableConfig,
    checkpoint: Checkpoint,
    metadata: CheckpointMetadata,
    new_versions: ChannelVersions,
) -> Operation[RunnableConfig]:
    """Store a checkpoint and the blobs of the channels that it changed, in one statement or transaction."""
    key = key_of(config)
    checkpoint_id = identifier("checkpoint id", checkpoint["id"])
    values = _codec.encode_values(
        serde, checkpoint["channel_values"], checkpoint.get("channel_versions") or {}, new_versions
    )
    document = {**checkpoint, "channel_values": values.inline}
    if values.blob_versions:
        document[_codec.BLOB_VERSIONS] = values.blob_versions
    row = {
        **key,
        "checkpoint_id": checkpoint_id,
        "parent_checkpoint_id": checkpoint_id_of(config),
        "checkpoint": dump_json("checkpoint", document),
        "metadata": dump_json(
            "metadata", cast(Mapping[str, Any], get_serializable_checkpoint_metadata(config, metadata))
        ),
    }
    saved = config_of(**key, checkpoint_id=checkpoint_id)
    shared = any(values.blob_versions.values())
    named = _codec.named_blobs(document)
    return writing(
        lambda strategy, executor: strategy.put(executor, row, values.blobs, named, shared=shared),
        saved,
        rows=values.blobs,
        is_constant=True,
    )


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
    checkpoint_id = checkpoint_id_of(config)
    if checkpoint_id is None:
        raise InvalidConfig(
            "put_writes needs the checkpoint that the task belongs to: pass a config with a checkpoint_id, such as "
            "the one that put returned."
        )
    task = {
        **key_of(config),
        "checkpoint_id": checkpoint_id,
        "task_id": identifier("task_id", task_id),
        "task_path": identifier("task_path", task_path),
    }
    replaces = all(channel in WRITES_IDX_MAP for channel, _ in writes)
    rows: dict[int, dict[str, Any]] = {}
    for position, (channel, value) in enumerate(writes):
        idx = WRITES_IDX_MAP.get(channel, position)
        tag, data = _codec.dump_value(serde, value)
        row = {"idx": idx, "channel": identifier("channel", channel), "type": tag, "blob": data}
        if replaces or idx not in rows:
            rows[idx] = row
    if not rows:
        return writing(lambda _strategy, _executor: None, None)
    # In one order for all, so that two transactions that store the same writes do not wait for each other.
    batch = [rows[idx] for idx in sorted(rows)]
    return writing(
        lambda strategy, executor: strategy.put_writes(executor, task, batch, replace=replaces),
        None,
        rows=batch,
        is_constant=True,
    )


def delete_thread(thread_id: str) -> Operation[None]:
    """Delete a thread's checkpoints, blobs and writes in all its namespaces."""
    thread = identifier("thread_id", thread_id)
    return writing(lambda strategy, executor: strategy.delete_thread(executor, thread), None, is_constant=True)


def get_tuple(serde: SerializerProtocol, config: RunnableConfig) -> Operation[CheckpointTuple | None]:
    """Read the checkpoint that the config names, or the thread's latest one in that namespace."""
    parameters = key_of(config)
    checkpoint_id = checkpoint_id_of(config)
    if checkpoint_id is not None:
        parameters["checkpoint_id"] = checkpoint_id
    shape = ReadShape(checkpoint_id=checkpoint_id is not None)

    def work(transaction: Transaction) -> Rows:
        return transaction.strategy.read(transaction, shape, parameters)

    def decode(rows: Rows) -> CheckpointTuple | None:
        return next((record.load(reading(serde)) for record in records_of(rows)), None)

    return Operation(work, decode, writes=False, is_constant=True, weigh=weight_of)


@dataclass(frozen=True)
class Page:
    """A part of a list: its checkpoints, still to be deserialised, and where the list goes on."""

    records: Sequence[Record]
    rest: Listing | None

    def serde(self, serde: SerializerProtocol) -> SerializerProtocol:
        """What deserialises them, of the saver's serde."""
        return reading(serde, remembering) if len(self.records) > 1 else reading(serde)


@dataclass(frozen=True)
class Listing:
    """What is left of a list: its conditions, and how many checkpoints are still wanted (None for all)."""

    shape: ReadShape
    parameters: Mapping[str, str]
    filter: Mapping[str, Any]
    limit: int | None

    def page(self) -> Operation[Page]:
        """Read the next checkpoints, at most a page of them, without those that only nearly fit the filter."""
        size = PAGE_SIZE if self.limit is None else min(PAGE_SIZE, self.limit)

        def work(transaction: Transaction) -> tuple[Rows, bool]:
            strategy = transaction.strategy
            rows = strategy.read(transaction, self.shape, {**self.parameters, "limit": size}, self.filter)
            return rows, strategy.filters_exactly

        def decode(found: tuple[Rows, bool]) -> Page:
            rows, fits = found
            records = records_of(rows)
            fitting = [record for record in records if fits or _filters.contains(record.metadata, self.filter)]
            wanted = None if self.limit is None else self.limit - len(fitting)
            if len(records) < size or wanted == 0:
                return Page(fitting, None)
            return Page(fitting, self._after(records[-1], wanted))

        return Operation(work, decode, writes=False, is_constant=not self.filter)

    def _after(self, last: Record, limit: int | None) -> Listing:
        key = {
            "after_thread_id": last.thread_id,
            "after_checkpoint_ns": last.checkpoint_ns,
            "after_checkpoint_id": last.checkpoint_id,
        }
        return replace(self, shape=self.shape._replace(after=True), parameters={**self.parameters, **key}, limit=limit)


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
                parameters[name] = identifier(name, configurable[name])
        if (checkpoint_id := checkpoint_id_of(config)) is not None:
            parameters["checkpoint_id"] = checkpoint_id
    if before and (before_id := checkpoint_id_of(before)) is not None:
        parameters["before"] = before_id
    if filter is not None and not isinstance(filter, Mapping):
        raise InvalidValue(f"filter is {filter!r}: pass a dict of what the metadata has to contain.")
    if limit is not None and (not isinstance(limit, int) or limit < 0):
        raise InvalidValue(f"limit is {limit!r}: pass a number of checkpoints, or None for all of them.")
    # As the metadata itself was stored: keys that are no strings become ones, tuples lists.
    filter = load_json(dump_json("filter", filter)) if filter else {}
    if limit == 0:
        return None
    names = ("thread_id", "checkpoint_ns", "checkpoint_id", "before")
    shape = ReadShape(**{name: name in parameters for name in names}, many=True)
    return Listing(shape, parameters, filter, limit)
