"""Tables that are there already: adopted in place if they are checkpoint tables, and else left as they are."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Iterator
from typing import Any
from uuid import uuid4

import pytest
from alembic import command
from langgraph.checkpoint.mysql.pymysql import PyMySQLSaver
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.postgres.base import MIGRATIONS
from sqlalchemy import URL, Engine, create_engine, inspect, text
from sqlalchemy.schema import DropSchema

from sa_checkpoint import SQLAlchemySaver
from sa_checkpoint.errors import SchemaMismatch
from sa_checkpoint.migrations import alembic_config, downgrade, upgrade
from tests.backends import BACKENDS, Backend
from tests.checkpoints import checkpoint_of, config_of

DIALECTS = [backend for backend in BACKENDS if backend.id in ("sqlite", "psycopg", "pymysql")]


@pytest.fixture
def postgres(new_postgres: Callable[[], URL]) -> Iterator[Engine]:
    engine = create_engine(new_postgres())
    yield engine
    engine.dispose()


@pytest.fixture(params=DIALECTS, ids=lambda backend: backend.dialect)
def engine(request: pytest.FixtureRequest, new_url: Callable[[Backend], URL]) -> Iterator[Engine]:
    """An empty database: SQLite, PostgreSQL, MariaDB."""
    engine = create_engine(new_url(request.param))
    yield engine
    engine.dispose()


def execute(engine: Engine, *statements: str) -> None:
    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as connection:
        for statement in statements:
            connection.exec_driver_sql(statement)


TABLES = ("checkpoints", "checkpoint_blobs", "checkpoint_writes")


def rows(engine: Engine, tables: Iterable[str] = TABLES) -> dict[str, list[Any]]:
    with engine.connect() as connection:
        return {
            table: sorted(connection.execute(text(f"SELECT * FROM {table}")).mappings().all(), key=str)
            for table in tables
        }


def their_tables(engine: Engine, version: int) -> None:
    """The tables as langgraph-checkpoint-postgres has them at a version of its migrations, with some rows."""
    execute(engine, *MIGRATIONS[: version + 1])
    execute(engine, *(f"INSERT INTO checkpoint_migrations VALUES ({number})" for number in range(version + 1)))
    execute(
        engine,
        """INSERT INTO checkpoints (thread_id, checkpoint_id, checkpoint, metadata)
        VALUES ('t', '1', '{"v": 4, "id": "1", "channel_values": {"a": "x"}, "channel_versions": {"a": "1", "b": "1"}}',
        '{"step": 1}')""",
        """INSERT INTO checkpoint_blobs (thread_id, channel, version, type, blob)
        VALUES ('t', 'b', '1', 'msgpack', '\\x91c3')""",
        """INSERT INTO checkpoint_writes (thread_id, checkpoint_id, task_id, idx, channel, type, blob)
        VALUES ('t', '1', 'task', 0, 'a', 'null', '')""",
    )


@pytest.mark.parametrize("version", range(4, 10))
def test_their_tables_are_adopted_with_every_row(
    postgres: Engine, version: int, caplog: pytest.LogCaptureFixture
) -> None:
    their_tables(postgres, version)
    before = rows(postgres)

    with caplog.at_level(logging.INFO, logger="alembic.sa_checkpoint"):
        upgrade(postgres)

    added = {"task_path": ""} if version < 9 else {}
    assert rows(postgres) == {
        **before,
        "checkpoint_writes": [{**row, **added} for row in before["checkpoint_writes"]],
    }
    assert "Adopted the existing table checkpoints with all its rows" in caplog.text
    assert ("Added the column task_path" in caplog.text) is (version < 9)
    found = SQLAlchemySaver(postgres).get_tuple(config_of("t"))
    assert found is not None
    assert found.checkpoint["channel_values"] == {"a": "x", "b": [True]}
    assert found.pending_writes == [("task", "a", None)]


def test_both_savers_go_on_after_the_adoption(postgres: Engine) -> None:
    dsn = postgres.url.set(drivername="postgresql").render_as_string(hide_password=False)
    their_tables(postgres, 8)
    ours = SQLAlchemySaver(postgres)
    ours.setup()
    with PostgresSaver.from_conn_string(dsn) as theirs:
        theirs.setup()  # brings its own bookkeeping up to date
        saved = theirs.put(config_of("t", "", "1"), checkpoint_of({"a": [2]}), {}, {"a": "1"})
        assert ours.get_tuple(saved) == theirs.get_tuple(saved)
    ours.setup()


def test_a_downgrade_does_not_drop_what_was_adopted(postgres: Engine) -> None:
    their_tables(postgres, 9)
    before = rows(postgres)
    upgrade(postgres)
    downgrade(postgres, "base")
    assert rows(postgres) == before
    assert not inspect(postgres).has_table("sa_checkpoint_adopted")
    assert "checkpoints_run_id_idx" not in {index["name"] for index in inspect(postgres).get_indexes("checkpoints")}
    upgrade(postgres)
    assert rows(postgres) == before


def test_a_table_that_is_missing_is_created_and_goes_again(postgres: Engine) -> None:
    execute(postgres, *MIGRATIONS[:2])
    upgrade(postgres)
    assert {"checkpoints", "checkpoint_blobs", "checkpoint_writes"} <= set(inspect(postgres).get_table_names())
    downgrade(postgres, "base")
    assert set(inspect(postgres).get_table_names()) == {
        "checkpoints",
        "checkpoint_migrations",
        "sa_checkpoint_alembic_version",
    }


def test_tables_of_another_shape_stop_the_upgrade_with_every_difference(engine: Engine) -> None:
    dialect = engine.dialect.name
    blob = "BYTEA" if dialect == "postgresql" else "BLOB"
    key = "VARCHAR(255)" if dialect == "mysql" else "TEXT"
    execute(
        engine,
        f"CREATE TABLE checkpoints (thread_id {key} NOT NULL, checkpoint_id INTEGER NOT NULL, type TEXT NOT NULL, "
        f"owner TEXT NOT NULL, checkpoint {blob} NOT NULL, metadata TEXT, PRIMARY KEY (thread_id, checkpoint_id))",
        "INSERT INTO checkpoints VALUES ('t', 1, '', '', '', '')",
    )
    with pytest.raises(SchemaMismatch) as raised:
        upgrade(engine)

    message = str(raised.value)
    id, json = {
        "sqlite": ("TEXT", "JSON"),
        "postgresql": ("TEXT", "JSONB"),
        "mysql": ("VARCHAR(128) CHARACTER SET utf8mb4", "LONGTEXT CHARACTER SET utf8mb4"),
    }[dialect]
    for difference in (
        "checkpoints: there is no column checkpoint_ns",
        f"checkpoints: checkpoint_id is INTEGER instead of {id}",
        "checkpoints: there is no column parent_checkpoint_id",
        "checkpoints: type does not permit NULL",
        f"checkpoints: checkpoint is {blob} instead of {json}",
        f"checkpoints: metadata is TEXT instead of {json}",
        "checkpoints: metadata permits NULL",
        "checkpoints: the column owner needs a value",
        "checkpoints: the primary key is (thread_id, checkpoint_id) instead of",
    ):
        assert difference in message
    assert "nothing was changed" in message and "upgrade again" in message
    assert inspect(engine).get_table_names() == ["checkpoints"]
    with engine.connect() as connection:
        assert connection.scalar(text("SELECT count(*) FROM checkpoints")) == 1


@pytest.fixture
def mysql(new_mysql: Callable[[], URL]) -> Iterator[Engine]:
    engine = create_engine(new_mysql())
    yield engine
    engine.dispose()


def test_on_mysql_a_key_has_to_compare_as_bytes(mysql: Engine) -> None:
    upgrade(mysql)
    execute(
        mysql,
        "ALTER TABLE checkpoint_blobs MODIFY channel VARCHAR(150) CHARACTER SET utf8mb4 COLLATE utf8mb4_bin NOT NULL",
        "DROP TABLE sa_checkpoint_alembic_version",
    )
    with pytest.raises(SchemaMismatch, match=r"channel is VARCHAR\(150\) .* utf8mb4_bin instead of .* utf8mb4_\w+_bin"):
        upgrade(mysql)
    assert "sa_checkpoint_alembic_version" not in inspect(mysql).get_table_names()


def test_our_own_tables_are_adopted_on_every_database(engine: Engine) -> None:
    upgrade(engine)
    saved = SQLAlchemySaver(engine).put(config_of("t"), checkpoint_of({"a": [1]}), {}, {"a": "1"})
    execute(
        engine,
        "DROP TABLE sa_checkpoint_alembic_version",
        "DROP TABLE checkpoint_writes",
    )
    before = rows(engine, TABLES[:2])
    upgrade(engine)
    downgrade(engine, "base")
    assert rows(engine, TABLES[:2]) == before
    assert set(inspect(engine).get_table_names()) == {
        "checkpoints",
        "checkpoint_blobs",
        "sa_checkpoint_alembic_version",
    }
    upgrade(engine)
    assert SQLAlchemySaver(engine).get_tuple(saved) is not None


def test_on_mysql_the_column_that_an_older_table_lacks_is_added(mysql: Engine) -> None:
    upgrade(mysql)
    SQLAlchemySaver(mysql).put_writes(config_of("t", "", "1"), [("a", None)], "task")
    before = rows(mysql)
    execute(
        mysql,
        "ALTER TABLE checkpoint_writes DROP COLUMN task_path",
        "ALTER TABLE checkpoint_blobs MODIFY `blob` LONGBLOB NOT NULL",
        "DROP TABLE sa_checkpoint_alembic_version",
    )
    upgrade(mysql)
    assert rows(mysql) == before
    command.check(alembic_config(mysql))


def test_the_tables_of_langgraphs_mysql_saver_are_left_as_they_are(mysql: Engine) -> None:
    dsn = mysql.url.set(drivername="mysql").render_as_string(hide_password=False)
    with PyMySQLSaver.from_conn_string(dsn) as theirs:
        theirs.setup()
        saved = theirs.put(config_of("t"), checkpoint_of({"a": [1]}), {}, {"a": "1"})
        before = theirs.get_tuple(saved)

        def shapes() -> dict[str, str]:
            names = inspect(mysql).get_table_names()
            with mysql.connect() as connection:
                return {name: connection.execute(text(f"SHOW CREATE TABLE {name}")).one()[1] for name in names}

        shapes_before = shapes()
        with pytest.raises(SchemaMismatch) as raised:
            SQLAlchemySaver(mysql).setup()

        assert shapes() == shapes_before
        assert theirs.get_tuple(saved) == before
    message = str(raised.value)
    assert "so nothing was changed" in message
    assert "the primary key is (thread_id, checkpoint_ns_hash, checkpoint_id) instead of" in message
    for remedy in (
        "langgraph-checkpoint-mysql",
        "another database on the server",
        "schema=",
        "docs/guides/mysql.md",
    ):
        assert remedy in message

    # As it says.
    schema = f"agents_{uuid4().hex}"
    upgrade(mysql, schema=schema)
    assert SQLAlchemySaver(mysql, schema=schema).get_tuple(config_of("t")) is None
    assert shapes() == shapes_before
    with mysql.begin() as connection:
        connection.execute(DropSchema(schema))


def test_the_tables_of_langgraphs_sqlite_saver_are_left_as_they_are(new_url: Callable[[Backend], URL]) -> None:
    engine = create_engine(new_url(BACKENDS[0]))
    execute(
        engine,
        "CREATE TABLE checkpoints (thread_id TEXT NOT NULL, checkpoint_ns TEXT NOT NULL DEFAULT '', "
        "checkpoint_id TEXT NOT NULL, parent_checkpoint_id TEXT, type TEXT, checkpoint BLOB, metadata BLOB, "
        "PRIMARY KEY (thread_id, checkpoint_ns, checkpoint_id))",
    )
    with pytest.raises(SchemaMismatch, match="checkpoint is BLOB instead of JSON"):
        SQLAlchemySaver(engine).setup()
    assert inspect(engine).get_table_names() == ["checkpoints"]
    engine.dispose()


def test_tables_further_down_the_search_path_are_somebody_elses(postgres: Engine) -> None:
    their_tables(postgres, 9)
    execute(postgres, "CREATE SCHEMA tenant")
    tenant = create_engine(postgres.url.update_query_dict({"options": "-csearch_path=tenant,public"}))
    saver = SQLAlchemySaver(tenant)
    saver.setup()
    saver.setup()
    assert saver.get_tuple(config_of("t")) is None
    assert "checkpoints" in inspect(tenant).get_table_names(schema="tenant")
    downgrade(tenant, "base")
    assert len(rows(postgres)["checkpoints"]) == 1
    tenant.dispose()


def test_with_the_index_built_beforehand_the_upgrade_needs_no_owner(postgres: Engine) -> None:
    their_tables(postgres, 9)
    role = f"app_{postgres.url.database}"
    execute(
        postgres,
        "CREATE INDEX CONCURRENTLY checkpoints_run_id_idx ON checkpoints "
        "USING hash ((metadata ->> 'run_id')) WHERE (metadata ->> 'run_id') IS NOT NULL",
        f"CREATE ROLE {role} LOGIN PASSWORD 'app'",
        f"GRANT CREATE, USAGE ON SCHEMA public TO {role}",
        f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}",
    )
    application = create_engine(postgres.url, connect_args={"options": f"-crole={role}"})
    upgrade(application)
    found = SQLAlchemySaver(application).get_tuple(config_of("t"))
    assert found is not None
    application.dispose()
    execute(postgres, f"DROP OWNED BY {role}", f"DROP ROLE {role}")
