"""The history of delta channels: what was written to each since its value was last stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import DeltaChannelHistory, writes_sort_key
from langgraph.checkpoint.serde.base import SerializerProtocol

from sa_checkpoint import _codec, _operations
from sa_checkpoint._execution import Operation, Transaction
from sa_checkpoint._json import load_json
from sa_checkpoint._messages import reading
from sa_checkpoint._records import weight_of
from sa_checkpoint._strategy import START, RowKind, Rows
from sa_checkpoint._text import identifier


def get_delta_channel_history(
    serde: SerializerProtocol, config: RunnableConfig, channels: Sequence[str]
) -> Operation[Mapping[str, DeltaChannelHistory]]:
    """Walk the parents of a checkpoint, for all channels in one statement."""
    parameters = _operations.key_of(config)
    checkpoint_id = _operations.checkpoint_id_of(config)
    if checkpoint_id is not None:
        parameters["checkpoint_id"] = checkpoint_id
    names = [identifier("channel", channel) for channel in dict.fromkeys(channels)]

    def work(transaction: Transaction) -> Rows:
        return transaction.strategy.delta_history(transaction, parameters, names)

    def decode(rows: Rows) -> Mapping[str, DeltaChannelHistory]:
        reads = reading(serde)
        return {name: path.history(reads, name) for name, path in _paths(names, rows).items()}

    return Operation(work, decode, writes=False, weigh=weight_of)


_WriteKey = tuple[Any, ...]


@dataclass
class _Path:
    """What was found for one channel.

    Attributes:
        start: The id of the first checkpoint.
        steps: By checkpoint id: the parent's, whether it has a value, and then its JSON.
        writes: By checkpoint id, and by what they are sorted by: task, type and bytes.
        blob: The type and bytes of the value, if that is a blob.
    """

    start: str | None = None
    steps: dict[str, tuple[str | None, int, str]] = field(default_factory=dict)
    writes: dict[str, dict[_WriteKey, tuple[str, str, bytes]]] = field(default_factory=dict)
    blob: tuple[str, bytes] | None = None

    def history(self, serde: SerializerProtocol, channel: str) -> DeltaChannelHistory:
        """Put it in order, and deserialise it."""
        history: DeltaChannelHistory = {"writes": []}
        for checkpoint_id in self._oldest_first():
            for _, (task_id, tag, data) in sorted(self.writes.get(checkpoint_id, {}).items(), key=itemgetter(0)):
                history["writes"].append((task_id, channel, _codec.load_value(serde, tag, data)))
            _, has_value, checkpoint = self.steps[checkpoint_id]
            if has_value:
                history["seed"] = self._seed(serde, channel, checkpoint)
        return history

    def _oldest_first(self) -> Sequence[str]:
        """The steps in order, by their links; each once, if they are a cycle."""
        path: dict[str, None] = {}
        step = self.start
        while step is not None and step in self.steps and step not in path:
            path[step] = None
            step = self.steps[step][0]
        return list(path)[::-1]

    def _seed(self, serde: SerializerProtocol, channel: str, checkpoint: str) -> Any:
        value = (load_json(checkpoint).get("channel_values") or {}).get(channel, True)
        return _codec.load_value(serde, *self.blob) if value is True and self.blob else value


def _paths(channels: Sequence[str], rows: Rows) -> Mapping[str, _Path]:
    """The rows of `Strategy.delta_history`, by channel."""
    paths = {channel: _Path() for channel in channels}
    ancestor, blob = int(RowKind.ANCESTOR), int(RowKind.BLOB)
    # By position, since a name takes longer to look up in a row than all the rest.
    for kind, _, _, checkpoint_id, parent, checkpoint, _, channel, version, tag, data, task_id, task_path, idx in rows:
        path = paths[channel]
        if kind == ancestor:
            path.steps[checkpoint_id] = (parent, idx, checkpoint)
            if version == START:
                path.start = checkpoint_id
        elif kind == blob:
            path.blob = path.blob or (tag, data)
        else:
            # By a key, because the path comes by the first step of a cycle twice.
            key = writes_sort_key(task_path, task_id, idx)
            path.writes.setdefault(checkpoint_id, {})[key] = (task_id, tag, data)
    return paths
