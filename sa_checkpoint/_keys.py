"""Keys on databases where a key has a limit: what is stored for an identifier that may be longer.

InnoDB indexes 3,072 bytes, and a character takes up to four
(https://dev.mysql.com/doc/refman/8.4/en/innodb-limits.html). A thread, checkpoint or task id that is too long is an
error. A namespace grows with each nested subgraph, and a channel that waits for many nodes has all their names in its
own: of those a hash is the key where they are too long, and they themselves are in the checkpoint's JSON.
"""

from __future__ import annotations

import re
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

# What a parameter's name may have before the column's.
_PREFIX = re.compile("^(after|key|parent)_")

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
    return {name: _stored(_PREFIX.sub("", name), value) for name, value in parameters.items()}


def _stored(name: str, value: Any) -> Any:
    return stored_key(name, value) if name in LENGTHS and value is not None else value
