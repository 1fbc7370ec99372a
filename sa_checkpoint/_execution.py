"""An operation of a saver, as it runs on a connection: prepared before, decoded after, the statements in between."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Generic, TypeVar

from sqlalchemy import Connection, Dialect

from sa_checkpoint import _direct
from sa_checkpoint._driver import binary_results
from sa_checkpoint._mysql import MySQLStrategy
from sa_checkpoint._portable import PortableStrategy
from sa_checkpoint._postgresql import PostgreSQLStrategy
from sa_checkpoint._prepared import prepared_for, takes_text
from sa_checkpoint._sqlite import SQLiteStrategy
from sa_checkpoint._strategy import Call, Parameters, Rows, Strategy, is_large
from sa_checkpoint._tables import tables_in
from sa_checkpoint._transactions import Ending
from sa_checkpoint._types import MYSQL

T = TypeVar("T")

# Any other dialect is served by PortableStrategy.
STRATEGIES: dict[str, type[Strategy]] = {
    "postgresql": PostgreSQLStrategy,
    "sqlite": SQLiteStrategy,
    **dict.fromkeys(MYSQL, MySQLStrategy),
}


# As many as the schemas that a process may use at a time: a set of statements takes a while to build.
@lru_cache(maxsize=256)
def strategy_for(dialect: str, schema: str | None = None) -> Strategy:
    """The strategy of a dialect on the tables of a schema, with its statements, built at first use.

    Args:
        dialect: SQLAlchemy's name of it.
        schema: None for unqualified tables.
    """
    return STRATEGIES.get(dialect, PortableStrategy)(tables_in(schema))


class Transaction:
    """A connection in a transaction that is not ours to end: the `Executor` of a strategy's calls.

    Attributes:
        connection: The connection.
        strategy: The strategy.
    """

    def __init__(self, connection: Connection, strategy: Strategy) -> None:
        self.connection = connection
        self.strategy = strategy
        self._is_unobserved = _direct.is_unobserved(connection)
        self._takes_text = takes_text(connection)
        self._ending: Ending | None = connection.get_execution_options().get(Ending.OPTION)

    @property
    def may_commit(self) -> bool:
        """Whether a call that commits may come last."""
        return self._ending is not None

    def run(self, *calls: Call) -> None:
        """Execute calls in order."""
        for call in calls:
            self._execute(call, fetch=False)

    def fetch(self, call: Call) -> Rows:
        """Execute a call, and fetch its rows."""
        with binary_results(self.connection):
            return self._execute(call, fetch=True)

    def _execute(self, call: Call, *, fetch: bool) -> Rows:
        if self._ending is None:
            return self._sent(call, fetch=fetch)
        self._ending.is_committed = False
        rows = self._sent(call, fetch=fetch)
        self._ending.is_committed = call.commits
        return rows

    def _sent(self, call: Call, *, fetch: bool) -> Rows:
        prepared = None
        if call.is_constant and self._takes_text:
            prepared = prepared_for(self.connection.dialect, call.statement)
        if prepared is None:
            result = self.connection.execute(call.statement, call.parameters, execution_options=_direct.BUFFERED)
            return _direct.rows_of(result, fetch=fetch)
        rows: Any = call.parameters
        if type(rows) is list and len(rows) == 1:
            (rows,) = rows
        bound = [prepared.bind(row) for row in rows] if type(rows) is list else prepared.bind(rows)
        return _direct.execute(self.connection, prepared.text, bound, fetch=fetch, direct=self._is_unobserved)


@dataclass(frozen=True)
class Operation(Generic[T]):
    """One unit of work of a saver.

    Attributes:
        work: Executes statements; a connection is held for just that.
        decode: Makes the result of what `work` returned, when the connection has been given back.
        writes: Whether it changes anything.
        is_several: Whether it is several statements anywhere: the maintenance of a thread, or what `is_large`.
        is_constant: Whether its statements are the same each time, but for their parameters.
        weigh: How many bytes there are to deserialise in the result of `work`.
    """

    work: Callable[[Transaction], Any]
    decode: Callable[[Any], T]
    writes: bool = True
    is_several: bool = False
    is_constant: bool = False
    weigh: Callable[[Any], int] = lambda _result: 0

    def is_one_statement(self, dialect: Dialect, schema: str | None) -> bool:
        """Whether it is one statement on this database, atomic by itself."""
        return not self.is_several and strategy_for(dialect.name, schema).is_one_statement

    def execute(self, connection: Connection, schema: str | None = None) -> Any:
        """Do the work on the tables of a schema; the transaction is the caller's.

        Raises:
            UnsupportedDatabase: Values would be lost in this database, or on the way to it.
        """
        strategy = strategy_for(connection.dialect.name, schema)
        strategy.check(connection)
        return self.work(Transaction(connection, strategy))


def writing(
    work: Callable[[Strategy, Transaction], None],
    result: T,
    *,
    rows: Sequence[Parameters] = (),
    is_constant: bool = False,
) -> Operation[T]:
    """An operation that has its result beforehand.

    Args:
        work: What it does.
        result: Its result.
        rows: What it writes, if that may be large.
        is_constant: As for the operation.
    """
    return Operation(
        lambda transaction: work(transaction.strategy, transaction),
        lambda _nothing: result,
        is_several=is_large(rows),
        is_constant=is_constant,
    )
