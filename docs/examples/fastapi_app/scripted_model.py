"""A chat model that follows a script, so that the application runs without an API key. A real one replaces it.

It looks for a restaurant in the city that the user's message ends with, books a table there, and reports. Its text is
streamed word by word, as a real model's is.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from typing import Any

from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, AIMessageChunk, BaseMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatGenerationChunk, ChatResult


class ScriptedModel(BaseChatModel):
    """Stands in for a paid model.

    Attributes:
        seconds_per_word: How long it waits before each word but the first.
    """

    seconds_per_word: float = 0.0

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> ScriptedModel:
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        return ChatResult(generations=[ChatGeneration(message=reply(messages))])

    async def _astream(
        self, messages: list[BaseMessage], *args: Any, **kwargs: Any
    ) -> AsyncIterator[ChatGenerationChunk]:
        message = reply(messages)
        first, *rest = message.text.split(" ")
        yield ChatGenerationChunk(message=AIMessageChunk(content=first, tool_calls=message.tool_calls))
        for word in rest:
            await asyncio.sleep(self.seconds_per_word)
            yield ChatGenerationChunk(message=AIMessageChunk(content=f" {word}"))


def reply(messages: Sequence[BaseMessage]) -> AIMessage:
    last = messages[-1]
    if not isinstance(last, ToolMessage):
        call = {"name": "find_restaurant", "args": {"city": last.text.rstrip(".!?").split(" ")[-1]}}
    elif last.name == "find_restaurant":
        call = {"name": "book_table", "args": {"restaurant": last.text}}
    else:
        return AIMessage(f"I am done. {last.text}")
    return AIMessage("", tool_calls=[{**call, "id": f"call_{len(messages)}"}])
