"""How Alembic reaches the application's database: on the connection that `database.upgrade` passes, else by itself.

The checkpoint tables have revisions and a version table of their own. `include_name` keeps autogenerate and
`alembic check` from taking them for tables that our models have dropped.
"""

import asyncio
from logging.config import fileConfig

from alembic import context
from sqlalchemy import Connection

from docs.examples.fastapi_app.database import create_engine
from docs.examples.fastapi_app.models import Base
from docs.examples.fastapi_app.settings import Settings
from sa_checkpoint import migrations

config = context.config


def run_on(connection: Connection) -> None:
    context.configure(
        connection=connection, target_metadata=Base.metadata, include_name=migrations.include_name, render_as_batch=True
    )
    with context.begin_transaction():
        context.run_migrations()


async def run() -> None:
    engine = create_engine(Settings.from_environment())
    try:
        async with engine.begin() as connection:
            await connection.run_sync(run_on)
    finally:
        await engine.dispose()


if (given := config.attributes.get("connection")) is not None:
    run_on(given)
else:
    # The command line. The application keeps its own logging.
    if config.config_file_name is not None:
        fileConfig(config.config_file_name, disable_existing_loggers=False)
    asyncio.run(run())
