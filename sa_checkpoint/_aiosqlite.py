"""Statements in aiosqlite's thread: as few calls into it as possible, since each takes as long as SQLite does."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy.util import await_only

from sa_checkpoint._cancellation import Cancellation, GivenUp


def execute(driver: Any, text: str, parameters: Any) -> Sequence[Any]:
    """Execute a statement with one call, inside SQLAlchemy's `greenlet_spawn`.

    SQLAlchemy's cursor makes one for itself, the statement, the rows and the end.

    Args:
        driver: aiosqlite's connection.
        text: The statement.
        parameters: Its parameters, or a list of several for an executemany, which has no rows.
    """
    if isinstance(parameters, list):
        await_only(driver.executemany(text, parameters))
        return ()
    rows: Sequence[Any] = await_only(driver.execute_fetchall(text, parameters))
    return rows


def batch_on(driver: Any) -> Batch | None:
    """A batch, if aiosqlite runs a function in its thread, which is no public promise of it."""
    return Batch(driver) if hasattr(driver, "_execute") and hasattr(driver, "_conn") else None


class Batch:
    """Statements that wait for their COMMIT, and are executed with it.

    Attributes:
        calls: Those that the statements are of.
        current: The statement that is being executed, and its parameters; after an error, the one that it came of.
            None and None for the COMMIT.
    """

    def __init__(self, driver: Any) -> None:
        self.calls: list[Cancellation] = []
        self.current: tuple[str | None, Any] = (None, None)
        self._driver = driver
        self._statements: list[tuple[str, Any]] = []

    def add(self, text: str, parameters: Any) -> None:
        """Have a statement without rows executed; the arguments are those of `execute`."""
        self._statements.append((text, parameters))

    def flush(self) -> None:
        """Execute the statements so far, inside SQLAlchemy's `greenlet_spawn`.

        Raises:
            sqlite3.Error: One of them failed. What was executed before has to be rolled back.
            ValueError: The connection has been closed.
        """
        await_only(self._driver._execute(self._execute))

    def commit(self) -> None:
        """Execute the statements, and commit, in the same way.

        Raises:
            GivenUp: One of the calls has been given up meanwhile.
        """
        await_only(self._driver._execute(self._commit))

    def _commit(self) -> None:
        connection = self._execute()
        if any(call.is_requested for call in self.calls):
            raise GivenUp
        connection.commit()

    def _execute(self) -> Any:
        connection = self._driver._conn
        for text, parameters in self._statements:
            self.current = text, parameters
            (connection.executemany if isinstance(parameters, list) else connection.execute)(text, parameters)
        self.current = None, None
        self._statements = []
        return connection
