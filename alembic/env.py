"""How Alembic reaches the database: on the Engine or Connection that Python code passed, else on a URL.

The URL is that of `alembic -x url=…`, else `$SA_CHECKPOINT_URL`, else `sqlite:///checkpoints.db`.
"""

import asyncio
import warnings
from logging.config import fileConfig

from alembic import context
from sqlalchemy import URL, Connection, Engine
from sqlalchemy.util import greenlet_spawn

from sa_checkpoint import _urls, migrations
from sa_checkpoint.models import metadata

config = context.config


def database_url() -> URL:
    given = context.get_x_argument(as_dictionary=True).get("url")
    return _urls.parse_url(given or _urls.default_url())


def configure(**options: object) -> None:
    context.configure(
        target_metadata=metadata,
        version_table=migrations.VERSION_TABLE,
        include_name=migrations.include_name,
        include_object=migrations.include_object,
        **options,  # type: ignore[arg-type]
    )


def run_offline() -> None:
    configure(url=database_url(), literal_binds=True, dialect_opts={"paramstyle": "named"})
    with context.begin_transaction():
        context.run_migrations()


def run_on(bind: Engine | Connection) -> None:
    with warnings.catch_warnings(), migrations.transaction(bind) as connection:
        # Of our own index, which SQLAlchemy cannot see on SQLite.
        warnings.filterwarnings("ignore", ".*expression-based index '?checkpoints_run_id_idx")
        configure(connection=connection, version_table_schema=migrations.version_table_schema(connection))
        with context.begin_transaction():
            context.run_migrations()


async def run_async(url: URL) -> None:
    engine = _urls.create_own_async_engine(url)
    await greenlet_spawn(run_on, engine.sync_engine)
    await engine.dispose()


def run_online() -> None:
    bind = config.attributes.get("connection")
    if bind is not None:
        run_on(bind)
    elif _urls.is_async(url := database_url()):
        asyncio.run(run_async(url))
    else:
        engine = _urls.create_own_engine(url)
        run_on(engine)
        engine.dispose()


# From the command line only: a host that calls `migrations.upgrade` keeps its own logging.
if config.config_file_name is not None and config.attributes.get("connection") is None:
    fileConfig(config.config_file_name, disable_existing_loggers=False)

if context.is_offline_mode():
    run_offline()
else:
    run_online()
