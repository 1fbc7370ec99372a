"""Values to columns and back: what the serde makes of them, which stay inline in JSON, and where the others are found.

Everything here is plain computation, done before a connection is checked out or after it was given back.
"""

from __future__ import annotations

import json
import math
import random
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from decimal import Decimal
from hashlib import sha256
from types import NoneType
from typing import Any, TypeGuard

from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import _DeltaSnapshot

from sa_checkpoint import _messages
from sa_checkpoint._strategy import LARGE_BYTES
from sa_checkpoint._text import has_lone_surrogate, identifier, is_storable_text
from sa_checkpoint.errors import InvalidValue

# Longer strings become blobs, which are stored once per version and not again in every checkpoint that carries them.
MAX_INLINE_STRING = 1024
# MySQL's JSON keeps integers of 64 bits exactly; SQLite's json_each reads larger ones as floats.
_INT64 = range(-(2**63), 2**63)
# The type of a blob that stands for "no value", as langgraph-checkpoint-postgres writes it.
EMPTY = "empty"
_SCALARS = frozenset((bool, int, float, NoneType))
_COLLECTIONS = frozenset((list, tuple, set, frozenset, deque))
# So many objects take about a millisecond to serialise.
_MANY_OBJECTS = 5000
# Our key in a checkpoint's JSON: see `encode_values`.
BLOB_VERSIONS = "sa_checkpoint_blob_versions"
# Two more, on databases where keys have a limit: what the key of the namespace is a hash of, and the `named_blobs`.
NAMESPACE = "sa_checkpoint_namespace"
NAMED_BLOBS = "sa_checkpoint_named_blobs"
# The type of a string with surrogates that JSON would join to one character.
_SURROGATES = "sa_checkpoint_surrogates"
# What langgraph-checkpoint-postgres leaves inline.
_MAYBE_INLINE = (str, int, float, bool, type(None))


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

    `JsonPlusSerializer` refuses integers beyond 64 bits and replaces lone surrogates. Both fit its older "json" type,
    which it still reads, so they are written as that; a string that JSON would change, too, has a tag of our own.

    Raises:
        InvalidValue: An integer is too long to be written as text.
    """
    kind = type(value)
    if kind is int and value not in _INT64:
        return _dump_typed(serde, "json", _int_text(value), value)
    if kind is str and has_lone_surrogate(value):
        text = json.dumps(value)
        if json.loads(text) == value:
            return _dump_typed(serde, "json", text.encode(), value)
        return _dump_typed(serde, _SURROGATES, value.encode("utf-8", "surrogatepass"), value)
    try:
        tag, data = _messages.dumps_typed(serde, value)
    except TypeError:
        if not isinstance(value, float):
            raise
        tag, data = serde.dumps_typed(float(value))  # a subclass, which msgpack refuses
    return tag, bytes(data)


def _int_text(value: int) -> bytes:
    try:
        return str(value).encode()
    except ValueError as error:
        raise InvalidValue(f"An integer of {value.bit_length()} bits cannot be stored: {error}.") from error


def _dump_typed(serde: SerializerProtocol, tag: str, data: bytes, value: Any) -> tuple[str, bytes]:
    """What one of LangGraph's own serdes would make of bytes of this type; a custom serde is given the value."""
    if _is_encrypted_json_plus(serde):
        cipher, encrypted = serde.cipher.encrypt(data)
        return f"{tag}+{cipher}", encrypted
    if isinstance(serde, JsonPlusSerializer) and not encrypts_or_may(serde):
        return tag, data
    return serde.dumps_typed(value)


def _is_encrypted_json_plus(serde: SerializerProtocol) -> TypeGuard[EncryptedSerializer]:
    return type(serde) is EncryptedSerializer and not encrypts_or_may(serde.serde)


def load_value(serde: SerializerProtocol, tag: str, data: bytes | memoryview | None) -> Any:
    """What `dump_value` was given, from its tag and bytes, whichever of LangGraph's savers wrote them."""
    if type(data) is not bytes:
        data = bytes(data or b"")  # psycopg2 returns a memoryview
    if tag.startswith(_SURROGATES):
        if _is_encrypted_json_plus(serde) and "+" in tag:
            data = serde.cipher.decrypt(tag.split("+", 1)[1], data)
        return data.decode("utf-8", "surrogatepass")
    return serde.loads_typed((tag, data))


@dataclass(frozen=True)
class EncodedValues:
    """Channel values as they are stored.

    Attributes:
        inline: Those in the checkpoint's JSON.
        blobs: The rows of the others: channel, version, type, blob.
        blob_versions: For channels whose blob is not at the channel's own version: where it is, or None for nowhere.
    """

    inline: dict[str, Any]
    blobs: list[dict[str, Any]]
    blob_versions: dict[str, str | None]


def encode_values(
    serde: SerializerProtocol, values: Mapping[str, Any], versions: Mapping[str, Any], new_versions: Mapping[str, Any]
) -> EncodedValues:
    """Decide for each channel value where it is stored, and serialise what becomes a blob.

    A version in the form of `get_next_version` belongs to one value, so a blob is stored when the channel changes and
    found again by that version. Three cases are different:

    - A str, number, bool or None that did not change may be inline in an earlier checkpoint only, written by another
      saver or before the serde encrypted. It is stored (again), for else it would be nowhere.
    - A numeric version, or none at all, may stand for different values on two forks. The blob is stored at a version
      made of its content, which the checkpoint keeps in `blob_versions`; for other savers, at its own as well.
    - A `_DeltaSnapshot` is a blob with `True` inline, as LangGraph's savers mark it.

    Args:
        serde: The serializer.
        values: The checkpoint's channel_values.
        versions: Its channel_versions.
        new_versions: Those that changed.
    """
    inlines = not encrypts_or_may(serde)
    encoded = EncodedValues({}, [], {})
    texts = {channel: version_text(channel, version) for channel, version in new_versions.items()}
    for channel, value in values.items():
        name = identifier("channel", channel)
        version = versions.get(channel)
        belongs = isinstance(version, str)
        is_snapshot = isinstance(value, _DeltaSnapshot)
        if inlines and _is_inline(value):
            encoded.inline[channel] = value
            if value is True and not belongs:
                encoded.blob_versions[channel] = None  # True is the value here, and marks no snapshot
            continue
        if is_snapshot:
            encoded.inline[channel] = True
        if belongs and channel not in texts and not (is_snapshot or isinstance(value, _MAYBE_INLINE)):
            continue
        tag, data = dump_value(serde, value)
        row = {"channel": name, "type": tag, "blob": data}
        if belongs:
            encoded.blobs.append({**row, "version": texts.get(channel) or version_text(channel, version)})
            continue
        digest = sha256(tag.encode() + data).hexdigest()[:32]
        encoded.blob_versions[channel] = f"{'' if version is None else version_key(version)}#{digest}"
        encoded.blobs.append({**row, "version": encoded.blob_versions[channel]})
        if channel in texts:
            encoded.blobs.append({**row, "version": texts[channel]})
    for channel, version in versions.items():
        if channel not in values and not isinstance(version, str):
            encoded.blob_versions[channel] = None  # empty here, whatever another fork has at this version
    # In one order for all, so that two transactions that store the same blobs do not wait for each other.
    encoded.blobs.sort(key=lambda row: (row["channel"], row["version"]))
    return encoded


def is_heavy(value: Any) -> bool:
    """Whether serialising a value may take several milliseconds, by a quick look at it.

    That is, whether it has more than a megabyte of text and bytes, or thousands of objects.
    """
    stack, size = [value], 0
    for _ in range(_MANY_OBJECTS):
        if not stack:
            return False
        part = stack.pop()
        kind = type(part)
        if kind is str or kind is bytes:
            size += len(part)
        elif kind in _SCALARS:
            continue
        elif kind is dict:
            stack += part.values()
        elif kind in _COLLECTIONS:
            stack += part
        elif hasattr(part, "__dict__"):
            stack += vars(part).values()
        else:
            size += getattr(part, "nbytes", 0)  # an array's
        if size > LARGE_BYTES:
            return True
    return True


def blob_versions_of(checkpoint: Mapping[str, Any]) -> dict[str, str | None]:
    """Where the blob of each channel is, by a checkpoint's JSON: the reverse of what `encode_values` says."""
    return _own_versions(checkpoint) | (checkpoint.get(BLOB_VERSIONS) or {})


def _own_versions(checkpoint: Mapping[str, Any]) -> dict[str, str | None]:
    versions = checkpoint.get("channel_versions") or {}
    return {channel: version_key(version) for channel, version in versions.items()}


def every_blob_of(checkpoint: Mapping[str, Any]) -> set[tuple[str, str]]:
    """Channel and version of every blob that any saver may read for a checkpoint."""
    every = [*_own_versions(checkpoint).items(), *blob_versions_of(checkpoint).items()]
    return {(channel, version) for channel, version in every if version is not None}


def named_blobs(checkpoint: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Channel and version of every blob that a checkpoint may have; other inline values than `True` have none."""
    inline = checkpoint.get("channel_values") or {}
    return [
        (channel, version)
        for channel, version in blob_versions_of(checkpoint).items()
        if version is not None and inline.get(channel, True) is True
    ]
