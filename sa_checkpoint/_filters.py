"""What it means that metadata contains a filter: PostgreSQL's JSONB containment (`@>`), on every database.

An object contains another if it has each of its keys with a value that contains the other's; an array contains another
if each of its elements is contained in some element; scalars contain their equals, with booleans, numbers, strings and
null kept apart (https://www.postgresql.org/docs/current/datatype-json.html#JSON-CONTAINMENT).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from decimal import Decimal
from typing import Any

from sqlalchemy import ColumnElement, and_, case, exists, func, literal, literal_column, true


def contains(value: Any, part: Any) -> bool:
    """Whether a JSON value contains another.

    Args:
        value: What the database holds, decoded.
        part: What is looked for.
    """
    if isinstance(part, Mapping):
        return isinstance(value, Mapping) and all(
            key in value and contains(value[key], item) for key, item in part.items()
        )
    if isinstance(part, list | tuple):
        return isinstance(value, list | tuple) and all(
            any(contains(element, item) for element in value) for item in part
        )
    if isinstance(part, bool) or isinstance(value, bool):
        return value is part
    if isinstance(part, int | float):
        return isinstance(value, int | float) and _number(value) == _number(part)
    return bool(value == part)


def _number(value: int | float) -> Decimal:
    """The number that its JSON text says, which for 1e23 is not quite the float's."""
    return Decimal(repr(value))


def sqlite_contains(column: ColumnElement[Any], part: Mapping[str, Any]) -> ColumnElement[bool]:
    """A condition that SQLite can check, true at least wherever `contains` is.

    Keys and values are compared with what `json_each` lists, so they are bound parameters and need no path syntax.
    Numbers that SQLite reads inexactly are left to `contains`: integers beyond 53 bits, and floats, whose text SQLite
    before 3.43 could miss by the last bit.
    """
    return and_(true(), *(_has_entry(column, key, value) for key, value in part.items()))


def _has_entry(column: ColumnElement[Any], key: str, value: Any) -> ColumnElement[bool]:
    entries = func.json_each(column).table_valued("key", "value", "type")
    return exists().where(entries.c.key == literal(key), _matches(entries.c, value))


def _has_element(column: ColumnElement[Any], value: Any) -> ColumnElement[bool]:
    elements = func.json_each(column).table_valued("value", "type")
    return exists().where(_matches(elements.c, value))


def _matches(entry: Any, value: Any) -> ColumnElement[bool]:
    """The condition on one row of `json_each`: columns `value` and `type`."""
    if isinstance(value, Mapping):
        return _nested(entry, "object", [(_has_entry, (key, item)) for key, item in value.items()])
    if isinstance(value, list | tuple):
        return _nested(entry, "array", [(_has_element, (item,)) for item in value])
    if value is None or isinstance(value, bool):
        return _is_type(entry, {None: "null", True: "true", False: "false"}[value])
    if isinstance(value, str):
        return and_(_is_type(entry, "text"), entry.value == literal(value))
    is_number = _is_type(entry, "integer", "real")
    if isinstance(value, int) and value in range(-(2**53), 2**53):
        return and_(is_number, entry.value == literal(value))
    return is_number


def _is_type(entry: Any, *types: str) -> ColumnElement[bool]:
    condition: ColumnElement[bool] = entry.type.in_([literal_column(f"'{name}'") for name in types])
    return condition


def _nested(
    entry: Any, type_: str, parts: list[tuple[Callable[..., ColumnElement[bool]], tuple[Any, ...]]]
) -> ColumnElement[bool]:
    # json_each fails on text that is not JSON, and SQLite may look at it before it looks at the type.
    value = case((_is_type(entry, type_), entry.value))
    return and_(_is_type(entry, type_), *(has_part(value, *arguments) for has_part, arguments in parts))
