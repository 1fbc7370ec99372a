"""Messages of all kinds, as chats and agents have them."""

from __future__ import annotations

from typing import Any

from langchain_core.messages import (
    AIMessage,
    AIMessageChunk,
    BaseMessage,
    ChatMessage,
    FunctionMessage,
    HumanMessage,
    RemoveMessage,
    SystemMessage,
    ToolMessage,
)
from pydantic import BaseModel, Field


class Artifact(BaseModel):
    names: list[str]


class Whisper(AIMessage):
    """A kind of message of the application's own."""

    volume: list[int] = Field(default_factory=list)


def nested(depth: int) -> dict[str, Any]:
    inner: dict[str, Any] = {"end": []}
    for _ in range(depth):
        inner = {"a": [inner]}
    return inner


CALL_OF_OLD = {"id": "1", "type": "function", "function": {"name": "f", "arguments": '{"a": 1}'}}

MESSAGES: dict[str, BaseMessage] = {
    "human": HumanMessage("hello", id="1", name="Ann"),
    "blocks": HumanMessage([{"type": "text", "text": "look", "cache": {"ttl": 5}}, "here"], id="2"),
    "ai": AIMessage(
        "x" * 5000,
        id="3",
        tool_calls=[{"name": "search", "args": {"words": ["a", {"b": None}]}, "id": "call"}],
        usage_metadata={"input_tokens": 1, "output_tokens": 2, "total_tokens": 3},
        response_metadata={"model": "m", "logprobs": [0.5, True]},
    ),
    "bytes": AIMessage("", additional_kwargs={"signature": b"\0\xff"}),
    "deep": AIMessage("", additional_kwargs=nested(40)),
    "deeper": AIMessage("", additional_kwargs=nested(120)),
    "more fields": AIMessage("x", shade=["of", {"a": "field"}]),
    "artifact": ToolMessage("result", tool_call_id="call", artifact=Artifact(names=["a"])),
    "tuples": ToolMessage("result", tool_call_id="call", artifact={"set": {1, 2}, 3: "three"}),
    "system": SystemMessage(["be", {"type": "text", "text": "brief"}], additional_kwargs={"when": {1: (2, 3)}}),
    "chat": ChatMessage(content="hello", role="critic"),
    "function": FunctionMessage(content="42", name="answer"),
    "chunk": AIMessageChunk(content="par", tool_call_chunks=[{"name": "f", "args": "{", "id": "1", "index": 0}]),
    "calls of old": AIMessage("", additional_kwargs={"tool_calls": [CALL_OF_OLD]}),
    "invalid call": AIMessage("", invalid_tool_calls=[{"name": "f", "args": "{", "id": "1", "error": "no JSON"}]),
    "tool": ToolMessage(["two", {"type": "text", "text": "blocks"}], tool_call_id="call", status="error"),
    "extended": HumanMessage("x", name="Ünï\0 \U0001f600", response_metadata={"float": 1e300, "int": -(2**63)}),
    "removal": RemoveMessage("4"),
    "own": Whisper(content="psst", volume=[0, 1]),
}
