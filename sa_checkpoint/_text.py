"""Text that the columns of every database hold: what an identifier may be, and what no text column takes."""

from __future__ import annotations

from typing import Any
from uuid import UUID

from sa_checkpoint.errors import InvalidConfig


def identifier(name: str, value: Any) -> str:
    """An identifier as its column holds it: text that every database keeps byte for byte.

    Args:
        name: What it is called in the config, for the error.
        value: A `str`; an `int` or `UUID` is taken as its text, as LangGraph's users expect.

    Raises:
        InvalidConfig: It is of another type, or has a NUL or a lone surrogate.
    """
    if type(value) is not str:
        if not isinstance(value, str | int | UUID) or isinstance(value, bool):
            raise InvalidConfig(f"{name} must be a str, not {type(value).__name__}: {value!r}")
        # Not str(value): of an enum that is a str, that is the member's name.
        value = str.__str__(value) if isinstance(value, str) else str(value)
    if not is_storable_text(value):
        raise InvalidConfig(
            f"{name} {value!r} has a NUL character or a lone surrogate, which no text column can hold: remove it."
        )
    text: str = value
    return text


def is_storable_text(value: str) -> bool:
    """Whether text columns and JSON columns of every database can hold this string."""
    return "\0" not in value and not has_lone_surrogate(value)


def has_lone_surrogate(value: str) -> bool:
    """Whether the string has a code point that UTF-8 does not encode."""
    if value.isascii():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False
