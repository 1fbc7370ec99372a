"""Our tables in applications with Alembic migrations of their own, through the `alembic` command, in three ways.

Each host is a project as `alembic init` makes it, in which only the documented lines are edited, with the package as a
wheel installs it. The ways are (a) our lineage beside the host's, (b) ours as a branch of the host's, and (c) revisions
that the host generates from our metadata.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from sqlalchemy import URL, Connection, Engine, MetaData, create_engine, inspect, text
from sqlalchemy.ext.asyncio import AsyncEngine
from sqlalchemy.schema import DropSchema

from sa_checkpoint import SQLAlchemySaver, migrations, models
from sa_checkpoint.errors import MigrationUnderWay, SchemaOutOfDate
from sa_checkpoint.migrations import HEAD, VERSION_TABLE
from tests.backends import BACKENDS, Backend, Client, Database, saver_on, with_sync_driver
from tests.checkpoints import checkpoint_of, config_of
from tests.scripts import run_script, url_for_script

ROOT = Path(__file__).parent.parent
NOTE = "sa_checkpoint_adopted"
CHECKPOINT_TABLES = set(models.metadata.tables)
UP_TO_DATE = "No new upgrade operations detected."

# SQLAlchemy cannot see our index on SQLite, and says so; it is looked at in another way here.
pytestmark = pytest.mark.filterwarnings("ignore:.*expression-based index:sqlalchemy.exc.SAWarning")

BY_ID = {backend.id: backend for backend in BACKENDS}


def on(*backends: str) -> pytest.MarkDecorator:
    """Run a test on these backends; an async one has a host by Alembic's async template."""
    return pytest.mark.parametrize("backend", [BY_ID[id] for id in backends], ids=backends)


def at_once(*calls: Callable[[], Any]) -> list[Any]:
    """Call functions that each wait for a process."""
    with ThreadPoolExecutor(len(calls)) as pool:
        return [future.result() for future in [pool.submit(call) for call in calls]]


# ------------------------------------------------------------------------------------------------------------ hosts

MODELS = """
from sqlalchemy import ForeignKey, MetaData, String
from sqlalchemy.orm import DeclarativeBase, Mapped, mapped_column


class Base(DeclarativeBase):
    metadata = MetaData(
        naming_convention={
            "ix": "ix_%(column_0_label)s",
            "uq": "uq_%(table_name)s_%(column_0_name)s",
            "ck": "ck_%(table_name)s_%(constraint_name)s",
            "fk": "fk_%(table_name)s_%(column_0_name)s_%(referred_table_name)s",
            "pk": "pk_%(table_name)s",
        }
    )


class Team(Base):
    __tablename__ = "teams"
    id: Mapped[int] = mapped_column(primary_key=True)


class User(Base):
    __tablename__ = "users"
    id: Mapped[int] = mapped_column(primary_key=True)
    email: Mapped[str] = mapped_column(String(100), index=True)
    team_id: Mapped[int] = mapped_column(ForeignKey("teams.id"))
"""
HOST_TABLES = {"teams", "users", "alembic_version"}

ANOTHER_MODEL = """

class Tag(Base):
    __tablename__ = "tags"
    id: Mapped[int] = mapped_column(primary_key=True)
"""

REVISION = """
import sqlalchemy as sa
from alembic import op
from sa_checkpoint import SQLAlchemySaver, migrations

revision = "app_0002"
down_revision = "app_0001"
branch_labels = None
depends_on = {depends_on!r}


def upgrade():
    {upgrade}


def downgrade():
    {downgrade}
"""


@dataclass(frozen=True)
class Host:
    """An application's project: its folder, the database and the driver that it uses, and our package."""

    folder: Path
    backend: Backend
    url: URL
    installed: Path

    @property
    def versions(self) -> Path:
        return self.folder / "alembic" / "versions"

    def run(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        """`alembic`, in the project's folder."""
        return subprocess.run(
            [sys.executable, "-m", "alembic", *arguments],
            cwd=self.folder,
            env={**os.environ, "PYTHONPATH": str(self.installed)},
            capture_output=True,
            text=True,
            check=False,
        )

    def alembic(self, *arguments: str) -> str:
        """What `alembic` prints, when it succeeds."""
        run = self.run(*arguments)
        assert run.returncode == 0, run.stdout + run.stderr
        return run.stdout

    def autogenerate(self, revision: str, *arguments: str) -> list[tuple[str, str]]:
        """What the host's new revision does: each operation, and the table or index that it is about."""
        self.alembic("revision", "--autogenerate", "--rev-id", revision, "-m", "generated", *arguments)
        script = (self.versions / f"{revision}_generated.py").read_text()
        upgrade = script.partition("def upgrade()")[2].partition("def downgrade()")[0]
        return re.findall(r"^ +op\.(\w+)\((?:op\.f\()?'(\w+)'", upgrade, re.MULTILINE)

    def edit(self, file: str, pattern: str, replacement: str) -> None:
        """Replace the one place in a file that matches."""
        path = self.folder / file
        edited, count = re.subn(pattern, replacement, path.read_text(), flags=re.MULTILINE)
        assert count == 1, f"{pattern!r} matches {count} times in {file}"
        path.write_text(edited)

    def configure(self, options: str) -> None:
        """Add options to `context.configure` in env.py."""
        given = "connection=connection, target_metadata=target_metadata"
        self.edit("alembic/env.py", given, f"{given}, {options}")

    def add_branch(self) -> None:
        """Way (b): put our revisions beside the host's, in alembic.ini."""
        # Before Alembic 1.16 the option is called version_path_separator.
        self.edit("alembic.ini", r"^(\w*path_separator) = os.*$", r"\1 = newline")
        ours = "sa_checkpoint:alembic/versions"
        self.edit("alembic.ini", "^# (version_locations =) .*$", rf"\1\n    %(here)s/alembic/versions\n    {ours}")

    def write_revision(self, upgrade: str = "pass", downgrade: str = "pass", depends_on: str | None = None) -> None:
        """Write app_0002 by hand."""
        script = REVISION.format(upgrade=upgrade, downgrade=downgrade, depends_on=depends_on)
        (self.versions / "app_0002_written.py").write_text(script)

    @contextmanager
    def engine(self) -> Iterator[Engine]:
        """A sync engine on the database."""
        engine = create_engine(with_sync_driver(self.url))
        try:
            yield engine
        finally:
            engine.dispose()

    @asynccontextmanager
    async def bind(self) -> AsyncIterator[Engine | AsyncEngine]:
        """An engine as the application has it."""
        async with Database(self.backend, self.url).engine() as engine:
            yield engine

    def tables(self, schema: str | None = None) -> set[str]:
        with self.engine() as engine:
            return set(inspect(engine).get_table_names(schema=schema))

    def revisions(self) -> set[str]:
        """What the host's version table says."""
        with self.engine() as engine, engine.connect() as connection:
            return set(connection.scalars(text("SELECT version_num FROM alembic_version")))

    def schema(self, schema: str | None = None) -> dict[str, Any]:
        """The checkpoint tables as they are in the database."""
        with self.engine() as engine, engine.connect() as connection:
            return schema_of(connection, schema)

    def execute(self, *scripts: str) -> None:
        """Run scripts that `alembic --sql` has printed."""
        with self.engine() as engine:
            run_script(engine, *scripts)

    def url_for_script(self) -> str:
        """The URL for `alembic --sql`, in alembic.ini, too."""
        with self.engine() as engine:
            url = url_for_script(engine).render_as_string(hide_password=False)
        in_ini = url.replace("%", "%%").replace("\\", r"\\")
        self.edit("alembic.ini", "^sqlalchemy.url = .*$", f"sqlalchemy.url = {in_ini}")
        return url


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what a wheel installs: our revisions are inside the package there."""
    folder = tmp_path_factory.mktemp("installed")
    build = [sys.executable, "-m", "uv", "build", "--quiet", "--wheel", "--out-dir", str(folder), str(ROOT)]
    subprocess.run(build, check=True)
    (wheel,) = folder.glob("*.whl")
    zipfile.ZipFile(wheel).extractall(folder / "site-packages")
    return folder / "site-packages"


NewHost = Callable[..., Host]


@pytest.fixture(scope="module")
def new_host(
    installed: Path, new_url: Callable[[Backend], URL], tmp_path_factory: pytest.TempPathFactory
) -> Callable[..., Host]:
    """Makes hosts, with one revision that `alembic revision --autogenerate` has written: app_0001, labelled app."""
    projects = tmp_path_factory.mktemp("projects")

    def make(
        backend: Backend, include_name: str | None = "migrations.include_name", url: URL | None = None, **options: str
    ) -> Host:
        project = projects / ("async" if backend.is_async else "generic")
        folder = tmp_path_factory.mktemp("host")
        host = Host(folder, backend, url or new_url(backend), installed)
        shutil.copytree(project, folder, dirs_exist_ok=True)
        in_ini = host.url.render_as_string(hide_password=False).replace("%", "%%")
        host.edit("alembic.ini", "driver://user:pass@localhost/dbname", in_ini)
        if include_name is not None:
            options["include_name"] = include_name
        for name, value in options.items():
            host.configure(f"{name}={value}")
        return host

    for template in ("generic", "async"):
        project = Host(projects / template, BY_ID["sqlite"], URL.create("sqlite"), installed)
        project.folder.mkdir()
        project.alembic("init", "--template", template, "alembic")
        (project.folder / "models.py").write_text(MODELS)
        metadata = "from models import Base\nfrom sa_checkpoint import migrations\n\ntarget_metadata = Base.metadata"
        project.edit("alembic/env.py", "^target_metadata = None$", metadata)
    first = make(BY_ID["sqlite"])
    first.autogenerate("app_0001", "--branch-label", "app")
    for template in ("generic", "async"):
        shutil.copy(first.versions / "app_0001_generated.py", projects / template / "alembic" / "versions")
    return make


def schema_of(connection: Connection, schema: str | None = None) -> dict[str, Any]:
    """All that makes up the checkpoint tables in a database, but for the names of their primary keys.

    Those follow the host's naming convention in the host's own lineage, as Alembic has it.
    """
    inspector = inspect(connection)
    if connection.dialect.name == "mysql":
        indexes = text(
            "SELECT table_name, index_name FROM information_schema.statistics "
            "WHERE table_schema = coalesce(:schema, database()) AND index_name != 'PRIMARY'"
        ).bindparams(schema=schema)
    elif connection.dialect.name == "sqlite":
        # The inspector does not see indexes on expressions.
        indexes = text("SELECT tbl_name, sql FROM sqlite_master WHERE type = 'index' AND sql IS NOT NULL")
    else:
        indexes = text(
            "SELECT tablename, replace(indexdef, schemaname || '.', '') FROM pg_indexes "
            "WHERE schemaname = coalesce(:schema, 'public') AND indexdef NOT LIKE 'CREATE UNIQUE%'"
        ).bindparams(schema=schema)
    definitions = connection.execute(indexes).all()
    return {
        name: {
            "columns": [
                (column["name"], str(column["type"]), column["nullable"], column["default"])
                for column in inspector.get_columns(name, schema=schema)
            ],
            "primary key": inspector.get_pk_constraint(name, schema=schema)["constrained_columns"],
            "foreign keys": inspector.get_foreign_keys(name, schema=schema),
            "unique": inspector.get_unique_constraints(name, schema=schema),
            "checks": inspector.get_check_constraints(name, schema=schema),
            "indexes": [definition for table, definition in definitions if table == name],
        }
        for name in CHECKPOINT_TABLES
    }


@pytest.fixture(scope="module")
def expected(new_url: Callable[[Backend], URL]) -> Callable[[Backend], dict[str, Any]]:
    """The tables as `migrations.upgrade` makes them, by dialect."""
    schemas = {}
    for backend in (BY_ID["sqlite"], BY_ID["psycopg"], BY_ID["pymysql"]):
        engine = create_engine(new_url(backend))
        migrations.upgrade(engine)
        with engine.connect() as connection:
            schemas[backend.dialect] = schema_of(connection)
        engine.dispose()
    return lambda backend: schemas[backend.dialect]


async def call(bind: Engine | AsyncEngine, name: str, *arguments: str, **options: Any) -> Any:
    """A function of `migrations`, or its async twin on an async engine."""
    if isinstance(bind, AsyncEngine):
        return await getattr(migrations, f"a{name}")(bind, *arguments, **options)
    return getattr(migrations, name)(bind, *arguments, **options)


async def use_a_saver(bind: Engine | AsyncEngine, backend: Backend, **options: Any) -> None:
    """Put a checkpoint, get it, and delete it by its run."""
    client = Client(saver_on(bind, **options), backend)
    saved = await client.put(config_of("t"), checkpoint_of({"a": [1]}), {"run_id": "r"}, {"a": "1"})
    assert (await client.load(saved)).checkpoint["channel_values"] == {"a": [1]}
    await client.delete_for_runs(["r"])
    assert await client.get_tuple(saved) is None


def adopt(engine: Engine) -> None:
    """Upgrade a database that has the tables, so that there is a note of it, too."""
    migrations.upgrade(engine)
    with engine.begin() as connection:
        connection.execute(text(f"DROP TABLE {VERSION_TABLE}"))
    migrations.upgrade(engine)
    migrations.check(engine)


# -------------------------------------------------------------------------------- (a) a lineage beside the host's


@on("sqlite", "psycopg", "pymysql")
def test_beside_the_hosts_lineage_the_one_line_keeps_autogenerate_away(backend: Backend, new_host: NewHost) -> None:
    host = new_host(backend)
    host.alembic("upgrade", "head")
    with host.engine() as engine:
        adopt(engine)
    ours = CHECKPOINT_TABLES | {VERSION_TABLE, NOTE}
    assert host.tables() == HOST_TABLES | ours

    without = new_host(backend, include_name=None, url=host.url)
    check, without_it = at_once(partial(host.alembic, "check"), partial(without.autogenerate, "app_0002"))
    assert UP_TO_DATE in check
    assert host.autogenerate("app_0002") == []
    assert {name for operation, name in without_it if operation == "drop_table"} == ours


@on("sqlite", "psycopg", "pymysql")
def test_beside_the_hosts_lineage_the_scripts_make_the_same_tables(
    backend: Backend, new_host: NewHost, expected: Callable[[Backend], Any]
) -> None:
    host = new_host(backend)
    url = host.url_for_script()

    scripts = at_once(
        partial(host.alembic, "upgrade", "head", "--sql"),
        partial(host.alembic, "-c", str(ROOT / "alembic.ini"), "-x", f"url={url}", "upgrade", "head", "--sql"),
    )
    assert host.tables() == set()
    host.execute(*scripts)

    assert host.tables() == HOST_TABLES | CHECKPOINT_TABLES | {VERSION_TABLE}
    assert host.schema() == expected(backend)
    with host.engine() as engine:
        migrations.check(engine)
        assert migrations.current(engine) == HEAD


# --------------------------------------------------------------------------------- (b) a branch of the host's lineage


BRANCHES = ("sqlite", "psycopg", "pymysql", "aiosqlite", "asyncpg", "asyncmy")


@pytest.fixture(scope="module")
def branches(new_host: NewHost) -> dict[str, Host]:
    """Hosts by each of Alembic's templates that have added our branch and upgraded once, by their backend.

    The tests leave them as they are, but for the one of our own commands, which comes last.
    """
    hosts = {id: new_host(BY_ID[id]) for id in BRANCHES}
    for host in hosts.values():
        host.add_branch()
    at_once(*(partial(host.alembic, "upgrade", "heads") for host in hosts.values()))
    return hosts


@pytest.fixture(params=BRANCHES)
def branch(request: pytest.FixtureRequest, branches: dict[str, Host]) -> Host:
    """Each of them in turn."""
    return branches[request.param]


def test_a_branch_makes_the_same_tables(branch: Host, expected: Callable[[Backend], Any]) -> None:
    assert branch.tables() == HOST_TABLES | CHECKPOINT_TABLES
    assert branch.revisions() == {"app_0001", HEAD}
    assert branch.schema() == expected(branch.backend)


def test_autogenerate_wants_nothing_from_a_branch(branches: dict[str, Host]) -> None:
    for check in at_once(*(partial(host.alembic, "check") for host in branches.values())):
        assert UP_TO_DATE in check


async def test_check_and_the_savers_find_a_branch(branch: Host) -> None:
    async with branch.bind() as bind:
        assert await call(bind, "current") == HEAD
        await call(bind, "check")
        await use_a_saver(bind, branch.backend)


async def test_our_own_commands_do_no_harm_to_a_branch(branch: Host) -> None:
    """They are for way (a), but `setup()` may be called anywhere, by LangGraph's server for one."""
    async with branch.bind() as bind:
        client = Client(saver_on(bind), branch.backend)
        saved = await client.put(config_of("t"), checkpoint_of({"a": [1]}), {}, {"a": "1"})

        for change in (
            partial(call, bind, "downgrade", "base"),
            client.setup,
            partial(call, bind, "stamp", "base"),
            client.setup,
            partial(call, bind, "downgrade", "base"),
        ):
            await change()
            assert (await client.load(saved)).checkpoint["channel_values"] == {"a": [1]}
            assert branch.revisions() == {"app_0001", HEAD}

        await call(bind, "check")
        assert await call(bind, "current") == HEAD
    with branch.engine() as engine:
        assert dropped(engine, include_name=migrations.include_name) == HOST_TABLES - {"alembic_version"}


@on("sqlite")
def test_beside_a_branch_the_host_goes_on_in_its_own_folder(backend: Backend, new_host: NewHost) -> None:
    host = new_host(backend)
    host.add_branch()
    host.alembic("upgrade", "heads")
    with (host.folder / "models.py").open("a") as models_of_host:
        models_of_host.write(ANOTHER_MODEL)

    assert host.autogenerate("app_0002", "--head", "app@head") == [("create_table", "tags")]
    host.alembic("upgrade", "heads")

    assert host.tables() == HOST_TABLES | {"tags"} | CHECKPOINT_TABLES
    assert host.revisions() == {"app_0002", HEAD}

    host.alembic("downgrade", "sa_checkpoint@base")
    assert host.tables() == HOST_TABLES | {"tags"}
    assert host.revisions() == {"app_0002"}
    with host.engine() as engine, pytest.raises(SchemaOutOfDate, match="revision none"):
        migrations.check(engine)


@on("sqlite", "psycopg", "pymysql")
def test_a_host_revision_that_depends_on_ours_brings_it_along(backend: Backend, new_host: NewHost) -> None:
    host = new_host(backend)
    host.add_branch()
    view = "CREATE VIEW threads AS SELECT DISTINCT thread_id FROM checkpoints"
    host.write_revision(f"op.execute('{view}')", "op.execute('DROP VIEW threads')", depends_on=HEAD)

    host.alembic("upgrade", "app@head")

    assert host.tables() == HOST_TABLES | CHECKPOINT_TABLES
    # Alembic does not write down what another revision depends on, so check() goes by the columns.
    assert host.revisions() == {"app_0002"}
    with host.engine() as engine:
        assert migrations.current(engine) is None
        migrations.check(engine)
        with engine.begin() as connection:
            connection.execute(text("ALTER TABLE checkpoint_writes DROP COLUMN task_path"))
        with pytest.raises(SchemaOutOfDate, match=r"no column checkpoint_writes\.task_path"):
            migrations.check(engine)

    host.alembic("downgrade", "sa_checkpoint@base")
    assert host.tables() == HOST_TABLES
    assert host.revisions() == {"app_0001"}


@on("sqlite")
def test_a_dependency_on_our_label_means_the_first_of_our_revisions(backend: Backend, new_host: NewHost) -> None:
    """Alembic takes a label for the revision that bears it, so a host has to name the revision that it needs."""
    host = new_host(backend)
    host.add_branch()
    host.write_revision(depends_on="sa_checkpoint")

    host.alembic("upgrade", "app@head")

    assert host.tables() == HOST_TABLES | CHECKPOINT_TABLES
    assert host.schema()["checkpoints"]["indexes"] == []


@on("sqlite", "psycopg", "pymysql")
def test_the_script_of_a_branch_makes_the_same_tables(
    backend: Backend, new_host: NewHost, expected: Callable[[Backend], Any]
) -> None:
    host = new_host(backend)
    host.add_branch()
    host.url_for_script()

    script = host.alembic("upgrade", "heads", "--sql")
    assert host.tables() == set()
    host.execute(script)

    assert host.schema() == expected(backend)
    assert host.revisions() == {"app_0001", HEAD}


@on("psycopg")
def test_the_script_of_a_branch_makes_its_tables_in_the_schema(
    backend: Backend, new_host: NewHost, expected: Callable[[Backend], Any]
) -> None:
    host = new_host(backend)
    host.edit("alembic/env.py", "literal_binds=True,", r'\g<0>\n        sa_checkpoint_schema="agents",')
    host.add_branch()

    host.execute(host.alembic("upgrade", "heads", "--sql"))

    assert host.tables() == HOST_TABLES
    assert host.schema("agents") == expected(backend)


@on("psycopg", "pymysql")
def test_a_lineage_beside_the_hosts_becomes_a_branch_of_it_without_losing_a_row(
    backend: Backend, new_host: NewHost
) -> None:
    host = new_host(backend)
    with host.engine() as engine:
        adopt(engine)
        saved = SQLAlchemySaver(engine).put(config_of("t"), checkpoint_of({"a": [1]}), {}, {"a": "1"})

        host.add_branch()
        host.alembic("upgrade", "heads")
        host.alembic("downgrade", "sa_checkpoint@base")  # does not drop what was adopted

        found = SQLAlchemySaver(engine).get_tuple(saved)
        assert found is not None
        assert found.checkpoint["channel_values"] == {"a": [1]}


@on("psycopg", "pymysql")
async def test_a_branch_makes_its_tables_in_the_schema_that_env_py_names(
    backend: Backend, new_host: NewHost, expected: Callable[[Backend], Any]
) -> None:
    schema = f"agents_{uuid4().hex}"
    host = new_host(
        backend,
        include_name=f'partial(migrations.include_name, schema="{schema}")',
        # On MySQL they are all that the server has.
        include_schemas=str(backend.dialect != "mysql"),
        sa_checkpoint_schema=f'"{schema}"',
    )
    host.edit("alembic/env.py", "^from models import Base$", r"from functools import partial\n\n\g<0>")
    host.add_branch()

    host.alembic("upgrade", "heads")
    assert host.tables() == HOST_TABLES
    assert host.tables(schema) == CHECKPOINT_TABLES
    assert host.schema(schema) == expected(backend)
    assert UP_TO_DATE in host.alembic("check")
    async with host.bind() as bind:
        assert await call(bind, "current", schema=schema) == HEAD
        await call(bind, "check", schema=schema)
        await use_a_saver(bind, backend, schema=schema)

    host.alembic("downgrade", "sa_checkpoint@base")
    assert host.tables(schema) == set()
    with host.engine() as engine, engine.begin() as connection:
        connection.execute(DropSchema(schema))


# ----------------------------------------------------------------------------------- (c) revisions that the host makes


@on("sqlite", "psycopg", "pymysql")
async def test_the_hosts_own_revisions_make_the_same_tables_once(
    backend: Backend, new_host: NewHost, expected: Callable[[Backend], Any]
) -> None:
    host = new_host(backend, include_name=None, compare_server_default="True")
    both = "import sa_checkpoint\n\ntarget_metadata = [Base.metadata, sa_checkpoint.metadata]"
    host.edit("alembic/env.py", r"^target_metadata = Base\.metadata$", both)
    host.alembic("upgrade", "head")

    can_index = backend.dialect != "mysql"
    assert sorted(host.autogenerate("app_0002")) == [
        *([("create_index", "checkpoints_run_id_idx")] if can_index else []),
        *(("create_table", name) for name in sorted(CHECKPOINT_TABLES)),
    ]
    host.alembic("upgrade", "head")

    assert host.tables() == HOST_TABLES | CHECKPOINT_TABLES
    assert host.schema() == expected(backend)
    assert UP_TO_DATE in host.alembic("check")
    assert host.autogenerate("app_0003") == []
    assert "sa_checkpoint" not in (host.versions / "app_0003_generated.py").read_text()
    async with host.bind() as bind:
        assert await call(bind, "current") is None
        await call(bind, "check")
        await use_a_saver(bind, backend)


# ------------------------------------------------------------------------------------------------------- include_name


def dropped(engine: Engine, **options: Any) -> set[str]:
    """The tables that autogenerate would drop in a host with no models at all."""
    with engine.connect() as connection:
        context = MigrationContext.configure(connection, opts=options)
        differences = compare_metadata(context, MetaData())
    return {item.fullname for operation, item in differences if operation == "remove_table"}


@on("sqlite", "psycopg", "pymysql")
def test_include_name_is_composed_with_a_rule_of_the_hosts(backend: Backend, new_url: Callable[[Backend], URL]) -> None:
    engine = create_engine(new_url(backend))
    migrations.upgrade(engine)
    with engine.begin() as connection:
        for name in ("kept", "removed"):
            connection.execute(text(f"CREATE TABLE {name} (id INTEGER PRIMARY KEY)"))

    def my_rule(name: str | None, type_: str, parents: Any) -> bool:
        return name != "kept"

    assert dropped(engine, include_name=my_rule) == CHECKPOINT_TABLES | {VERSION_TABLE, "removed"}
    assert dropped(
        engine, include_name=lambda *arguments: migrations.include_name(*arguments) and my_rule(*arguments)
    ) == {"removed"}
    engine.dispose()


def test_a_table_of_the_hosts_with_our_name_in_another_schema_is_the_hosts(new_postgres: Callable[[], URL]) -> None:
    engine = create_engine(new_postgres())
    migrations.upgrade(engine, schema="agents")
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE checkpoints (id INTEGER PRIMARY KEY)"))
        connection.execute(text("CREATE SCHEMA races CREATE TABLE checkpoints (id INTEGER PRIMARY KEY)"))
    in_agents = partial(migrations.include_name, schema="agents")

    assert dropped(engine, include_schemas=True, include_name=in_agents) == {"checkpoints", "races.checkpoints"}
    assert dropped(engine, include_name=in_agents) == {"checkpoints"}
    by_default = dropped(engine, include_schemas=True, include_name=migrations.include_name)
    assert by_default == {f"agents.{name}" for name in CHECKPOINT_TABLES | {VERSION_TABLE}} | {"races.checkpoints"}
    engine.dispose()


# ------------------------------------------------------------------------------------- inside a migration of the host's


@contextmanager
def in_this_process(host: Host) -> Iterator[Config]:
    """A Config of the host's for `alembic.command`."""
    config = Config()
    config.set_main_option("script_location", str(host.folder / "alembic"))
    config.set_main_option("sqlalchemy.url", host.url.render_as_string(hide_password=False).replace("%", "%%"))
    sys.path.insert(0, str(host.folder))
    try:
        yield config
    finally:
        sys.path.remove(str(host.folder))
        sys.modules.pop("models", None)


@on("sqlite", "psycopg", "pymysql")
@pytest.mark.parametrize("code", ["migrations.upgrade(op.get_bind())", "SQLAlchemySaver(op.get_bind()).setup()"])
def test_an_upgrade_inside_a_revision_is_an_error_and_does_no_harm(
    backend: Backend, new_host: NewHost, code: str
) -> None:
    """Known fault elsewhere: Alembic's own error is a KeyError, and its globals are gone from then on."""
    host = new_host(backend)
    host.write_revision(f"op.create_table('early', sa.Column('id', sa.Integer)); {code}")
    with in_this_process(host) as config, host.engine() as engine:
        command.upgrade(config, "app_0001")
        with pytest.raises(MigrationUnderWay, match=f"depends_on = '{HEAD}'"):
            command.upgrade(config, "head")

        assert host.revisions() == {"app_0001"}
        # Alembic's migrations of SQLite and MySQL are not transactions.
        assert host.tables() - {"early"} == HOST_TABLES
        assert ("early" in host.tables()) is (backend.dialect != "postgresql")

        migrations.upgrade(engine)
        host.write_revision()
        command.upgrade(config, "head")
        assert host.revisions() == {"app_0002"}
        migrations.downgrade(engine, "base")
        command.downgrade(config, "base")
        assert host.tables() == {"alembic_version", VERSION_TABLE} | ({"early"} & host.tables())


@on("sqlite", "psycopg", "pymysql")
@pytest.mark.parametrize("place", ["^config = context.config$", r"\Z"], ids=["beginning", "end"])
def test_an_upgrade_inside_env_py_is_an_error_and_does_no_harm(backend: Backend, new_host: NewHost, place: str) -> None:
    host = new_host(backend)
    own = "from sqlalchemy import create_engine\nfrom sa_checkpoint import migrations\n"
    code = f"{own}migrations.upgrade(create_engine(context.config.get_main_option('sqlalchemy.url')))\n"
    env = (host.folder / "alembic/env.py").read_text()
    host.edit("alembic/env.py", place, rf"\g<0>\n{code}")

    with in_this_process(host) as config, host.engine() as engine:
        with pytest.raises(MigrationUnderWay, match=r"env\.py"):
            command.upgrade(config, "head")
        assert not host.tables() & CHECKPOINT_TABLES

        migrations.upgrade(engine)
        (host.folder / "alembic/env.py").write_text(env)
        command.upgrade(config, "head")
        assert host.tables() == HOST_TABLES | CHECKPOINT_TABLES | {VERSION_TABLE}


@on("psycopg", "asyncpg")
def test_the_command_shows_that_error(backend: Backend, new_host: NewHost) -> None:
    host = new_host(backend)
    host.write_revision("migrations.upgrade(op.get_bind())")
    run = host.run("upgrade", "head")
    assert run.returncode == 1
    assert "MigrationUnderWay: " in run.stderr
    # In one transaction with the first revision, so there is not even a version table.
    assert host.tables() == set()
