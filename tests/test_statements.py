"""How many statements an operation is, as the engine's own event sees them, and what is in them."""

from __future__ import annotations

import gc
from typing import Any

import pytest
from sqlalchemy import create_engine

from sa_checkpoint import SQLAlchemySaver, _prepared
from sa_checkpoint._execution import strategy_for
from sa_checkpoint._strategy import ReadShape
from sa_checkpoint._tables import tables_in
from tests.backends import BACKENDS, Client, Database, on_backends, on_strategies, saver_on
from tests.checkpoints import checkpoint_of, config_of
from tests.rows import statements_of

ONE = dict.fromkeys(("put", "put without blobs", "put_writes", "get_tuple", "list", "delete_thread"), 1)
STATEMENTS = {
    "postgresql": ONE,
    # One for each table that is written to.
    "sqlite": {**ONE, "put": 2, "delete_thread": 3},
    "mysql": ONE,  # on MariaDB
    # Looked for and then written, in each table; read from each, and the first looked at again.
    "portable": {"put": 4, "put without blobs": 2, "put_writes": 2, "get_tuple": 4, "list": 4, "delete_thread": 3},
}


async def test_how_many_statements_each_operation_is(client: Client, thread: str) -> None:
    expected = STATEMENTS[client.backend.strategy]
    values = {"a": [1], "b": {"c": 2}, "d": "inline"}
    with statements_of(client) as statements:
        saved = await client.put(config_of(thread), checkpoint_of(values), {}, dict.fromkeys(values, "1"))
    assert len(statements) == expected["put"]

    for config in (config_of(thread), saved):
        with statements_of(client) as statements:
            await client.get_tuple(config)
        assert len(statements) == expected["get_tuple"]

    with statements_of(client) as statements:
        await client.put(saved, checkpoint_of({"d": "inline"}), {}, {"d": "2"})
    assert len(statements) == expected["put without blobs"]

    for writes in ([("a", 1), ("b", 2), ("c", 3)], [("__error__", 1), ("__interrupt__", 2)]):
        with statements_of(client) as statements:
            await client.put_writes(saved, writes, "task")
        assert len(statements) == expected["put_writes"]

    with statements_of(client) as statements:
        assert len(await client.list(config_of(thread), filter={})) == 2
    assert len(statements) == expected["list"]

    with statements_of(client) as statements:
        await client.delete_thread(thread)
    assert len(statements) == expected["delete_thread"]


@on_strategies("postgresql", "sqlite", "mysql")
async def test_an_old_checkpoint_and_its_pending_sends_are_one_statement(client: Client, thread: str) -> None:
    parent = await client.put(config_of(thread), checkpoint_of(v=1), {}, {})
    await client.put_writes(parent, [("__pregel_tasks", "send")], "task")
    child = await client.put(parent, checkpoint_of(v=1), {}, {})
    with statements_of(client) as statements:
        found = await client.load(child)
    assert found.checkpoint["channel_values"] == {"__pregel_tasks": ["send"]}
    assert len(statements) == 1


async def test_no_statement_for_no_writes(client: Client, thread: str) -> None:
    with statements_of(client) as statements:
        await client.put_writes(config_of(thread, "", "1"), [], "task")
        assert await client.list(config_of(thread), limit=0) == []
    assert statements == []


async def texts_for(client: Client, thread: str, number: int) -> list[str]:
    """What the statements of some operations are on this number of values."""
    values = {f"channel {index} of {thread} '\"%s:x": [index] for index in range(number)}
    with statements_of(client) as statements:
        saved = await client.put(config_of(thread), checkpoint_of(values), {}, dict.fromkeys(values, "1"))
        await client.put_writes(saved, list(values.items()), f"task of {thread}")
        await client.get_tuple(saved)
        await client.list(config_of(thread), before=saved, limit=number)
    return statements


@on_strategies("postgresql", "sqlite")
async def test_the_text_of_a_statement_does_not_depend_on_values(client: Client, thread: str) -> None:
    for number in (1, 3, 20):
        assert await texts_for(client, f"{thread} a{number}", number) == await texts_for(
            client, f"{thread} b{number}", number
        )


@on_strategies("postgresql", "sqlite")
async def test_a_driver_has_few_texts_to_prepare_however_many_values_there_are(client: Client, thread: str) -> None:
    texts = {
        text
        for number in range(1, 40)
        for text in await texts_for(client, f"{thread} {number}", number)
        if "INSERT" in text
    }
    # On PostgreSQL one for each number up to 8, and one for all others, for each of the two operations.
    assert len(texts) == (18 if client.backend.dialect == "postgresql" else 3)


@on_strategies("postgresql", "sqlite", "mysql")
async def test_a_page_of_a_list_is_one_statement(client: Client, thread: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sa_checkpoint._operations.PAGE_SIZE", 4)
    config = config_of(thread)
    shared = checkpoint_of({"big": ["x" * 100]})
    for _ in range(10):
        config = await client.put(config, {**shared, "id": checkpoint_of()["id"]}, {}, {"big": "1"})

    with statements_of(client) as statements:
        found = await client.list(config_of(thread))

    assert [one.checkpoint["channel_values"] for one in found] == [{"big": ["x" * 100]}] * 10
    assert len(statements) == 3  # pages of 4, 4 and 2


@on_strategies("postgresql", "sqlite", "mysql")
async def test_statements_that_never_change_are_not_looked_up_by_their_structure(
    database: Database, thread: str
) -> None:
    compiled: dict[Any, Any] = {}
    async with database.engine() as engine:
        client = Client(saver_on(engine.execution_options(compiled_cache=compiled)), database.backend)
        saved = await client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        await client.put_writes(saved, [("a", 1)], "task")
        await client.load(saved)
        await client.list(config_of(thread))
        if client.backend.strategy != "mysql":  # it reads the history by several statements
            await client.delta_history(saved, ["a"])
        assert compiled == {}
        await client.prune([thread])
        assert compiled != {}


@on_strategies("postgresql")
async def test_a_prune_gives_the_database_its_checkpoints_once(client: Client, thread: str) -> None:
    """Of thousands, to parse them takes longer than to find them."""
    for number in range(3):
        saved = await client.put(config_of(thread), checkpoint_of({"a": [number]}), {}, {"a": "1"})
    with statements_of(client) as statements:
        await client.prune([thread])
    (deletes,) = (statement for statement in statements if "DELETE" in statement)
    assert deletes.count("jsonb_array_elements(") == 1
    assert [found.config for found in await client.list(config_of(thread))] == [saved]


@on_strategies("postgresql")
async def test_a_large_state_is_several_statements_and_stored_in_one_transaction(client: Client, thread: str) -> None:
    values = {f"channel {number}": b"x" * 600_000 for number in range(5)}
    with statements_of(client) as statements:
        saved = await client.put(config_of(thread), checkpoint_of(values), {}, dict.fromkeys(values, "1"))
    assert len(statements) == 5
    with statements_of(client) as statements:
        await client.put_writes(saved, list(values.items()), "task")
    assert len(statements) == 5
    found = await client.load(saved)
    assert found.checkpoint["channel_values"] == values
    assert found.pending_writes == [("task", *item) for item in values.items()]

    forked = {f"channel {number}": b"y" * 600_000 for number in range(5)}  # whose numeric versions others may have
    versions = dict.fromkeys(forked, 2)
    saved = await client.put(saved, {**checkpoint_of(forked), "channel_versions": versions}, {}, versions)
    assert (await client.load(saved)).checkpoint["channel_values"] == forked


@on_backends(*(one for one in BACKENDS if not one.is_async and not one.is_portable))
def test_the_texts_of_statements_are_dropped_with_them(database: Database, thread: str) -> None:
    """An application may have a schema for each of thousands of tenants."""
    engine = create_engine(database.url)
    SQLAlchemySaver(engine).get_tuple(config_of(thread))
    statements = _prepared._PREPARED[engine.dialect]
    before = len(statements)
    strategy = type(strategy_for(database.backend.dialect))(tables_in("another"))
    statement = strategy._cached_read(ReadShape())  # type: ignore[attr-defined]
    _prepared.prepared_for(engine.dialect, statement)
    assert len(statements) == before + 1
    del strategy, statement
    gc.collect()
    assert len(statements) == before
    engine.dispose()


@on_strategies("sqlite")
async def test_sqlite_deletes_rows_by_their_keys(client: Client, thread: str) -> None:
    """One that looks into JSON copies all the pages that it changes to a temporary file."""
    for number in range(3):
        saved = await client.put(
            config_of(thread), checkpoint_of({"a": [number]}, {"a": str(number)}), {}, {"a": str(number)}
        )
        await client.put_writes(saved, [("a", 1)], "task")
    with statements_of(client) as statements:
        await client.prune([thread])
    deletes = [statement for statement in statements if statement.startswith("DELETE")]
    # The first is what takes the lock.
    assert len(deletes) == 4 and not any("json" in statement for statement in deletes)
