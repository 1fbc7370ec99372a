"""A statement that has come often enough to be prepared, sent by libpq's functions that psycopg has (`psycopg.pq`).

psycopg's cursor looks at the text and at each value of every execution: which type it has, how it is adapted, whether
the statement is prepared. For text that never changes, with strings and bytes only, that takes longer than sending it.
Waiting, interrupts, errors and rows are psycopg's (https://www.psycopg.org/psycopg3/docs/api/pq.html).
"""

from __future__ import annotations

import re
from collections.abc import Generator, Mapping, Sequence
from functools import cache
from hashlib import sha256
from types import SimpleNamespace
from typing import Any
from weakref import WeakKeyDictionary

from sa_checkpoint._driver import binary_cursors

_PARAMETER = re.compile(r"%(?:%|\((\w+)\)s)")
# psycopg itself keeps so many on a connection.
_MOST = 100
# How often they may be lost: psycopg deallocates all of them with its own, at a rollback.
_MOST_LOSSES = 3
_BYTEA = 17
# What was prepared is gone, or was for tables that have changed; the name is taken. Nothing has been executed.
_GONE, _CHANGED, _TAKEN = b"26000", b"0A000", b"42P05"


class _Statement:
    """A statement on one connection.

    Attributes:
        name: What it is prepared as: a connection that is not what it seems has no other one of that name.
        text: As libpq takes it.
        parameters: The names of its parameters, in order.
        uses: How often psycopg's cursor has executed it.
        is_prepared: Whether it is.
    """

    def __init__(self, text: str) -> None:
        numbers: dict[str, int] = {}

        def placeholder(match: re.Match[str]) -> str:
            name = match[1]
            return "%" if name is None else f"${numbers.setdefault(name, len(numbers) + 1)}"

        self.text = _PARAMETER.sub(placeholder, text).encode()
        self.name = b"sa_checkpoint_" + sha256(self.text).hexdigest()[:16].encode()
        self.parameters = list(numbers)
        self.uses = 0
        self.is_prepared = False


class _Statements:
    """Those of one connection, by their text.

    Attributes:
        are_kept: Whether there may be any.
    """

    def __init__(self, *, are_kept: bool) -> None:
        self.are_kept = are_kept
        self._losses = 0
        self._by_text: dict[str, _Statement] = {}

    def get(self, text: str) -> _Statement | None:
        statement = self._by_text.get(text)
        if statement is None and self.are_kept and len(self._by_text) < _MOST:
            statement = self._by_text[text] = _Statement(text)
        return statement

    def forget(self, *, for_good: bool) -> None:
        """Take none of them to be prepared any more."""
        self._by_text.clear()
        self._losses += 1
        self.are_kept = self.are_kept and not for_good and self._losses < _MOST_LOSSES


# By connection of psycopg's.
_STATEMENTS: WeakKeyDictionary[Any, _Statements] = WeakKeyDictionary()


def execute(driver: Any, text: str, parameters: Mapping[str, Any], *, fetch: bool) -> Sequence[Any] | None:
    """Execute a statement on a connection that is in no transaction, in which case it is committed by itself.

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
    statements = _STATEMENTS.get(driver)
    if statements is None:
        statements = _STATEMENTS[driver] = _Statements(are_kept=_adapts_as_usual(driver, psycopg))
    statement = statements.get(text)
    if statement is None:
        return None
    if not statement.is_prepared and statement.uses < driver.prepare_threshold:
        statement.uses += 1
        return None
    values = _encoded([parameters[name] for name in statement.parameters], psycopg.Binary)
    if values is None:
        return None
    with driver.lock:
        if not statement.is_prepared:
            types = [_BYTEA if is_bytes else 0 for is_bytes in values[1]]
            result = driver.wait(_prepared(driver.pgconn, statement, types, psycopg))
            statement.is_prepared = result.status == psycopg.COMMAND_OK
        if statement.is_prepared:
            result = driver.wait(_executed(driver.pgconn, statement, values, psycopg))
    if result.status == psycopg.FATAL_ERROR:
        state = result.error_field(psycopg.SQLSTATE)
        if state in (_GONE, _CHANGED, _TAKEN):
            statements.forget(for_good=state != _GONE)
            return None
        raise psycopg.error_from_result(result)
    if not fetch:
        return ()
    rows = psycopg.Transformer(driver)
    rows.set_pgresult(result)
    loaded: Sequence[Any] = rows.load_rows(0, result.ntuples, tuple)
    return loaded


# Generators that psycopg waits on: when it is interrupted there, it has the server cancel what was sent.


def _prepared(pgconn: Any, statement: _Statement, types: Sequence[int], psycopg: Any) -> Generator[Any, Any, Any]:
    pgconn.send_prepare(statement.name, statement.text, types)
    results = yield from psycopg.execute(pgconn)
    return results[-1]


def _executed(pgconn: Any, statement: _Statement, values: Any, psycopg: Any) -> Generator[Any, Any, Any]:
    pgconn.send_query_prepared(statement.name, *values, psycopg.BINARY)
    results = yield from psycopg.execute(pgconn)
    return results[-1]


def _is_usual(driver: Any, psycopg: Any) -> bool:
    """Whether psycopg would prepare a statement here, and everything is as psycopg and SQLAlchemy have it."""
    pgconn = driver.pgconn
    return (
        type(driver) is psycopg.Connection
        and driver.prepare_threshold is not None
        and driver.cursor_factory in psycopg.cursors
        and pgconn.transaction_status == psycopg.IDLE
        and pgconn.pipeline_status == psycopg.PIPELINE_OFF
        and pgconn.parameter_status(b"client_encoding") == b"UTF8"
    )


def _adapts_as_usual(driver: Any, psycopg: Any) -> bool:
    """Whether values are sent as psycopg does it, and not by something that the application has registered."""
    kinds = (str, int, bytes, psycopg.Binary)
    dumpers = (driver.adapters.get_dumper(kind, psycopg.AUTO) for kind in kinds)
    return all(dumper.__module__.partition(".")[0] in ("psycopg", "psycopg_binary", "psycopg_c") for dumper in dumpers)


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
        from psycopg.adapt import PyFormat, Transformer
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
        AUTO=PyFormat.AUTO,
        BINARY=pq.Format.BINARY,
        COMMAND_OK=pq.ExecStatus.COMMAND_OK,
        FATAL_ERROR=pq.ExecStatus.FATAL_ERROR,
        IDLE=pq.TransactionStatus.IDLE,
        PIPELINE_OFF=pq.PipelineStatus.OFF,
        SQLSTATE=pq.DiagnosticField.SQLSTATE,
    )
