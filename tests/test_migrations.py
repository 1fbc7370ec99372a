"""The Alembic lineage: from the command line, from Python, and from many processes at once."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from alembic.config import Config
from alembic.script import ScriptDirectory
from pytest_alembic.tests import (  # noqa: F401 (pytest collects them)
    test_model_definitions_match_ddl,
    test_single_head_revision,
    test_up_down_consistency,
    test_upgrade,
)
from sqlalchemy import URL, Engine, create_engine, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sa_checkpoint import models
from sa_checkpoint.errors import SyncCallOnEventLoop
from sa_checkpoint.migrations import VERSION_TABLE, aupgrade, downgrade, script_location, upgrade
from sa_checkpoint.migrations import alembic_config as our_config
from tests.backends import BACKENDS, Backend, Client, saver_on
from tests.checkpoints import checkpoint_of, config_of

ROOT = Path(__file__).parent.parent
HEAD = ScriptDirectory.from_config(our_config()).get_current_head()
OUR_TABLES = {*models.metadata.tables, VERSION_TABLE}
SYNC = [backend for backend in BACKENDS if not backend.is_async and backend.id != "psycopg2"]


@pytest.fixture(params=SYNC, ids=lambda backend: backend.dialect)
def url(request: pytest.FixtureRequest, new_url: Callable[[Backend], URL]) -> URL:
    """An empty database: SQLite, PostgreSQL."""
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


@pytest.mark.parametrize("backend", [b for b in BACKENDS if b.is_async], ids=lambda backend: backend.id)
def test_the_command_takes_the_url_of_an_async_engine(backend: Backend, new_url: Callable[[Backend], URL]) -> None:
    url = new_url(backend)

    run = run_alembic("-x", f"url={plain(url)}", "upgrade", "head")

    assert run.returncode == 0, run.stderr
    engine = create_engine(url.set(drivername="sqlite" if backend.dialect == "sqlite" else "postgresql+psycopg"))
    assert tables(engine) == OUR_TABLES
    engine.dispose()


def test_the_offline_script_makes_the_same_tables(url: URL, alembic_engine: Engine) -> None:
    script = run_alembic("-x", f"url={plain(url)}", "upgrade", "head", "--sql")
    assert script.returncode == 0, script.stderr
    assert tables(alembic_engine) == set()

    with alembic_engine.begin() as connection:
        for statement in script.stdout.split(";"):
            if statement.strip() not in ("", "BEGIN", "COMMIT"):
                connection.execute(text(statement))

    assert tables(alembic_engine) == OUR_TABLES
    assert run_alembic("-x", f"url={plain(url)}", "check").returncode == 0


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
with SQLAlchemySaver.from_conn_string(sys.argv[1]) as saver:
    sys.stdin.readline()
    saver.setup()
"""


def test_several_processes_set_up_at_once(url: URL, alembic_engine: Engine) -> None:
    """Known fault elsewhere: of the first setup() calls from several workers at once, most fail."""
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", SETUP, plain(url)], stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for _ in range(8)
    ]
    errors = [worker.communicate("go\n")[1] for worker in workers]

    assert [worker.returncode for worker in workers] == [0] * 8, "\n".join(errors)
    assert tables(alembic_engine) == OUR_TABLES


def test_several_threads_upgrade_at_once(alembic_engine: Engine) -> None:
    """Known fault elsewhere: Alembic's globals are the process's, so threads disturb each other."""
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: upgrade(alembic_engine), range(16)))
    assert tables(alembic_engine) == OUR_TABLES


@pytest.fixture
async def async_engine(new_url: Callable[[Backend], URL]) -> AsyncIterator[AsyncEngine]:
    engine = create_async_engine(new_url(next(backend for backend in BACKENDS if backend.id == "asyncpg")))
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


async def test_an_async_connections_transaction_stays_the_callers(async_engine: AsyncEngine) -> None:
    async with async_engine.connect() as connection:
        await aupgrade(connection)
        await connection.rollback()
        assert await connection.run_sync(lambda c: inspect(c).get_table_names()) == []


def test_no_init_file_makes_our_scripts_shadow_alembic() -> None:
    assert (script_location() / "env.py").is_file()
    assert not (script_location() / "__init__.py").exists()
