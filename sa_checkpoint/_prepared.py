"""Statements as the text that they are compiled to, once for each engine.

SQLAlchemy looks a statement up in its cache by its structure, at each execution. For one that never changes, such as
the one that reads a checkpoint, that takes as long as executing it. What is kept here goes to the driver by
`Connection.exec_driver_sql`: the application's `before_cursor_execute` and all other events of the cursor are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Dialect, Executable
from sqlalchemy.engine.interfaces import BindTyping

from sa_checkpoint._direct import has_listeners
from sa_checkpoint._strategy import Call, Parameters


@dataclass(frozen=True)
class Prepared:
    """A compiled statement.

    Attributes:
        text: What the driver is given.
        names: The parameters in order, for a driver that takes them so.
        constants: The values of parameters that are not given.
        processors: What makes of a value what the driver takes.
    """

    text: str
    names: Sequence[str] | None
    constants: Parameters
    processors: Mapping[str, Callable[[Any], Any]]

    def bind(self, parameters: Parameters) -> Any:
        """One set of parameters as the driver takes it."""
        values = {**self.constants, **parameters}
        for name, process in self.processors.items():
            values[name] = process(values[name])
        return values if self.names is None else tuple([values[name] for name in self.names])


_UNKNOWN: Any = object()
# For as long as somebody has the engine, and the statement: those of a schema are dropped when many others are used.
_PREPARED: WeakKeyDictionary[Dialect, WeakKeyDictionary[Executable, Prepared | None]] = WeakKeyDictionary()


def prepared_for(connection: Connection, call: Call) -> Prepared | None:
    """The text of a call's statement, or None where only SQLAlchemy itself can execute it as the application wants."""
    dialect = connection.dialect
    if not call.is_constant:
        return None
    if has_listeners(connection) and (connection.dispatch.before_execute or connection.dispatch.after_execute):
        return None  # a listener is given the statement, and may change it
    if connection.get_execution_options().get("schema_translate_map") or dialect.label_length:
        return None
    statements = _PREPARED.get(dialect)
    if statements is None:
        statements = _PREPARED.setdefault(dialect, WeakKeyDictionary())
    prepared: Prepared | None = statements.get(call.statement, _UNKNOWN)
    if prepared is _UNKNOWN:
        prepared = statements[call.statement] = _prepare(dialect, call.statement)
    return prepared


def _prepare(dialect: Dialect, statement: Any) -> Prepared | None:
    compiled = statement.compile(dialect=dialect)
    if dialect.bind_typing is BindTyping.SETINPUTSIZES or compiled.post_compile_params:
        return None
    types = {name: parameter.type.dialect_impl(dialect) for name, parameter in compiled.binds.items()}
    processors = {name: type_.bind_processor(dialect) for name, type_ in types.items()}
    return Prepared(
        text=str(compiled),
        names=compiled.positiontup if compiled.positional else None,
        constants={name: value for name, value in compiled.params.items() if value is not None},
        processors={name: process for name, process in processors.items() if process is not None},
    )
