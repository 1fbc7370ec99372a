"""The history of delta channels: what was written to each since its value was last stored."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import DeltaChannelHistory, writes_sort_key
from langgraph.checkpoint.serde.base import SerializerProtocol
from sqlalchemy import Row

from sa_checkpoint import _codec, _operations
from sa_checkpoint._execution import Operation, Transaction
from sa_checkpoint._json import load_json
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
        return {channel: _history(serde, [row for row in rows if row.channel == channel]) for channel in names}

    return Operation(work, decode, writes=False, weigh=weight_of)


def _history(serde: SerializerProtocol, rows: Sequence[Row[Any]]) -> DeltaChannelHistory:
    """The history of one channel from its own rows."""
    writes: dict[str, dict[tuple[str, str, int], Row[Any]]] = {}
    for row in rows:
        if row.kind == RowKind.WRITE:
            # By a key, because the path comes by the first step of a cycle twice.
            key = writes_sort_key(row.task_path, row.task_id, row.idx)
            writes.setdefault(row.checkpoint_id, {})[key] = row
    history: DeltaChannelHistory = {"writes": []}
    for step in _oldest_first([row for row in rows if row.kind == RowKind.ANCESTOR]):
        for _, row in sorted(writes.get(step.checkpoint_id, {}).items()):
            history["writes"].append((row.task_id, row.channel, _codec.load_value(serde, row.type, row.blob)))
        if step.idx:
            history["seed"] = _seed(serde, step, [row for row in rows if row.kind == RowKind.BLOB])
    return history


def _oldest_first(steps: Sequence[Row[Any]]) -> list[Row[Any]]:
    """Put the steps of a path in order, by their links; each once, if they are a cycle."""
    by_id = {step.checkpoint_id: step for step in steps}
    step = next((step for step in steps if step.version == START), None)
    path: dict[str, Row[Any]] = {}
    while step is not None and step.checkpoint_id not in path:
        path[step.checkpoint_id] = step
        step = by_id.get(step.parent_checkpoint_id)
    return list(path.values())[::-1]


def _seed(serde: SerializerProtocol, step: Row[Any], blobs: Sequence[Row[Any]]) -> Any:
    inline = load_json(step.checkpoint).get("channel_values") or {}
    value = inline.get(step.channel, True)
    if value is True and blobs:
        return _codec.load_value(serde, blobs[0].type, blobs[0].blob)
    return value
