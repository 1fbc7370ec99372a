"""The schema of the tables: the one that is given, else the one that the host's settings decide, for all alike.

Migrations and savers have to agree on it, whatever its name is, and tables of other schemas are never touched.
"""

from __future__ import annotations

import asyncio
import gc
import re
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, closing
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
import sqlalchemy
from alembic import command
from alembic.util import CommandError
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langgraph.checkpoint.postgres import PostgresSaver
from sqlalchemy import URL, Connection, Engine, create_engine, event, inspect, text
from sqlalchemy.exc import OperationalError, ProgrammingError, StatementError
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.schema import DropSchema
from sqlalchemy.sql import quoted_name

from sa_checkpoint import AsyncSQLAlchemySaver, SQLAlchemySaver, migrations, models
from sa_checkpoint import _thread_statements as thread_statements
from sa_checkpoint._execution import strategy_for
from sa_checkpoint._sql_strategy import SQLStrategy
from sa_checkpoint.errors import InvalidSchema, SchemaOutOfDate
from sa_checkpoint.migrations import HEAD, VERSION_TABLE, alembic_config
from tests.backends import BACKENDS, Backend, Client, Database, done, entered, on_backends, saver_on, with_sync_driver
from tests.checkpoints import checkpoint_of, config_of
from tests.hosts import maker_on, session_on, sync_engine_of
from tests.scripts import url_for_script
from tests.usage import put_chain, use, use_graphs

OUR_TABLES = {*models.metadata.tables, VERSION_TABLE}
AnyEngine = Engine | AsyncEngine
PREFIX = f"agents_{uuid4().hex[:8]}"


def on(*dialects_or_ids: str) -> pytest.MarkDecorator:
    """Run a test on some of the backends only."""
    chosen = [one for one in BACKENDS if {one.dialect, one.id} & {*dialects_or_ids} and not one.is_portable]
    return on_backends(*chosen)


@pytest.fixture(scope="module", params=[one for one in BACKENDS if not one.is_portable], ids=lambda one: one.id)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each of the drivers in turn."""
    assert isinstance(request.param, Backend)
    return request.param


@pytest.fixture(scope="module")
def database(backend: Backend, new_url: Callable[[Backend], URL]) -> Database:
    """An empty database, whose schemas the tests make."""
    return Database(backend, new_url(backend))


@pytest.fixture
def schemas(backend: Backend, database: Database) -> Iterator[list[str]]:
    """Names of schemas that no other test uses."""
    names = [f"{PREFIX}_{uuid4().hex}" for _ in range(3)]
    yield names
    if backend.dialect == "mysql":  # where they are not part of the database
        engine = create_engine(with_sync_driver(database.url))
        with engine.begin() as connection:
            drop(connection, *names)
        engine.dispose()


def drop(connection: Connection, *schemas: str) -> None:
    for schema in schemas:
        connection.execute(DropSchema(quoted_name(schema, quote=True), if_exists=True))


@asynccontextmanager
async def engine_with(database: Database, *schemas: str, **options: Any) -> AsyncIterator[AnyEngine]:
    """An engine of an application that has, on SQLite, attached these databases."""
    async with database.engine(**options) as engine:
        if database.backend.dialect == "sqlite":

            @event.listens_for(sync_engine_of(engine), "connect")
            def attach(dbapi_connection: Any, _record: Any) -> None:
                cursor = dbapi_connection.cursor()
                for schema in schemas:
                    cursor.execute(f'ATTACH DATABASE ? AS "{schema}"', (f"{database.url.database}-{schema}",))
                cursor.close()

        yield engine


async def migrate(name: str, bind: Any, *args: Any, **kwargs: Any) -> Any:
    """A function of `migrations`, or its async twin."""
    is_async = type(bind).__name__.lower().startswith("async")
    return await done(getattr(migrations, f"a{name}" if is_async else name)(bind, *args, **kwargs))


async def on_connection(engine: AnyEngine, work: Callable[[Connection], Any]) -> Any:
    if isinstance(engine, AsyncEngine):
        async with engine.begin() as connection:
            return await connection.run_sync(work)
    with engine.begin() as sync_connection:
        return work(sync_connection)


async def tables(engine: AnyEngine) -> dict[str, set[str]]:
    """The tables of each schema that has any of ours."""

    def look(connection: Connection) -> dict[str, set[str]]:
        inspector = inspect(connection)
        names = inspector.get_schema_names()
        if connection.dialect.name == "mysql":  # where they are the server's
            names = [name for name in names if name == connection.engine.url.database or name.startswith(PREFIX)]
        found = {name: set(inspector.get_table_names(schema=name)) for name in names}
        return {name: names for name, names in found.items() if names & OUR_TABLES}

    found: dict[str, set[str]] = await on_connection(engine, look)
    return found


async def execute(engine: AnyEngine, *statements: str) -> None:
    async with entered(engine.begin()) as connection:
        for statement in statements:
            await done(connection.execute(text(statement)))


async def new(engine: AnyEngine, *schemas: str) -> None:
    """Schemas that the application has created; on SQLite they are attached."""
    if engine.dialect.name != "sqlite":
        await execute(engine, *(f"CREATE SCHEMA {schema}" for schema in schemas))


# ------------------------------------------------------------------------------------------------------- a given one


async def test_the_tables_are_in_the_given_schema_and_nowhere_else(
    database: Database, schemas: list[str], thread: str
) -> None:
    schema = schemas[0]
    async with engine_with(database, schema) as engine:
        others = await tables(engine)
        await migrate("upgrade", engine, schema=schema)
        assert await tables(engine) == {**others, schema: OUR_TABLES}
        await migrate("upgrade", engine, schema=schema)

        client = Client(saver_on(engine, schema=schema), database.backend)
        await use(client, thread)
        await use_graphs(client, thread, runs=2)
        await migrate("check", engine, schema=schema)
        assert await migrate("current", engine, schema=schema) == HEAD

        await migrate("downgrade", engine, "base", schema=schema)
        assert await tables(engine) == {**others, schema: {VERSION_TABLE}}
        assert await migrate("current", engine, schema=schema) is None


async def test_setup_makes_the_tables_where_its_saver_looks_for_them(
    database: Database, schemas: list[str], thread: str
) -> None:
    async with engine_with(database, *schemas) as engine:
        client = Client(saver_on(engine, schema=schemas[0]), database.backend)
        with pytest.raises(SchemaOutOfDate, match=f"schema '{schemas[0]}' of .* at revision none"):
            await client.get_tuple(config_of(thread))

        # Of several at once, each makes the schema or finds it.
        clients = [Client(saver_on(engine, schema=schema), database.backend) for schema in schemas for _ in range(3)]
        await asyncio.gather(*(each.setup() for each in clients))

        assert {name: found for name, found in (await tables(engine)).items() if name in schemas} == dict.fromkeys(
            schemas, OUR_TABLES
        )
        await use(client, thread)


@on("sqlite")
async def test_on_sqlite_a_schema_has_to_be_attached(database: Database, schemas: list[str], thread: str) -> None:
    schema = schemas[0]
    async with database.engine() as engine:
        others = await tables(engine)
        client = Client(saver_on(engine, schema=schema), database.backend)
        for call in (
            lambda: client.setup(),
            lambda: migrate("upgrade", engine, schema=schema),
            lambda: migrate("stamp", engine, schema=schema),
            lambda: migrate("downgrade", engine, "base", schema=schema),
        ):
            with pytest.raises(InvalidSchema, match=f"no schema '{schema}': in SQLite .* ATTACH DATABASE .* connect"):
                await call()
        with pytest.raises(SchemaOutOfDate, match=schema):
            await client.put(config_of(thread), checkpoint_of(), {}, {})
        assert await tables(engine) == others


async def test_several_schemas_on_one_engine_stay_apart(database: Database, schemas: list[str], thread: str) -> None:
    async with engine_with(database, *schemas) as engine:
        for schema in (None, *schemas):
            await migrate("upgrade", engine, schema=schema)
        clients = [Client(saver_on(engine, schema=schema), database.backend) for schema in (None, *schemas)]

        # The same threads and runs in all of them: what is stored or deleted elsewhere would be seen.
        async def work(client: Client) -> None:
            await use(client, thread)
            await use_graphs(client, thread, runs=1)

        if database.backend.is_async:
            await asyncio.gather(*map(work, clients))
        else:
            await asyncio.gather(*(asyncio.to_thread(asyncio.run, work(client)) for client in clients))

        listed = {}
        for number, client in enumerate(clients):
            chain = await put_chain(client, thread)
            await client.put(chain[-1], checkpoint_of({"of": [number]}), {"run_id": thread}, {"of": "1"})
            await client.put_writes(chain[0], [("delta", number)], "task of its own")
            listed[number] = await client.list(None)
        for number, client in enumerate(clients):
            assert await client.list(None) == listed[number]
            assert (await client.load(config_of(thread))).checkpoint["channel_values"] == {"of": [number]}
            history = (await client.delta_history(chain_of(listed[number])[2], ["delta"]))["delta"]["writes"]
            assert ("task of its own", "delta", number) in history

        await clients[1].delete_for_runs([thread])
        await clients[2].prune([thread])
        await clients[3].copy_thread(thread, f"{thread} copy")
        assert [len(await client.list(config_of(thread))) for client in clients] == [4, 3, 1, 4]
        assert [len(await client.list(config_of(f"{thread} copy"))) for client in clients] == [0, 0, 0, 4]
        await clients[3].delete_thread(thread)
        assert await clients[0].list(None) == listed[0]

        await migrate("downgrade", engine, "base", schema=schemas[0])
        assert await clients[0].list(None) == listed[0]
        assert len(await clients[2].list(None)) == 1
        with pytest.raises(SchemaOutOfDate, match=schemas[0]):
            await clients[1].list(None)
        await migrate("downgrade", engine, "base")


def chain_of(listed: Any) -> list[Any]:
    return [found.config for found in listed][::-1]


@on("postgresql")
async def test_who_may_not_create_schemas_can_upgrade_in_one_that_is_there(
    database: Database, schemas: list[str], thread: str
) -> None:
    there, missing, _ = schemas
    role = f"role_{uuid4().hex}"
    async with database.engine() as owner:
        await execute(
            owner,
            f"CREATE ROLE {role}",
            f"CREATE SCHEMA {there}",
            f"GRANT USAGE, CREATE ON SCHEMA {there} TO {role}",
        )
        async with database.engine() as engine:
            event.listen(sync_engine_of(engine), "begin", lambda c: c.exec_driver_sql(f"SET LOCAL ROLE {role}"))
            with pytest.raises(ProgrammingError, match="permission denied for database"):
                await migrate("upgrade", engine, schema=missing)
            await migrate("upgrade", engine, schema=there)
            await use(Client(saver_on(engine, schema=there), database.backend), thread)
        await execute(owner, f"DROP OWNED BY {role}", f"DROP ROLE {role}")


@on("pymysql")
async def test_so_can_who_may_not_create_databases(database: Database, schemas: list[str], thread: str) -> None:
    there, missing, _ = schemas
    user = f"user_{uuid4().hex[:16]}"
    async with database.engine() as owner:
        await execute(
            owner,
            f"CREATE USER {user}",
            f"CREATE SCHEMA {there}",
            f"GRANT ALL ON {there}.* TO {user}",
            f"GRANT ALL ON {database.url.database}.* TO {user}",
        )
        engine = create_engine(database.url.set(username=user, password=None))
        with pytest.raises(OperationalError, match="Access denied"):
            migrations.upgrade(engine, schema=missing)
        migrations.upgrade(engine, schema=there)
        await use(Client(saver_on(engine, schema=there), database.backend), thread)
        engine.dispose()
        await execute(owner, f"DROP USER {user}")


@on("psycopg")
def test_tables_of_langgraph_checkpoint_postgres_are_adopted_in_that_schema_only(
    database: Database, schemas: list[str], thread: str
) -> None:
    theirs, ours, _ = schemas
    engine = create_engine(database.url)
    url = database.url.set(drivername="postgresql")
    for schema in (theirs, ours):
        with engine.begin() as connection:
            connection.execute(text(f"CREATE SCHEMA {schema}"))
    dsn = url.update_query_dict({"options": f"-csearch_path={theirs}"}).render_as_string(hide_password=False)
    with PostgresSaver.from_conn_string(dsn) as saver:
        saver.setup()
        saved = saver.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})

        migrations.upgrade(engine, schema=theirs)
        migrations.upgrade(engine, schema=ours)

        found = SQLAlchemySaver(engine, schema=theirs).get_tuple(saved)
        assert found is not None and found == saver.get_tuple(saved)
        assert SQLAlchemySaver(engine, schema=ours).get_tuple(saved) is None
        for schema in (theirs, ours):
            migrations.downgrade(engine, "base", schema=schema)
        assert saver.get_tuple(saved) == found
    names = {schema: set(inspect(engine).get_table_names(schema=schema)) for schema in (theirs, ours)}
    assert names == {theirs: {*OUR_TABLES, "checkpoint_migrations"}, ours: {VERSION_TABLE}}
    engine.dispose()


async def test_a_stamp_and_what_it_says_are_of_that_schema(database: Database, schemas: list[str]) -> None:
    stamped, other, _ = schemas
    async with engine_with(database, *schemas) as engine:
        await migrate("upgrade", engine, schema=other)
        await migrate("stamp", engine, "sac_0001", schema=stamped)

        assert await migrate("current", engine, schema=stamped) == "sac_0001"
        assert await migrate("current", engine, schema=other) == HEAD
        assert (await tables(engine))[stamped] == {VERSION_TABLE}
        with pytest.raises(
            SchemaOutOfDate, match=f"schema '{stamped}' .* at revision sac_0001, .*no table checkpoints"
        ):
            await migrate("check", engine, schema=stamped)
        await migrate("check", engine, schema=other)


async def test_a_saver_keeps_its_schema_in_a_transaction_and_with_an_allowlist(
    database: Database, schemas: list[str], thread: str
) -> None:
    async with engine_with(database, *schemas) as engine:
        for schema in schemas:
            await migrate("upgrade", engine, schema=schema)
        saver = saver_on(engine, schema=schemas[0])
        allowing: Any = saver.with_allowlist([("tests", "nothing")])
        outside = Client(allowing, database.backend)
        async with session_on(engine) as session:
            await use(Client(saver.using(session), database.backend), thread)
            inside = Client(saver.using(session), database.backend)
            saved = await inside.put(config_of(thread), checkpoint_of({"a": [1]}), {}, {"a": "1"})
            assert await outside.get_tuple(saved) is None
            await done(session.commit())
        async with entered(engine.begin()) as connection:
            await use(Client(saver.using(connection), database.backend), f"{thread} 2")
        await use(Client(saver_on(maker_on(engine), schema=schemas[0]), database.backend), f"{thread} 3")
        assert (await outside.load(saved)).checkpoint["channel_values"] == {"a": [1]}
        assert await Client(saver_on(engine, schema=schemas[1]), database.backend).get_tuple(saved) is None


@on("postgresql", "mysql")
async def test_a_saver_on_a_url_takes_a_schema(database: Database, schemas: list[str], thread: str) -> None:
    of_the_class = AsyncSQLAlchemySaver if database.backend.is_async else SQLAlchemySaver
    async with entered(of_the_class.from_conn_string(database.url, schema=schemas[0])) as saver:
        client = Client(saver, database.backend)
        await client.setup()
        await use(client, thread)
    async with database.engine() as engine:
        assert (await tables(engine))[schemas[0]] == OUR_TABLES


# ------------------------------------------------------------------------------------------------- alembic's command

ROOT = Path(__file__).parent.parent


def run_alembic(url: URL, schema: str, *arguments: str) -> str:
    """Run the command, and return what it printed."""
    plain = url.render_as_string(hide_password=False)
    options = ["-c", str(ROOT / "alembic.ini"), "-x", f"url={plain}", "-x", f"schema={schema}"]
    run = subprocess.run(
        [sys.executable, "-m", "alembic", *options, *arguments], capture_output=True, text=True, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


@on("psycopg", "pymysql")
def test_the_command_works_in_a_schema_of_any_name(
    backend: Backend, new_url: Callable[[Backend], URL], thread: str
) -> None:
    schema = "Ag%en%(x)ts \"a.b\" 'c' :d\\"
    url = new_url(backend)
    default: str | None = "public"
    if backend.dialect == "mysql":
        schema, default = on_mysql(schema), url.database
    engine = create_engine(url)

    def found() -> dict[str | None, set[str]]:
        names = set(inspect(engine).get_schema_names()) - {"information_schema"}
        if backend.dialect == "mysql":
            names &= {default, schema}
        return {name: set(inspect(engine).get_table_names(schema=name)) for name in names}

    assert HEAD not in run_alembic(url, schema, "current")
    assert found() == {default: set()}
    run_alembic(url, schema, "upgrade", "head")
    assert found() == {default: set(), schema: OUR_TABLES}
    assert migrations.current(engine, schema=schema) == HEAD
    assert "No new upgrade operations detected" in run_alembic(url, schema, "check")
    SQLAlchemySaver(engine, schema=schema).put(config_of(thread), checkpoint_of(), {}, {})
    run_alembic(url, schema, "downgrade", "base")
    assert found() == {default: set(), schema: {VERSION_TABLE}}

    script = run_alembic(url_for_script(engine), schema, "upgrade", "head", "--sql")
    remove = DropSchema(quoted_name(schema, quote=True), cascade=backend.dialect == "postgresql")
    with engine.begin() as connection:
        connection.execute(remove)
    with engine.begin() as connection, closing(connection.connection.cursor()) as cursor:
        # Past SQLAlchemy, which would take some of it for parameters.
        for statement in script.split(";"):
            cursor.execute(statement) if statement.strip() not in ("", "BEGIN", "COMMIT") else None
    assert found() == {default: set(), schema: OUR_TABLES}
    command.check(alembic_config(engine, schema=schema))
    with engine.begin() as connection:
        connection.execute(remove)
    engine.dispose()


@on("psycopg", "pymysql")
@pytest.mark.parametrize("change", ["ADD COLUMN surplus TEXT", "ALTER COLUMN metadata DROP NOT NULL"])
def test_check_compares_the_tables_of_that_schema(database: Database, schemas: list[str], change: str) -> None:
    changed, other, _ = schemas
    engine = create_engine(database.url)
    for schema in (changed, other):
        migrations.upgrade(engine, schema=schema)
    if database.backend.dialect == "mysql":
        change = change.replace("ALTER COLUMN metadata DROP NOT", "MODIFY metadata LONGTEXT")
    with engine.begin() as connection:
        connection.execute(text(f"ALTER TABLE {changed}.checkpoints {change}"))
        connection.execute(text(f"CREATE TABLE {other}.hosts_own (id INTEGER)"))

    command.check(alembic_config(engine, schema=other))
    with pytest.raises(CommandError, match="New upgrade operations detected"):
        command.check(alembic_config(engine, schema=changed))
    engine.dispose()


async def test_the_default_schema_may_be_named(backend: Backend, new_url: Callable[[Backend], URL]) -> None:
    """Alembic leaves its name out when it compares."""
    database = Database(backend, new_url(backend))
    name = {"postgresql": "public", "sqlite": "main", "mysql": database.url.database or ""}[backend.dialect]
    async with database.engine() as engine:
        await migrate("upgrade", engine, schema=name)
        assert await tables(engine) == {name: OUR_TABLES}
        if isinstance(engine, Engine):
            command.check(alembic_config(engine, schema=name))
        await migrate("check", engine, schema=name)
        await migrate("upgrade", engine)
        assert await migrate("current", engine) == HEAD
        named, unnamed = (Client(saver_on(engine, schema=schema), backend) for schema in (name, None))
        saved = await named.put(config_of("t"), checkpoint_of(), {}, {})
        assert await unnamed.load(saved) == await named.load(saved)
        await migrate("downgrade", engine, "base", schema=name)
        assert await tables(engine) == {name: {VERSION_TABLE}}


# --------------------------------------------------------------------------------------------- where none is given


def by_option(database: Database, schema: str) -> dict[str, Any]:
    """A search_path that the connection starts with."""
    if database.backend.id == "asyncpg":
        return {"server_settings": {"search_path": f"{schema}, public"}}
    return {"options": f"-csearch_path={schema},public"}


def set_path(schema: str, dbapi_connection: Any) -> None:
    cursor = dbapi_connection.cursor()
    cursor.execute(f"SET search_path = {schema}, public")
    cursor.close()
    dbapi_connection.commit()


@on("postgresql")
@pytest.mark.parametrize("way", ["option", "connect", "begin"])
async def test_the_search_path_decides(database: Database, schemas: list[str], thread: str, way: str) -> None:
    """Tables further down the path are somebody else's; and SQLAlchemy knows the path of its first connection only."""
    first, second, _ = schemas
    async with database.engine() as owner:
        await new(owner, first, second)
        await migrate("upgrade", owner)  # in public
        public = Client(saver_on(owner), database.backend)
        saved = await public.put(config_of(thread), checkpoint_of(), {}, {})

        for schema in (first, second):
            options = {"connect_args": by_option(database, schema)} if way == "option" else {}
            async with database.engine(**options) as engine:
                if way == "connect":
                    event.listen(
                        sync_engine_of(engine), "connect", lambda driver, _, schema=schema: set_path(schema, driver)
                    )
                if way == "begin":
                    event.listen(
                        sync_engine_of(engine),
                        "begin",
                        lambda c, schema=schema: c.exec_driver_sql(f"SET LOCAL search_path = {schema}, public"),
                    )
                client = Client(saver_on(engine), database.backend)
                await client.setup()
                await client.setup()
                assert (await tables(owner))[schema] == OUR_TABLES
                await migrate("check", engine)
                assert await migrate("current", engine) == HEAD
                assert await client.list(None) == []
                await use(client, thread)
                if schema == second:
                    await migrate("downgrade", engine, "base")

        found = await tables(owner)
        assert (found[first], found[second]) == (OUR_TABLES, {VERSION_TABLE})
        assert await public.load(saved)
        await migrate("downgrade", owner, "base")


async def test_the_hosts_schema_translate_map_decides(database: Database, schemas: list[str], thread: str) -> None:
    tenant, other, _ = schemas
    async with engine_with(database, *schemas) as engine:
        await new(engine, tenant, other)
        copy = engine.execution_options(schema_translate_map={None: tenant})
        with pytest.raises(SchemaOutOfDate):
            await migrate("check", copy)
        await migrate("upgrade", engine, schema=other)
        await migrate("upgrade", copy)
        await migrate("upgrade", copy)
        found = await tables(engine)
        assert (found[tenant], found[other]) == (OUR_TABLES, OUR_TABLES)
        await migrate("check", copy)
        assert await migrate("current", copy) == HEAD
        if isinstance(copy, Engine):
            command.check(alembic_config(copy))

        client = Client(saver_on(copy), database.backend)
        await use(client, thread)
        await use_graphs(client, thread, runs=2)
        await use(Client(saver_on(maker_on(copy)), database.backend), thread)
        saved = await client.put(config_of(thread), checkpoint_of(), {}, {})
        assert await Client(saver_on(engine, schema=tenant), database.backend).load(saved)

        # The map of a connection, and not of its engine; a schema that is given is not in it.
        options = {"schema_translate_map": {None: other}}
        async with entered(engine.connect()) as connection:
            given = await done(connection.execution_options(**options))
            assert await migrate("current", given) == HEAD
            inside = Client(saver_on(given), database.backend)
            await use(inside, thread)
            assert await inside.get_tuple(saved) is None
            assert await Client(saver_on(given, schema=tenant), database.backend).load(saved)
            await done(connection.commit())

        await migrate("downgrade", copy, "base")
        found = await tables(engine)
        assert (found[tenant], found[other]) == ({VERSION_TABLE}, OUR_TABLES)


async def test_a_given_schema_is_translated_by_an_entry_of_its_own_only(
    database: Database, schemas: list[str], thread: str
) -> None:
    given, tenant, default = schemas
    async with engine_with(database, *schemas) as engine:
        await new(engine, default)

        copy = engine.execution_options(schema_translate_map={None: default, "host": default})
        await migrate("upgrade", copy, schema=given)
        await use(Client(saver_on(copy, schema=given), database.backend), thread)
        found = await tables(engine)
        assert found[given] == OUR_TABLES and default not in found
        await migrate("downgrade", copy, "base", schema=given)

        # The upgrade makes the schema that the name stands for.
        copy = engine.execution_options(schema_translate_map={given: tenant})
        await migrate("upgrade", copy, schema=given)
        await migrate("check", copy, schema=given)
        assert await migrate("current", copy, schema=given) == HEAD
        if isinstance(copy, Engine):
            command.check(alembic_config(copy, schema=given))
        await use(Client(saver_on(copy, schema=given), database.backend), thread)
        found = await tables(engine)
        assert (found[given], found[tenant]) == ({VERSION_TABLE}, OUR_TABLES)
        await migrate("downgrade", copy, "base", schema=given)
        assert (await tables(engine))[tenant] == {VERSION_TABLE}


# ----------------------------------------------------------------------------------------------------------- names

INJECTION = 'x"; DROP TABLE public.victim; --'
NAMES = (
    "Agents",
    "system_user",  # reserved in PostgreSQL, and unknown to SQLAlchemy
    "a.b \"c\" 'd'",
    "a%b",
    "a%%(x)s",
    ":a {b} [c]",
    "a;--/*",
    "a\\b\n\tc",
    "$1 ?",
    "ünï😀",
    "ß" * 31 + "x",
    INJECTION,
)


async def use_schema(engine: AnyEngine, backend: Backend, schema: str) -> None:
    """Make, use and drop the tables in a schema of this name."""

    def found(connection: Connection) -> set[str]:
        assert inspect(connection).has_schema(schema)
        return set(inspect(connection).get_table_names(schema=schema))

    await migrate("upgrade", engine, schema=schema)
    assert await on_connection(engine, found) == OUR_TABLES
    await migrate("check", engine, schema=schema)
    await use(Client(saver_on(engine, schema=schema), backend), "t")
    await migrate("downgrade", engine, "base", schema=schema)
    assert await on_connection(engine, found) == {VERSION_TABLE}
    if backend.dialect == "mysql":
        await on_connection(engine, lambda connection: drop(connection, schema))


def on_mysql(schema: str) -> str:
    """Such a name there: of no other test on the server, quoted otherwise, with none but characters of the BMP."""
    name = uuid4().hex[:8] + re.sub("[^\0-\uffff]", "", schema).replace('"', "`").replace("public.", "")
    return name.encode()[:63].decode(errors="ignore").rstrip()


def is_broken(backend: Backend, schema: str) -> bool:
    """Whether SQLAlchemy's own statements fail: 2.0 takes this part of a name for one of these drivers' parameters."""
    is_old = sqlalchemy.__version__.startswith("2.0.")
    return backend.id in ("asyncpg", "asyncmy") and is_old and "%(" in schema


@on("postgresql", "mysql")
@pytest.mark.parametrize("schema", NAMES)
async def test_any_identifier_is_a_name_and_nothing_else(database: Database, schema: str) -> None:
    async with database.engine() as engine:
        if database.backend.dialect == "mysql":
            schema = on_mysql(schema)
        await execute(engine, "CREATE TABLE IF NOT EXISTS victim (id INTEGER)")
        if is_broken(database.backend, schema):
            with pytest.raises((KeyError, StatementError), match="x"):
                await use_schema(engine, database.backend, schema)
        else:
            await use_schema(engine, database.backend, schema)
        await execute(engine, "SELECT * FROM victim")


@on("psycopg", "asyncpg", "pymysql")
@settings(derandomize=True, deadline=None, max_examples=5, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    schema=st.text(
        st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from("'\"`%():;\\$?[]{} \n"), min_size=1
    ).filter(lambda name: len(name.encode()) <= 63 and not name.startswith("pg_"))
)
async def test_so_is_any_other_identifier(database: Database, schema: str) -> None:
    if database.backend.dialect == "mysql":
        schema = on_mysql(schema)
    async with database.engine() as engine:
        if not is_broken(database.backend, schema):
            await use_schema(engine, database.backend, schema)


def test_the_statements_of_schemas_that_are_not_used_any_more_are_freed() -> None:
    """An application may have a schema for each of thousands of tenants."""
    strategy_for.cache_clear()
    found = [strategy_for(dialect, f"tenant {number}") for dialect in ("postgresql", "sqlite") for number in range(2)]
    for strategy in found:
        assert isinstance(strategy, SQLStrategy)
        for build in (
            thread_statements.delete_thread,
            thread_statements.outline,
            thread_statements.with_sends,
            thread_statements.with_values,
            thread_statements.channels_of,
            thread_statements.deletion,
            thread_statements.threads_of_runs,
            thread_statements.checkpoints_of_runs,
            thread_statements.any_row,
            thread_statements.copy,
            partial(thread_statements.delta_history, latest=True),
        ):
            assert build(strategy) is build(strategy)
    others = [strategy_for(dialect, f"tenant {number}") for dialect in ("mysql", "another") for number in range(2)]
    kept = [weakref.ref(strategy) for strategy in [*found, *others]]

    del found, others, strategy
    strategy_for.cache_clear()
    gc.collect()

    assert [reference() for reference in kept] == [None] * 8
