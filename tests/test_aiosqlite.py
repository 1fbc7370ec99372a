"""On an engine of aiosqlite where nobody listens, a call of ours is one call into the connection's thread."""

from __future__ import annotations

from typing import Any

import aiosqlite
import pytest
from sqlalchemy import create_engine, event
from sqlalchemy.exc import IntegrityError

from sa_checkpoint._aiosqlite import Batch
from tests import triggers
from tests.backends import BACKENDS, Client, Database, on_backends, saver_on, with_sync_driver
from tests.checkpoints import checkpoint_of, config_of
from tests.hosts import sync_engine_of
from tests.rows import keys_of
from tests.usage import use_one_statement_calls

pytestmark = on_backends(*(backend for backend in BACKENDS if backend.id == "aiosqlite"))


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The calls into the threads of aiosqlite's connections."""
    found: list[Any] = []
    usual: Any = aiosqlite.Connection._execute

    async def execute(self: Any, function: Any, *args: Any, **kwargs: Any) -> Any:
        found.append(function)
        return await usual(self, function, *args, **kwargs)

    monkeypatch.setattr(aiosqlite.Connection, "_execute", execute)
    return found


async def test_a_call_of_ours_is_one_into_the_thread(database: Database, thread: str, calls: list[Any]) -> None:
    async with database.engine(pool_size=1) as engine:
        client = Client(saver_on(engine), database.backend)
        await use_one_statement_calls(client, f"{thread} before")
        for call in (
            lambda: client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"}),
            lambda: client.put_writes(config_of(thread, "", "1"), [("a", 1)], "task"),
            lambda: client.get_tuple(config_of(thread)),
            lambda: client.delete_thread(thread),
        ):
            calls.clear()
            await call()
            assert len(calls) == 1


async def test_where_somebody_listens_the_statements_are_executed_one_by_one(
    database: Database, thread: str, calls: list[Any]
) -> None:
    async with database.engine(pool_size=1) as engine:
        client = Client(saver_on(engine), database.backend)
        statements: list[str] = []
        event.listen(sync_engine_of(engine), "before_cursor_execute", lambda _c, _k, text, *_: statements.append(text))
        await client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        assert sum("INSERT" in text for text in statements) == 2 and len(calls) > 2
        assert await client.load(config_of(thread))


async def test_an_error_says_which_statement_it_came_of(database: Database, thread: str) -> None:
    engine = create_engine(with_sync_driver(database.url))
    with engine.begin() as connection:
        condition = f"NEW.thread_id = '{thread} refused'"
        triggers.before("INSERT", connection, condition, triggers.refusing("no such luck"))
    engine.dispose()
    async with database.engine(pool_size=1, max_overflow=0) as own:
        client = Client(saver_on(own), database.backend)
        refused = f"{thread} refused"
        with pytest.raises(IntegrityError, match="no such luck") as caught:
            await client.put(config_of(refused), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        assert caught.value.statement and caught.value.statement.startswith("INSERT INTO checkpoints")
        assert refused in str(caught.value.params)
        assert not any(keys_of(client, refused).values())
        await client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        assert await client.load(config_of(thread))


async def test_a_connection_that_somebody_closes_meanwhile_costs_no_call(
    database: Database, thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with database.engine(pool_size=1, max_overflow=0) as engine:
        client = Client(saver_on(engine), database.backend)
        await use_one_statement_calls(client, f"{thread} before")

        def closed(_batch: Batch) -> None:
            raise ValueError("Connection closed")  # as aiosqlite has it

        monkeypatch.setattr(Batch, "commit", closed)
        await client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        assert (await client.load(config_of(thread))).checkpoint["channel_values"] == {"a": [1]}


async def test_an_aiosqlite_that_runs_nothing_in_its_thread_serves(
    database: Database, thread: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sa_checkpoint._transactions.batch_on", lambda _driver: None)
    async with database.engine(pool_size=1) as engine:
        client = Client(saver_on(engine), database.backend)
        await use_one_statement_calls(client, f"{thread} before")
        await client.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        assert (await client.load(config_of(thread))).checkpoint["channel_values"] == {"a": [1]}
