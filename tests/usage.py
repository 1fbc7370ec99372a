"""One use of everything that a saver does, each result checked: for tests in which only the surroundings are special.

What the methods do in detail is tested elsewhere. Here each is called once or twice, with values that every way of
storing them is needed for.
"""

from __future__ import annotations

import math
from datetime import UTC, datetime
from operator import add
from typing import Annotated, Any, TypedDict

from langchain_core.messages import HumanMessage
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.serde.types import ERROR
from langgraph.graph import START, StateGraph

from tests.backends import Client, Graph
from tests.checkpoints import checkpoint_of, config_of

VALUES: dict[str, Any] = {
    "none": None,
    "bool": True,
    "int": -7,
    "large": 2**70,
    "float": 0.1,
    "infinity": math.inf,
    "text": "'\"%s %(a)s :x ?{}[]\\",
    "nul": "a\0b",
    "surrogate": "\ud800",
    "long": "ü" * 3000,
    "bytes": b"\0\xff",
    "nested": {"list": [1, None, {"key": "value"}]},
    "time": datetime(2026, 11, 22, tzinfo=UTC),
    "message": HumanMessage("hello", id="1"),
}


async def put_chain(client: Client, thread: str) -> list[RunnableConfig]:
    """Three checkpoints, each with pending writes: a first run that stores all values, and two of a second run."""
    configs = [config_of(thread)]
    for step, run in enumerate(("first", "second", "second")):
        new = dict.fromkeys(VALUES if step == 0 else ["nested"], str(step))
        values = {**VALUES, "nested": [step] if step else VALUES["nested"]}
        versions = {**dict.fromkeys(VALUES, "0"), **new, "delta": str(step)}
        metadata: Any = {"source": "loop", "step": step, "run_id": f"{thread} {run}", "nested": {"a": [1, {"b": None}]}}
        configs.append(await client.put(configs[-1], checkpoint_of(values, versions), metadata, new))
        await client.put_writes(configs[-1], [("delta", step), *VALUES.items()], "task", "path")
    for error in ("replaced", "last"):
        await client.put_writes(configs[1], [(ERROR, error)], "task")
    return configs[1:]


async def use_one_statement_calls(client: Client, thread: str) -> None:
    """A put, put_writes and get_tuple, which sees what they have stored."""
    saved = await client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
    await client.put_writes(saved, [("a", 1), ("b", [2])], "task")
    assert (await client.load(saved)).pending_writes == [("task", "a", 1), ("task", "b", [2])]


def without_thread(found: Any) -> Any:
    """A checkpoint as it is in a thread and in its copy, which have all but their name in common."""
    metadata = {name: value for name, value in found.metadata.items() if name != "thread_id"}
    parent = found.parent_config and found.parent_config["configurable"]["checkpoint_id"]
    return found.checkpoint, metadata, parent, found.pending_writes


async def use(client: Client, thread: str) -> None:
    """Call every method on a thread and on a copy of it, and delete both."""
    copy = f"{thread} copy"
    first, second, third = configs = await put_chain(client, thread)

    latest = await client.load(config_of(thread))
    assert latest.config == third and latest.parent_config == second
    assert latest.checkpoint["channel_values"] == {**VALUES, "nested": [2]}
    oldest = await client.load(first)
    assert oldest.checkpoint["channel_values"] == VALUES and oldest.parent_config is None
    # LangGraph gives an error the index -1.
    assert oldest.pending_writes is not None
    assert sorted(oldest.pending_writes, key=lambda write: write[1] != ERROR) == [
        ("task", ERROR, "last"),
        ("task", "delta", 0),
        *(("task", channel, value) for channel, value in VALUES.items()),
    ]
    assert await client.get_tuple(config_of(f"{thread} none")) is None

    listed = await client.list(config_of(thread))
    assert [found.config for found in listed] == configs[::-1]
    assert listed[0] == latest and listed[2] == oldest
    assert await client.list(config_of(thread), before=third, limit=1) == listed[1:2]
    contained = {"step": 1, "nested": {"a": [{"b": None}]}}
    assert await client.list(config_of(thread), filter=contained) == listed[1:2]
    assert await client.list(None, filter={"run_id": f"{thread} second"}) == listed[:2]
    history = await client.delta_history(third, ["delta"])
    assert history == {"delta": {"writes": [("task", "delta", 0), ("task", "delta", 1)]}}

    await client.copy_thread(thread, copy)
    copied = await client.list(config_of(copy))
    assert [without_thread(found) for found in copied] == [without_thread(found) for found in listed]
    await client.delete_for_runs([f"{thread} first"])
    for name in (thread, copy):
        assert [found.metadata["step"] for found in await client.list(config_of(name))] == [2, 1]
    await client.prune([thread])
    (kept,) = await client.list(config_of(thread))
    assert without_thread(kept) == (*without_thread(latest)[:2], None, latest.pending_writes)
    await client.prune([copy], strategy="delete")
    await client.delete_thread(thread)
    for name in (thread, copy):
        assert await client.list(config_of(name)) == []


class Work(TypedDict):
    done: Annotated[list[str], add]


def parallel_graph(saver: Any) -> Graph:
    """Four nodes at once, and one that joins them."""
    names = ["a", "b", "c", "d"]
    builder = StateGraph(Work)
    for name in names:
        builder.add_node(name, lambda state, name=name: {"done": [name]}).add_edge(START, name)
    builder.add_node("join", lambda state: {"done": [str(len(state["done"]))]}).add_edge(names, "join")
    return builder.compile(checkpointer=saver)


async def use_graphs(client: Client, thread: str, runs: int = 4) -> None:
    """Run graphs with parallel nodes at the same time, and look at what they stored."""
    graph = parallel_graph(client.saver)
    configs = [config_of(f"{thread} run {number}") for number in range(runs)]
    inputs: list[Any] = [{"done": []}] * runs
    results = await graph.abatch(inputs, configs) if client.backend.is_async else graph.batch(inputs, configs)
    assert results == [{"done": ["a", "b", "c", "d", "4"]}] * runs
    for config in configs:
        assert (await client.get_state(graph, config)).values == results[0]
        assert len(await client.history(graph, config)) == 4
        await client.delete_thread(config["configurable"]["thread_id"])
