"""The column types of the checkpoint tables on every database.

On PostgreSQL they are those of langgraph-checkpoint-postgres, and SQLite's are like them: text of any length. Elsewhere
a key has a limit (`_keys`), and JSON is text, since a JSON type may change what it is given: MySQL's loses integers of
more than 64 bits.
"""

from __future__ import annotations

import json
from typing import Any

from sqlalchemy import JSON, ColumnElement, Dialect, LargeBinary, Text, TypeDecorator, Unicode, UnicodeText
from sqlalchemy.dialects import mysql
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.compiler import compiles
from sqlalchemy.sql.compiler import SQLCompiler, TypeCompiler
from sqlalchemy.sql.functions import FunctionElement
from sqlalchemy.types import TypeEngine

from sa_checkpoint._keys import LENGTHS

MYSQL = ("mysql", "mariadb")
"""SQLAlchemy's names for one family of databases."""


class _JSONB(JSONB):
    """JSONB as Alembic can write it into a revision on another database: it would not import JSONB's argument."""

    __module__ = JSONB.__module__  # where Alembic imports it from

    def __repr__(self) -> str:
        return "JSONB()"


class JSONText(TypeDecorator[Any]):
    """JSON in a column of text."""

    impl = UnicodeText
    cache_ok = True

    def load_dialect_impl(self, dialect: Dialect) -> TypeEngine[Any]:
        return dialect.type_descriptor(BytewiseText() if dialect.name in MYSQL else UnicodeText())

    def process_bind_param(self, value: Any, dialect: Dialect) -> str | None:
        return None if value is None else json.dumps(value)

    def process_result_value(self, value: Any, dialect: Dialect) -> Any:
        return None if value is None else json.loads(value)


class BytewiseString(mysql.VARCHAR):
    """VARCHAR that compares as bytes, case and trailing spaces included."""


class BytewiseText(mysql.LONGTEXT):
    """LONGTEXT that compares as bytes: no shorter type, because MySQL may cut off what does not fit."""


@compiles(BytewiseString)
@compiles(BytewiseText)
def _compile_text(type_: Any, compiler: TypeCompiler, **kw: Any) -> str:
    name = "LONGTEXT" if isinstance(type_, BytewiseText) else f"VARCHAR({type_.length})"
    # The two have different names for what compares as bytes without padding.
    collation = "utf8mb4_nopad_bin" if getattr(compiler.dialect, "is_mariadb", False) else "utf8mb4_0900_bin"
    return f"{name} CHARACTER SET utf8mb4 COLLATE {collation}"


class Default(ColumnElement[Any]):
    """A literal as the default of a column. MySQL wants parentheses where the column is a long text."""

    inherit_cache = False

    def __init__(self, literal: str) -> None:
        self.literal = literal


@compiles(Default)
def _compile_default(default: Default, compiler: SQLCompiler, **kw: Any) -> str:
    return f"({default.literal})" if compiler.dialect.name in MYSQL else default.literal


def key(name: str) -> TypeEngine[str]:
    """The type of a key's column, such as "thread_id"."""
    unlimited = Text()
    return (
        Unicode(LENGTHS[name])
        .with_variant(unlimited, "postgresql", "sqlite")
        .with_variant(BytewiseString(LENGTHS[name]), *MYSQL)
    )


TEXT: TypeEngine[str] = UnicodeText().with_variant(Text(), "postgresql", "sqlite").with_variant(BytewiseText(), *MYSQL)
"""Text of any length that is no key."""

DOCUMENT: TypeEngine[Any] = JSONText().with_variant(_JSONB(), "postgresql").with_variant(JSON(), "sqlite")
"""A checkpoint or its metadata."""

BLOB: TypeEngine[bytes] = LargeBinary().with_variant(mysql.LONGBLOB(), *MYSQL)
"""A serialised value."""

TABLE_OPTIONS: dict[str, Any] = {
    f"{dialect}_{option}": value
    for dialect in MYSQL
    for option, value in (("engine", "InnoDB"), ("row_format", "DYNAMIC"), ("charset", "utf8mb4"))
}
"""What keys of this length and transactions need, whatever the server's defaults are."""


class _TextToJSON(FunctionElement[Any]):
    inherit_cache = True
    name = "text_to_json"


class _JSONToText(FunctionElement[str]):
    type = Text()
    inherit_cache = True
    name = "json_to_text"


@compiles(_TextToJSON)
@compiles(_JSONToText)
def _compile_as_it_is(element: FunctionElement[Any], compiler: SQLCompiler, **kw: Any) -> str:
    return compiler.process(element.clauses.clauses[0], **kw)


@compiles(_TextToJSON, "postgresql")
def _compile_to_jsonb(element: FunctionElement[Any], compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({compiler.process(element.clauses, **kw)} AS JSONB)"


@compiles(_JSONToText, "postgresql")
def _compile_to_text(element: FunctionElement[Any], compiler: SQLCompiler, **kw: Any) -> str:
    return f"CAST({compiler.process(element.clauses, **kw)} AS TEXT)"


def text_to_json(value: ColumnElement[str]) -> ColumnElement[Any]:
    """A parameter of JSON text for a `DOCUMENT`, in which a host's `json_serializer` has no part."""
    return _TextToJSON(value)


def json_to_text(column: ColumnElement[Any]) -> ColumnElement[str]:
    """A `DOCUMENT` as its text, in which a host's `json_deserializer` has no part."""
    return _JSONToText(column)
