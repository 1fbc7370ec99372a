"""What is stored: the steps of a chat, in the shape that LangGraph gives to checkpoints, metadata and writes."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

from langchain_core.messages import AIMessage, AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import ChannelVersions, Checkpoint, CheckpointMetadata, empty_checkpoint
from langgraph.checkpoint.base.id import uuid6

from benchmarks.contestants import Saver

WINDOW = 20
"""How many messages a state has at most."""

_WORDS = (
    "the weather in that city is sunny with some wind from the north and a temperature of twenty degrees tomorrow "
    "there may be rain clouds snow or fog please take an umbrella with you when leaving your house this afternoon"
).split()


def sentence(words: int, seed: int) -> str:
    """So many words, the same for the same seed."""
    return " ".join(random.Random(seed).choices(_WORDS, k=words))


def message(number: int) -> AnyMessage:
    """The message with this number in a chat: a question of 12 words, or an answer of 40."""
    id = str(uuid4())
    if number % 2 == 0:
        return HumanMessage(sentence(12, number), id=id)
    return AIMessage(sentence(40, number), id=id, response_metadata={"model_name": "scripted", "finish_reason": "stop"})


def config_of(thread_id: str, checkpoint_id: str | None = None) -> RunnableConfig:
    """A config of the root graph."""
    configurable = {"thread_id": thread_id, "checkpoint_ns": ""}
    return {"configurable": configurable | ({"checkpoint_id": checkpoint_id} if checkpoint_id else {})}


@dataclass(frozen=True)
class Step:
    """One step of a thread: the arguments of `put`, then those of `put_writes`."""

    put: tuple[RunnableConfig, Checkpoint, CheckpointMetadata, ChannelVersions]
    put_writes: tuple[RunnableConfig, Sequence[tuple[str, Any]], str, str]


def conversation(saver: Saver, length: int, thread_id: str | None = None, messages: int = 0) -> list[Step]:
    """A chat's steps, each the parent of the next.

    Args:
        saver: Whose versions the channels have.
        length: How many steps.
        thread_id: A new thread by default.
        messages: How many messages the state has before the first step.
    """
    thread_id = thread_id or str(uuid4())
    run_id = str(uuid4())
    state: list[AnyMessage] = [message(number) for number in range(messages)]
    versions: dict[str, Any] = {}
    seen: dict[str, ChannelVersions] = {"__input__": {}}
    config = config_of(thread_id)
    steps: list[Step] = []
    for number in range(length):
        answer = message(messages + number)
        state = [*state, answer][-WINDOW:]
        trigger = f"branch:to:{'model' if number % 2 else 'tools'}"
        new_versions: ChannelVersions = {
            channel: saver.get_next_version(versions.get(channel), None) for channel in ("messages", trigger)
        }
        versions = versions | new_versions
        seen = seen | {trigger.removeprefix("branch:to:"): {trigger: versions[trigger]}}
        checkpoint: Checkpoint = {
            **empty_checkpoint(),
            "v": 4,  # as graphs store it; from older formats, savers read the pending sends of the parent, too
            "id": str(uuid6()),
            "channel_values": {"messages": state, trigger: None},
            "channel_versions": versions,
            "versions_seen": seen,
            "updated_channels": sorted(new_versions),
        }
        metadata: CheckpointMetadata = {"source": "loop", "step": number, "parents": {}, "run_id": run_id}
        saved = config_of(thread_id, checkpoint["id"])
        writes = [("messages", [answer]), ("branch:to:model", None), ("remaining", number)]
        steps.append(
            Step((config, checkpoint, metadata, new_versions), (saved, writes, str(uuid4()), "~__pregel_pull, model"))
        )
        config = saved
    return steps
