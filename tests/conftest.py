"""Fixtures: real servers for the run, a fresh database for each module and backend, a saver for each test."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from uuid import uuid4

import pytest
from sqlalchemy import URL, create_engine

from sa_checkpoint import _execution, migrations
from tests import servers
from tests.backends import BACKENDS, Backend, Client, Database, saver_on, with_sync_driver


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[URL]:
    """A PostgreSQL server: `$SA_CHECKPOINT_TEST_POSTGRES_URL`, else one started for this run. Its driver is psycopg."""
    with servers.postgresql() as url:
        yield url


@pytest.fixture(scope="session")
def new_postgres(postgres_url: URL) -> Iterator[Callable[[], URL]]:
    """Makes empty PostgreSQL databases."""
    with servers.databases(postgres_url, "DROP DATABASE {} WITH (FORCE)") as make:
        yield make


@pytest.fixture(scope="session")
def mysql_url() -> Iterator[URL]:
    """A server of MariaDB or MySQL: `$SA_CHECKPOINT_TEST_MYSQL_URL`, else a MariaDB started for this run."""
    with servers.mysql() as url:
        yield url


@pytest.fixture(scope="session")
def new_mysql(mysql_url: URL) -> Iterator[Callable[[], URL]]:
    """Makes empty databases of MariaDB or MySQL."""
    with servers.databases(mysql_url, "DROP DATABASE {}") as make:
        yield make


@pytest.fixture(scope="session")
def new_url(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Callable[[Backend], URL]:
    """Makes empty databases: the URL of one, for a backend."""

    def make(backend: Backend) -> URL:
        if backend.dialect == "sqlite":
            path = tmp_path_factory.mktemp("sqlite") / "checkpoints.db"
            return URL.create(backend.drivername, database=str(path))
        make_database: Callable[[], URL] = request.getfixturevalue(
            {"postgresql": "new_postgres", "mysql": "new_mysql"}[backend.dialect]
        )
        return make_database().set(drivername=backend.drivername)

    return make


@pytest.fixture(scope="module", params=BACKENDS, ids=lambda backend: backend.id)
def backend(request: pytest.FixtureRequest) -> Iterator[Backend]:
    """Each of the drivers in turn."""
    assert isinstance(request.param, Backend)
    with pytest.MonkeyPatch.context() as patch:
        if request.param.is_portable:
            _execution.strategy_for.cache_clear()
            patch.delitem(_execution.STRATEGIES, request.param.dialect)
        yield request.param
    if request.param.is_portable:
        _execution.strategy_for.cache_clear()


@pytest.fixture(scope="module")
def database(backend: Backend, new_url: Callable[[Backend], URL]) -> Database:
    """A database with our tables, fresh for this module and backend."""
    url = new_url(backend)
    engine = create_engine(with_sync_driver(url))
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
