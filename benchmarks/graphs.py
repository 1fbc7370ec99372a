"""The graphs that are run: ten nodes in a chain, a chat, and one with a delta channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal, TypeAlias, TypedDict

from langchain_core.messages import AnyMessage, HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels.delta import DeltaChannel
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.graph.state import CompiledStateGraph

from benchmarks.contestants import Saver
from benchmarks.data import config_of, message, sentence

Graph: TypeAlias = CompiledStateGraph[Any, Any, Any, Any]
Durability: TypeAlias = Literal["sync", "async"]


class Chat(TypedDict):
    """The state of a chat."""

    messages: Annotated[list[AnyMessage], add_messages]


def _answer(number: int) -> Any:
    return lambda state: {"messages": [message(number)]}


def chain(saver: Saver, length: int) -> Graph:
    """A graph of so many nodes, each of which adds a message."""
    builder = StateGraph(Chat)
    names = [f"step_{number}" for number in range(length)]
    for number, name in enumerate(names):
        builder.add_node(name, _answer(2 * number + 1))
    for before, after in zip([START, *names], [*names, END], strict=True):
        builder.add_edge(before, after)
    return builder.compile(checkpointer=saver)


def run(graph: Graph, thread_id: str, durability: Durability = "sync", question: int = 0) -> None:
    """One turn of a chat."""
    graph.invoke({"messages": [HumanMessage(sentence(12, question))]}, config_of(thread_id), durability=durability)


def _extend(state: list[str], writes: Sequence[list[str]]) -> list[str]:
    return [*state, *(item for write in writes for item in write)]


class Log(TypedDict):
    """The state of a graph whose log is stored step by step."""

    log: Annotated[list[str], DeltaChannel(_extend, list, snapshot_frequency=10**6)]


def fill_delta_channel(saver: Saver, config: RunnableConfig, ancestors: int) -> None:
    """Run a graph until its last checkpoint has so many ancestors that wrote to the delta channel `log`."""
    builder = StateGraph(Log)
    builder.add_node("work", lambda state: {"log": [sentence(8, len(state["log"]))]})
    builder.add_edge(START, "work")
    builder.add_conditional_edges(
        "work", lambda state: END if len(state["log"]) == ancestors else "work", ["work", END]
    )
    graph: Graph = builder.compile(checkpointer=saver)
    graph.invoke({"log": ["begin"]}, config | {"recursion_limit": ancestors + 10}, durability="sync")
