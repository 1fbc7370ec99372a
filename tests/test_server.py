"""`sa_checkpoint.server` in LangGraph's own server: what its API says is what is in the database."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph_sdk import get_client
from langgraph_sdk.client import LangGraphClient
from sqlalchemy import URL, Engine, create_engine, event, func, select

from sa_checkpoint import AsyncSQLAlchemySaver, metadata
from sa_checkpoint.server import checkpointer
from tests.backends import BACKENDS, Backend

EXAMPLE = Path(__file__).parents[1] / "docs" / "examples" / "langgraph_server"
HOST = "127.0.0.1"
START_SECONDS = 60
CALL_SECONDS = 20
STOP_SECONDS = 10

# What the server may lack, and says at its start that it does.
OPTIONAL_METHODS = ("adelete_thread", "adelete_for_runs", "acopy_thread", "aprune")

# A run of the example up to its question.
TWO_ROUNDS = ["draft", "review", "draft", "review"]


@dataclass(frozen=True)
class Server:
    """A running server, and what it has said so far."""

    url: str
    log_file: Path

    @property
    def log(self) -> str:
        return self.log_file.read_text(encoding="utf-8")

    @property
    def events(self) -> Sequence[dict[str, Any]]:
        """The lines of the log that are events: all but the server's welcome."""
        return [json.loads(line) for line in self.log.splitlines() if line.startswith("{")]


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind((HOST, 0))
        port: int = listener.getsockname()[1]
        return port


def wait_until_it_listens(process: subprocess.Popen[bytes], port: int, server: Server) -> None:
    deadline = time.monotonic() + START_SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        with suppress(OSError), socket.create_connection((HOST, port), timeout=1):
            return
        time.sleep(0.05)
    pytest.fail(f"The server does not listen:\n{server.log}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """Ask the process to stop, and then end it with all that it started."""
    process.terminate()
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(STOP_SECONDS)
    finally:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


@contextmanager
def langgraph_dev(folder: Path, **environment: str) -> Iterator[Server]:
    """`langgraph dev` in a folder, with no account, no key and nothing to say to anyone."""
    theirs = ("LANGSMITH_", "LANGCHAIN_", "LANGGRAPH_")
    mine = {name: value for name, value in os.environ.items() if not name.startswith(theirs)}
    silent = {
        "LANGSMITH_TRACING": "false",
        "LANGGRAPH_CLI_NO_ANALYTICS": "1",
        "LANGGRAPH_NO_VERSION_CHECK": "true",
        "LOG_JSON": "true",
        "PYTHONIOENCODING": "utf-8",
        "PYTHONUNBUFFERED": "1",
        "PYTHONWARNINGS": "default",
    }
    port = free_port()
    server = Server(f"http://{HOST}:{port}", folder / "server.log")
    options = ("--host", HOST, "--port", str(port), "--no-browser", "--no-reload")
    with server.log_file.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", "langgraph_cli", "dev", *options],
            cwd=folder,
            env=mine | silent | environment,
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        wait_until_it_listens(process, port, server)
        yield server
    finally:
        stop(process)


@pytest.fixture(
    scope="module",
    params=[backend for backend in BACKENDS if backend.id in ("aiosqlite", "psycopg-async")],
    ids=lambda backend: backend.id,
)
def database_url(request: pytest.FixtureRequest, new_url: Callable[[Backend], URL]) -> URL:
    """An empty database, on which nobody has called setup()."""
    return new_url(request.param)


@pytest.fixture(scope="module")
def server(database_url: URL, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A server of the example's graph on that database."""
    folder = tmp_path_factory.mktemp("server") / "app"
    shutil.copytree(EXAMPLE, folder, ignore=shutil.ignore_patterns("__pycache__", ".langgraph_api", "*.db*"))
    with langgraph_dev(folder, SA_CHECKPOINT_URL=database_url.render_as_string(hide_password=False)) as server:
        yield server


@pytest.fixture
async def client(server: Server) -> AsyncIterator[LangGraphClient]:
    async with get_client(url=server.url, api_key=None) as client:
        yield client


@pytest.fixture
async def saver(server: Server, database_url: URL) -> AsyncIterator[AsyncSQLAlchemySaver]:
    """A saver of the test's own on the server's database."""
    async with AsyncSQLAlchemySaver.from_conn_string(database_url) as saver:
        yield saver


async def new_thread(client: LangGraphClient) -> str:
    return (await client.threads.create())["thread_id"]


async def run(client: LangGraphClient, thread: str, **options: Any) -> Any:
    """A run to its end, or to its question; the state that it ends in."""
    async with asyncio.timeout(CALL_SECONDS):
        return await client.runs.wait(thread, "writer", **options)


async def begin(client: LangGraphClient, thread: str, **options: Any) -> str:
    """Start a run, and do not wait for it."""
    return (await client.runs.create(thread, "writer", **options))["run_id"]


async def copy_of(client: LangGraphClient, thread: str) -> str:
    copied: Any = await client.threads.copy(thread)  # type: ignore[func-returns-value]
    thread_id: str = copied["thread_id"]
    return thread_id


async def history(client: LangGraphClient, thread: str) -> list[Any]:
    """The checkpoints of a thread as the API has them, newest first."""
    return [
        (
            state["checkpoint"]["checkpoint_id"],
            state["parent_checkpoint"] and state["parent_checkpoint"]["checkpoint_id"],
            state["metadata"],
            dict(state["values"])["log"],  # type: ignore[arg-type]
        )
        for state in await client.threads.get_history(thread, limit=100)
    ]


async def checkpoints(saver: AsyncSQLAlchemySaver, thread: str, **metadata: Any) -> list[CheckpointTuple]:
    """The checkpoints of a thread as they are stored, newest first."""
    config: RunnableConfig = {"configurable": {"thread_id": thread}}
    return [found async for found in saver.alist(config, filter=metadata)]


async def until_it_drafted(saver: AsyncSQLAlchemySaver, thread: str, run_id: str) -> None:
    """Wait for the checkpoint that a run stores after its draft."""
    async with asyncio.timeout(CALL_SECONDS):
        while True:
            logs = [
                found.checkpoint["channel_values"].get("log")
                for found in await checkpoints(saver, thread, run_id=run_id)
            ]
            if any(log and log[-1] == "draft" for log in logs):
                return
            await asyncio.sleep(0.05)


async def stored(saver: AsyncSQLAlchemySaver, thread: str) -> list[Any]:
    """The same as `history`, from the database."""
    return [
        (
            found.config["configurable"]["checkpoint_id"],
            found.parent_config and found.parent_config["configurable"]["checkpoint_id"],
            found.metadata,
            found.checkpoint["channel_values"].get("log", []),
        )
        for found in await checkpoints(saver, thread)
    ]


def rows(url: URL, thread: str) -> dict[str, int]:
    """How many rows a thread has in each table."""
    sync_driver = {"sqlite": "sqlite+pysqlite"}.get(url.get_backend_name(), url.drivername)
    engine = create_engine(url.set(drivername=sync_driver))
    with engine.connect() as connection:
        counts = {
            name: connection.scalar(select(func.count()).where(table.c.thread_id == thread)) or 0
            for name, table in metadata.tables.items()
        }
    engine.dispose()
    return counts


async def test_a_run_stops_at_its_question_and_goes_on_with_the_answer(
    client: LangGraphClient, saver: AsyncSQLAlchemySaver
) -> None:
    thread = await new_thread(client)

    asked = await run(client, thread, input={"log": ["idea"]})

    assert asked["log"] == ["idea", *TWO_ROUNDS]
    assert (await client.threads.get(thread))["status"] == "interrupted"
    latest = (await checkpoints(saver, thread))[0]
    [(_, channel, [question])] = latest.pending_writes or []
    assert (channel, question.value, question.id) == ("__interrupt__", "Publish it?", asked["__interrupt__"][0]["id"])

    done = await run(client, thread, command={"resume": "yes"})

    assert done["log"] == ["idea", *TWO_ROUNDS, "publish: yes"]
    assert (await client.threads.get(thread))["status"] == "idle"
    said = await history(client, thread)
    assert [log[-1:] for *_, log in said] == [
        ["publish: yes"],
        *([step] for step in reversed(TWO_ROUNDS)),
        ["idea"],
        [],
    ]
    assert said == await stored(saver, thread)


async def test_a_thread_can_be_gone_on_with_from_an_earlier_checkpoint(
    client: LangGraphClient, saver: AsyncSQLAlchemySaver
) -> None:
    thread = await new_thread(client)
    await run(client, thread, input={"log": ["idea"]})
    fork, *_ = [checkpoint for checkpoint, *_, log in await history(client, thread) if log[-1:] == ["draft"]]

    await run(client, thread, input=None, checkpoint_id=fork)

    said = await history(client, thread)
    assert said == await stored(saver, thread)
    assert [parent for _, parent, *_ in said].count(fork) == 2


async def test_a_copy_has_all_that_the_thread_has_and_goes_its_own_way(
    client: LangGraphClient, saver: AsyncSQLAlchemySaver, database_url: URL
) -> None:
    thread = await new_thread(client)
    await run(client, thread, input={"log": ["idea"]})
    before = await stored(saver, thread)

    copy = await copy_of(client, thread)

    def outline(history: Sequence[Any]) -> list[Any]:
        return [(checkpoint, parent, log) for checkpoint, parent, _, log in history]

    assert rows(database_url, copy) == rows(database_url, thread)
    assert outline(await history(client, copy)) == outline(await stored(saver, copy)) == outline(before)

    done = await run(client, copy, command={"resume": "no"})

    assert done["log"][-1] == "publish: no"
    assert len(await stored(saver, copy)) == len(before) + 1
    assert await stored(saver, thread) == before


async def test_a_run_that_is_rolled_back_leaves_nothing(
    client: LangGraphClient, saver: AsyncSQLAlchemySaver, database_url: URL
) -> None:
    thread = await new_thread(client)
    await run(client, thread, input={"log": ["idea"]})
    before, rows_before = await stored(saver, thread), rows(database_url, thread)

    # It waits inside its review, long enough to be there still when the next run comes.
    slow = await begin(client, thread, input={"log": ["bad idea"], "seconds": 2 * CALL_SECONDS})
    await until_it_drafted(saver, thread, slow)
    assert sum(rows(database_url, thread).values()) > sum(rows_before.values())
    after = await run(client, thread, input={"log": ["idea"]}, multitask_strategy="rollback")

    assert await checkpoints(saver, thread, run_id=slow) == []
    assert after["log"] == [*before[0][-1], "idea", *TWO_ROUNDS]
    said = await history(client, thread)
    assert said == await stored(saver, thread)
    assert said[-len(before) :] == before
    assert said[-len(before) - 1][1] == before[0][0]


async def test_a_thread_that_is_deleted_or_pruned_leaves_no_row(
    client: LangGraphClient, saver: AsyncSQLAlchemySaver, database_url: URL
) -> None:
    kept = await new_thread(client)
    await run(client, kept, input={"log": ["idea"]})
    deleted, pruned = await copy_of(client, kept), await copy_of(client, kept)
    for thread in (kept, deleted, pruned):
        assert all(rows(database_url, thread).values())

    await client.threads.delete(deleted)
    assert await client.threads.prune([pruned]) == {"pruned_count": 1}

    for thread in (deleted, pruned):
        assert set(rows(database_url, thread).values()) == {0}
    assert [found["thread_id"] for found in await client.threads.search(ids=[deleted, pruned, kept])] == [kept]
    assert await history(client, kept) == await stored(saver, kept) != []


def test_the_server_misses_no_method_and_warns_of_nothing(server: Server) -> None:
    said = [entry["event"] for entry in server.events]
    assert "Using custom checkpointer: AsyncSQLAlchemySaver" in said
    assert [line for line in said if line.startswith("Custom checkpointer missing")] == []
    assert [entry for entry in server.events if entry["level"] not in ("debug", "info")] == []
    assert [line for line in server.log.splitlines() if "Warning" in line and "sa_checkpoint" in line] == []


LACKING = """
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.memory import InMemorySaver

class Lacking(InMemorySaver):
    adelete_thread = BaseCheckpointSaver.adelete_thread
    adelete_for_runs = BaseCheckpointSaver.adelete_for_runs
    acopy_thread = BaseCheckpointSaver.acopy_thread
    aprune = BaseCheckpointSaver.aprune

checkpointer = Lacking()
"""


def test_the_server_names_the_methods_that_another_saver_lacks(tmp_path: Path) -> None:
    """Else the test above would say nothing."""
    shutil.copy(EXAMPLE / "graph.py", tmp_path)
    (tmp_path / "lacking.py").write_text(LACKING)
    configuration = json.loads((EXAMPLE / "langgraph.json").read_text())
    configuration["checkpointer"]["path"] = "./lacking.py:checkpointer"
    (tmp_path / "langgraph.json").write_text(json.dumps(configuration))

    with langgraph_dev(tmp_path) as server:
        said = [entry["event"] for entry in server.events]

    for method in OPTIONAL_METHODS:
        assert any(line.startswith(f"Custom checkpointer missing {method}:") for line in said)


@pytest.mark.parametrize("url", [None, "", "sqlite:///other.db"])
async def test_the_factory_makes_the_tables_and_disposes_of_its_engine(
    url: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("SA_CHECKPOINT_URL", raising=False)
    if url is not None:
        monkeypatch.setenv("SA_CHECKPOINT_URL", url)

    disposed: list[Engine] = []
    async with checkpointer() as saver:
        engine = saver._bind.source
        assert isinstance(engine, Engine)
        event.listen(engine, "engine_disposed", disposed.append)
        assert [found async for found in saver.alist(None)] == []
        assert disposed == []

    assert disposed == [engine]
    assert set(os.listdir(tmp_path)) == {"other.db" if url else "checkpoints.db"}
