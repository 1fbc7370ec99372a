"""The README's code is run as it stands, on PostgreSQL."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, TypedDict

import pytest
from langchain.agents import create_agent
from langchain.tools import tool
from langgraph.graph import StateGraph
from sqlalchemy import URL, create_engine
from sqlalchemy.ext.asyncio import create_async_engine

from docs.examples.quickstart import ScriptedModel
from sa_checkpoint import AsyncSQLAlchemySaver, SQLAlchemySaver, migrations
from tests.checkpoints import checkpoint_of

README = (Path(__file__).parent.parent / "README.md").read_text()


def blocks(text: str) -> list[str]:
    return re.findall(r"^```python\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


SIX_WAYS = README[README.index("## Coming from") : README.index("### Keep your rows")]
(ENCRYPTION,) = blocks(README[README.index("## Encryption") :])
OURS = [block for block in blocks(SIX_WAYS) if "SQLAlchemySaver" in block]
FIRST_USE = blocks(README[: README.index("## Coming from")])


@tool
def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"It's always sunny in {city}"


class State(TypedDict):
    question: str


@pytest.fixture
async def names(new_postgres: Callable[[], URL]) -> AsyncIterator[dict[str, Any]]:
    """What the README's code takes as given."""
    url = new_postgres()
    engine, async_engine = create_engine(url), create_async_engine(url)
    builder = StateGraph(State).add_node("answer", lambda state: state).set_entry_point("answer")
    yield {
        "DB_URI": url.render_as_string(hide_password=False),
        "engine": engine,
        "async_engine": async_engine,
        "builder": builder,
        "model": ScriptedModel(),
        "get_weather": get_weather,
        "create_agent": create_agent,
        "SQLAlchemySaver": SQLAlchemySaver,
        "AsyncSQLAlchemySaver": AsyncSQLAlchemySaver,
    }
    engine.dispose()
    await async_engine.dispose()


async def run(block: str, names: dict[str, Any]) -> None:
    code = compile(block, "README.md", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    result = eval(code, names)
    if inspect.iscoroutine(result):
        await result


async def test_the_first_use_works_after_the_upgrade(names: dict[str, Any]) -> None:
    application = names["engine"]
    sync_use, async_use, upgrade = FIRST_USE
    await run(upgrade, names)

    await run(sync_use, names)
    names["engine"].dispose()
    await run(async_use, names)
    await names["async_engine"].dispose()

    for thread_id in ("1", "2"):
        found = SQLAlchemySaver(application).get({"configurable": {"thread_id": thread_id}})
        assert found is not None
        assert found["channel_values"]["question"] == "sunny?"


async def test_the_encrypting_saver_encrypts(names: dict[str, Any]) -> None:
    migrations.upgrade(names["engine"])
    names["key"] = b"0123456789abcdef"
    await run(ENCRYPTION, names)
    config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    saved = names["saver"].put(config, checkpoint_of({"a": "secret"}), {"open": "metadata"}, {"a": "1"})
    assert names["saver"].get(saved)["channel_values"] == {"a": "secret"}
    with names["engine"].connect() as connection:
        stored = connection.exec_driver_sql(
            "SELECT c.checkpoint::text, b.blob FROM checkpoints c, checkpoint_blobs b"
        ).all()
    assert "secret" not in str(stored)


@pytest.mark.parametrize("number", range(6))
async def test_each_of_the_six_ways_remembers_the_weather(names: dict[str, Any], number: int) -> None:
    assert len(OURS) == 6
    migrations.upgrade(names["engine"])

    await run(OURS[number], names)

    # What the block read itself, and what another saver finds afterwards.
    read = names.get("checkpoint") or names.get("checkpoint_tuple") or names["checkpoint_tuples"][0]
    stored = SQLAlchemySaver(names["engine"]).get_tuple(names["config"])
    assert stored is not None
    assert read in (stored, stored.checkpoint)
    messages = stored.checkpoint["channel_values"]["messages"]
    assert "sunny" in messages[-1].content
