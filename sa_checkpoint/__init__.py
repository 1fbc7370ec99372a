"""LangGraph checkpoints in the database that your application already reaches through SQLAlchemy.

`SQLAlchemySaver` takes an Engine, `AsyncSQLAlchemySaver` an AsyncEngine. The async one is imported when it is asked
for, because it needs greenlet, which a sync program may not have.
"""

from __future__ import annotations

from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sa_checkpoint.models import metadata
from sa_checkpoint.saver import SQLAlchemySaver

if TYPE_CHECKING:
    from sa_checkpoint.aio import AsyncSQLAlchemySaver

__all__ = ["AsyncSQLAlchemySaver", "SQLAlchemySaver", "metadata"]
__version__ = version("sa-checkpoint")


def __getattr__(name: str) -> Any:
    if name != "AsyncSQLAlchemySaver":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from sa_checkpoint.aio import AsyncSQLAlchemySaver

    return AsyncSQLAlchemySaver
