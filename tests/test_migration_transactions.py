"""Migrations in the caller's transaction: all of one or nothing, whoever else migrates at the same time.

On MySQL and MariaDB, which commit with every CREATE TABLE, a migration is in nobody's transaction, and one that has
failed goes on where it was.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import pytest
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine
from sqlalchemy.orm import Session

from sa_checkpoint import SQLAlchemySaver, migrations, models
from sa_checkpoint.errors import InvalidBind
from sa_checkpoint.migrations import HEAD, VERSION_TABLE
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


# --------------------------------------------------------------------------------------------------- MySQL and MariaDB


@pytest.fixture
def mysql(new_mysql: Callable[[], URL]) -> Iterator[Engine]:
    """An empty database with the application's own table."""
    engine = create_engine(new_mysql())
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE host (id VARCHAR(64) PRIMARY KEY)"))
    yield engine
    engine.dispose()


@pytest.fixture
async def async_mysql(mysql: Engine) -> AsyncIterator[AsyncEngine]:
    """The same one by an async driver."""
    engine = create_async_engine(mysql.url.set(drivername="mysql+asyncmy"))
    yield engine
    await engine.dispose()


def hosts_rows(engine: Engine) -> set[str]:
    with engine.connect() as connection:
        return set(connection.scalars(text("SELECT id FROM host")))


@pytest.mark.parametrize("owned", [Engine.connect, Session], ids=["connection", "session"])
def test_on_mysql_a_callers_transaction_is_not_committed_by_a_migration(
    mysql: Engine, owned: Callable[[Engine], Connection | Session]
) -> None:
    with owned(mysql) as owner:
        owner.execute(text("INSERT INTO host VALUES ('a')"))
        for migrate in (partial(migrations.upgrade, owner), SQLAlchemySaver(owner).setup):
            with pytest.raises(InvalidBind, match="commit or roll it back first"):
                migrate()
        assert tables(mysql) == {"host"}
        owner.rollback()
        assert hosts_rows(mysql) == set()

        migrations.upgrade(owner)
        assert migrations.current(mysql) == HEAD


async def test_so_it_is_with_an_async_driver(mysql: Engine, async_mysql: AsyncEngine) -> None:
    async with async_mysql.connect() as connection:
        await connection.execute(text("INSERT INTO host VALUES ('a')"))
        with pytest.raises(InvalidBind, match="commit or roll it back first"):
            await migrations.aupgrade(connection)
        await connection.rollback()
        assert hosts_rows(mysql) == set()
        assert tables(mysql) == {"host"}

        await migrations.aupgrade(connection)
        assert migrations.current(mysql) == HEAD


@pytest.mark.parametrize("owned", [Engine.connect, Session], ids=["connection", "session"])
@pytest.mark.parametrize("options", [{}, {"isolation_level": "AUTOCOMMIT"}], ids=["transaction", "autocommit"])
def test_on_mysql_an_upgrade_is_stored_at_once_and_in_nobodys_way(
    mysql: Engine, owned: Callable[[Engine], Connection | Session], options: dict[str, Any]
) -> None:
    engine = mysql.execution_options(**options)
    with owned(engine) as first, owned(engine) as second:
        migrations.upgrade(first)
        assert migrations.current(mysql) == HEAD
        migrations.upgrade(second)
        first.rollback()
        assert migrations.current(second) == HEAD
        assert tables(mysql) == {"host", VERSION_TABLE, *models.metadata.tables}
        second.rollback()
        migrations.downgrade(second, "base")
    assert tables(mysql) == {"host", VERSION_TABLE}
    assert migrations.current(mysql) is None


class Failure(Exception):
    pass


def fail_at(engine: Engine, beginning: str) -> Callable[[], None]:
    """Have a statement fail, until the result is called."""

    def fail(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if statement.strip().startswith(beginning):
            raise Failure

    event.listen(engine, "before_cursor_execute", fail)
    return lambda: event.remove(engine, "before_cursor_execute", fail)


@pytest.mark.parametrize(
    "beginning",
    [f"CREATE TABLE {name}" for name in (VERSION_TABLE, "checkpoints", "checkpoint_writes")]
    + [f"{command} {VERSION_TABLE}" for command in ("INSERT INTO", "UPDATE")],
)
def test_on_mysql_an_upgrade_that_failed_halfway_goes_on_where_it_was(mysql: Engine, beginning: str) -> None:
    repair = fail_at(mysql, beginning)
    with pytest.raises(Failure):
        migrations.upgrade(mysql)
    assert migrations.current(mysql) == ("sac_0001" if beginning.startswith("UPDATE") else None)
    repair()

    migrations.upgrade(mysql)

    assert migrations.current(mysql) == HEAD
    migrations.check(mysql)
    saver = SQLAlchemySaver(mysql)
    saved = saver.put(config_of("t"), checkpoint_of({"a": [1]}), {}, {"a": "1"})
    found = saver.get_tuple(saved)
    assert found is not None and found.checkpoint["channel_values"] == {"a": [1]}


def test_on_mysql_a_downgrade_that_failed_halfway_goes_on_and_keeps_what_was_adopted(mysql: Engine) -> None:
    migrations.upgrade(mysql)
    SQLAlchemySaver(mysql).put(config_of("t"), checkpoint_of(), {}, {})
    with mysql.begin() as connection:
        connection.execute(text(f"DROP TABLE {VERSION_TABLE}, checkpoint_writes, checkpoint_blobs"))
    migrations.upgrade(mysql)

    repair = fail_at(mysql, "DROP TABLE IF EXISTS checkpoint_blobs")
    with pytest.raises(Failure):
        migrations.downgrade(mysql, "base")
    repair()
    migrations.downgrade(mysql, "base")

    assert tables(mysql) == {"host", VERSION_TABLE, "checkpoints"}
    assert migrations.current(mysql) is None
    migrations.upgrade(mysql)
    assert SQLAlchemySaver(mysql).get_tuple(config_of("t")) is not None
