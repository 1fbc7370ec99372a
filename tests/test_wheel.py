"""The wheel, in clean environments outside the checkout: it brings its revisions and needs only the driver in use."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
from sqlalchemy import URL

ROOT = Path(__file__).parent.parent

USE = """
import importlib.util, sys
from sa_checkpoint import SQLAlchemySaver

present = {name for name in sys.argv[2].split(",") if importlib.util.find_spec(name)}
assert not present, f"installed, but should not be needed: {present}"

checkpoint = {
    "v": 4, "id": "1", "ts": "", "channel_values": {"a": ["kept"]}, "channel_versions": {"a": "1"},
    "versions_seen": {}, "updated_channels": None,
}
config = {"configurable": {"thread_id": "t", "checkpoint_ns": ""}}
with SQLAlchemySaver.from_conn_string(sys.argv[1]) as saver:
    saver.setup()
    saver.put(config, checkpoint, {}, {"a": "1"})
with SQLAlchemySaver.from_conn_string(sys.argv[1]) as saver:
    print(saver.get_tuple(config).checkpoint["channel_values"]["a"])
"""

USE_ASYNC = """
import asyncio, sys
from sa_checkpoint import AsyncSQLAlchemySaver

async def main():
    async with AsyncSQLAlchemySaver.from_conn_string(sys.argv[1]) as saver:
        await saver.setup()
        print(await saver.aget_tuple({"configurable": {"thread_id": "t"}}))

asyncio.run(main())
"""


def run(*command: str | Path, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(part) for part in command], cwd=cwd, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from the source distribution."""
    folder = tmp_path_factory.mktemp("dist")
    built = run(sys.executable, "-m", "uv", "build", "--quiet", "--out-dir", folder, ROOT, cwd=folder)
    assert built.returncode == 0, built.stderr
    (path,) = folder.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Makes a clean environment with the wheel and the given extras; returns its Python."""

    def make(extras: str) -> Path:
        folder = tmp_path_factory.mktemp("environment")
        uv = (sys.executable, "-m", "uv")
        python = folder / "venv" / "bin" / "python"
        assert run(*uv, "venv", "--quiet", "--python", sys.executable, "venv", cwd=folder).returncode == 0
        installed = run(
            *uv,
            "pip",
            "install",
            "--quiet",
            "--python",
            python,
            f"sa-checkpoint{extras} @ {wheel.as_uri()}",
            cwd=folder,
        )
        assert installed.returncode == 0, installed.stderr
        return python

    return make


def test_the_revisions_are_inside(wheel: Path) -> None:
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {"sa_checkpoint/alembic/env.py", "sa_checkpoint/alembic/script.py.mako", "sa_checkpoint/py.typed"} <= names
    ours = {f"sa_checkpoint/alembic/versions/{path.name}" for path in (ROOT / "alembic/versions").glob("sac_*.py")}
    assert ours and ours <= names
    assert not any(name.startswith(("alembic/", "tests/")) for name in names)


def test_without_extras_it_serves_sqlite_and_says_what_else_needs(
    environment: Callable[[str], Path], tmp_path: Path
) -> None:
    python = environment("")

    used = run(python, "-c", USE, "sqlite:///wheel.db", "greenlet,aiosqlite,psycopg,psycopg2,asyncpg", cwd=tmp_path)
    assert (used.stdout.strip(), used.stderr) == ("['kept']", "")

    for script, url, extra in (
        (USE, "postgresql://localhost/app", "postgres"),
        (USE, "postgresql+psycopg2://localhost/app", "psycopg2"),
        (USE_ASYNC, "sqlite:///wheel.db", "asyncio"),
    ):
        failed = run(python, "-c", script, url, "greenlet", cwd=tmp_path)
        assert f'pip install "sa-checkpoint[{extra}]"' in failed.stderr


def test_with_the_postgres_extra_it_serves_postgresql(
    environment: Callable[[str], Path], new_postgres: Callable[[], URL], tmp_path: Path
) -> None:
    url = new_postgres().set(drivername="postgresql").render_as_string(hide_password=False)

    used = run(environment("[postgres]"), "-c", USE, url, "greenlet,aiosqlite,psycopg2,asyncpg", cwd=tmp_path)

    assert (used.stdout.strip(), used.stderr) == ("['kept']", "")


def test_with_the_sqlite_async_extra_it_serves_async_sqlite(environment: Callable[[str], Path], tmp_path: Path) -> None:
    used = run(environment("[sqlite-async]"), "-c", USE_ASYNC, "sqlite:///wheel.db", cwd=tmp_path)
    assert (used.stdout.strip(), used.stderr) == ("None", "")
