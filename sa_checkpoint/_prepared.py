"""Statements as the text that they are compiled to, once for each engine.

SQLAlchemy looks a statement up in its cache by its structure, at each execution. For one that never changes, such as
the one that reads a checkpoint, that takes as long as executing it. What is kept here goes to the driver by
`Connection.exec_driver_sql`: the application's `before_cursor_execute` and all other events of the cursor are the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Dialect, Executable
from sqlalchemy.engine.interfaces import BindTyping

from sa_checkpoint._direct import has_listeners
from sa_checkpoint._strategy import Parameters


@dataclass(frozen=True)
class Prepared:
    """A compiled statement.

    Attributes:
        text: What the driver is given.
        in_order: Takes the parameters out of them in order, for a driver that wants a tuple.
        constants: The values of parameters that are not given.
        processors: What makes of a value what the driver takes.
    """

    text: str
    in_order: Callable[[Mapping[str, Any]], tuple[Any, ...]] | None
    constants: Parameters
    processors: Mapping[str, Callable[[Any], Any]]

    def bind(self, parameters: Parameters) -> Any:
        """One set of parameters as the driver takes it."""
        values = {**self.constants, **parameters}
        for name, process in self.processors.items():
            values[name] = process(values[name])
        return values if self.in_order is None else self.in_order(values)


_UNKNOWN: Any = object()
# For as long as somebody has the engine, and the statement: those of a schema are dropped when many others are used.
_PREPARED: WeakKeyDictionary[Dialect, WeakKeyDictionary[Executable, Prepared | None]] = WeakKeyDictionary()


def takes_text(connection: Connection) -> bool:
    """Whether the application wants nothing of statements that takes SQLAlchemy itself to execute them."""
    if has_listeners(connection) and (connection.dispatch.before_execute or connection.dispatch.after_execute):
        return False  # a listener is given the statement, and may change it
    return not connection.get_execution_options().get("schema_translate_map")


def prepared_for(dialect: Dialect, statement: Executable) -> Prepared | None:
    """The text of a statement, or None where it takes SQLAlchemy: for its parameters, or the names of its columns."""
    statements = _PREPARED.get(dialect)
    if statements is None:
        statements = _PREPARED.setdefault(dialect, WeakKeyDictionary())
    prepared: Prepared | None = statements.get(statement, _UNKNOWN)
    if prepared is _UNKNOWN:
        prepared = statements[statement] = _prepare(dialect, statement)
    return prepared


def _prepare(dialect: Dialect, statement: Any) -> Prepared | None:
    if dialect.label_length:
        return None
    compiled = statement.compile(dialect=dialect)
    if dialect.bind_typing is BindTyping.SETINPUTSIZES or compiled.post_compile_params:
        return None
    types = {name: parameter.type.dialect_impl(dialect) for name, parameter in compiled.binds.items()}
    processors = {name: type_.bind_processor(dialect) for name, type_ in types.items()}
    return Prepared(
        text=str(compiled),
        in_order=_in_order(compiled.positiontup) if compiled.positional else None,
        constants={name: value for name, value in compiled.params.items() if value is not None},
        processors={name: process for name, process in processors.items() if process is not None},
    )


def _in_order(names: Sequence[str]) -> Callable[[Mapping[str, Any]], tuple[Any, ...]]:
    if len(names) > 1:
        return itemgetter(*names)
    return lambda values: tuple([values[name] for name in names])
