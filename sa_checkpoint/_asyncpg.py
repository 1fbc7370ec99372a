"""A statement by asyncpg's own `fetch`, which prepares it once for a connection and then takes one step.

SQLAlchemy's cursor for asyncpg prepares it itself, asks for its columns each time and reads the status of the result;
that takes as long as sending it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

from sqlalchemy.util import await_only


def may_fetch(adapter: Any) -> bool:
    """Whether a statement may be executed by `fetch`: in no transaction, where statements are prepared at all.

    A `fetch` of the application's own may be for its own statements only: SQLAlchemy does not call it.

    Args:
        adapter: SQLAlchemy's connection of asyncpg.
    """
    driver = adapter.driver_connection
    return (
        getattr(type(driver), "fetch", None) is sys.modules["asyncpg"].Connection.fetch
        and getattr(adapter, "_prepared_statement_cache", None) is not None
        and hasattr(adapter, "_handle_exception")
        and hasattr(adapter, "_execute_mutex")
        and not driver.is_in_transaction()
    )


def fetch(adapter: Any, text: str, parameters: Sequence[Any]) -> Sequence[Any]:
    """Execute a statement, inside SQLAlchemy's `greenlet_spawn`.

    Args:
        adapter: SQLAlchemy's connection of asyncpg, which `may_fetch`.
        text: The statement.
        parameters: Its parameters, in order.

    Returns:
        Its rows, if it has any.

    Raises:
        dbapi.Error: As SQLAlchemy's cursor for asyncpg raises it.
    """
    rows: Sequence[Any] = await_only(_fetch(adapter, text, parameters))
    return rows


async def _fetch(adapter: Any, text: str, parameters: Sequence[Any]) -> Any:
    async with adapter._execute_mutex:
        try:
            return await adapter.driver_connection.fetch(text, *parameters)
        except Exception as error:
            adapter._handle_exception(error)
            raise
