"""The rows of a reading statement, put together to checkpoints and deserialised."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, NamedTuple, cast

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint, CheckpointMetadata, CheckpointTuple, writes_sort_key
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.types import TASKS

from sa_checkpoint import _codec
from sa_checkpoint._json import load_json
from sa_checkpoint._strategy import READ_COLUMNS, RowKind, Rows

_Key = tuple[str | int | None, ...]
_Blob = tuple[str, bytes | None]
"""Type and bytes of a value."""


class Write(NamedTuple):
    """A pending write, and what it is sorted by."""

    sort_key: Any
    task_id: str
    channel: str
    type: str
    blob: bytes | None


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
    blobs: Mapping[str, _Blob]
    writes: Sequence[Write]
    sends: Sequence[Write]

    @property
    def weight(self) -> int:
        """How many bytes there are to deserialise."""
        blobs = sum(len(data or b"") for _, data in self.blobs.values())
        return blobs + sum(len(write.blob or b"") for write in (*self.writes, *self.sends))

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
        for channel, (tag, data) in self.blobs.items():
            # True marks a _DeltaSnapshot, whose value is the blob. Any other inline value is this checkpoint's own.
            if values.get(channel, True) is True:
                values[channel] = _codec.load_value(serde, tag, data)
        return values

    def _restore_sends(self, serde: SerializerProtocol, checkpoint: dict[str, Any]) -> None:
        """Before format 4 a checkpoint did not hold its pending sends: they were its parent's TASKS writes."""
        checkpoint["channel_values"][TASKS] = [_codec.load_value(serde, send.type, send.blob) for send in self.sends]
        versions = dict(checkpoint.get("channel_versions") or {})
        versions[TASKS] = max(versions.values()) if versions else _codec.next_version(None)
        checkpoint["channel_versions"] = versions


_BLOB_COLUMN = list(READ_COLUMNS).index("blob") + 1  # after the kind


def weight_of(rows: Rows) -> int:
    """How many bytes there are to deserialise in the rows of a reading statement."""
    return sum(len(row[_BLOB_COLUMN] or b"") for row in rows)


def records_of(rows: Rows) -> list[Record]:
    """The checkpoints among the rows of a reading statement, in the order they came, each with its own."""
    checkpoint_kind, blob_kind = int(RowKind.CHECKPOINT), int(RowKind.BLOB)
    found: list[tuple[str, str, str, str | None, str, str]] = []
    blobs: dict[_Key, _Blob] = {}
    tasks: dict[_Key, list[Write]] = {}
    # By position, since a name takes longer to look up in a row than all the rest.
    for kind, thread_id, ns, checkpoint_id, parent, checkpoint, metadata, channel, version, tag, data, *task in rows:
        if kind == checkpoint_kind:
            found.append((thread_id, ns, checkpoint_id, parent, checkpoint, metadata))
        elif kind == blob_kind:
            blobs[thread_id, ns, channel, version] = (tag, data)
        else:
            task_id, task_path, idx = task
            write = Write(writes_sort_key(task_path, task_id, idx), task_id, channel, tag, data)
            tasks.setdefault((kind, thread_id, ns, checkpoint_id), []).append(write)
    for writes in tasks.values():
        writes.sort(key=_sort_key)
    return [_record(row, blobs, tasks) for row in found]


_sort_key = itemgetter(0)


def _record(
    row: tuple[str, str, str, str | None, str, str],
    blobs: Mapping[_Key, _Blob],
    tasks: Mapping[_Key, Sequence[Write]],
) -> Record:
    thread_id, checkpoint_ns, checkpoint_id, parent_checkpoint_id, text, metadata = row
    checkpoint = load_json(text)
    versions = _codec.blob_versions_of(checkpoint)
    for name in (_codec.BLOB_VERSIONS, _codec.NAMED_BLOBS):
        checkpoint.pop(name, None)
    found: dict[str, _Blob] = {}
    for channel, version in versions.items():
        blob = blobs.get((thread_id, checkpoint_ns, channel, version))
        if blob is not None:
            found[channel] = blob
    return Record(
        thread_id=thread_id,
        checkpoint_ns=checkpoint.pop(_codec.NAMESPACE, checkpoint_ns),
        checkpoint_id=checkpoint_id,
        parent_checkpoint_id=parent_checkpoint_id,
        checkpoint=checkpoint,
        metadata=load_json(metadata),
        blobs=found,
        writes=tasks.get((int(RowKind.WRITE), thread_id, checkpoint_ns, checkpoint_id), ()),
        sends=tasks.get((int(RowKind.SEND), thread_id, checkpoint_ns, checkpoint_id), ()),
    )
