"""Values to columns and back: what the serde makes of them, what is stored inline in JSON, and the JSON text itself.

Everything here is plain computation, done before a connection is checked out or after it was given back. JSON crosses
to the database as text made here, since a host's `json_serializer` reaches the drivers and would change it.
"""

from __future__ import annotations

import json
import math
import random
from collections.abc import Mapping
from decimal import Decimal
from typing import Any
from uuid import UUID

from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from sa_checkpoint.errors import InvalidConfig, InvalidValue

# Longer strings become blobs, which are stored once per version and not again in every checkpoint that carries them.
MAX_INLINE_STRING = 1024
# MySQL's JSON keeps integers of 64 bits exactly; SQLite's json_each reads larger ones as floats.
_INT64 = range(-(2**63), 2**63)
# The type of a blob that stands for "no value", as langgraph-checkpoint-postgres writes it.
EMPTY = "empty"


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
    return "\0" not in value and not _has_lone_surrogate(value)


def _has_lone_surrogate(value: str) -> bool:
    if value.isascii():
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return True
    return False


def next_version(current: str | int | float | None) -> str:
    """The version after `current`: a counter of 32 digits, and a random part.

    The form is that of langgraph-checkpoint-postgres, so both can go on from each other's. The random part tells apart
    what two forks of one checkpoint wrote at the same count.
    """
    count = 0 if current is None else int(str(current).split(".")[0])
    return f"{count + 1:032}.{random.random():016}"  # noqa: S311 (not a secret)


def version_key(version: Any) -> str:
    """A channel version as PostgreSQL prints the same JSON value, which is what names its blob."""
    return format(Decimal(repr(version)), "f") if isinstance(version, float) else str(version)


def version_text(channel: str, version: Any) -> str:
    """The `version_key` of a version that is about to be stored.

    Args:
        channel: The channel, for the error.
        version: What `get_next_version` returned: a `str` in this package and in langgraph-checkpoint-postgres, an
            `int` in savers without one of their own. Floats are taken while all databases print them alike.

    Raises:
        InvalidValue: The version has no text that is the same on all databases.
    """
    if isinstance(version, str):
        fits = is_storable_text(version)
    elif isinstance(version, float):
        fits = version == float(f"{version:.15g}") and 1e-4 <= abs(version) < 1e15
    else:
        fits = isinstance(version, int) and not isinstance(version, bool) and version in _INT64
    if not fits:
        raise InvalidValue(
            f"version {version!r} of channel {channel!r} cannot be a key: use the str that get_next_version returns."
        )
    return version_key(version)


def encrypts_or_may(serde: SerializerProtocol) -> bool:
    """Whether values have to pass through the serde, since it encrypts them or is not known not to.

    `JsonPlusSerializer` is known. Any other serde, a subclass with a `dumps_typed` of its own included, is given every
    value, so that nothing it was chosen to protect or to transform is stored around it.
    """
    return getattr(type(serde), "dumps_typed", None) is not JsonPlusSerializer.dumps_typed


def _is_inline(value: Any) -> bool:
    """Whether JSON gives this value back equal and with its type, on every database.

    Exact types only: an enum that is also a `str`, say, would come back as a plain one. A float whose text has an
    exponent is a blob, because PostgreSQL prints 1e16 without a point and it would come back as an int; so is -0.0,
    which loses its sign.
    """
    kind = type(value)
    if kind is str:
        return len(value) <= MAX_INLINE_STRING and is_storable_text(value)
    if kind is int:
        return value in _INT64
    if kind is float:
        return math.isfinite(value) and "e" not in repr(value) and (value != 0 or math.copysign(1, value) > 0)
    return value is None or kind is bool


def dump_value(serde: SerializerProtocol, value: Any) -> tuple[str, bytes]:
    """A value as the serde stores it: its type tag and its bytes.

    `JsonPlusSerializer` refuses integers beyond 64 bits and replaces lone surrogates; both fit its older "json" type,
    which it still reads, so they are written as that.
    """
    kind = type(value)
    if (kind is int and value not in _INT64) or (kind is str and _has_lone_surrogate(value)):
        return _dump_json_typed(serde, value)
    tag, data = serde.dumps_typed(value)
    return tag, bytes(data)


def _dump_json_typed(serde: SerializerProtocol, value: Any) -> tuple[str, bytes]:
    data = json.dumps(value).encode()
    if isinstance(serde, EncryptedSerializer) and isinstance(serde.serde, JsonPlusSerializer):
        cipher, encrypted = serde.cipher.encrypt(data)
        return f"json+{cipher}", encrypted
    if isinstance(serde, JsonPlusSerializer) and not encrypts_or_may(serde):
        return "json", data
    return serde.dumps_typed(value)


def load_value(serde: SerializerProtocol, tag: str, data: bytes | None) -> Any:
    """What `dump_value` was given, from its tag and bytes, whichever of LangGraph's savers wrote them."""
    return serde.loads_typed((tag, data or b""))


def split_values(serde: SerializerProtocol, values: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Channel values that stay inline in the checkpoint's JSON, and those that become blobs.

    A `_DeltaSnapshot` is both: a blob, with `True` left inline, as LangGraph's own savers mark it.
    """
    if encrypts_or_may(serde):
        inline: dict[str, Any] = {}
        blobs = dict(values)
    else:
        inline = {channel: value for channel, value in values.items() if _is_inline(value)}
        blobs = {channel: value for channel, value in values.items() if channel not in inline}
    inline |= {channel: True for channel, value in blobs.items() if isinstance(value, _DeltaSnapshot)}
    return inline, blobs


def dump_json(what: str, value: Mapping[str, Any]) -> str:
    """JSON text that every database's JSON column takes and gives back equal.

    Args:
        what: What is dumped, for the error: "metadata", "checkpoint", "filter".
        value: The object.

    Raises:
        InvalidValue: Some value is not JSON, or not a number or text that JSON columns hold. The message has its path.
    """
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidValue(f"{_offender(what, value)}: {error}") from error
    # A NUL is written as an escape, and so is the harmless text backslash-u0000: the slow look tells them apart.
    if ("\\u0000" in text or not is_storable_text(text)) and (offender := _unstorable(what, value)):
        raise InvalidValue(
            f"{offender} has a NUL character or a lone surrogate, which JSON columns cannot hold: remove it."
        )
    return text


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
        except RecursionError:
            return f"{path}[{key!r}] is nested too deeply for JSON"
    return f"{path} cannot be stored as JSON"
