"""The history of delta channels: what was written to each since its value was last stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
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
        parents: By checkpoint id: the parent's.
        writes: By checkpoint id, and by what they are sorted by: task, type and bytes.
        seed: The JSON of the checkpoint that has a value, and the type and bytes of one that is a blob.
    """

    start: str | None = None
    parents: dict[str, str | None] = field(default_factory=dict)
    writes: dict[str, dict[_WriteKey, tuple[str, str, bytes]]] = field(default_factory=dict)
    seed: tuple[str, str | None, bytes | None] | None = None

    def history(self, serde: SerializerProtocol, channel: str) -> DeltaChannelHistory:
        """Put it in order, and deserialise it."""
        found: list[tuple[str, str, Any]] = []
        for checkpoint_id in self._oldest_first():
            writes = self.writes.get(checkpoint_id, {})
            for key in sorted(writes) if len(writes) > 1 else writes:
                task_id, tag, data = writes[key]
                found.append((task_id, channel, _codec.load_value(serde, tag, data)))
        history: DeltaChannelHistory = {"writes": found}
        if self.seed is not None:
            history["seed"] = self._load_seed(serde, channel, *self.seed)
        return history

    def _oldest_first(self) -> Sequence[str]:
        """The steps in order, by their links; each once, if they are a cycle."""
        path: dict[str, None] = {}
        step = self.start
        while step is not None and step in self.parents and step not in path:
            path[step] = None
            step = self.parents[step]
        return list(path)[::-1]

    @staticmethod
    def _load_seed(serde: SerializerProtocol, channel: str, checkpoint: str, tag: str | None, data: Any) -> Any:
        value = (load_json(checkpoint).get("channel_values") or {}).get(channel, True)
        return _codec.load_value(serde, tag, data) if value is True and tag is not None else value


def _paths(channels: Sequence[str], rows: Rows) -> Mapping[str, _Path]:
    """The rows of `Strategy.delta_history`, by channel."""
    paths = {channel: _Path() for channel in channels}
    seed = int(RowKind.SEED)
    # By position, since a name takes longer to look up in a row than all the rest.
    for kind, _, _, checkpoint_id, parent, checkpoint, _, channel, version, tag, data, task_id, task_path, idx in rows:
        path = paths[channel]
        if kind == seed:
            path.seed = (checkpoint, tag, data)
            continue
        path.parents[checkpoint_id] = parent
        if version == START:
            path.start = checkpoint_id
        if task_id is not None:
            # By a key, because the path comes by the first step of a cycle twice.
            key = writes_sort_key(task_path, task_id, idx)
            path.writes.setdefault(checkpoint_id, {})[key] = (task_id, tag, data)
    return paths
