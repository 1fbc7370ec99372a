"""Every code block of the README and of the docs is run as it stands; `documents` says how.

Here is what a page takes as given, and what it says beyond the output that it shows.
"""

from __future__ import annotations

import asyncio
import io
import json
import re
import runpy
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache
from itertools import groupby
from pathlib import Path
from types import ModuleType
from typing import Any, TypedDict, TypeVar, cast

import httpx
import pymysql
import pytest
from alembic import command
from alembic.config import Config
from langchain.agents import create_agent
from langchain.tools import tool
from langgraph.checkpoint.mysql.pymysql import PyMySQLSaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.graph import START, StateGraph
from sqlalchemy import URL, create_engine, inspect, text
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from docs.examples.quickstart import ScriptedModel
from sa_checkpoint import SQLAlchemySaver, metadata, migrations
from tests.backends import BACKENDS, Backend
from tests.checkpoints import checkpoint_of
from tests.documents import DIRECTIVES, NOT_RUN, ROOT, Block, Commands, Story, blocks_of, commands_of, not_run, pages

T = TypeVar("T")

POSTGRESQL, SQLITE, MYSQL = "postgresql", "sqlite", "mysql"
DRIVERS = {POSTGRESQL: "psycopg", SQLITE: "sqlite", MYSQL: "pymysql"}


@tool
def get_weather(city: str) -> str:
    """Get the weather in a city."""
    return f"It's always sunny in {city}"


class State(TypedDict):
    question: str


def engine(story: Story) -> Any:
    return create_engine(story.url_for("postgresql+psycopg"))


def async_engine(story: Story) -> Any:
    return create_async_engine(story.url_for("postgresql+asyncpg"))


def conversation(story: Story) -> Any:
    """A model with a row whose id is the thread's."""

    class Base(DeclarativeBase):
        pass

    class Conversation(Base):
        __tablename__ = "conversations"
        id: Mapped[str] = mapped_column(primary_key=True)

    engine = create_engine(story.url)
    Base.metadata.create_all(engine)
    with Session(engine) as session:
        session.add(Conversation(id="1"))
        session.commit()
    engine.dispose()
    return Conversation


GIVEN: dict[str, Callable[[Story], Any]] = {
    "Conversation": conversation,
    "DB_URI": lambda story: story.url_for("postgresql"),
    "builder": lambda _: StateGraph(State).add_node("answer", lambda state: state).add_edge(START, "answer"),
    "create_agent": lambda _: create_agent,
    "engine": engine,
    "async_engine": async_engine,
    "get_weather": lambda _: get_weather,
    "key": lambda _: b"0123456789abcdef",
    "model": lambda _: ScriptedModel(),
    "saver": lambda story: SQLAlchemySaver(story.names["engine"]),
}


def nothing(story: Story) -> None:
    """For pages that say all in their blocks."""


def make_host(story: Story) -> None:
    """An application with migrations, as `alembic init` makes it."""
    config = Config(story.folder / "alembic.ini", stdout=io.StringIO())
    command.init(config, "alembic")
    config.set_main_option("sqlalchemy.url", story.url_for("postgresql+psycopg").replace("%", "%%"))
    with (story.folder / "alembic.ini").open("w") as file:
        config.file_config.write(file)


def set_up_theirs(story: Story) -> None:
    """The tables of langgraph-checkpoint-postgres."""
    with PostgresSaver.from_conn_string(story.url_for("postgresql")) as theirs:
        theirs.setup()


def check_readme(story: Story) -> None:
    saver = story.names["saver"]
    assert saver.get({"configurable": {"thread_id": "1"}}) is None
    assert saver.get({"configurable": {"thread_id": "2"}})["channel_values"]["question"] == "sunny?"
    with Session(story.names["engine"]) as session:
        assert session.get(story.names["Conversation"], "1") is None


def check_engine(story: Story) -> None:
    reader = SQLAlchemySaver(story.names["engine"])
    threads = {found.config["configurable"]["thread_id"] for found in reader.list(None)}
    assert threads == {"1", "2", "3", "4", *(f"batch-{number}" for number in range(8))}


def check_one_transaction(story: Story) -> None:
    saver = story.names["saver"]
    with Session(story.names["engine"]) as session:
        assert [found.id for found in session.query(story.names["Conversation"])] == ["2"]
        assert [found.event for found in session.query(story.names["Outbox"])] == ["corrected"]
    assert {found.config["configurable"]["thread_id"] for found in saver.list(None)} == {"2"}
    assert saver.get({"configurable": {"thread_id": "2"}})["channel_values"]["question"] == "sunny in Rome?"


def check_host(story: Story) -> None:
    """Whichever way the tables came about, a saver can use them, and a check passes."""
    engine = create_engine(story.url)
    schema = "agents" if "agents" in inspect(engine).get_schema_names() else None
    migrations.check(engine, schema=schema)
    config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    SQLAlchemySaver(engine, schema=schema).put(config, checkpoint_of({"a": 1}), {}, {"a": "1"})
    assert inspect(engine).has_table("users")
    if story.url.get_backend_name() == "postgresql":
        indexes = inspect(engine).get_indexes("checkpoints", schema=schema)
        assert [index["name"] for index in indexes] == ["checkpoints_run_id_idx"]
    engine.dispose()
    versions = (story.folder / "alembic" / "versions").glob("*.py")
    generated = [path.read_text() for path in versions if not path.name.startswith(("app_0001", "app_0003"))]
    assert not any("drop_table" in text.partition("def downgrade")[0] for text in generated)


def check_the_six_ways(story: Story) -> None:
    """In each thread theirs has asked for the weather in sf, and ours for that in nyc."""
    saver = SQLAlchemySaver(story.names["engine"])
    for number in range(1, 7):
        found = saver.get({"configurable": {"thread_id": str(number)}})
        assert found is not None
        messages = [message.text for message in found["channel_values"]["messages"]]
        assert [text for text in messages if "sunny" in text][1::2] == [
            "I looked. It's always sunny in sf",
            "I looked. It's always sunny in nyc",
        ]
    assert migrations.current(story.names["engine"]) == migrations.HEAD
    assert inspect(story.names["engine"]).has_table("sa_checkpoint_adopted")


def fill_theirs(story: Story) -> None:
    """Threads that langgraph-checkpoint-mysql has stored."""
    connection = pymysql.connect(
        user=story.url.username,
        password=story.url.password or "",
        database=story.url.database,
        autocommit=True,
        **cast(Any, dict(story.url.query)),
    )
    theirs = PyMySQLSaver(connection)
    theirs.setup()
    story.give("theirs", theirs)
    for thread_id in ("1", "2"):
        graph = story.names["builder"].compile(checkpointer=theirs)
        for question in ("sunny?", "and in Rome?"):
            graph.invoke({"question": question}, {"configurable": {"thread_id": thread_id}})


def check_copied(story: Story) -> None:
    ours, theirs = story.names["saver"], story.names["theirs"]
    for thread_id in ("1", "2"):
        config: Any = {"configurable": {"thread_id": thread_id}}
        copied, original = list(ours.list(config)), list(theirs.list(config))
        assert len(copied) == len(original) == 6
        for one, other in zip(copied, original, strict=True):
            assert (one.config, one.parent_config) == (other.config, other.parent_config)
            assert one.checkpoint == other.checkpoint
            assert one.pending_writes == other.pending_writes
    theirs.conn.close()


def run_in_thread(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine where no event loop runs yet."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, coroutine).result()


async def enter(factory: Callable[[], Any]) -> list[Any]:
    async with factory() as saver:
        return [found async for found in saver.alist(None)]


def check_server(story: Story) -> None:
    assert story.documents == [json.loads((ROOT / "docs/examples/langgraph_server/langgraph.json").read_text())]
    engine = create_engine(story.url)
    migrations.upgrade(engine, schema="agents")
    engine.dispose()
    factory = runpy.run_path(str(story.folder / "checkpointer.py"))["checkpointer"]
    assert run_in_thread(enter(factory)) == []


async def talk_and_delete(story: Story) -> None:
    app = story.names["app"]
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://app") as client,
    ):
        answered = await client.post("/conversations/1/messages", params={"question": "sunny?"})
        assert answered.json() == {"question": "sunny?"}
        config: Any = {"configurable": {"thread_id": "1"}}
        assert await app.state.saver.aget(config) is not None
        assert (await client.delete("/conversations/1")).status_code == 204
        assert await app.state.saver.aget(config) is None
        async with app.state.sessions() as session:
            assert await session.get(story.names["Conversation"], "1") is None


def check_fastapi(story: Story) -> None:
    run_in_thread(talk_and_delete(story))


def check_encryption(story: Story) -> None:
    config: Any = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
    saver, engine = story.names["saver"], story.names["engine"]
    saved = saver.put(config, checkpoint_of({"a": "secret"}), {"open": "metadata"}, {"a": "1"})
    assert saver.get(saved)["channel_values"] == {"a": "secret"}
    with engine.connect() as connection:
        stored = [connection.execute(table.select()).all() for table in metadata.sorted_tables]
    assert "metadata" in str(stored)
    assert "secret" not in str(stored)


@dataclass(frozen=True)
class Page:
    """How a page is run.

    Attributes:
        given: The names that it takes as given.
        databases: What it is run on.
        migrated: Whether the checkpoint tables are there when it begins.
        sections: If each of its sections is a story of its own, after the blocks above the first of them: what each
            of those with blocks is run on.
        roles: The database roles that it creates, which outlive a database.
        prepare: Makes what else it takes as given.
        check: What else has to hold in the end.
    """

    given: tuple[str, ...] = ()
    databases: tuple[str, ...] = (POSTGRESQL, SQLITE)
    migrated: bool = False
    sections: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    roles: tuple[str, ...] = ()
    prepare: Callable[[Story], None] = nothing
    check: Callable[[Story], None] = nothing


PAGES: dict[str, Page] = {
    "README.md": Page(given=("builder", "Conversation"), check=check_readme),
    "docs/quickstart.md": Page(databases=(SQLITE,)),
    "docs/guides/engine.md": Page(given=("builder",), migrated=True, check=check_engine),
    "docs/guides/one-transaction.md": Page(
        given=("engine", "async_engine", "builder", "saver"), migrated=True, check=check_one_transaction
    ),
    "docs/guides/alembic.md": Page(
        sections={
            "(a) A lineage beside yours": (POSTGRESQL, SQLITE),
            "(b) A branch of your lineage": (POSTGRESQL, SQLITE),
            "(b) in a schema": (POSTGRESQL,),
            "(c) Revisions of your own": (POSTGRESQL, SQLITE),
        },
        prepare=make_host,
        check=check_host,
    ),
    "docs/guides/fastapi.md": Page(given=("Conversation", "builder"), check=check_fastapi),
    "docs/guides/schemas.md": Page(
        given=("engine", "async_engine", "builder"), databases=(POSTGRESQL,), roles=("agents_tenant",)
    ),
    "docs/guides/from-langgraph-postgres.md": Page(
        given=("DB_URI", "create_agent", "get_weather", "model"),
        databases=(POSTGRESQL,),
        prepare=set_up_theirs,
        check=check_the_six_ways,
    ),
    "docs/guides/mysql.md": Page(given=("builder",), databases=(MYSQL,), prepare=fill_theirs, check=check_copied),
    "docs/guides/server.md": Page(databases=(POSTGRESQL,), check=check_server),
    "docs/guides/encryption.md": Page(given=("engine", "builder", "key"), migrated=True, check=check_encryption),
    "docs/explanation/values.md": Page(given=("engine",), migrated=True),
    "docs/reference/models.md": Page(given=("engine",), migrated=True),
    "docs/reference/command.md": Page(databases=(POSTGRESQL,)),
    "docs/explanation/scaling.md": Page(databases=(POSTGRESQL,)),
}


@dataclass(frozen=True)
class Case:
    """A page, or a section of it, on a database."""

    page: str
    section: str
    database: str
    blocks: tuple[Block, ...]

    @property
    def id(self) -> str:
        return "-".join(part for part in (self.page, self.section, self.database) if part)


def cases() -> Iterator[Case]:
    for page in pages():
        blocks = [block for block in blocks_of(page) if block.language not in DIRECTIVES]
        how = PAGES.get(page, Page())
        if not blocks:
            continue
        if not how.sections:
            for database in how.databases:
                yield Case(page, "", database, tuple(blocks))
            continue
        common = [block for block in blocks if not block.section]
        for section, own in groupby(blocks[len(common) :], lambda block: block.section):
            story = (*common, *own)
            for database in how.sections[section]:
                yield Case(page, section, database, story)


@pytest.fixture(scope="session")
def commands(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[[], Commands]]:
    """Builds the wheel when the first command is run."""

    @cache
    def make() -> Commands:
        folder = tmp_path_factory.mktemp("wheel")
        build = (sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", str(folder), str(ROOT))
        subprocess.run(build, check=True)
        (wheel,) = folder.glob("*.whl")
        zipfile.ZipFile(wheel).extractall(folder / "installed")
        return Commands(folder / "installed")

    yield make
    if make.cache_info().currsize:
        make().close()


@pytest.fixture
async def story(
    case: Case,
    new_url: Callable[[Backend], URL],
    commands: Callable[[], Commands],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[Story]:
    """A reader at the beginning of the page."""
    (backend,) = (backend for backend in BACKENDS if backend.id == DRIVERS[case.database])
    module = ModuleType("page")
    monkeypatch.setitem(sys.modules, "page", module)  # where classes look up the names in their annotations
    monkeypatch.chdir(tmp_path)
    how = PAGES.get(case.page, Page())
    story = Story(new_url(backend), tmp_path, commands, module)
    own = create_engine(story.url)
    if how.migrated:
        migrations.upgrade(own)
    for name in how.given:
        story.give(name, GIVEN[name](story))
    how.prepare(story)
    yield story
    await story.close()
    for role in how.roles:
        with own.begin() as connection:
            if connection.scalar(text("SELECT true FROM pg_roles WHERE rolname = :role"), {"role": role}):
                connection.execute(text(f"DROP OWNED BY {role}"))
                connection.execute(text(f"DROP ROLE {role}"))
    own.dispose()


@pytest.mark.parametrize("case", list(cases()), ids=lambda case: case.id)
async def test_the_page_works_as_it_is_written(case: Case, story: Story) -> None:
    for block in case.blocks:
        await story.follow(block)
    PAGES.get(case.page, Page()).check(story)


def test_no_page_is_described_here_that_does_not_exist() -> None:
    assert PAGES.keys() <= set(pages())


def test_every_command_that_is_not_run_stands_on_a_page() -> None:
    blocks = [block for page in pages() for block in blocks_of(page) if block.language == "console"]
    starts = {not_run(command) for block in blocks for command, _ in commands_of(block.text)}
    assert NOT_RUN.keys() - starts == set()


def test_the_reference_has_all_that_is_public() -> None:
    page = (ROOT / "docs/reference/migrations.md").read_text()
    assert [name for name in migrations.__all__ if f":: {name}\n" not in page] == []


def test_the_links_of_the_readme_lead_somewhere() -> None:
    links = re.findall(r"\]\((?!https?:)([^)#]+)", (ROOT / "README.md").read_text())
    assert links
    assert [link for link in links if not (ROOT / link).exists()] == []
