"""JSON text that every database's JSON column takes and gives back equal, and the way back.

It is made here, and crosses to the database as text, since a host's `json_serializer` reaches the drivers.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from decimal import Decimal
from typing import Any

from sa_checkpoint._text import is_storable_text
from sa_checkpoint.errors import InvalidValue

_ENCODER = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
# In JSON text, a float with an exponent, or a string that looks like one; but no UUID does.
_EXPONENT = re.compile(r"[:,\[]-?\d[\d.]*e[+-]\d")


def dump_json(what: str, value: Mapping[str, Any]) -> str:
    """JSON text that every database's JSON column takes and gives back equal.

    Args:
        what: What is dumped, for the error: "metadata", "checkpoint", "filter".
        value: The object.

    Raises:
        InvalidValue: Some value is not JSON, or not a number or text that JSON columns hold. The message has its path.
    """
    try:
        text = _ENCODER.encode(value)
        if _EXPONENT.search(text):
            text = _dump_without_exponents(value)
        # A NUL is written as an escape, and so is the harmless text backslash-u0000: the slow look tells them apart.
        suspicious = "\\u0000" in text or not is_storable_text(text)
        offender = _unstorable(what, value) if suspicious else None
    except RecursionError as error:
        raise InvalidValue(f"{what} is nested too deeply to be stored as JSON: flatten it.") from error
    except (TypeError, ValueError) as error:
        raise InvalidValue(f"{_offender(what, value)}: {error}") from error
    if offender:
        raise InvalidValue(
            f"{offender} has a NUL character or a lone surrogate, which JSON columns cannot hold: remove it."
        )
    return text


def _dump_without_exponents(value: Any) -> str:
    """JSON text with all digits of every float: PostgreSQL prints 1e23 without a point, and it would be an int."""
    if isinstance(value, float):
        digits = format(Decimal(repr(float(value))), "f")
        return digits if "." in digits else f"{digits}.0"
    if isinstance(value, Mapping):
        # A key that is no string becomes the one that json.dumps makes of it.
        items = ((json.dumps({key: 0}, ensure_ascii=False)[1:-4], item) for key, item in value.items())
        return "{" + ",".join(f"{key}:{_dump_without_exponents(item)}" for key, item in items) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join(map(_dump_without_exponents, value)) + "]"
    return json.dumps(value, ensure_ascii=False)


def load_json(text: str) -> dict[str, Any]:
    """The object in a JSON column, from its text."""
    value: dict[str, Any] = json.loads(text)
    return value


def _unstorable(path: str, value: Any) -> str | None:
    """The path of the first string, key or value, that JSON columns cannot hold."""
    if isinstance(value, str):
        return None if is_storable_text(value) else path
    if isinstance(value, Mapping):
        items = ((f"{path}[{key!r}]", part) for key, item in value.items() for part in (key, item))
    elif isinstance(value, list | tuple):
        items = ((f"{path}[{index}]", item) for index, item in enumerate(value))
    else:
        return None
    return next((found for name, item in items if (found := _unstorable(name, item))), None)


def _offender(path: str, value: Any) -> str:
    """The path of the innermost value that `json.dumps` refuses."""
    items: Any = ()
    if isinstance(value, Mapping):
        items = value.items()
    elif isinstance(value, list | tuple):
        items = enumerate(value)
    for key, item in items:
        try:
            json.dumps(item, allow_nan=False)
        except (TypeError, ValueError):
            return _offender(f"{path}[{key!r}]", item)
    return f"{path} cannot be stored as JSON"
