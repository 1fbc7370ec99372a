"""The Alembic lineage: from the command line, from Python, and from many processes at once."""

from __future__ import annotations

import asyncio
import logging
import os
import re
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory
from pytest_alembic.tests import (  # noqa: F401 (pytest collects them)
    test_model_definitions_match_ddl,
    test_single_head_revision,
    test_up_down_consistency,
    test_upgrade,
)
from sqlalchemy import URL, Connection, Engine, create_engine, inspect, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.schema import DropSchema

from sa_checkpoint import SQLAlchemySaver, migrations, models
from sa_checkpoint.errors import SchemaOutOfDate, SyncCallOnEventLoop
from sa_checkpoint.migrations import VERSION_TABLE, aupgrade, check, downgrade, script_location, upgrade
from sa_checkpoint.migrations import alembic_config as our_config
from tests.backends import BACKENDS, Backend, Client, Database, saver_on, with_sync_driver
from tests.checkpoints import checkpoint_of, config_of
from tests.scripts import run_script, url_for_script

ROOT = Path(__file__).parent.parent
HEAD = ScriptDirectory.from_config(our_config()).get_current_head()
OUR_TABLES = {*models.metadata.tables, VERSION_TABLE}
# Which statements the savers use makes no difference here.
NATIVE = [backend for backend in BACKENDS if not backend.is_portable]
SYNC = [backend for backend in NATIVE if not backend.is_async and backend.id != "psycopg2"]


@pytest.fixture(scope="module", params=NATIVE, ids=lambda backend: backend.id)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each of the drivers in turn."""
    assert isinstance(request.param, Backend)
    return request.param


@pytest.fixture(params=SYNC, ids=lambda backend: backend.dialect)
def url(request: pytest.FixtureRequest, new_url: Callable[[Backend], URL]) -> URL:
    """An empty database: SQLite, PostgreSQL, MariaDB."""
    return new_url(request.param)


@pytest.fixture
def alembic_engine(url: URL) -> Iterator[Engine]:
    """The engine that pytest-alembic's tests migrate, and ours."""
    engine = create_engine(url)
    yield engine
    engine.dispose()


@pytest.fixture
def alembic_config() -> Config:
    """The configuration that the `alembic` command uses."""
    return Config(ROOT / "alembic.ini")


def plain(url: URL) -> str:
    return url.render_as_string(hide_password=False)


def run_alembic(
    *arguments: str, environment: dict[str, str] | None = None, cwd: Path = ROOT
) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "alembic", "-c", str(ROOT / "alembic.ini"), *arguments]
    return subprocess.run(
        command, cwd=cwd, env={**os.environ, **(environment or {})}, capture_output=True, text=True, check=False
    )


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names())


def test_the_command_upgrades_checks_and_downgrades(url: URL, alembic_engine: Engine) -> None:
    at = ("-x", f"url={plain(url)}")

    assert run_alembic(*at, "upgrade", "head").returncode == 0
    assert tables(alembic_engine) == OUR_TABLES
    check = run_alembic(*at, "check")
    assert check.returncode == 0, check.stdout + check.stderr
    assert f"{HEAD} (head)" in run_alembic(*at, "current").stdout

    assert run_alembic(*at, "downgrade", "base").returncode == 0
    assert tables(alembic_engine) == {VERSION_TABLE}


def test_check_sees_a_difference_in_our_tables_and_none_in_the_hosts(url: URL, alembic_engine: Engine) -> None:
    at = ("-x", f"url={plain(url)}")
    upgrade(alembic_engine)
    with alembic_engine.begin() as connection:
        connection.execute(text("CREATE TABLE users (id INTEGER PRIMARY KEY)"))
    assert run_alembic(*at, "check").returncode == 0

    with alembic_engine.begin() as connection:
        connection.execute(text("ALTER TABLE checkpoints ADD COLUMN surplus TEXT"))
    assert run_alembic(*at, "check").returncode != 0


def test_the_url_comes_from_x_then_the_environment_then_the_current_folder(tmp_path: Path) -> None:
    variable = {"SA_CHECKPOINT_URL": "sqlite:///environment.db"}

    run_alembic("-x", "url=sqlite:///x.db", "upgrade", "head", environment=variable, cwd=tmp_path)
    assert {path.name for path in tmp_path.glob("*.db")} == {"x.db"}
    run_alembic("upgrade", "head", environment=variable, cwd=tmp_path)
    assert {path.name for path in tmp_path.glob("*.db")} == {"x.db", "environment.db"}
    run_alembic("upgrade", "head", environment={"SA_CHECKPOINT_URL": ""}, cwd=tmp_path)
    assert {path.name for path in tmp_path.glob("*.db")} == {"x.db", "environment.db", "checkpoints.db"}


@pytest.mark.parametrize("backend", [b for b in NATIVE if b.is_async], ids=lambda backend: backend.id)
def test_the_command_takes_the_url_of_an_async_engine(backend: Backend, new_url: Callable[[Backend], URL]) -> None:
    url = new_url(backend)

    run = run_alembic("-x", f"url={plain(url)}", "upgrade", "head")

    assert run.returncode == 0, run.stderr
    engine = create_engine(with_sync_driver(url))
    assert tables(engine) == OUR_TABLES
    engine.dispose()


def test_the_offline_script_makes_the_same_tables(url: URL, alembic_engine: Engine) -> None:
    script = run_alembic("-x", f"url={plain(url_for_script(alembic_engine))}", "upgrade", "head", "--sql")
    assert script.returncode == 0, script.stderr
    assert tables(alembic_engine) == set()

    run_script(alembic_engine, script.stdout)

    assert tables(alembic_engine) == OUR_TABLES
    assert run_alembic("-x", f"url={plain(url)}", "check").returncode == 0


def test_the_scripts_for_mysql_and_mariadb_name_their_own_collation() -> None:
    for name, collation in (("mysql", "utf8mb4_0900_bin"), ("mariadb", "utf8mb4_nopad_bin")):
        script = run_alembic("-x", f"url={name}://host/app", "upgrade", "head", "--sql").stdout
        assert set(re.findall(r"COLLATE (\w+)", script)) == {collation}


def test_the_url_may_say_that_it_is_a_mariadb(new_mysql: Callable[[], URL]) -> None:
    """SQLAlchemy's name of the dialect is another one then."""
    engine = create_engine(new_mysql())
    named = create_engine(url_for_script(engine))
    for one, other in ((engine, named), (named, engine)):
        upgrade(one)
        command.check(our_config(other))
        saver = SQLAlchemySaver(other)
        saved = saver.put(config_of("t"), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        assert SQLAlchemySaver(one).get_tuple(saved) == saver.get_tuple(saved)
        downgrade(other, "base")
        assert tables(one) == {VERSION_TABLE}
    engine.dispose()
    named.dispose()


def test_the_host_keeps_its_own_version_table(alembic_engine: Engine) -> None:
    with alembic_engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('host_0042')"))

    upgrade(alembic_engine)
    downgrade(alembic_engine, "base")
    upgrade(alembic_engine)

    with alembic_engine.connect() as connection:
        assert connection.scalars(text("SELECT version_num FROM alembic_version")).all() == ["host_0042"]
        assert connection.scalars(text(f"SELECT version_num FROM {VERSION_TABLE}")).all() == [HEAD]


@pytest.mark.parametrize("url", SYNC[:2], ids=lambda backend: backend.dialect, indirect=True)
def test_on_a_callers_connection_the_transaction_stays_the_callers(alembic_engine: Engine) -> None:
    with alembic_engine.connect() as connection:
        upgrade(connection)
        assert OUR_TABLES <= set(inspect(connection).get_table_names())
        connection.rollback()
    assert tables(alembic_engine) == set()

    with alembic_engine.begin() as connection:
        upgrade(connection)
    assert tables(alembic_engine) == OUR_TABLES


def test_the_hosts_schema_translate_map_is_followed_at_every_start(new_postgres: Callable[[], URL]) -> None:
    engine = create_engine(new_postgres())
    with engine.begin() as connection:
        connection.execute(text("CREATE SCHEMA tenant"))
    tenant = engine.execution_options(schema_translate_map={None: "tenant"})

    upgrade(tenant)
    upgrade(tenant)

    assert set(inspect(engine).get_table_names(schema="tenant")) == OUR_TABLES
    assert inspect(engine).get_table_names() == []
    engine.dispose()


@pytest.mark.parametrize("isolation_level", ["AUTOCOMMIT", "SERIALIZABLE"])
def test_the_hosts_isolation_level_does_no_harm(url: URL, isolation_level: str) -> None:
    engine = create_engine(url, isolation_level=isolation_level)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: upgrade(engine), range(4)))

    assert tables(engine) == OUR_TABLES
    engine.dispose()


async def test_setup_makes_the_tables_and_may_be_called_again(
    backend: Backend, new_url: Callable[[Backend], URL]
) -> None:
    url = new_url(backend)
    engine: AsyncEngine | Engine = create_async_engine(url) if backend.is_async else create_engine(url)
    client = Client(saver_on(engine), backend)

    await client.setup()
    saved = await client.put(config_of("t"), checkpoint_of({"a": [1]}), {"step": 1}, {"a": "1"})
    await client.setup()

    assert (await client.load(saved)).checkpoint["channel_values"] == {"a": [1]}
    await engine.dispose() if isinstance(engine, AsyncEngine) else engine.dispose()


SETUP = """
import sys
from sa_checkpoint import SQLAlchemySaver
with SQLAlchemySaver.from_conn_string(sys.argv[1], schema=sys.argv[2] or None) as saver:
    print("ready", flush=True)
    sys.stdin.readline()
    saver.setup()
"""


@pytest.mark.parametrize(
    ("backend", "schema"),
    [(SYNC[0], None), (SYNC[1], None), (SYNC[1], "agents"), (SYNC[2], None), (SYNC[2], f"agents_{uuid4().hex}")],
    ids=["sqlite", "postgresql", "postgresql-schema", "mysql", "mysql-schema"],
)
def test_several_processes_set_up_at_once(
    backend: Backend, schema: str | None, new_url: Callable[[Backend], URL]
) -> None:
    """Known fault elsewhere: of the first setup() calls from several workers at once, most fail."""
    url = new_url(backend)
    # On MySQL a schema is one and the same, whichever database a connection is in.
    other = new_url(backend) if schema and backend.dialect == "mysql" else url
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SETUP, plain(each), schema or ""],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for each in [url, other] * 4
    ]
    for worker in workers:
        assert worker.stdout is not None
        assert worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin is not None
        worker.stdin.write("go\n")
        worker.stdin.flush()
    errors = [worker.communicate()[1] for worker in workers]

    assert [worker.returncode for worker in workers] == [0] * 8, "\n".join(errors)
    engine = create_engine(url)
    assert set(inspect(engine).get_table_names(schema=schema)) == OUR_TABLES
    with engine.begin() as connection:
        connection.execute(DropSchema(schema)) if schema and backend.dialect == "mysql" else None
    engine.dispose()


def in_threads(*upgrades: Callable[[], None]) -> None:
    """Run them at once, each in a thread of its own."""
    with ThreadPoolExecutor(len(upgrades)) as pool:
        for future in [pool.submit(upgrade) for upgrade in upgrades]:
            future.result()


def test_several_threads_upgrade_at_once(alembic_engine: Engine) -> None:
    """Known fault elsewhere: Alembic's globals are the process's, so threads disturb each other."""
    in_threads(*[partial(upgrade, alembic_engine)] * 16)
    assert tables(alembic_engine) == OUR_TABLES


def test_several_threads_upgrade_one_schema_at_once(new_postgres: Callable[[], URL]) -> None:
    engine = create_engine(new_postgres())
    in_threads(*[partial(upgrade, engine, schema="agents")] * 16)
    assert set(inspect(engine).get_table_names(schema="agents")) == OUR_TABLES
    engine.dispose()


@pytest.mark.parametrize("backend", SYNC, ids=lambda backend: backend.dialect)
def test_several_threads_upgrade_a_database_each_at_once(backend: Backend, new_url: Callable[[Backend], URL]) -> None:
    engines = [create_engine(new_url(backend)) for _ in range(16)]
    in_threads(*(partial(upgrade, engine) for engine in engines))
    for engine in engines:
        assert tables(engine) == OUR_TABLES
        engine.dispose()


ASYNC = [backend for backend in BACKENDS if backend.id in ("asyncpg", "asyncmy")]


@pytest.fixture(params=ASYNC, ids=lambda backend: backend.id)
async def async_engine(request: pytest.FixtureRequest, new_url: Callable[[Backend], URL]) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(new_url(request.param))
    yield engine
    await engine.dispose()


async def test_several_tasks_upgrade_at_once(async_engine: AsyncEngine) -> None:
    """Waiting for the process's lock must not block the loop on which its holder has to go on."""
    async with asyncio.timeout(60):
        await asyncio.gather(*(aupgrade(async_engine) for _ in range(4)))
    async with async_engine.connect() as connection:
        assert set(await connection.run_sync(lambda c: inspect(c).get_table_names())) == OUR_TABLES


async def test_a_blocking_upgrade_on_the_loop_of_an_awaited_one_is_an_error_and_no_hang(
    async_engine: AsyncEngine, tmp_path: Path
) -> None:
    engine = create_engine(f"sqlite:///{tmp_path}/a.db")
    errors: list[Exception] = []

    async def block() -> None:
        while not errors:
            await asyncio.sleep(0)
            try:
                upgrade(engine)
            except SyncCallOnEventLoop as error:
                errors.append(error)

    async with asyncio.timeout(30):
        await asyncio.gather(aupgrade(async_engine), block())
    assert "await" in str(errors[0])
    upgrade(engine)
    engine.dispose()


@pytest.mark.parametrize("async_engine", ASYNC[:1], ids=["asyncpg"], indirect=True)
async def test_an_async_connections_transaction_stays_the_callers(async_engine: AsyncEngine) -> None:
    async with async_engine.connect() as connection:
        await aupgrade(connection)
        await connection.rollback()
        assert await connection.run_sync(lambda c: inspect(c).get_table_names()) == []


# ------------------------------------------------------------------------------------------------- check and current


@pytest.fixture
async def empty(backend: Backend, new_url: Callable[[Backend], URL]) -> AsyncIterator[Engine | AsyncEngine]:
    """An engine on an empty database, by each of the drivers."""
    async with Database(backend, new_url(backend)).engine() as engine:
        yield engine


async def call(bind: Any, name: str, *arguments: str) -> Any:
    """A function of `migrations`, or its async twin for what an async application has."""
    if isinstance(bind, AsyncEngine | AsyncConnection):
        return await getattr(migrations, f"a{name}")(bind, *arguments)
    return getattr(migrations, name)(bind, *arguments)


@asynccontextmanager
async def begun(engine: Engine | AsyncEngine) -> AsyncIterator[Connection | AsyncConnection]:
    """A transaction of the caller's."""
    if isinstance(engine, AsyncEngine):
        async with engine.begin() as connection:
            yield connection
    else:
        with engine.begin() as sync_connection:
            yield sync_connection


async def execute(connection: Connection | AsyncConnection, statement: str) -> Any:
    if isinstance(connection, AsyncConnection):
        return await connection.execute(text(statement))
    return connection.execute(text(statement))


async def message_of_check(bind: Any) -> str:
    with pytest.raises(SchemaOutOfDate) as raised:
        await call(bind, "check")
    return str(raised.value)


async def test_check_names_both_revisions_and_the_command_until_the_tables_are_up_to_date(
    empty: Engine | AsyncEngine,
) -> None:
    assert await call(empty, "current") is None
    message = await message_of_check(empty)
    assert f"are at revision none, and this version of sa_checkpoint needs {HEAD} (no table checkpoint_blobs" in message
    assert "Run `alembic upgrade head`" in message

    await call(empty, "upgrade", "sac_0001")
    assert await call(empty, "current") == "sac_0001"
    message = await message_of_check(empty)
    assert f"are at revision sac_0001, and this version of sa_checkpoint needs {HEAD}. Run `alembic upgrade" in message

    await call(empty, "upgrade")
    assert await call(empty, "current") == HEAD
    await call(empty, "check")

    await call(empty, "downgrade", "base")
    assert await call(empty, "current") is None
    assert "revision none" in await message_of_check(empty)


async def test_check_of_a_newer_database_says_to_install_what_made_it(empty: Engine | AsyncEngine) -> None:
    await call(empty, "upgrade")
    async with begun(empty) as connection:
        await execute(connection, f"UPDATE {VERSION_TABLE} SET version_num = 'sac_9999'")

    assert await call(empty, "current") == "sac_9999"
    message = await message_of_check(empty)
    assert f"at revision sac_9999, which this version of sa_checkpoint does not know: its head is {HEAD}." in message
    assert "Install the version that created it" in message


async def test_stamp_writes_a_revision_and_runs_none(empty: Engine | AsyncEngine) -> None:
    await call(empty, "stamp", "sac_0001")
    assert await call(empty, "current") == "sac_0001"
    await call(empty, "stamp")
    assert await call(empty, "current") == HEAD
    assert f"are at revision {HEAD}, and" in await message_of_check(empty)  # there are no tables

    await call(empty, "stamp", "base")
    assert await call(empty, "current") is None
    await call(empty, "upgrade")
    await call(empty, "check")


async def test_check_and_current_work_in_the_callers_transaction(empty: Engine | AsyncEngine) -> None:
    async with begun(empty) as connection:
        assert await call(connection, "current") is None
        assert "revision none" in await message_of_check(connection)
        await call(connection, "upgrade")
        assert await call(connection, "current") == HEAD
        await call(connection, "check")


async def test_a_saver_without_tables_says_what_check_says_and_the_callers_transaction_goes_on(
    backend: Backend, empty: Engine | AsyncEngine
) -> None:
    expected = await message_of_check(empty)

    async with begun(empty) as connection:
        await execute(connection, "CREATE TABLE users (id INTEGER PRIMARY KEY)")
        await execute(connection, "INSERT INTO users VALUES (1)")
        for bind in (empty, connection):
            with pytest.raises(SchemaOutOfDate) as raised:
                await Client(saver_on(bind), backend).get_tuple(config_of("t"))
            # What was seen stands in between, in the database's own words.
            assert str(raised.value).startswith(expected.partition("(no table")[0])
            assert str(raised.value).endswith(expected.rpartition(". Run")[2])
        await execute(connection, "INSERT INTO users VALUES (2)")

    async with begun(empty) as connection:
        assert (await execute(connection, "SELECT count(*) FROM users")).scalar() == 2


# ------------------------------------------------------------------------------------------------------------ logging


def logging_now() -> dict[str, tuple[Any, ...]]:
    """How each logger is set up, the root among them."""
    loggers = {"root": logging.root, **logging.root.manager.loggerDict}
    return {
        name: (logger.level, logger.disabled, logger.propagate, [*logger.handlers], [*logger.filters])
        for name, logger in loggers.items()
        if isinstance(logger, logging.Logger)
    }


def test_the_hosts_logging_stays_as_it_is(alembic_engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    """Known fault elsewhere: fileConfig in env.py replaces the host's handlers, and disables its loggers."""
    host = logging.getLogger("tests.host")
    monkeypatch.setattr(host, "handlers", [logging.NullHandler()])
    monkeypatch.setattr(host, "level", logging.DEBUG)
    before = logging_now()

    saver = SQLAlchemySaver(alembic_engine)
    for use in (
        partial(upgrade, alembic_engine),
        partial(check, alembic_engine),
        saver.setup,
        partial(downgrade, alembic_engine, "base"),
        partial(migrations.stamp, alembic_engine),
    ):
        use()
        now = logging_now()
        assert {name: now[name] for name in before} == before
        untouched: tuple[Any, ...] = (logging.NOTSET, False, True, [], [])
        assert all(state == untouched for name, state in now.items() if name not in before)


def test_no_init_file_makes_our_scripts_shadow_alembic() -> None:
    assert (script_location() / "env.py").is_file()
    assert not (script_location() / "__init__.py").exists()
