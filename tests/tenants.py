"""A database on PostgreSQL that tenants share: row-level security shows each its own rows only."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from uuid import uuid4

from sqlalchemy import URL, create_engine

from sa_checkpoint import migrations
from tests.backends import with_sync_driver
from tests.rows import TABLES

# Without a tenant every statement fails.
_POLICY = """
ALTER TABLE {table} ENABLE ROW LEVEL SECURITY;
ALTER TABLE {table} FORCE ROW LEVEL SECURITY;
CREATE POLICY tenant ON {table} USING (split_part(thread_id, ':', 1) = current_setting('app.tenant'));
GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role};
"""


@contextmanager
def guarded(url: URL) -> Iterator[str]:
    """Migrate a database, and make a role that sees the threads "<app.tenant>:…" only. Its name is returned."""
    role = f"tenant_{uuid4().hex}"
    owner = create_engine(with_sync_driver(url))
    migrations.upgrade(owner)
    with owner.begin() as connection:
        connection.exec_driver_sql(f"CREATE ROLE {role}")
        for table in TABLES:
            connection.exec_driver_sql(_POLICY.format(table=table, role=role))
        connection.exec_driver_sql(f"GRANT SELECT ON {migrations.VERSION_TABLE} TO {role}")
    yield role
    with owner.begin() as connection:
        connection.exec_driver_sql(f"DROP OWNED BY {role}")
        connection.exec_driver_sql(f"DROP ROLE {role}")
    owner.dispose()
