"""A dialect without a strategy of its own, as it is: DuckDB, which needs no server."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import Engine, create_engine, inspect

from sa_checkpoint import SQLAlchemySaver, metadata, migrations
from sa_checkpoint.errors import UnsupportedDatabase
from tests.backends import Backend, Client
from tests.checkpoints import checkpoint_of, config_of
from tests.usage import use, use_graphs

DUCKDB = Backend("duckdb", "duckdb", is_async=False, is_portable=True)


@pytest.fixture
def engine(tmp_path: Path) -> Iterator[Engine]:
    engine = create_engine(f"duckdb:///{tmp_path / 'checkpoints.duckdb'}")
    migrations.upgrade(engine)
    yield engine
    engine.dispose()


@pytest.mark.filterwarnings("ignore:duckdb-engine doesn't yet support reflection on indices")
def test_the_tables_are_made_and_dropped(engine: Engine) -> None:
    migrations.upgrade(engine)
    assert migrations.current(engine) == migrations.HEAD
    assert {*metadata.tables} <= {*inspect(engine).get_table_names()}
    migrations.downgrade(engine, "base")
    assert not {*metadata.tables} & {*inspect(engine).get_table_names()}


async def test_every_method_works(engine: Engine, thread: str) -> None:
    await use(Client(SQLAlchemySaver(engine), DUCKDB), thread)


async def test_graphs_with_parallel_nodes_work(engine: Engine, thread: str) -> None:
    await use_graphs(Client(SQLAlchemySaver(engine), DUCKDB), thread)


def test_sixteen_writers_of_the_same_rows_succeed(engine: Engine, thread: str) -> None:
    """DuckDB lets the slower of two fail with a conflict."""
    saver = SQLAlchemySaver(engine)
    checkpoint = checkpoint_of({"a": [1], "b": [2]})

    def write(number: int) -> None:
        saved = saver.put(config_of(thread), checkpoint, {}, {"a": "1", "b": "1"})
        saver.put_writes(saved, [("a", number), ("b", number)], "task")

    with ThreadPoolExecutor(16) as pool:
        list(pool.map(write, range(16)))
    (found,) = saver.list(config_of(thread))
    assert found.checkpoint["channel_values"] == {"a": [1], "b": [2]}
    assert len({value for _, _, value in found.pending_writes or ()}) == 1


def test_oracle_is_refused(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is none to try it on: the dialect's name is all that decides."""
    monkeypatch.setattr(engine.dialect, "name", "oracle")
    with pytest.raises(UnsupportedDatabase, match="empty text as NULL"):
        SQLAlchemySaver(engine).get_tuple(config_of("t"))
