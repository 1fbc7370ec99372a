"""A statement that has come often enough to be prepared, sent by libpq's functions that psycopg has (`psycopg.pq`).

psycopg's cursor looks at the text and at each value of every execution: which type it has, how it is adapted, whether
the statement is prepared. For text that never changes, with strings and bytes only, that takes longer than sending it.
Waiting, interrupts, errors and rows are psycopg's (https://www.psycopg.org/psycopg3/docs/api/pq.html).
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import cache
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

from sa_checkpoint._driver import binary_cursors

_PARAMETER = re.compile(r"%(?:%|\((\w+)\)s)")
# psycopg itself keeps so many on a connection.
_MOST = 100
# What was prepared is gone, or was for tables that have changed.
_NOT_EXECUTED = frozenset((b"26000", b"0A000"))


class _Statement:
    """A statement on one connection.

    Attributes:
        name: What it is prepared as.
        text: As libpq takes it.
        parameters: The names of its parameters, in order.
        uses: How often psycopg's cursor has executed it.
        is_prepared: Whether it is.
    """

    def __init__(self, text: str, number: int) -> None:
        numbers: dict[str, int] = {}

        def placeholder(match: re.Match[str]) -> str:
            name = match[1]
            return "%" if name is None else f"${numbers.setdefault(name, len(numbers) + 1)}"

        self.text = _PARAMETER.sub(placeholder, text).encode()
        self.parameters = list(numbers)
        self.name = b"sa_checkpoint_%d" % number
        self.uses = 0
        self.is_prepared = False


_NEW: dict[str, _Statement] = {}
# By connection of psycopg's, and by text; None where prepared statements do not last.
_STATEMENTS: WeakKeyDictionary[Any, dict[str, _Statement] | None] = WeakKeyDictionary()


def execute(driver: Any, text: str, parameters: Mapping[str, Any], *, fetch: bool) -> Sequence[Any] | None:
    """Execute a statement on a connection that is in autocommit and in no transaction.

    Args:
        driver: A connection of psycopg's.
        text: The statement with parameters in psycopg's form.
        parameters: Their values.
        fetch: Whether it has rows.

    Returns:
        The rows, or None if nothing was executed and psycopg's cursor has to.

    Raises:
        psycopg.Error: What psycopg's cursor would raise.
    """
    psycopg = _psycopg()
    if psycopg is None or not _is_usual(driver, psycopg):
        return None
    statement = _statement(driver, text)
    if statement is None:
        return None
    if not statement.is_prepared and statement.uses < driver.prepare_threshold:
        statement.uses += 1
        return None
    values = _encoded([parameters[name] for name in statement.parameters], psycopg.Binary)
    if values is None:
        return None
    pgconn = driver.pgconn
    with driver.lock:
        if not statement.is_prepared:
            pgconn.send_prepare(statement.name, statement.text)
            (result,) = driver.wait(psycopg.execute(pgconn))
            statement.is_prepared = result.status == psycopg.COMMAND_OK
        if statement.is_prepared:
            pgconn.send_query_prepared(statement.name, *values, psycopg.BINARY)
            (result,) = driver.wait(psycopg.execute(pgconn))
    if result.status == psycopg.FATAL_ERROR:
        if result.error_field(psycopg.SQLSTATE) in _NOT_EXECUTED or not statement.is_prepared:
            _STATEMENTS[driver] = None
            return None
        raise psycopg.error_from_result(result)
    if not fetch:
        return ()
    rows = psycopg.Transformer(driver)
    rows.set_pgresult(result)
    loaded: Sequence[Any] = rows.load_rows(0, result.ntuples, tuple)
    return loaded


def _statement(driver: Any, text: str) -> _Statement | None:
    """The statement on a connection, if it may have any of ours, and has not too many."""
    statements = _STATEMENTS.get(driver, _NEW)
    if statements is None:
        return None
    if statements is _NEW:
        statements = _STATEMENTS[driver] = {}
    statement = statements.get(text)
    if statement is None and len(statements) < _MOST:
        statement = statements[text] = _Statement(text, len(statements))
    return statement


def _is_usual(driver: Any, psycopg: Any) -> bool:
    """Whether psycopg would prepare a statement here, and everything is as psycopg and SQLAlchemy have it."""
    pgconn = driver.pgconn
    return (
        type(driver) is psycopg.Connection
        and driver.autocommit
        and driver.prepare_threshold is not None
        and driver.cursor_factory in psycopg.cursors
        and pgconn.transaction_status == psycopg.IDLE
        and pgconn.pipeline_status == psycopg.PIPELINE_OFF
        and pgconn.parameter_status(b"client_encoding") == b"UTF8"
    )


def _encoded(parameters: Sequence[Any], binary: type[Any]) -> tuple[list[bytes | None], list[int]] | None:
    """Values and their formats as libpq takes them, if they are strings, bytes, integers or None."""
    values: list[bytes | None] = []
    formats: list[int] = []
    for value in parameters:
        kind = type(value)
        if kind is binary:
            value = value.obj
            kind = type(value)
        if kind is str:
            value = value.encode()
            if b"\0" in value:
                return None  # psycopg says that there are none in text
        elif kind is int:
            value = b"%d" % value
        elif not (kind is bytes or value is None):
            return None
        values.append(value)
        formats.append(kind is bytes)
    return values, formats


@cache
def _psycopg() -> Any:
    """What is used of psycopg; None if this version has it otherwise."""
    try:
        import psycopg
        from psycopg import generators, pq
        from psycopg.adapt import Transformer
        from psycopg.errors import error_from_result
    except ImportError:
        return None
    return SimpleNamespace(
        Connection=psycopg.Connection,
        Binary=psycopg.Binary,
        Transformer=Transformer,
        cursors=frozenset((*binary_cursors(), *binary_cursors().values())),
        error_from_result=error_from_result,
        execute=generators.execute,
        BINARY=pq.Format.BINARY,
        COMMAND_OK=pq.ExecStatus.COMMAND_OK,
        FATAL_ERROR=pq.ExecStatus.FATAL_ERROR,
        IDLE=pq.TransactionStatus.IDLE,
        PIPELINE_OFF=pq.PipelineStatus.OFF,
        SQLSTATE=pq.DiagnosticField.SQLSTATE,
    )
