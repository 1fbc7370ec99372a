"""The benchmarks run, and write what the documentation shows."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from sqlalchemy import create_engine, make_url, text

from benchmarks.contestants import ENTRIES
from benchmarks.data import conversation
from benchmarks.floor import OPERATIONS, Recorder, execute
from benchmarks.proxy import delayed
from benchmarks.servers import looking_at, started
from sa_checkpoint import _operations
from tests.backends import BACKENDS, Client, Database, on_backends, saver_on
from tests.checkpoints import config_of
from tests.hosts import connections_in_a_row, sync_engine_of
from tests.servers import POSTGRES_VARIABLE

ROOT = Path(__file__).parent.parent


def benchmarks(*arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks", *arguments], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("command", [(), ("run",), ("plot",), ("memory",), ("floor",), ("scale",)])
def test_each_command_says_what_it_does(command: tuple[str, ...]) -> None:
    assert "Usage: python -m benchmarks" in benchmarks(*command, "--help")


def test_a_run_measures_ours_and_the_peer_and_is_plotted(tmp_path: Path) -> None:
    file = tmp_path / "results.json"
    shown = benchmarks("run", "--database", "sqlite", "--only", "^put$", "--quick", "--no-lifo", "--json", str(file))
    report = json.loads(file.read_text())
    assert report["lifo"] is False
    (result,) = report["results"]
    ours, peer = result["contestants"]
    assert (ours, peer) == ("ours on sqlite3", "SqliteSaver")
    medians = {name: timing["median_ms"] for name, timing in result["contestants"].items()}
    assert result["ratios"] == {ours: pytest.approx(medians[peer] / medians[ours])}
    assert f"{medians[ours]:.3f}" in shown and f"{medians[peer]:.3f}" in shown

    benchmarks("plot", str(file), "--output", str(tmp_path))
    assert {path.name for path in tmp_path.iterdir()} == {"results.json", "ratios-sqlite-file.svg", "results.md"}
    assert f"| put | sqlite3 | {medians[ours]:.2f} | {medians[peer]:.2f} |" in (tmp_path / "results.md").read_text()


def test_the_floor_is_shown_beside_the_savers(tmp_path: Path) -> None:
    file = tmp_path / "floor.json"
    shown = benchmarks("floor", "--database", "sqlite", "--rounds", "2", "--json", str(file))
    rows = json.loads(file.read_text())["floor"]
    assert [row["operation"] for row in rows] == ["put", "put_writes", "get_tuple"]
    for row in rows:
        assert row["least_ms"] > 0
        assert f"{row['ours_ms']:.3f}" in shown and f"{row['peer_ms'] / row['least_ms']:.2f}" in shown


@on_backends(*(one for one in BACKENDS if one.id in ("sqlite", "psycopg")))
async def test_the_floors_statements_are_those_of_the_saver(database: Database) -> None:
    """Executed by themselves they store what the saver would have."""
    recorder = Recorder(database.url)
    async with database.engine() as engine:
        client = Client(saver_on(engine), database.backend)
        (step,) = conversation(client.saver, 1)
        thread = config_of(step.put[0]["configurable"]["thread_id"])
        *writing, reading = (
            recorder.record(operation, given)
            for operation, given in zip(OPERATIONS, (step.put, step.put_writes, (thread,)), strict=True)
        )
        recorder.close()
        await client.delete_thread(thread["configurable"]["thread_id"])
        assert await client.get_tuple(thread) is None
        for statements in writing:
            execute(sync_engine_of(engine), statements)
        rows = execute(sync_engine_of(engine), reading)
        stored = await client.load(thread)
    assert _operations.get_tuple(client.saver.serde, thread).decode(rows) == stored
    assert stored.checkpoint == step.put[1]
    assert stored.pending_writes == [(step.put_writes[2], *write) for write in step.put_writes[1]]


@pytest.mark.parametrize("lifo", [True, False])
def test_an_engine_of_ours_takes_its_connections_as_it_is_told(tmp_path: Path, lifo: bool) -> None:
    (entry,) = (entry for entry in ENTRIES if entry.name == "ours on sqlite3")
    with entry.open(make_url(f"sqlite:///{tmp_path}/a.db"), lifo=lifo) as saver:
        assert connections_in_a_row(saver._bind.source, 3) == (1 if lifo else 3)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux has processes say which processors they take")
@pytest.mark.skipif(bool(os.environ.get(POSTGRES_VARIABLE)), reason="the server is another one's")
def test_a_server_may_have_processors_of_its_own() -> None:
    all_of_them = os.sched_getaffinity(0)
    with started("postgresql", durable=False, pin=True) as server, looking_at(server.new_url()).connect() as connection:
        its_own = os.sched_getaffinity(connection.scalar(text("SELECT pg_backend_pid()")) or 0)
        ours = os.sched_getaffinity(0)
    assert its_own | ours == all_of_them == os.sched_getaffinity(0)
    assert its_own.isdisjoint(ours) or len(all_of_them) == 1


@on_backends(*(one for one in BACKENDS if one.id in ("psycopg", "pymysql")))
def test_the_proxy_makes_each_round_trip_take_longer(database: Database) -> None:
    """At least by what it is told; how much more depends on the machine."""
    with delayed(database.url, 50) as url:
        engine = create_engine(url, isolation_level="AUTOCOMMIT")
        with engine.connect() as connection:
            started = time.monotonic()
            for number in range(4):
                assert connection.scalar(text(f"SELECT {number}")) == number
            assert time.monotonic() - started >= 4 * 0.050
        engine.dispose()
