"""What is measured: each workload makes a batch for a contestant, and a batch returns the time of one operation.

A batch prepares what it stores, new ids included, before its clock starts. What it reads is stored once, when the
batch is made.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from time import perf_counter
from typing import Any, TypeAlias
from uuid import uuid4

from langgraph.checkpoint.base import BaseCheckpointSaver
from sqlalchemy import inspect, text

from benchmarks import graphs
from benchmarks.contestants import Contestant, Saver
from benchmarks.data import WINDOW, config_of, conversation, sentence
from benchmarks.servers import DATABASES, looking_at

Batch: TypeAlias = Callable[[], float]
"""Milliseconds of one operation."""

AsyncBatch: TypeAlias = Callable[[], Awaitable[float]]

BATCH_SIZE = 20


@dataclass(frozen=True)
class Workload:
    """A workload, and where it is measured."""

    name: str
    make: Callable[[Contestant], Any]
    """From a contestant to a `Batch`, or to an awaitable of an `AsyncBatch` if `is_async`."""
    is_async: bool = False
    databases: Sequence[str] = DATABASES
    over_network: bool = True
    """Whether it is measured over links with a round-trip time, too."""
    warm_up: int = 4
    """How many batches are not counted. psycopg prepares a statement on a connection when it comes the sixth time."""
    series: tuple[str, int] | None = None
    """The operation and the number of tasks, where it is a point of the latency against concurrency."""


def per_operation(operations: Sequence[Callable[[], object]]) -> float:
    """Milliseconds of one operation, one after the other."""
    start = perf_counter()
    for operation in operations:
        operation()
    return (perf_counter() - start) * 1000 / len(operations)


async def per_operation_of_tasks(operations: Sequence[Callable[[], Awaitable[object]]], tasks: int) -> float:
    """Wall time in milliseconds by the number of operations, which so many tasks share."""
    waiting = iter(operations)

    async def work() -> None:
        for operation in waiting:
            await operation()

    start = perf_counter()
    await asyncio.gather(*(work() for _ in range(tasks)))
    return (perf_counter() - start) * 1000 / len(operations)


# -------------------------------------------------------------------------------------------------------- one client


def put(contestant: Contestant) -> Batch:
    """The next steps of a chat with 20 messages."""
    saver = contestant.saver

    def batch() -> float:
        steps = conversation(saver, BATCH_SIZE, messages=WINDOW)
        return per_operation([partial(saver.put, *step.put) for step in steps])

    return batch


def put_writes(contestant: Contestant) -> Batch:
    """Three writes of a task."""
    saver = contestant.saver

    def batch() -> float:
        steps = conversation(saver, BATCH_SIZE, messages=WINDOW)
        return per_operation([partial(saver.put_writes, *step.put_writes) for step in steps])

    return batch


def get_tuple(contestant: Contestant) -> Batch:
    """The latest of ten checkpoints, with 20 messages and 3 pending writes."""
    saver = contestant.saver
    config = stored(saver, 10, messages=WINDOW)

    def batch() -> float:
        return per_operation([partial(saver.get_tuple, config)] * BATCH_SIZE)

    found = saver.get_tuple(config)
    assert (
        found and len(found.checkpoint["channel_values"]["messages"]) == WINDOW and len(found.pending_writes or ()) == 3
    )
    return batch


def listing(contestant: Contestant, length: int, limit: int | None) -> Batch:
    """All checkpoints of a thread, or the first ones, with their writes."""
    saver = contestant.saver
    config = stored(saver, length)
    repetitions = 1 if limit is None else BATCH_SIZE

    def batch() -> float:
        return per_operation([lambda: list(saver.list(config, limit=limit))] * repetitions)

    assert len(list(saver.list(config, limit=limit))) == (limit or length)
    return batch


def stored(saver: Saver, length: int, messages: int = 0) -> Any:
    """The config of a new thread with so many checkpoints, each with its writes."""
    steps = conversation(saver, length, messages=messages)
    for step in steps:
        saver.put(*step.put)
        saver.put_writes(*step.put_writes)
    return config_of(steps[0].put[0]["configurable"]["thread_id"])


# ------------------------------------------------------------------------------------------------- threads and graphs


def puts_by_threads(contestant: Contestant, puts: int, threads: int) -> Batch:
    """Puts into as many threads of LangGraph's, by threads of the operating system: the time until all are done."""
    saver = contestant.saver
    executor = ThreadPoolExecutor(threads)

    def batch() -> float:
        steps = [conversation(saver, 1, messages=WINDOW)[0] for _ in range(puts)]
        return per_operation([lambda: list(executor.map(lambda step: saver.put(*step.put), steps))])

    return batch


def graph_of_10_steps(contestant: Contestant, durability: graphs.Durability) -> Batch:
    """One run of a graph with ten nodes, in a new thread."""
    graph = graphs.chain(contestant.saver, 10)

    def batch() -> float:
        return per_operation([partial(graphs.run, graph, str(uuid4()), durability)])

    return batch


def delta_history(contestant: Contestant, ancestors: int) -> Batch:
    """The history of a delta channel without a snapshot."""
    saver = contestant.saver
    config = config_of(str(uuid4()))
    graphs.fill_delta_channel(saver, config, ancestors)
    read = partial(saver.get_delta_channel_history, config=config, channels=["log"])
    assert len(read()["log"]["writes"]) == ancestors
    return lambda: per_operation([read])


# ------------------------------------------------------------------------------------------------------- maintenance


def prune(contestant: Contestant, length: int) -> Batch:
    """Keep the latest checkpoint of a thread. Without a `prune` of the saver, with its other methods."""
    saver = contestant.saver
    template = stored(saver, length)["configurable"]["thread_id"]

    def batch() -> float:
        thread_id = str(uuid4())
        duplicate(contestant, template, thread_id)
        milliseconds = per_operation([partial(prune_with, saver, thread_id)])
        assert len(list(saver.list(config_of(thread_id)))) == 1
        return milliseconds

    return batch


def prune_with(saver: Saver, thread_id: str) -> None:
    """What prunes a thread on this saver."""
    if type(saver).prune is not BaseCheckpointSaver.prune:
        saver.prune([thread_id])
        return
    latest = saver.get_tuple(config_of(thread_id))
    assert latest
    saver.delete_thread(thread_id)
    saver.put(config_of(thread_id), latest.checkpoint, latest.metadata, latest.checkpoint["channel_versions"])
    put_pending_writes(saver, latest.config, latest.pending_writes or ())


def copy(contestant: Contestant, length: int) -> Batch:
    """Copy a thread. Without a `copy_thread` of the saver, with its other methods."""
    saver = contestant.saver
    source = stored(saver, length)["configurable"]["thread_id"]

    def batch() -> float:
        target = str(uuid4())
        milliseconds = per_operation([partial(copy_with, saver, source, target)])
        assert sum(1 for _ in saver.list(config_of(target))) == length
        saver.delete_thread(target)
        return milliseconds

    return batch


def copy_with(saver: Saver, source: str, target: str) -> None:
    """What copies a thread on this saver."""
    if type(saver).copy_thread is not BaseCheckpointSaver.copy_thread:
        saver.copy_thread(source, target)
        return
    versions: dict[str, Any] = {}
    for found in reversed(list(saver.list(config_of(source)))):
        parent = found.parent_config["configurable"]["checkpoint_id"] if found.parent_config else None
        latest = found.checkpoint["channel_versions"]
        changed = {channel: version for channel, version in latest.items() if versions.get(channel) != version}
        versions = latest
        saved = saver.put(config_of(target, parent), found.checkpoint, found.metadata, changed)
        put_pending_writes(saver, saved, found.pending_writes or ())


def put_pending_writes(saver: Saver, config: Any, pending: Sequence[tuple[str, str, Any]]) -> None:
    """Store the pending writes of a checkpoint again, task by task."""
    tasks: dict[str, list[tuple[str, Any]]] = {}
    for task_id, channel, value in pending:
        tasks.setdefault(task_id, []).append((channel, value))
    for task_id, writes in tasks.items():
        saver.put_writes(config, writes, task_id)


def duplicate(contestant: Contestant, source: str, target: str) -> None:
    """Copy a thread's rows past the saver, whatever its tables are."""
    with looking_at(contestant.url).connect() as connection:
        inspector = inspect(connection)
        for table in inspector.get_table_names():
            columns = [column["name"] for column in inspector.get_columns(table)]
            if "thread_id" in columns:
                others = ", ".join(column for column in columns if column != "thread_id")
                statement = (
                    f"INSERT INTO {table} (thread_id, {others}) "
                    f"SELECT :target, {others} FROM {table} WHERE thread_id = :source"
                )
                connection.execute(text(statement), {"source": source, "target": target})


# ------------------------------------------------------------------------------------------------------- large states


def put_large(contestant: Contestant, megabytes: int) -> Batch:
    """A state with one large text."""
    saver = contestant.saver
    document = sentence(megabytes * 10**6 // 5, 0)[: megabytes * 10**6]

    def batch() -> float:
        config, checkpoint, metadata, versions = conversation(saver, 1)[0].put
        values = checkpoint["channel_values"] | {"document": document}
        version = saver.get_next_version(None, None)
        channel_versions = checkpoint["channel_versions"] | {"document": version}
        large = checkpoint | {"channel_values": values, "channel_versions": channel_versions}
        milliseconds = per_operation([partial(saver.put, config, large, metadata, versions | {"document": version})])
        saver.delete_thread(config["configurable"]["thread_id"])
        return milliseconds

    return batch


def get_large(contestant: Contestant, megabytes: int) -> Batch:
    """The same state, read."""
    saver = contestant.saver
    document = sentence(megabytes * 10**6 // 5, 0)[: megabytes * 10**6]
    config, checkpoint, metadata, versions = conversation(saver, 1)[0].put
    checkpoint["channel_values"]["document"] = document
    version = saver.get_next_version(None, None)
    checkpoint["channel_versions"] = checkpoint["channel_versions"] | {"document": version}
    saver.put(config, checkpoint, metadata, versions | {"document": version})
    return lambda: per_operation([partial(saver.get_tuple, config)])


# -------------------------------------------------------------------------------------------------------------- tasks


def operations_of(tasks: int) -> int:
    """How many operations a batch has: at least four for each task."""
    return max(BATCH_SIZE, 4 * tasks)


async def aput(contestant: Contestant, tasks: int) -> AsyncBatch:
    """`put` by concurrent tasks, each operation in a thread of its own."""
    saver = contestant.saver

    async def batch() -> float:
        steps = [conversation(saver, 1, messages=WINDOW)[0] for _ in range(operations_of(tasks))]
        return await per_operation_of_tasks([partial(saver.aput, *step.put) for step in steps], tasks)

    return batch


async def aput_writes(contestant: Contestant, tasks: int) -> AsyncBatch:
    """`put_writes` by concurrent tasks."""
    saver = contestant.saver

    async def batch() -> float:
        steps = [conversation(saver, 1)[0] for _ in range(operations_of(tasks))]
        return await per_operation_of_tasks([partial(saver.aput_writes, *step.put_writes) for step in steps], tasks)

    return batch


async def aget_tuple(contestant: Contestant, tasks: int) -> AsyncBatch:
    """`get_tuple` by concurrent tasks."""
    saver = contestant.saver
    steps = conversation(saver, 10, messages=WINDOW)
    for step in steps:
        await saver.aput(*step.put)
        await saver.aput_writes(*step.put_writes)
    config = config_of(steps[0].put[0]["configurable"]["thread_id"])

    async def batch() -> float:
        return await per_operation_of_tasks([partial(saver.aget_tuple, config)] * operations_of(tasks), tasks)

    return batch


TASKS = (1, 2, 4, 8, 16, 32)
_EMBEDDED_OR_MAIN = ("sqlite", "postgresql")

_ASYNC = [
    Workload(
        f"{operation.__name__}, {tasks} task{'s' if tasks > 1 else ''}",
        partial(operation, tasks=tasks),
        is_async=True,
        databases=_EMBEDDED_OR_MAIN,
        series=(operation.__name__, tasks),
    )
    for operation in (aput, aget_tuple, aput_writes)
    for tasks in TASKS
]

WORKLOADS = (
    Workload("put", put),
    Workload("put_writes", put_writes),
    Workload("get_tuple", get_tuple),
    Workload("list of 100", partial(listing, length=100, limit=None)),
    Workload("list(limit=1)", partial(listing, length=100, limit=1)),
    Workload("64 puts by 16 threads", partial(puts_by_threads, puts=64, threads=16)),
    Workload("graph of 10 steps, sync", partial(graph_of_10_steps, durability="sync")),
    Workload("graph of 10 steps, async", partial(graph_of_10_steps, durability="async")),
    *_ASYNC,
    Workload("delta history of 500 ancestors", partial(delta_history, ancestors=500), databases=_EMBEDDED_OR_MAIN),
    Workload(
        "prune of 1,000 checkpoints",
        partial(prune, length=1000),
        databases=_EMBEDDED_OR_MAIN,
        over_network=False,
        warm_up=1,
    ),
    Workload(
        "copy of 1,000 checkpoints",
        partial(copy, length=1000),
        databases=_EMBEDDED_OR_MAIN,
        over_network=False,
        warm_up=1,
    ),
    Workload("put of a 5 MB state", partial(put_large, megabytes=5), over_network=False),
    Workload("get_tuple of a 5 MB state", partial(get_large, megabytes=5), over_network=False),
)
