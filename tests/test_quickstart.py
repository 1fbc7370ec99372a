"""The quickstart, run as a newcomer runs it, and what is in the database afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.base import CheckpointTuple
from sqlalchemy import URL

from sa_checkpoint import SQLAlchemySaver
from tests.backends import BACKENDS, Backend

SCRIPT = Path(__file__).parents[1] / "docs" / "examples" / "quickstart.py"
PASSWORD = "not-to-be-printed"  # the tests' servers ask for none, so any will do


@dataclass(frozen=True)
class Run:
    """A finished run of the script, with the id of the process that was started."""

    process: int
    exit_code: int
    output: str


def run_script(folder: Path, *arguments: str) -> Run:
    """Run the script in a folder, with no model to pay for and with warnings as errors."""
    paid = ("_API_KEY", "_TRACING", "_TRACING_V2")
    environment = {name: value for name, value in os.environ.items() if not name.endswith(paid)}
    process = subprocess.Popen(
        [sys.executable, str(SCRIPT), *arguments],
        cwd=folder,
        env=environment | {"PYTHONWARNINGS": "error", "PYTHONIOENCODING": "utf-8"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        encoding="utf-8",
    )
    with process:
        try:
            output, _ = process.communicate(timeout=120)
        finally:
            process.kill()
    return Run(process.pid, process.returncode, output)


@dataclass(frozen=True)
class Thread:
    """What the script left of a thread in the database."""

    checkpoints: list[CheckpointTuple]  # newest first

    @property
    def ends(self) -> list[CheckpointTuple]:
        """The checkpoints that none follows, oldest first: one for each branch."""
        parents = [checkpoint.parent_config for checkpoint in self.checkpoints]
        return [checkpoint for checkpoint in reversed(self.checkpoints) if checkpoint.config not in parents]

    def branch(self, end: CheckpointTuple) -> list[CheckpointTuple]:
        """The checkpoints from the first one to this one."""
        path = [end]
        while (parent := path[0].parent_config) is not None:
            path.insert(0, next(checkpoint for checkpoint in self.checkpoints if checkpoint.config == parent))
        return path


def threads_in(url: URL) -> dict[str, Thread]:
    """All threads in a database, read by a saver of the test's own."""
    threads: dict[str, Thread] = {}
    with SQLAlchemySaver.from_conn_string(url) as saver:
        for checkpoint in saver.list(None):
            thread_id = checkpoint.config["configurable"]["thread_id"]
            threads.setdefault(thread_id, Thread([])).checkpoints.append(checkpoint)
    return threads


def messages(checkpoint: CheckpointTuple) -> list[tuple[str, str]]:
    values: list[Any] = checkpoint.checkpoint["channel_values"].get("messages", [])
    return [(message.type, message.text) for message in values]


def metadata(checkpoints: list[CheckpointTuple], key: str) -> list[Any]:
    return [dict(checkpoint.metadata)[key] for checkpoint in checkpoints]


def channels_written(checkpoint: CheckpointTuple) -> set[str]:
    return {channel for _, channel, _ in checkpoint.pending_writes or []}


def check_story(run: Run, thread_id: str, thread: Thread) -> None:
    """Everything that the script promises, in the database and on the screen."""
    assert len(thread.ends) == 2
    sf, nyc = (thread.branch(end) for end in thread.ends)

    # The thread's final state is the second branch's, and the first is still there.
    assert thread.checkpoints[0] == nyc[-1]
    for city, branch in (("sf", sf), ("nyc", nyc)):
        assert messages(branch[-1]) == [
            ("human", f"What is the weather in {city}?"),
            ("ai", ""),
            ("tool", f"It's sunny in {city}."),
            ("ai", f"I looked. It's sunny in {city}."),
        ]
        # It stopped at the checkpoint before the tool's result, until it was resumed.
        assert {"__interrupt__", "__resume__"} <= channels_written(branch[-3])

    # The branches have the question's checkpoint in common, and no other after it.
    assert metadata(sf, "source") == ["input", "loop", "loop", "loop", "loop"]
    assert metadata(nyc, "source") == ["input", "loop", "update", "loop", "loop", "loop"]
    assert sf[:2] == nyc[:2]
    assert len(thread.checkpoints) == 9

    # One process asked and went back in time, another one resumed.
    [resumer] = set(metadata(sf, "process")) - {run.process}
    assert metadata(sf, "process") == [run.process, run.process, run.process, resumer, resumer]
    assert set(metadata(nyc, "process")) == {run.process}

    for text in ("(a)", "(b)", "(c)", "(d)", "(e)", "scripted", thread_id, f"process {resumer}"):
        assert text in run.output
    for checkpoint in thread.checkpoints:
        assert checkpoint.config["configurable"]["checkpoint_id"][-6:] in run.output
    assert PASSWORD not in run.output


@pytest.mark.parametrize(
    "backend",
    [backend for backend in BACKENDS if backend.id in ("sqlite", "aiosqlite", "psycopg", "asyncpg")],
    ids=lambda backend: f"{backend.dialect}-{'async' if backend.is_async else 'sync'}",
)
def test_the_quickstart_works_twice_on_the_same_database(
    backend: Backend, new_url: Callable[[Backend], URL], tmp_path: Path
) -> None:
    options = ["--async"] if backend.is_async else []
    if backend.dialect == "sqlite":
        # The script's own default, and then the same file under its driver's name.
        reader = URL.create("sqlite", database=str(tmp_path / "checkpoints.db"))
        plain: list[str] = []
        url = reader.set(drivername=backend.drivername)
    else:
        url = new_url(backend).set(password=PASSWORD)
        reader = url.set(drivername="postgresql")
        plain = ["--url", reader.render_as_string(hide_password=False)]

    first = run_script(tmp_path, *plain, *options)
    assert first.exit_code == 0, first.output
    after_first = threads_in(reader)
    [(thread_id, thread)] = after_first.items()
    check_story(first, thread_id, thread)

    # An async driver works with the async saver alone, so --async does use that.
    second = run_script(tmp_path, "--url", url.render_as_string(hide_password=False), *options)
    assert second.exit_code == 0, second.output
    after_second = threads_in(reader)
    assert after_second.pop(thread_id) == thread
    [(thread_id, thread)] = after_second.items()
    check_story(second, thread_id, thread)


@pytest.mark.parametrize("options", [[], ["--async"]], ids=["sync", "async"])
def test_a_thread_that_waits_for_no_answer_cannot_be_resumed(options: list[str], tmp_path: Path) -> None:
    run = run_script(tmp_path, "--resume", "no-such-thread", *options)
    assert run.exit_code != 0
    assert run.output == "Something is wrong: this thread is not waiting for an answer.\n"


def test_a_database_in_memory_is_not_there_for_the_other_process(tmp_path: Path) -> None:
    run = run_script(tmp_path, "--url", "sqlite://")
    assert run.exit_code != 0
    assert "this thread is not waiting for an answer" in run.output
    assert "(e)" not in run.output


def test_an_unreachable_database_is_reported_without_its_password(tmp_path: Path) -> None:
    run = run_script(tmp_path, "--url", f"postgresql://user:{PASSWORD}@127.0.0.1:1/database")
    assert run.exit_code != 0
    assert "OperationalError" in run.output
    assert PASSWORD not in run.output
