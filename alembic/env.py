"""How Alembic reaches the database: on the Engine or Connection that Python code passed, else on a URL.

The URL is that of `alembic -x url=…`, else `$SA_CHECKPOINT_URL`, else `sqlite:///checkpoints.db`. The tables are in
the schema of `-x schema=…`, else unqualified.
"""

import asyncio
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from logging.config import fileConfig
from typing import Any

from alembic import context
from sqlalchemy import URL, Connection, Engine, MetaData, Table, inspect
from sqlalchemy.schema import SchemaItem
from sqlalchemy.util import greenlet_spawn

from sa_checkpoint import _alembic, _urls
from sa_checkpoint._revision import VERSION_TABLE
from sa_checkpoint._schema import check_schema, create_schema, schema_in, schema_of_versions
from sa_checkpoint._tables import metadata_in
from sa_checkpoint._types import MYSQL
from sa_checkpoint.errors import SchemaMismatch

config = context.config


def given(name: str) -> str | None:
    """The value of `-x name=…`."""
    return context.get_x_argument(as_dictionary=True).get(name)


BIND: Engine | Connection | None = config.attributes.get("connection")
SCHEMA = config.attributes.get("schema") or check_schema(given("schema"))


def database_url() -> URL:
    return _urls.parse_url(given("url") or _urls.default_url())


def configure(compared_schema: str | None = SCHEMA, **options: object) -> None:
    """Configure the context: of all that is in a database, only our tables are compared with the models."""
    target = metadata_in(compared_schema)
    indexes = {index.name for table in target.tables.values() for index in table.indexes}

    def include_name(name: str | None, type_: str, parents: Any) -> bool:
        if type_ == "schema":
            return name == compared_schema
        return type_ != "table" or parents["schema_qualified_table_name"] in target.tables

    def include_object(
        item: SchemaItem, name: str | None, type_: str, reflected: bool, compare_to: SchemaItem | None
    ) -> bool:
        # langgraph-checkpoint-postgres has more of them.
        return type_ != "index" or name in indexes

    context.configure(
        target_metadata=target,
        version_table=VERSION_TABLE,
        include_schemas=compared_schema is not None,
        include_name=include_name,
        include_object=include_object,
        sa_checkpoint_schema=SCHEMA,
        **options,  # type: ignore[arg-type]
    )


def run_offline() -> None:
    url = database_url() if BIND is None else BIND.engine.url
    _alembic.know_dialect(url.get_dialect()())
    configure(
        url=url,
        version_table_schema=SCHEMA,
        literal_binds=True,
        dialect_opts={"paramstyle": "named"},
    )
    with context.begin_transaction():
        create_schema(context.get_context(), SCHEMA)
        context.run_migrations()


@contextmanager
def taking_back_versions(connection: Connection, schema: str | None) -> Iterator[None]:
    """Drop the version table, which Alembic begins with and MySQL commits, if nothing was to be changed."""
    versions = Table(VERSION_TABLE, MetaData(), schema=schema)
    is_new = connection.dialect.name in MYSQL and not inspect(connection).has_table(VERSION_TABLE, schema=schema)
    try:
        yield
    except SchemaMismatch:
        if is_new:
            versions.drop(connection)
        raise


def run_on(bind: Engine | Connection) -> None:
    with warnings.catch_warnings(), _alembic.transaction(bind, SCHEMA) as connection:
        # Of our own index, which SQLAlchemy cannot see on SQLite.
        warnings.filterwarnings("ignore", ".*expression-based index '?checkpoints_run_id_idx")
        _alembic.know_dialect(connection.dialect)
        schema = schema_in(connection, SCHEMA)
        schema_of_table = schema_of_versions(connection, SCHEMA)
        configure(
            compared_schema=None if schema == inspect(connection).default_schema_name else schema,
            connection=connection,
            version_table_schema=schema_of_table,
        )
        with context.begin_transaction():
            create_schema(context.get_context(), SCHEMA)
            with taking_back_versions(connection, schema_of_table):
                context.run_migrations()


async def run_async(url: URL) -> None:
    engine = _urls.create_own_async_engine(url)
    await greenlet_spawn(run_on, engine.sync_engine)
    await engine.dispose()


def run_online() -> None:
    if BIND is not None:
        run_on(BIND)
    elif _urls.is_async(url := database_url()):
        asyncio.run(run_async(url))
    else:
        engine = _urls.create_own_engine(url)
        run_on(engine)
        engine.dispose()


# From the command line only: a host that calls `migrations.upgrade` keeps its own logging.
if config.config_file_name is not None and BIND is None:
    fileConfig(config.config_file_name, disable_existing_loggers=False)

if context.is_offline_mode():
    run_offline()
else:
    run_online()
