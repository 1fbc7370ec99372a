"""The command `sa-checkpoint`: what `sa_checkpoint.migrations` does, on the database of a URL.

It runs the revisions of the package, wherever that is installed. Errors of ours, of Alembic and of the database are a
message on stderr and exit status 1, without a traceback. Importing this module needs typer, which the extra `cli`
brings; `sa_checkpoint.__main__` is what says so.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Annotated, TypeVar

import typer
from alembic import command
from alembic.util import CommandError
from rich.console import Console
from sqlalchemy import URL
from sqlalchemy.exc import DBAPIError, SQLAlchemyError

from sa_checkpoint import _urls, migrations
from sa_checkpoint.errors import CheckpointerError

T = TypeVar("T")

# What is not a fault in this code. OSError is what asyncpg raises where no server listens.
_ERRORS = (CheckpointerError, CommandError, SQLAlchemyError, OSError)

Url = Annotated[
    str | None,
    typer.Option(
        metavar="URL",
        help="The database, with a sync or an async driver. Without it $SA_CHECKPOINT_URL, else "
        "sqlite:///checkpoints.db.",
    ),
]
Schema = Annotated[
    str | None, typer.Option(metavar="SCHEMA", help="The schema of the tables; without it they are unqualified.")
]
Sql = Annotated[bool, typer.Option("--sql", help="Print the SQL of the revisions, and connect to no database.")]
Revision = Annotated[str, typer.Argument(metavar="REVISION", help="A revision, head or base.")]

# Typer's own tracebacks show local variables, and so passwords.
app = typer.Typer(name="sa-checkpoint", no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False)


@app.callback()
def describe() -> None:
    """Create and upgrade the tables that LangGraph's checkpoints are stored in."""


@app.command()
def upgrade(revision: Revision = "head", sql: Sql = False, url: Url = None, schema: Schema = None) -> None:
    """Create the checkpoint tables, or upgrade them."""
    with _reporting():
        if sql:
            _print_sql(revision, _parse(url), schema)
        else:
            _run(migrations.upgrade, migrations.aupgrade, revision, url=url, schema=schema)


@app.command()
def downgrade(revision: Revision, url: Url = None, schema: Schema = None) -> None:
    """Go back to an earlier revision. With "base", drop the tables that an upgrade has created, with all their rows."""
    with _reporting():
        _run(migrations.downgrade, migrations.adowngrade, revision, url=url, schema=schema)


@app.command()
def current(url: Url = None, schema: Schema = None) -> None:
    """Print the revision that the database is at, or "none"."""
    with _reporting():
        revision = _run(migrations.current, migrations.acurrent, url=url, schema=schema)
        typer.echo(f"{revision} (head)" if revision == migrations.HEAD else revision or "none")


@app.command()
def check(url: Url = None, schema: Schema = None) -> None:
    """Fail if the checkpoint tables are missing or not up to date."""
    with _reporting():
        _run(migrations.check, migrations.acheck, url=url, schema=schema)
        Console().print("The checkpoint tables are up to date.", style="green", soft_wrap=True)


@app.command()
def stamp(revision: Revision = "head", url: Url = None, schema: Schema = None) -> None:
    """Write a revision into the version table without running it."""
    with _reporting():
        _run(migrations.stamp, migrations.astamp, revision, url=url, schema=schema)


def _parse(url: str | None) -> URL:
    return _urls.parse_url(url or _urls.default_url())


def _run(
    function: Callable[..., T], twin: Callable[..., Awaitable[T]], *arguments: str, url: str | None, schema: str | None
) -> T:
    """Call a function of `migrations`, or its async twin where the URL names an async driver."""
    parsed = _parse(url)
    if _urls.is_async(parsed):
        return asyncio.run(_arun(twin, *arguments, url=parsed, schema=schema))
    engine = _urls.create_own_engine(parsed)
    try:
        return function(engine, *arguments, schema=schema)
    finally:
        engine.dispose()


async def _arun(twin: Callable[..., Awaitable[T]], *arguments: str, url: URL, schema: str | None) -> T:
    engine = _urls.create_own_async_engine(url)
    try:
        return await twin(engine, *arguments, schema=schema)
    finally:
        await engine.dispose()


def _print_sql(revision: str, url: URL, schema: str | None) -> None:
    # The engine is only asked for its dialect.
    is_async = _urls.is_async(url)
    engine = _urls.create_own_async_engine(url).sync_engine if is_async else _urls.create_own_engine(url)
    command.upgrade(migrations.alembic_config(engine, schema=schema), revision, sql=True)


@contextmanager
def _reporting() -> Iterator[None]:
    """Tell on stderr what Alembic does, and what went wrong.

    Raises:
        typer.Exit: Something did.
    """
    console = Console(stderr=True)
    logger = logging.getLogger("alembic")
    handler = logging.StreamHandler(console.file)
    handler.setFormatter(logging.Formatter("%(message)s"))
    level = logger.level
    logger.addHandler(handler)
    logger.setLevel(logging.INFO)
    try:
        yield
    except Exception as error:
        # SQLAlchemy 2.0 does not translate what asyncpg raises while it connects.
        if not isinstance(error, _ERRORS) and not type(error).__module__.startswith("asyncpg."):
            raise
        reason = error.orig if isinstance(error, DBAPIError) else error
        console.print("Error:", style="bold red", end=" ")
        console.print(str(reason).strip(), markup=False, highlight=False, soft_wrap=True)
        raise typer.Exit(1) from None
    finally:
        logger.removeHandler(handler)
        logger.setLevel(level)
