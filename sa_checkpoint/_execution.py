"""An operation of a saver, as it runs on a connection: prepared before, decoded after, the statements in between."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection

from sa_checkpoint._postgresql import PostgreSQLStatements
from sa_checkpoint._records import Rows
from sa_checkpoint._sqlite import SQLiteStatements
from sa_checkpoint._statements import Call, Statements
from sa_checkpoint._tables import tables_in
from sa_checkpoint._transactions import BUFFERED
from sa_checkpoint.errors import UnsupportedDatabase

T = TypeVar("T")

_STRATEGIES: Mapping[str, type[Statements]] = {
    "postgresql": PostgreSQLStatements,
    "sqlite": SQLiteStatements,
}


# As many as the schemas that a process may use at a time: a set of statements takes a while to build.
@lru_cache(maxsize=256)
def statements_for(dialect: str, schema: str | None = None) -> Statements:
    """The statements of a dialect on the tables of a schema, built at first use.

    Args:
        dialect: SQLAlchemy's name of it.
        schema: None for unqualified tables.

    Raises:
        UnsupportedDatabase: There are none.
    """
    if dialect not in _STRATEGIES:
        raise UnsupportedDatabase(
            f"sa_checkpoint has no statements for {dialect!r} yet: use an engine for "
            + " or ".join(sorted(_STRATEGIES))
            + "."
        )
    return _STRATEGIES[dialect](tables_in(schema))


@dataclass(frozen=True)
class Transaction:
    """A connection in a transaction that is not ours to end, and the statements for its database."""

    connection: Connection
    statements: Statements

    def run(self, *calls: Call) -> None:
        """Execute calls in order."""
        for call in calls:
            self.connection.execute(call.statement, call.parameters, execution_options=BUFFERED).close()

    def fetch(self, call: Call) -> Rows:
        """Execute a call, and fetch its rows."""
        return self.connection.execute(call.statement, call.parameters, execution_options=BUFFERED).fetchall()


@dataclass(frozen=True)
class Operation(Generic[T]):
    """One unit of work of a saver.

    Attributes:
        work: Executes statements; a connection is held for just that.
        decode: Makes the result of what `work` returned, when the connection has been given back.
        writes: Whether it changes anything.
    """

    work: Callable[[Transaction], Any]
    decode: Callable[[Any], T]
    writes: bool = True

    def execute(self, connection: Connection, schema: str | None = None) -> Any:
        """Do the work on the tables of a schema; the transaction is the caller's.

        Raises:
            UnsupportedDatabase: There are no statements for this database.
        """
        return self.work(Transaction(connection, statements_for(connection.dialect.name, schema)))


def executing(calls: Callable[[Statements], list[Call]], result: T) -> Operation[T]:
    """An operation that executes calls known beforehand, and has its result beforehand, too."""
    return Operation(lambda transaction: transaction.run(*calls(transaction.statements)), lambda _rows: result)
