"""LangGraph's graphs, end to end: on every backend they do what they do with LangGraph's own saver in memory."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import aclosing, asynccontextmanager, closing
from operator import add
from threading import Event
from typing import Annotated, Any, TypedDict

import pytest
from langchain_core.messages import AIMessage, AnyMessage, HumanMessage, ToolMessage
from langchain_core.runnables import RunnableConfig
from langgraph.channels import DeltaChannel
from langgraph.checkpoint.memory import InMemorySaver
from langgraph.graph import END, START, StateGraph
from langgraph.graph.message import add_messages
from langgraph.types import Command, Durability, Send, interrupt

from tests.backends import Client, Database, Graph, saver_on

Builder = StateGraph[Any, Any, Any, Any]
every_durability = pytest.mark.parametrize("durability", ("sync", "async", "exit"))


def config_of(thread: str, **metadata: Any) -> RunnableConfig:
    return {"configurable": {"thread_id": thread}, "metadata": metadata}


@asynccontextmanager
async def process(database: Database, builder: Builder) -> AsyncIterator[tuple[Client, Graph]]:
    """A client and a graph, made as by a program that has just started."""
    async with database.engine() as engine:
        client = Client(saver_on(engine), database.backend)
        yield client, builder.compile(checkpointer=client.saver)


def both(client: Client, builder: Builder) -> tuple[Graph, Graph]:
    """The graph on the client's saver, and on the one in memory."""
    return builder.compile(checkpointer=client.saver), builder.compile(checkpointer=InMemorySaver())


def outline(states: Sequence[Any]) -> list[Any]:
    """What states say, without what is new in each run: ids and times."""
    return [
        (
            (state.metadata["source"], state.metadata["step"]),
            state.values,
            state.next,
            [(task.name, task.error, task.result, [stop.value for stop in task.interrupts]) for task in state.tasks],
        )
        for state in states
    ]


async def namespaces(client: Client, thread: str) -> set[str]:
    listed = await client.list({"configurable": {"thread_id": thread}})
    return {found.config["configurable"]["checkpoint_ns"] for found in listed}


async def stream(client: Client, graph: Graph, *args: Any, **kwargs: Any) -> AsyncGenerator[Any]:
    if client.backend.is_async:
        async with aclosing(graph.astream(*args, stream_mode="updates", **kwargs)) as chunks:  # type: ignore[type-var]
            async for chunk in chunks:
                yield chunk
    else:
        with closing(graph.stream(*args, stream_mode="updates", **kwargs)) as chunks:  # type: ignore[type-var]
            for chunk in chunks:
                yield chunk


class Work(TypedDict):
    done: Annotated[list[str], add]
    round: int


def step(name: str, runs: list[str] | None = None) -> Any:
    """A node that notes that it ran: in the state, and in `runs`."""

    def node(state: Any) -> dict[str, Any]:
        if runs is not None:
            runs.append(name)
        return {"done": [name]}

    return node


def chain(*names: str, runs: list[str] | None = None) -> Builder:
    return StateGraph(Work).add_sequence([(name, step(name, runs)) for name in names]).add_edge(START, names[0])


def rounds() -> Builder:
    """Two rounds, each sending three pieces of work beside a branch of two steps, and joining them."""
    builder = StateGraph(Work)
    builder.add_node("plan", lambda state: {"round": state.get("round", 0) + 1, "done": [f"plan {state['done']}"]})
    builder.add_node("work", lambda piece: {"done": [f"work {piece}"]})
    builder.add_node("watch", step("watch")).add_node("report", step("report")).add_node("join", step("join"))
    builder.add_edge(START, "plan").add_edge("watch", "report")
    builder.add_conditional_edges("plan", lambda state: [*(Send("work", n) for n in range(3)), "watch"])
    # The work is done a step before the report: a checkpoint holds a join that is half complete.
    builder.add_edge(["work", "report"], "join")
    builder.add_conditional_edges("join", lambda state: "plan" if state["round"] < 2 else END, ["plan", END])
    return builder


async def test_a_loop_with_parallel_branches_goes_as_in_memory(client: Client, thread: str) -> None:
    config = config_of(thread)
    graph, reference = both(client, rounds())

    # Not durability="async": a checkpoint could hold a join as it was a step later (langgraph issue 8748).
    result, expected = [
        await client.invoke(each, {"done": []}, config, durability="sync") for each in (graph, reference)
    ]

    assert result == expected
    assert [result["done"].count(f"work {n}") for n in range(3)] == [2, 2, 2]
    history = await client.history(graph, config)
    assert outline(history) == outline(await client.history(reference, config))
    assert [state.metadata["step"] for state in history] == list(range(8, -2, -1))


async def test_a_graph_whose_every_step_is_a_new_process_goes_the_same_way(database: Database, thread: str) -> None:
    config = config_of(thread)
    reference = rounds().compile(checkpointer=InMemorySaver())
    given: Any = {"done": []}
    for _ in range(9):
        async with process(database, rounds()) as (client, graph):
            result = await client.invoke(graph, given, config, interrupt_before="*", durability="sync")
            history = await client.history(graph, config)
        given = None

    assert result == await client.invoke(reference, {"done": []}, config, durability="sync")
    assert outline(history) == outline(await client.history(reference, config))


class Form(TypedDict, total=False):
    name: str
    answers: Annotated[list[str], add]


def nested(runs: list[str]) -> Builder:
    """A graph in a graph in a graph, the innermost of which stops to ask."""
    inner = StateGraph(Form).add_node("note", lambda _: runs.append("note")).add_edge(START, "note")
    inner.add_node("ask", lambda state: {"name": f"{state['name']} {interrupt('Surname?')}"}).add_edge("note", "ask")
    middle = StateGraph(Form).add_node("inner", inner.compile()).add_edge(START, "inner")
    return StateGraph(Form).add_node("middle", middle.compile()).add_edge(START, "middle")


async def test_a_subgraph_has_checkpoints_in_a_namespace_of_its_own(client: Client, thread: str) -> None:
    outlines = []
    for graph in both(client, nested([])):
        await client.invoke(graph, {"name": "Ada"}, config_of(thread))
        root = await client.get_state(graph, config_of(thread), subgraphs=True)
        middle = root.tasks[0].state
        inner = middle.tasks[0].state
        namespace = inner.config["configurable"]["checkpoint_ns"]
        of_inner = await client.history(graph, {"configurable": {"thread_id": thread, "checkpoint_ns": namespace}})
        outlines.append(outline([root, middle, *of_inner]))
        if graph.checkpointer is client.saver:
            states = (root, middle, inner)
            assert await namespaces(client, thread) == {s.config["configurable"]["checkpoint_ns"] for s in states}

    assert outlines[0] == outlines[1]
    assert re.sub(r":[^|]+", "", namespace) == "middle|inner"
    assert [state.next for state in of_inner] == [("ask",), ("note",), ("__start__",)]


async def test_a_subgraph_that_was_interrupted_can_be_changed_and_resumed(database: Database, thread: str) -> None:
    config = config_of(thread)
    runs: list[str] = []
    async with process(database, nested(runs)) as (client, graph):
        stopped = await client.invoke(graph, {"name": "Ada"}, config)
        assert [stop.value for stop in stopped["__interrupt__"]] == ["Surname?"]

    async with process(database, nested(runs)) as (client, graph):
        inner = (await client.get_state(graph, config, subgraphs=True)).tasks[0].state.tasks[0].state
        await client.update_state(graph, inner.config, {"name": "Augusta"})

    async with process(database, nested(runs)) as (client, graph):
        assert await client.invoke(graph, Command(resume="King"), config) == {"name": "Augusta King", "answers": []}
    assert runs == ["note"]


async def test_a_subgraph_with_a_checkpointer_remembers_the_runs_before(database: Database, thread: str) -> None:
    visits = StateGraph(Work).add_node("visit", step("visit")).add_edge(START, "visit").add_edge("visit", "tell")
    visits.add_node("tell", lambda state: {"round": len(state["done"])})
    child: Graph = visits.compile(checkpointer=True)
    builder = StateGraph(Form).add_node("child", lambda _: {"name": f"visit {child.invoke({'done': []})['round']}"})
    builder.add_edge(START, "child")

    for visit in ("visit 1", "visit 2", "visit 3"):
        async with process(database, builder) as (client, graph):
            assert (await client.invoke(graph, {"answers": []}, config_of(thread)))["name"] == visit
            assert await namespaces(client, thread) == {"", "child"}


def questions(finished: list[str]) -> Builder:
    """Two nodes at once, the first of which asks twice."""

    def whole(state: Form) -> Form:
        finished.append(f"{interrupt('First?')} {interrupt('Last?')}")
        return {"answers": finished[-1:]}

    builder = StateGraph(Form).add_node("whole", whole)
    builder.add_node("other", lambda _: {"answers": [interrupt("Other?")]})
    return builder.add_edge(START, "whole").add_edge(START, "other")


async def test_a_resumed_graph_goes_on_where_it_stopped(database: Database, thread: str) -> None:
    answers = {"First?": "Ada", "Last?": "Lovelace", "Other?": "none"}
    asked = []
    finished: list[str] = []
    given: Any = {"answers": ["start"]}
    # Each answer is given alone: those before it have to be kept, in the order of the questions.
    for _ in range(4):
        async with process(database, questions(finished)) as (client, graph):
            result = await client.invoke(graph, given, config_of(thread))
            stops = (await client.get_state(graph, config_of(thread))).interrupts
        stops = sorted(stops, key=lambda stop: str(stop.value))
        asked.append([stop.value for stop in stops])
        given = Command(resume={stop.id: answers[stop.value] for stop in stops[:1]})

    assert asked == [["First?", "Other?"], ["Last?", "Other?"], ["Other?"], []]
    assert result == {"answers": ["start", "none", "Ada Lovelace"]}
    assert finished == ["Ada Lovelace"]  # once: it is not run again while the other one is asked


async def test_an_update_as_a_node_goes_on_after_that_node(client: Client, thread: str) -> None:
    config = config_of(thread)
    results, histories = [], []
    for graph in both(client, chain("a", "b", "c")):
        await client.invoke(graph, {"done": []}, config)
        await client.update_state(graph, config, {"done": ["edit"]}, as_node="a")
        results.append(await client.invoke(graph, None, config))
        await client.update_state(graph, config, {"done": ["last"]})
        histories.append(outline(await client.history(graph, config)))

    assert results[0] == results[1] == {"done": ["a", "b", "c", "edit", "b", "c"]}
    assert histories[0] == histories[1]


async def test_forks_of_an_old_checkpoint_keep_their_own_values(client: Client, thread: str) -> None:
    config = config_of(thread)
    ends, histories = [], []
    for graph in both(client, chain("a", "b", "c")):
        await client.invoke(graph, {"done": []}, config)
        finished, _, old, *_ = await client.history(graph, config)
        # All of them write the same channels after the same checkpoint, as the first run did.
        forks = [await client.update_state(graph, old.config, {"done": [name]}) for name in ("left", "right")]
        leaves = [finished]
        for fork in (*forks, old.config):
            await client.invoke(graph, None, fork)
            leaves.append(await client.get_state(graph, config))
        ends.append([(await client.get_state(graph, leaf.config)).values["done"] for leaf in leaves])
        assert {(await client.get_state(graph, fork)).parent_config == old.config for fork in forks} == {True}
        histories.append(outline(await client.history(graph, config)))

    assert ends[0] == ends[1]
    assert ends[0] == [["a", "b", "c"], ["a", "left", "b", "c"], ["a", "right", "b", "c"], ["a", "b", "c"]]
    assert histories[0] == histories[1]


async def test_a_history_is_narrowed_by_filter_limit_and_before(client: Client, thread: str) -> None:
    graph, _ = both(client, chain("a", "b", "c"))
    for user in ("ada", "bob"):
        await client.invoke(graph, {"done": []}, config_of(thread, user=user))

    async def narrowed(**conditions: Any) -> Sequence[Any]:
        return await client.history(graph, config_of(thread), **conditions)

    states = await narrowed()
    assert len(states) == 10
    assert await narrowed(limit=3) == states[:3]
    assert await narrowed(before=states[3].config) == states[4:]
    assert await narrowed(before=states[3].config, limit=2) == states[4:6]
    assert await narrowed(filter={"user": "ada"}) == states[5:]
    assert await narrowed(filter={"user": "ada", "source": "loop"}, limit=2) == states[5:7]
    assert await narrowed(filter={"step": 1}, before=states[1].config) == [states[7]]
    assert await narrowed(filter={"step": "1"}) == await narrowed(filter={"user": None}) == []


@every_durability
async def test_every_durability_ends_alike(client: Client, thread: str, durability: Durability) -> None:
    config = config_of(thread)
    graph, reference = both(client, rounds())
    expected = await client.invoke(reference, {"done": []}, config, durability="sync")

    assert await client.invoke(graph, {"done": []}, config, durability=durability) == expected
    assert (await client.get_state(graph, config)).values == expected
    assert len(await client.history(graph, config)) == (1 if durability == "exit" else 10)


@every_durability
async def test_what_a_sibling_did_is_kept_when_a_node_raises(
    database: Database, thread: str, durability: Durability
) -> None:
    config = config_of(thread)
    runs: list[str] = []
    sibling_is_done = Event()

    def raises_once(state: Work) -> dict[str, Any]:
        assert sibling_is_done.wait(timeout=30)
        runs.append("raises")
        if runs.count("raises") == 1:
            raise ZeroDivisionError("once")
        return {"done": ["raises"]}

    builder = StateGraph(Work).add_node("sibling", step("sibling", runs)).add_node("raises", raises_once)
    builder.add_edge(START, "sibling").add_edge(START, "raises")
    async with process(database, builder) as (client, graph):
        with pytest.raises(ZeroDivisionError):
            # subgraphs=True hands out each update at once, not when all nodes of the step are done.
            async for _ in stream(client, graph, {"done": []}, config, durability=durability, subgraphs=True):
                sibling_is_done.set()

    async with process(database, builder) as (client, graph):
        found = await client.load(config)
        writes = {(channel, str(value)) for _, channel, value in found.pending_writes or ()}
        assert {("done", "['sibling']"), ("__error__", "ZeroDivisionError('once')")} <= writes
        result = await client.invoke(graph, None, config, durability=durability)

    assert result == {"done": ["raises", "sibling"]}
    assert runs == ["sibling", "raises", "raises"]


@every_durability
async def test_a_delta_channel_is_put_together_from_its_writes(
    database: Database, thread: str, durability: Durability
) -> None:
    class Log(TypedDict):
        done: Annotated[list[str], DeltaChannel(lambda old, new: [*old, *itertools.chain(*new)], snapshot_frequency=3)]

    builder = StateGraph(Log).add_node("a", step("a")).add_node("b", step("b")).add_node("c", step("c"))
    builder.add_edge(START, "a").add_edge(START, "b").add_edge("a", "c")
    reference = builder.compile(checkpointer=InMemorySaver())
    for turn in ("one", "two", "three"):
        async with process(database, builder) as (client, graph):
            for each in (graph, reference):
                await client.invoke(each, {"done": [turn]}, config_of(thread), durability=durability)
            histories = [outline(await client.history(each, config_of(thread))) for each in (graph, reference)]

    assert histories[0] == histories[1]
    assert histories[0][0][1] == {"done": ["one", "a", "b", "c", "two", "a", "b", "c", "three", "a", "b", "c"]}


class Conversation(TypedDict):
    messages: Annotated[list[AnyMessage], add_messages]


async def test_a_conversation_goes_on_in_a_new_process(database: Database, thread: str) -> None:
    call = {"name": "count", "args": {"words": ["a", 1, None]}, "id": "call"}

    def answer(state: Conversation) -> dict[str, Any]:
        number = len(state["messages"])
        said = AIMessage(f"I know of {number}.", id=f"ai-{number}", tool_calls=[call])
        return {"messages": [said, ToolMessage("3 ✓", tool_call_id="call", id=f"tool-{number}", artifact={"n": 3})]}

    builder = StateGraph(Conversation).add_node("answer", answer).add_edge(START, "answer")
    reference = builder.compile(checkpointer=InMemorySaver())
    for turn in ("Hello", "Again"):
        async with process(database, builder) as (client, graph):
            given = {"messages": [HumanMessage(turn, id=turn)]}
            result, expected = [await client.invoke(each, given, config_of(thread)) for each in (graph, reference)]

    assert result == expected
    assert [type(said) for said in result["messages"]] == [HumanMessage, AIMessage, ToolMessage] * 2


async def test_threads_on_one_saver_do_not_see_each_other(client: Client, thread: str) -> None:
    graph, _ = both(client, rounds())
    names = [f"{thread}-{number}" for number in range(4)]
    results = await asyncio.gather(*(graph.ainvoke({"done": [name]}, config_of(name)) for name in names))

    await client.delete_thread(names[0])

    assert await client.history(graph, config_of(names[0])) == []
    assert [result["done"][0] for result in results] == names
    for name, result in list(zip(names, results, strict=True))[1:]:
        assert (await client.get_state(graph, config_of(name))).values == result
        assert len(await client.history(graph, config_of(name))) == 10


async def test_a_stream_of_updates_can_be_left_and_gone_on_with(client: Client, thread: str) -> None:
    runs: list[str] = []
    graph, _ = both(client, chain("a", "b", "c", runs=runs))
    chunks = stream(client, graph, {"done": []}, config_of(thread))
    assert await anext(chunks) == {"a": {"done": ["a"]}}
    await chunks.aclose()

    rest = [chunk async for chunk in stream(client, graph, None, config_of(thread))]

    assert rest[-2:] == [{"b": {"done": ["b"]}}, {"c": {"done": ["c"]}}]
    assert (await client.get_state(graph, config_of(thread))).values == {"done": ["a", "b", "c"]}
    assert runs == ["a", "b", "c"]


async def test_a_saver_serves_graphs_of_the_other_kind_too(client: Client, thread: str) -> None:
    # An async graph on a sync saver; and on an async saver, a sync graph in another thread.
    config = config_of(thread)

    async def run(graph: Graph, *args: Any) -> Any:
        if client.backend.is_async:
            return await asyncio.to_thread(lambda: graph.invoke(*args))
        return await graph.ainvoke(*args)

    results, histories = [], []
    for graph in both(client, questions([])):
        stopped = await run(graph, {"answers": []}, config)
        await run(graph, Command(resume={stop.id: "yes" for stop in stopped["__interrupt__"]}), config)
        results.append(await run(graph, Command(resume="no"), config))
        histories.append(outline(await client.history(graph, config)))

    assert results[0] == results[1] == {"answers": ["yes", "yes no"]}
    assert histories[0] == histories[1]
