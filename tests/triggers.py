"""What a database does by itself before it stores or deletes some rows: it refuses them, or takes its time."""

from __future__ import annotations

from collections.abc import Mapping
from uuid import uuid4

from sqlalchemy import Connection, text

_TRIGGER = {
    "sqlite": "WHEN {condition} BEGIN {action}; END",
    "postgresql": "FOR EACH ROW WHEN ({condition}) EXECUTE FUNCTION {name}()",
    "mysql": "FOR EACH ROW IF {condition} THEN {action}; END IF",
}


def refusing(message: str = "refused") -> Mapping[str, str]:
    """The action, by dialect, that is an error with this message."""
    return {
        "sqlite": f"SELECT RAISE(ABORT, '{message}')",
        "postgresql": f"RAISE '{message}'",
        "mysql": f"SIGNAL SQLSTATE '45000' SET MESSAGE_TEXT = '{message}'",
    }


def before(
    change: str, connection: Connection, condition: str, action: Mapping[str, str], *, table: str = "checkpoints"
) -> None:
    """Create a trigger.

    Args:
        change: INSERT or DELETE.
        connection: A connection to the database.
        condition: Which rows it is for, as `NEW` or `OLD`.
        action: A statement, by dialect.
        table: The table.
    """
    dialect, name = connection.dialect.name, f"trigger_{uuid4().hex}"
    if dialect == "postgresql":
        body = f"BEGIN {action[dialect]}; RETURN NEW; END"
        connection.execute(text(f"CREATE FUNCTION {name}() RETURNS trigger LANGUAGE plpgsql AS $$ {body} $$"))
    rest = _TRIGGER[dialect].format(condition=condition, action=action[dialect], name=name)
    connection.execute(text(f"CREATE TRIGGER {name} BEFORE {change} ON {table} {rest}"))
