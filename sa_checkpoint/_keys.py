"""Keys on databases where a key has a limit: what is stored for an identifier that may be longer.

InnoDB indexes 3,072 bytes, and a character takes up to four
(https://dev.mysql.com/doc/refman/8.4/en/innodb-limits.html). A thread, checkpoint or task id that is too long is an
error. A namespace grows with each nested subgraph, and a channel that waits for many nodes has all their names in its
own: of those a hash is the key where they are too long, and they themselves are in the checkpoint's JSON.
"""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from sa_checkpoint.errors import InvalidConfig

LENGTHS: Mapping[str, int] = {
    "thread_id": 255,
    "checkpoint_ns": 255,
    "checkpoint_id": 128,
    "task_id": 128,
    "channel": 150,
    "version": 100,
}
"""How many characters the column of a key has."""

# The column of a parameter, by its name: that of the column, perhaps with a prefix.
_COLUMNS = {prefix + name: name for name in LENGTHS for prefix in ("", "after_", "key_", "parent_")}

HASHED = frozenset({"checkpoint_ns", "channel", "version"})

MARK = "sha256:"
"""What the key of a hashed identifier begins with. One that begins so itself is hashed, too."""


def stored_key(name: str, value: str) -> str:
    """An identifier as its column holds it.

    Args:
        name: The column.
        value: The identifier.

    Returns:
        The identifier, or its hash.

    Raises:
        InvalidConfig: It is too long, and not one that is hashed.
    """
    length = LENGTHS[name]
    if name in HASHED:
        if len(value) <= length and not value.startswith(MARK):
            return value
        return MARK + sha256(value.encode()).hexdigest()
    if len(value) > length:
        raise InvalidConfig(
            f"{name} has {len(value)} characters, and keys of this database hold {length}: choose a shorter one, such "
            f"as a UUID. It begins with {value[:40]!r}."
        )
    return value


def stored_keys(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Parameters named like columns, perhaps with a prefix, as the columns hold them.

    Raises:
        InvalidConfig: One is too long.
    """
    return {
        name: stored_key(_COLUMNS[name], value) if value is not None and name in _COLUMNS else value
        for name, value in parameters.items()
    }
