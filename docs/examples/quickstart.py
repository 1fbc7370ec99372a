"""Quickstart: a weather agent whose memory is in your database, and survives a restart.

    python quickstart.py                                                  # SQLite, in ./checkpoints.db
    python quickstart.py --url postgresql://user:password@localhost/mydb  # the same on PostgreSQL
    python quickstart.py --async                                          # the same with the async saver

It needs `langchain` and `rich`, but no API key: a scripted model stands in for a paid one. With OPENAI_API_KEY and
langchain-openai, or ANTHROPIC_API_KEY and langchain-anthropic, it uses a real one.
"""

import argparse
import asyncio
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Sequence
from importlib.util import find_spec
from typing import Any, TypeAlias, TypeVar
from uuid import uuid4

from langchain.agents import create_agent
from langchain.chat_models import init_chat_model
from langchain.tools import tool
from langchain_core.language_models import BaseChatModel
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, ToolMessage
from langchain_core.outputs import ChatGeneration, ChatResult
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.graph.state import CompiledStateGraph
from langgraph.types import Command, StateSnapshot, interrupt
from rich import box
from rich.console import Console
from rich.table import Table
from sqlalchemy import make_url
from sqlalchemy.exc import SQLAlchemyError

from sa_checkpoint import AsyncSQLAlchemySaver, SQLAlchemySaver
from sa_checkpoint.errors import CheckpointerError

T = TypeVar("T")
Graph: TypeAlias = CompiledStateGraph[Any, Any, Any, Any]
console = Console(markup=False, highlight=False)


@tool
def get_weather(city: str) -> str:
    """Get the weather in a city."""
    # The run stops here and is stored. It goes on when someone answers, in whichever process that is.
    if interrupt(f"May I look up the weather in {city}?") != "yes":
        return "The user did not allow it."
    return f"It's sunny in {city}."


class ScriptedModel(BaseChatModel):
    """Stands in for a paid model: calls the tool for the city that the question ends with, and passes on its result."""

    @property
    def _llm_type(self) -> str:
        return "scripted"

    def bind_tools(self, tools: Any, **kwargs: Any) -> "ScriptedModel":
        return self

    def _generate(self, messages: list[BaseMessage], *args: Any, **kwargs: Any) -> ChatResult:
        last = messages[-1]
        if isinstance(last, ToolMessage):
            answer = AIMessage(f"I looked. {last.text}")
        else:
            call = {"name": "get_weather", "args": {"city": last.text.rstrip("?").split()[-1]}}
            answer = AIMessage("", tool_calls=[{**call, "id": f"call_{len(messages)}"}])
        return ChatResult(generations=[ChatGeneration(message=answer)])


def model_name() -> str:
    if os.environ.get("OPENAI_API_KEY") and find_spec("langchain_openai"):
        return "openai:gpt-5.5"
    if os.environ.get("ANTHROPIC_API_KEY") and find_spec("langchain_anthropic"):
        return "anthropic:claude-sonnet-5"
    return "scripted"


def weather_agent(saver: BaseCheckpointSaver[str]) -> Graph:
    model = ScriptedModel() if model_name() == "scripted" else init_chat_model(model_name())
    agent: Graph = create_agent(model, [get_weather], checkpointer=saver)
    # Metadata is stored with every checkpoint: here, which process wrote it.
    return agent.with_config({"metadata": {"process": os.getpid()}})


class AsyncAgent:
    """For `--async`: the graph's async methods under the names of its sync ones, so that one story is enough.

    The story runs in a thread, and what it calls is awaited on the event loop.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.loop = asyncio.get_running_loop()

    def wait(self, coroutine: Coroutine[Any, Any, T]) -> T:
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result()

    def invoke(self, input: Any, config: RunnableConfig) -> Any:
        return self.wait(self.graph.ainvoke(input, config))

    def get_state(self, config: RunnableConfig) -> StateSnapshot:
        return self.wait(self.graph.aget_state(config))

    def update_state(self, config: RunnableConfig, values: dict[str, Any]) -> RunnableConfig:
        return self.wait(self.graph.aupdate_state(config, values))

    def get_state_history(self, config: RunnableConfig) -> list[StateSnapshot]:
        async def collect() -> list[StateSnapshot]:
            return [state async for state in self.graph.aget_state_history(config)]

        return self.wait(collect())


Agent: TypeAlias = Graph | AsyncAgent
Story: TypeAlias = Callable[[Agent, argparse.Namespace], None]


def run(story: Story, args: argparse.Namespace) -> None:
    with SQLAlchemySaver.from_conn_string(args.url) as saver:
        saver.setup()  # runs the Alembic revisions that are missing, as `alembic upgrade head` does
        story(weather_agent(saver), args)


async def run_async(story: Story, args: argparse.Namespace) -> None:
    async with AsyncSQLAlchemySaver.from_conn_string(args.url) as saver:
        await saver.setup()
        await asyncio.to_thread(story, AsyncAgent(weather_agent(saver)), args)


def tell_story(agent: Agent, args: argparse.Namespace) -> None:
    config: RunnableConfig = {"configurable": {"thread_id": args.thread}}
    database = make_url(args.url)

    step("(a) Upgrade the tables")
    console.print(f"Done, in the {database.get_backend_name()} database {database.database}.")

    step("(b) Ask for the weather in sf")
    console.print(f"This is process {os.getpid()}. Model: {model_name()}.\nThread: {args.thread}.")
    question = HumanMessage("What is the weather in sf?", id=uuid4().hex)
    agent.invoke({"messages": [question]}, config)
    waiting = agent.get_state(config)
    console.print(*map(describe, waiting.values["messages"]), sep="\n")

    step("(c) Stop for a human's approval, before the tool runs")
    expect(waiting.interrupts, "the model did not call the tool, so there is nothing to approve")
    console.print(f"The agent asks: {waiting.interrupts[0].value}")
    console.print(f"Process {os.getpid()} does not answer. The next node is: {', '.join(waiting.next)}.")

    step("(d) Approve it in another process, on an engine of its own")
    other = subprocess.run([sys.executable, __file__, *sys.argv[1:], "--resume", args.thread])
    expect(other.returncode == 0, "the other process could not resume the thread")
    expect(not agent.get_state(config).next, "the other process left the thread unfinished")

    step("(e) Look at the history, and go back in time")
    history = list(agent.get_state_history(config))
    show("The thread so far, newest checkpoint first", history)
    # Back at the checkpoint where the question had just come in, ask another one: a message replaces the one with its
    # id. That checkpoint and those after it stay as they are, and the update begins a second branch.
    asked = next(state for state in history if state.next == ("model",) and state.values["messages"][-1] == question)
    agent.update_state(asked.config, {"messages": [HumanMessage("What is the weather in nyc?", id=question.id)]})
    agent.invoke(None, config)  # go on from the latest checkpoint, which is the update
    agent.invoke(Command(resume="yes"), config)
    history = list(agent.get_state_history(config))
    show(f"The thread with its second branch, from {short_id(asked.config)}", history)
    parents = [state.parent_config for state in history]
    ends = [state for state in reversed(history) if state.config not in parents]
    expect(len(ends) > 1, "the history does not have two branches")
    for end in ends:
        console.print(f"The branch that ends at {short_id(end.config)}: {end.values['messages'][-1].text}")


def resume(agent: Agent, args: argparse.Namespace) -> None:
    config: RunnableConfig = {"configurable": {"thread_id": args.resume}}
    waiting = agent.get_state(config)
    expect(waiting.interrupts, "this thread is not waiting for an answer")
    console.print(f"This is process {os.getpid()}. Found: {waiting.interrupts[0].value} Answered: yes.")
    agent.invoke(Command(resume="yes"), config)
    console.print(*map(describe, agent.get_state(config).values["messages"]), sep="\n")


def step(title: str) -> None:
    console.print()
    console.rule(title, align="left")


def expect(condition: object, problem: str) -> None:
    if not condition:
        sys.exit(f"Something is wrong: {problem}.")


def short_id(config: RunnableConfig | None) -> str:
    return str(config["configurable"]["checkpoint_id"])[-6:] if config else ""


def describe(message: BaseMessage) -> str:
    calls = [f"{call['name']} {call['args']}" for call in getattr(message, "tool_calls", [])]
    return f"{message.type}: {message.text or ', '.join(calls)}"


def show(title: str, history: Sequence[StateSnapshot]) -> None:
    columns = ("id", "parent", "step", "source", "process", "next", "newest message")
    table = Table(*columns, title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=0)
    for state in history:
        metadata = dict(state.metadata or {})
        ids = (short_id(state.config), short_id(state.parent_config))
        newest = [describe(message) for message in state.values.get("messages", [])[-1:]]
        values = [str(metadata.get(key, "")) for key in ("step", "source", "process")]
        table.add_row(*ids, *values, ", ".join(state.next), *newest)
    console.print(table)


def main() -> None:
    parser = argparse.ArgumentParser(description="A weather agent whose memory is in your database.")
    parser.add_argument("--url", default="sqlite:///checkpoints.db", help="the database (default: %(default)s)")
    parser.add_argument("--async", action="store_true", dest="use_async", help="use AsyncSQLAlchemySaver")
    parser.add_argument("--thread", default=uuid4().hex, help="the thread's id (default: a new one)")
    parser.add_argument("--resume", metavar="THREAD", help="only answer the question that this thread waits with")
    args = parser.parse_args()
    story = resume if args.resume else tell_story
    try:
        if args.use_async:
            asyncio.run(run_async(story, args))
        else:
            run(story, args)
    except (CheckpointerError, SQLAlchemyError) as error:
        sys.exit(f"{type(error).__name__}: {error}")


if __name__ == "__main__":
    main()
