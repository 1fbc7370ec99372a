"""Migrations in the caller's transaction: all of one or nothing, whoever else migrates at the same time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.orm import Session

from sa_checkpoint import SQLAlchemySaver, migrations, models
from tests.backends import BACKENDS, Backend
from tests.checkpoints import checkpoint_of, config_of

DIALECTS = [backend for backend in BACKENDS if backend.id in ("sqlite", "psycopg", "psycopg2")]


@pytest.fixture(params=DIALECTS, ids=lambda backend: backend.id)
def engine(request: pytest.FixtureRequest, new_url: Callable[[Backend], URL]) -> Iterator[Engine]:
    """An empty database with the application's own table."""
    engine = create_engine(new_url(request.param))
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE host (id VARCHAR(64) PRIMARY KEY)"))
    yield engine
    engine.dispose()


def tables(engine: Engine) -> set[str]:
    return set(inspect(engine).get_table_names())


# The second revision fails, when the first one has run: SQLite has its index's name for a table, PostgreSQL refuses it.
_HINDER = {
    "sqlite": ("CREATE TABLE checkpoints_run_id_idx (id INTEGER)",),
    "postgresql": (
        "CREATE FUNCTION refuse() RETURNS event_trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'refused'; END $$",
        "CREATE EVENT TRIGGER refusal ON ddl_command_start WHEN TAG IN ('CREATE INDEX') EXECUTE FUNCTION refuse()",
    ),
}
_HELP = {"sqlite": "DROP TABLE checkpoints_run_id_idx", "postgresql": "DROP EVENT TRIGGER refusal"}


def hinder(engine: Engine) -> None:
    with engine.begin() as connection:
        for statement in _HINDER[engine.dialect.name]:
            connection.execute(text(statement))


@pytest.mark.parametrize("owned", [Engine.connect, Session], ids=["connection", "session"])
def test_an_upgrade_that_fails_midway_leaves_the_callers_transaction_as_it_was(
    engine: Engine, owned: Callable[[Engine], Connection | Session]
) -> None:
    hinder(engine)
    with owned(engine) as owner:
        owner.execute(text("INSERT INTO host VALUES ('before')"))
        with pytest.raises(DBAPIError, match=r"refused|already a table"):
            migrations.upgrade(owner)
        owner.execute(text("INSERT INTO host VALUES ('after')"))
        owner.commit()
    with engine.connect() as connection:
        assert set(connection.scalars(text("SELECT id FROM host"))) == {"before", "after"}
    assert not tables(engine) & set(models.metadata.tables)


def test_in_autocommit_an_upgrade_is_stored_at_once_and_as_a_whole(engine: Engine) -> None:
    autocommit = engine.execution_options(isolation_level="AUTOCOMMIT")
    hinder(engine)
    with autocommit.connect() as connection:
        with pytest.raises(DBAPIError, match=r"refused|already a table"):
            migrations.upgrade(connection)
        assert not tables(engine) & set(models.metadata.tables)
        connection.execute(text(_HELP[engine.dialect.name]))

        migrations.upgrade(connection)

        assert set(models.metadata.tables) < tables(engine)
        SQLAlchemySaver(connection).put(config_of("t"), checkpoint_of(), {}, {})
        assert SQLAlchemySaver(engine).get_tuple(config_of("t")) is not None


def test_two_threads_that_each_migrate_twice_in_a_transaction_of_theirs_both_come_to_an_end(
    new_postgres: Callable[[], URL],
) -> None:
    """The database's lock is held up to the commit; whoever waits for it must not hold the process's meanwhile."""
    engine = create_engine(new_postgres())

    def migrate(names: tuple[str, str]) -> None:
        with engine.begin() as connection:
            for name in names:
                migrations.upgrade(connection, schema=name)

    pool = ThreadPoolExecutor(2)
    futures = [pool.submit(migrate, names) for names in (("a1", "a2"), ("b1", "b2"))]
    for future in futures:
        future.result(timeout=60)
    pool.shutdown()
    assert {"a1", "a2", "b1", "b2"} <= set(inspect(engine).get_schema_names())
    engine.dispose()
