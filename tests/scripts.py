"""Scripts that `alembic upgrade --sql` prints: what they are printed for, and how they are run."""

from __future__ import annotations

from sqlalchemy import URL, Engine


def url_for_script(engine: Engine) -> URL:
    """The URL to print a script for: nothing but its name says there that the server is a MariaDB and no MySQL."""
    with engine.connect():
        is_mariadb = getattr(engine.dialect, "is_mariadb", False)
    return engine.url.set(drivername="mariadb+pymysql") if is_mariadb else engine.url


def run_script(engine: Engine, *scripts: str) -> None:
    with engine.begin() as connection:
        for statement in ";".join(scripts).split(";"):
            if statement.strip() not in ("", "BEGIN", "COMMIT"):
                connection.exec_driver_sql(statement)
