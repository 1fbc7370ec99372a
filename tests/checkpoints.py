"""Checkpoints to store: the shape that LangGraph gives them."""

from __future__ import annotations

from typing import Any

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import Checkpoint
from langgraph.checkpoint.base.id import uuid6


def config_of(thread_id: str, checkpoint_ns: str = "", checkpoint_id: str | None = None) -> RunnableConfig:
    """A config for a thread and namespace, and a checkpoint if given."""
    configurable = {"thread_id": thread_id, "checkpoint_ns": checkpoint_ns}
    if checkpoint_id is not None:
        configurable["checkpoint_id"] = checkpoint_id
    return {"configurable": configurable}


def checkpoint_of(
    values: dict[str, Any] | None = None,
    versions: dict[str, Any] | None = None,
    *,
    id: str | None = None,
    v: int = 4,
) -> Checkpoint:
    """A checkpoint with these channel values, each at version "1" unless given."""
    values = values or {}
    checkpoint: dict[str, Any] = {
        "v": v,
        "id": id or str(uuid6()),
        "ts": "2026-11-22T12:00:00+00:00",
        "channel_values": values,
        "channel_versions": dict.fromkeys(values, "1") if versions is None else versions,
        "versions_seen": {},
        "updated_channels": None,
    }
    return checkpoint  # type: ignore[return-value]
