"""The agent: a model and two tools, one of which needs the user's approval.

The model is any of LangChain's: name one in `$CHAT_MODEL`, such as `openai:gpt-5.5`, with its package installed, or
return one from `chat_model`.
"""

from __future__ import annotations

from typing import Any, TypeAlias
from uuid import uuid4

from langchain.agents import AgentState, create_agent
from langchain.agents.middleware import after_model
from langchain.chat_models import init_chat_model
from langchain.tools import tool
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import ToolMessage
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph.state import CompiledStateGraph
from langgraph.runtime import Runtime
from langgraph.types import interrupt

from .scripted_model import ScriptedModel
from .settings import Settings

Graph: TypeAlias = CompiledStateGraph[Any, Any, Any, Any]


def chat_model(settings: Settings) -> BaseChatModel:
    """The place for your model."""
    if settings.chat_model:
        return init_chat_model(settings.chat_model)
    return ScriptedModel(seconds_per_word=settings.seconds_per_word)


@tool
async def find_restaurant(city: str) -> str:
    """Find a good restaurant in a city."""
    return f"Chez {city}"


@tool
async def book_table(restaurant: str) -> str:
    """Book a table at a restaurant."""
    return f"Booked a table at {restaurant}, reference {uuid4().hex}."


@after_model
async def ask_first(state: AgentState[Any], _runtime: Runtime[Any]) -> dict[str, Any] | None:
    """Before a table is booked, stop and ask.

    This is a step of its own, so that the answer is stored when the tool starts: if the tool fails, or is cut off,
    nobody is asked again.
    """
    calls = [call for call in getattr(state["messages"][-1], "tool_calls", []) if call["name"] == book_table.name]
    if not calls:
        return None
    restaurants = " and at ".join(call["args"]["restaurant"] for call in calls)
    # The run stops here and is stored. It goes on when someone answers, in whichever process that is.
    if interrupt(f"May I book a table at {restaurants}?") == "yes":
        return None
    refused = [ToolMessage("The user did not allow it.", name=call["name"], tool_call_id=call["id"]) for call in calls]
    return {"messages": refused}


def build_agent(model: BaseChatModel, saver: BaseCheckpointSaver[str]) -> Graph:
    return create_agent(model, [find_restaurant, book_table], middleware=[ask_first], checkpointer=saver)
