"""The command `sa-checkpoint`: its commands on every driver, its exit statuses, and what it never prints."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import URL, Engine, create_engine, inspect, text
from sqlalchemy.schema import DropSchema
from typer.testing import CliRunner

from sa_checkpoint import models
from sa_checkpoint.cli import app
from sa_checkpoint.migrations import HEAD, VERSION_TABLE, upgrade
from tests.backends import BACKENDS, Backend
from tests.scripts import run_script, url_for_script

OUR_TABLES = {*models.metadata.tables, VERSION_TABLE}
ROOT = Path(__file__).parent.parent

# Which statements the savers use makes no difference here.
NATIVE = [backend for backend in BACKENDS if not backend.is_portable]
SERVERS = [backend for backend in NATIVE if backend.dialect != "sqlite"]
SYNC = [backend for backend in NATIVE if backend.id in ("sqlite", "psycopg", "pymysql")]


@pytest.fixture(scope="module", params=NATIVE, ids=lambda backend: backend.id)
def backend(request: pytest.FixtureRequest) -> Backend:
    """Each of the drivers in turn."""
    assert isinstance(request.param, Backend)
    return request.param


def plain(url: URL) -> str:
    return url.render_as_string(hide_password=False)


@pytest.fixture
def url(backend: Backend, new_url: Callable[[Backend], URL]) -> str:
    """An empty database, by each of the drivers."""
    return plain(new_url(backend))


@pytest.fixture(params=SYNC, ids=lambda backend: backend.dialect)
def engine(request: pytest.FixtureRequest, new_url: Callable[[Backend], URL]) -> Iterator[Engine]:
    """An empty database: SQLite, PostgreSQL, MariaDB."""
    engine = create_engine(new_url(request.param))
    yield engine
    engine.dispose()


@pytest.fixture
def postgres(new_postgres: Callable[[], URL]) -> Iterator[Engine]:
    """An empty PostgreSQL database."""
    engine = create_engine(new_postgres())
    yield engine
    engine.dispose()


def run(*arguments: str, status: int = 0) -> tuple[str, str]:
    """What the command prints on stdout and on stderr, in this process."""
    result = CliRunner().invoke(app, arguments, catch_exceptions=False)
    assert result.exit_code == status, result.output
    return result.stdout, result.stderr


def fail(*arguments: str) -> str:
    """What the command prints on stderr when it fails."""
    stdout, stderr = run(*arguments, status=1)
    assert stdout == ""
    assert "Traceback" not in stderr
    return stderr


def current(url: str) -> str:
    return run("current", "--url", url)[0].strip()


def tables(engine: Engine, schema: str | None = None) -> set[str]:
    return set(inspect(engine).get_table_names(schema=schema))


def test_it_upgrades_and_downgrades(url: str) -> None:
    assert current(url) == "none"
    stdout, stderr = run("upgrade", "--url", url)
    assert stdout == ""
    assert "Running upgrade sac_0001 -> sac_0002" in stderr
    assert current(url) == f"{HEAD} (head)"

    run("downgrade", "sac_0001", "--url", url)
    assert current(url) == "sac_0001"
    run("upgrade", HEAD, "--url", url)
    assert current(url) == f"{HEAD} (head)"
    run("downgrade", "base", "--url", url)
    assert current(url) == "none"


def test_check_fails_until_the_tables_are_up_to_date(url: str) -> None:
    assert "`sa-checkpoint upgrade`" in fail("check", "--url", url)
    run("upgrade", "sac_0001", "--url", url)
    message = fail("check", "--url", url)
    assert "sac_0001" in message and HEAD in message

    run("upgrade", "--url", url)
    assert run("check", "--url", url) == ("The checkpoint tables are up to date.\n", "")


def test_stamp_writes_a_revision_and_runs_none(engine: Engine) -> None:
    url = plain(engine.url)
    run("stamp", "--url", url)
    assert current(url) == f"{HEAD} (head)"
    assert tables(engine) == {VERSION_TABLE}

    run("stamp", "base", "--url", url)
    assert current(url) == "none"


@pytest.mark.parametrize("engine", SYNC[1:], ids=lambda backend: backend.dialect, indirect=True)
def test_the_tables_are_in_the_schema(engine: Engine) -> None:
    schema = f"agents_{uuid4().hex}"
    there = ("--url", plain(engine.url), "--schema", schema)

    run("upgrade", *there)
    run("check", *there)

    assert tables(engine, schema) == OUR_TABLES
    assert tables(engine) == set()
    assert "schema 'other'" in fail("check", *there[:2], "--schema", "other")
    run("downgrade", "base", *there)
    assert tables(engine, schema) == {VERSION_TABLE}
    with engine.begin() as connection:
        connection.execute(DropSchema(schema, cascade=engine.dialect.name == "postgresql"))


def test_sql_is_printed_and_not_run(engine: Engine) -> None:
    script, _ = run("upgrade", "--sql", "--url", plain(url_for_script(engine)))
    assert tables(engine) == set()

    run_script(engine, script)

    assert tables(engine) == OUR_TABLES
    run("check", "--url", plain(engine.url))


def test_sql_is_for_the_driver_and_schema_that_are_given(backend: Backend) -> None:
    script, _ = run("upgrade", "sac_0001", "--sql", "--url", f"{backend.drivername}:///none", "--schema", "agents")
    assert ("JSONB" in script) is (backend.dialect == "postgresql")
    assert ("LONGTEXT" in script) is (backend.dialect == "mysql")
    assert ("CREATE TABLE `agents`.checkpoints" in script) is (backend.dialect == "mysql")
    assert ('CREATE TABLE "agents".checkpoints' in script) is (backend.dialect != "mysql")
    assert "run_id" not in script


def test_the_url_comes_from_the_option_then_the_environment_then_the_current_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    def databases() -> set[str]:
        return {path.name for path in tmp_path.glob("*.db")}

    monkeypatch.setenv("SA_CHECKPOINT_URL", "sqlite:///environment.db")
    run("upgrade", "--url", "sqlite:///option.db")
    assert databases() == {"option.db"}
    run("upgrade")
    assert databases() == {"option.db", "environment.db"}
    monkeypatch.setenv("SA_CHECKPOINT_URL", "")
    run("upgrade")
    assert databases() == {"option.db", "environment.db", "checkpoints.db"}


@pytest.mark.parametrize(
    ("url", "message"),
    [
        *((f"{backend.drivername}://me:secret@localhost:1/app", "refused") for backend in SERVERS),
        ("me:secret@localhost", "not a database URL"),
        ("sqlite:////no/such/folder/app.db", "unable to open database file"),
        ("nothing://me:secret@localhost/app", "Can't load plugin"),
    ],
)
def test_what_the_database_says_is_one_message_without_the_password(url: str, message: str) -> None:
    for command in (("upgrade",), ("downgrade", "base"), ("current",), ("check",), ("stamp",)):
        stderr = fail(*command, "--url", url)
        assert stderr.splitlines()[-1].strip()
        assert message in stderr.replace("Connect call failed", "refused")  # asyncio's word for it
        assert "secret" not in stderr


NO_DATABASE = {"postgresql": 'database "none" does not exist', "mysql": "Unknown database 'none'"}


@pytest.fixture
def mysql_user(mysql_url: URL) -> Iterator[URL]:
    """The server as a user with a password, who may use a database that does not exist."""
    engine = create_engine(mysql_url)
    user = f"sac_{uuid4().hex[:16]}"
    with engine.begin() as connection:
        connection.execute(text(f"CREATE USER {user} IDENTIFIED BY 'secret'"))
        connection.execute(text(f"GRANT ALL ON none.* TO {user}"))
    yield mysql_url.set(username=user, password="secret")
    with engine.begin() as connection:
        connection.execute(text(f"DROP USER {user}"))
    engine.dispose()


@pytest.mark.parametrize("backend", SERVERS, ids=lambda backend: backend.id, scope="function")
def test_a_database_that_does_not_exist_is_an_error_by_every_driver(
    backend: Backend, request: pytest.FixtureRequest
) -> None:
    server: URL = request.getfixturevalue({"postgresql": "postgres_url", "mysql": "mysql_user"}[backend.dialect])
    url = server.set(drivername=backend.drivername, database="none", password="secret")
    stderr = fail("upgrade", "--url", plain(url))
    assert NO_DATABASE[backend.dialect] in stderr
    assert "secret" not in stderr


def test_the_message_of_check_hides_the_password(postgres: Engine) -> None:
    stderr = fail("check", "--url", plain(postgres.url.set(password="secret")))
    assert "***" in stderr
    assert "secret" not in stderr


def test_a_revision_that_is_not_ours_is_an_error(engine: Engine) -> None:
    url = plain(engine.url)
    for command in ("upgrade", "downgrade", "stamp"):
        assert "Can't locate revision identified by 'app_0001'" in fail(command, "app_0001", "--url", url)


def test_errors_of_ours_keep_their_brackets_and_lines(engine: Engine) -> None:
    """Known fault elsewhere: rich takes what is in brackets for markup, and folds lines at 80 characters."""
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE checkpoints (thread_id TEXT NOT NULL)"))

    stderr = fail("upgrade", "--url", plain(engine.url))

    assert "\n  - checkpoints: there is no column checkpoint_ns\n" in stderr
    assert "\nRename or drop them, or put the checkpoint tables into another schema or database, and upgrade" in stderr
    assert "schema is ''" in fail("upgrade", "--url", plain(engine.url), "--schema", "")


@pytest.mark.parametrize(
    "arguments", [("downgrade",), ("upgrade", "--colour"), ("upgrade", "head", "head"), ("drop",), ("check", "--url")]
)
def test_wrong_usage_is_status_2(arguments: tuple[str, ...]) -> None:
    stdout, stderr = run(*arguments, status=2)
    assert stdout == ""
    assert "Error" in stderr


def test_the_hosts_own_tables_are_not_looked_at(engine: Engine) -> None:
    with engine.begin() as connection:
        connection.execute(text("CREATE TABLE alembic_version (version_num VARCHAR(32) PRIMARY KEY)"))
        connection.execute(text("INSERT INTO alembic_version VALUES ('app_0001')"))
    upgrade(engine)
    run("check", "--url", plain(engine.url))
    run("downgrade", "base", "--url", plain(engine.url))
    assert tables(engine) == {VERSION_TABLE, "alembic_version"}


def process(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "SA_CHECKPOINT_URL": "", "NO_COLOR": "1"}
    return subprocess.run(
        [str(part) for part in command], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize(
    "command",
    [(Path(sys.executable).parent / "sa-checkpoint",), (sys.executable, "-m", "sa_checkpoint")],
    ids=["script", "module"],
)
def test_it_is_installed(command: tuple[str | Path, ...], tmp_path: Path) -> None:
    failed = process(*command, "check", cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr.startswith("Error: The checkpoint tables in sqlite:///checkpoints.db are at revision none")
    assert process(*command, "upgrade", cwd=tmp_path).returncode == 0
    assert process(*command, "current", cwd=tmp_path).stdout == f"{HEAD} (head)\n"
    assert "sa-checkpoint" in process(*command, "--help", cwd=tmp_path).stdout


def test_without_typer_it_says_what_to_install(tmp_path: Path) -> None:
    start = "import sys; sys.modules['typer'] = None; from sa_checkpoint.__main__ import main; main()"
    failed = process(sys.executable, "-c", start, cwd=tmp_path)
    assert failed.returncode == 1
    assert failed.stderr == (
        'The command needs typer, which is not installed. Install it with: pip install "sa-checkpoint[cli]"\n'
    )
