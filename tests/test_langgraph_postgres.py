"""On PostgreSQL our tables are those of langgraph-checkpoint-postgres, and both savers work on them at once."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from langgraph.checkpoint.base import BaseCheckpointSaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.serde.types import INTERRUPT, TASKS, _DeltaSnapshot
from sqlalchemy import URL, Engine, create_engine, inspect

from sa_checkpoint import SQLAlchemySaver, migrations, models
from tests.checkpoints import checkpoint_of, config_of

VALUES: dict[str, Any] = {
    "none": None,
    "true": True,
    "int": -7,
    "big": 2**60,
    "float": 1.5,
    "text": "zażółć 'gęślą' \"jaźń\" %s :x",
    "long": "x" * 5000,
    "bytes": b"\x00\xff",
    "list": [1, {"a": (None,)}],
    "empty": [],
    "snapshot": _DeltaSnapshot([1, 2]),
}


def open_theirs(url: URL) -> Any:
    return PostgresSaver.from_conn_string(url.set(drivername="postgresql").render_as_string(hide_password=False))


@pytest.fixture(params=["our upgrade", "their setup"])
def engine(request: pytest.FixtureRequest, new_postgres: Callable[[], URL]) -> Iterator[Engine]:
    """A database that one of the two has set up."""
    engine = create_engine(new_postgres())
    if request.param == "our upgrade":
        migrations.upgrade(engine)
    else:
        with open_theirs(engine.url) as saver:
            saver.setup()
    yield engine
    engine.dispose()


@pytest.fixture
def savers(engine: Engine) -> Iterator[tuple[BaseCheckpointSaver[str], BaseCheckpointSaver[str]]]:
    """Ours and theirs."""
    with open_theirs(engine.url) as theirs:
        yield SQLAlchemySaver(engine), theirs


def shape(engine: Engine) -> dict[str, Any]:
    inspector = inspect(engine)
    return {
        table: {
            "columns": [
                (column["name"], str(column["type"]), column["nullable"], column["default"])
                for column in inspector.get_columns(table)
            ],
            "primary key": inspector.get_pk_constraint(table),
            "foreign keys": inspector.get_foreign_keys(table),
        }
        for table in models.metadata.tables
    }


def test_the_tables_have_the_same_columns_types_defaults_and_keys(new_postgres: Callable[[], URL]) -> None:
    ours, theirs = create_engine(new_postgres()), create_engine(new_postgres())
    migrations.upgrade(ours)
    with open_theirs(theirs.url) as saver:
        saver.setup()
    assert shape(ours) == shape(theirs)
    ours.dispose()
    theirs.dispose()


@pytest.mark.parametrize("writer", [0, 1], ids=["ours writes", "theirs writes"])
def test_each_reads_what_the_other_wrote(savers: tuple[Any, Any], writer: int) -> None:
    saver, other = savers[writer], savers[1 - writer]
    values = VALUES if writer == 0 else {**VALUES, "long": "x"}
    versions = dict.fromkeys(values, "1.1")
    metadata = {"source": "loop", "step": 1, "nested": {"a": [1, None]}}
    first = saver.put(config_of("t"), checkpoint_of(values, versions), metadata, versions)
    saver.put_writes(first, [("a", [1]), (TASKS, "send")], "task 2", "path")
    saver.put_writes(first, [(INTERRUPT, ["?"])], "task 1")
    changed = checkpoint_of({**values, "list": [2]}, {**versions, "list": "2.2"}, v=2)
    second = saver.put(first, changed, {"source": "fork"}, {"list": "2.2"})

    for config in (first, second):
        assert other.get_tuple(config) == saver.get_tuple(config)
    assert list(other.list(config_of("t"))) == list(saver.list(config_of("t")))
    assert list(other.list(None, filter={"nested": {"a": [None]}})) == [saver.get_tuple(first)]
    assert other.get_tuple(first).checkpoint["channel_values"] == {**values, "list": [1, {"a": [None]}]}
    assert other.get_tuple(second).checkpoint["channel_values"] == {**values, "list": [2], TASKS: ["send"]}


def test_both_go_on_with_one_thread_in_turn(savers: tuple[Any, Any]) -> None:
    config, version = config_of("t"), None
    for turn in range(6):
        saver = savers[turn % 2]
        version = saver.get_next_version(version, None)
        config = saver.put(config, checkpoint_of({"a": [turn]}, {"a": version}), {"step": turn}, {"a": version})
        saver.put_writes(config, [("a", turn)], "task")

    ours, theirs = (list(saver.list(config_of("t"))) for saver in savers)
    assert ours == theirs
    assert [found.checkpoint["channel_values"]["a"] for found in ours] == [[turn] for turn in range(5, -1, -1)]
    savers[0].delete_thread("t")
    assert savers[1].get_tuple(config_of("t")) is None
