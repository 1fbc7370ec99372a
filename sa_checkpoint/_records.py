"""The rows of a reading statement, put together to checkpoints and deserialised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata, CheckpointTuple, writes_sort_key
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.types import TASKS
from sqlalchemy import Row

from sa_checkpoint import _codec
from sa_checkpoint._json import load_json
from sa_checkpoint._strategy import RowKind, Rows

_Key = tuple[str | int | None, ...]


def config_of(thread_id: str, checkpoint_ns: str, checkpoint_id: str) -> RunnableConfig:
    """The config that names a checkpoint."""
    return {
        "configurable": {
            "thread_id": thread_id,
            "checkpoint_ns": checkpoint_ns,
            "checkpoint_id": checkpoint_id,
        }
    }


@dataclass(frozen=True)
class Record:
    """A checkpoint as it was read, with the rows that belong to it.

    Attributes:
        checkpoint: The JSON column, decoded; `channel_values` has the inline ones only.
        metadata: The JSON column, decoded.
        blobs: By channel.
        writes: Pending writes, in the order that live execution applies them in.
        sends: For a checkpoint older than format 4, the parent's TASKS writes, in the same order.
    """

    thread_id: str
    checkpoint_ns: str
    checkpoint_id: str
    parent_checkpoint_id: str | None
    checkpoint: dict[str, Any]
    metadata: dict[str, Any]
    blobs: Mapping[str, Row[Any]]
    writes: Sequence[Row[Any]]
    sends: Sequence[Row[Any]]

    def load(self, serde: SerializerProtocol) -> CheckpointTuple:
        """Deserialise it."""
        key = (self.thread_id, self.checkpoint_ns)
        parent = self.parent_checkpoint_id
        checkpoint = {**self.checkpoint, "channel_values": self._channel_values(serde)}
        if self.sends:
            self._restore_sends(serde, checkpoint)
        return CheckpointTuple(
            config=config_of(*key, self.checkpoint_id),
            checkpoint=cast(Checkpoint, checkpoint),
            metadata=cast(CheckpointMetadata, self.metadata),
            parent_config=config_of(*key, parent) if parent else None,
            pending_writes=[
                (write.task_id, write.channel, _codec.load_value(serde, write.type, write.blob))
                for write in self.writes
            ],
        )

    def _channel_values(self, serde: SerializerProtocol) -> dict[str, Any]:
        values: dict[str, Any] = dict(self.checkpoint.get("channel_values") or {})
        for channel, blob in self.blobs.items():
            # True marks a _DeltaSnapshot, whose value is the blob. Any other inline value is this checkpoint's own.
            if values.get(channel, True) is True:
                values[channel] = _codec.load_value(serde, blob.type, blob.blob)
        return values

    def _restore_sends(self, serde: SerializerProtocol, checkpoint: dict[str, Any]) -> None:
        """Before format 4 a checkpoint did not hold its pending sends: they were its parent's TASKS writes."""
        checkpoint["channel_values"][TASKS] = [_codec.load_value(serde, send.type, send.blob) for send in self.sends]
        versions = dict(checkpoint.get("channel_versions") or {})
        versions[TASKS] = max(versions.values()) if versions else _codec.next_version(None)
        checkpoint["channel_versions"] = versions


def records_of(rows: Rows) -> list[Record]:
    """The checkpoints among the rows of a reading statement, in the order they came, each with its own."""
    found: list[Row[Any]] = []
    blobs: dict[_Key, Row[Any]] = {}
    tasks: dict[_Key, list[Row[Any]]] = {}
    for row in rows:
        if row.kind == RowKind.CHECKPOINT:
            found.append(row)
        elif row.kind == RowKind.BLOB:
            blobs[row.thread_id, row.checkpoint_ns, row.channel, row.version] = row
        else:
            tasks.setdefault((row.kind, row.thread_id, row.checkpoint_ns, row.checkpoint_id), []).append(row)
    for task_rows in tasks.values():
        task_rows.sort(key=lambda row: writes_sort_key(row.task_path, row.task_id, row.idx))
    return [_record(row, blobs, tasks) for row in found]


def _record(row: Row[Any], blobs: Mapping[_Key, Row[Any]], tasks: Mapping[_Key, Sequence[Row[Any]]]) -> Record:
    namespace = (row.thread_id, row.checkpoint_ns)
    key = (*namespace, row.checkpoint_id)
    checkpoint = load_json(row.checkpoint)
    versions = _codec.blob_versions_of(checkpoint)
    for name in (_codec.BLOB_VERSIONS, _codec.NAMED_BLOBS):
        checkpoint.pop(name, None)
    keys = {channel: (*namespace, channel, version) for channel, version in versions.items()}
    return Record(
        thread_id=row.thread_id,
        checkpoint_ns=checkpoint.pop(_codec.NAMESPACE, row.checkpoint_ns),
        checkpoint_id=row.checkpoint_id,
        parent_checkpoint_id=row.parent_checkpoint_id,
        checkpoint=checkpoint,
        metadata=load_json(row.metadata),
        blobs={channel: blobs[key] for channel, key in keys.items() if key in blobs},
        writes=tasks.get((RowKind.WRITE, *key), ()),
        sends=tasks.get((RowKind.SEND, *key), ()),
    )
