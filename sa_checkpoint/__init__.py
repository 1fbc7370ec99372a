"""LangGraph checkpoints in the database that your application already reaches through SQLAlchemy.

`SQLAlchemySaver` takes an Engine, `AsyncSQLAlchemySaver` an AsyncEngine. Each is imported when it is asked for: the
async one needs greenlet, which a sync program may not have, and both bring LangChain's modules, which a program that
only migrates the tables can do without.
"""

from __future__ import annotations

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

from sa_checkpoint import _autogenerate  # noqa: F401 (for the env.py of a host that compares our metadata)
from sa_checkpoint.models import metadata

if TYPE_CHECKING:
    from sa_checkpoint.aio import AsyncSQLAlchemySaver
    from sa_checkpoint.saver import SQLAlchemySaver

__all__ = ["AsyncSQLAlchemySaver", "SQLAlchemySaver", "metadata"]
__version__ = version("sa-checkpoint")

_SAVERS = {"AsyncSQLAlchemySaver": "sa_checkpoint.aio", "SQLAlchemySaver": "sa_checkpoint.saver"}


def __getattr__(name: str) -> Any:
    if name not in _SAVERS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_SAVERS[name]), name)


def _server_checkpointer() -> Any:
    return import_module("sa_checkpoint.server").checkpointer()


# "sa_checkpoint.server:checkpointer" in langgraph.json: langgraph-api 0.16 splits such a path at its last dot, imports
# this package, and looks for the rest in its __dict__ (langgraph_api/_checkpointer/_adapter.py).
globals()["server:checkpointer"] = _server_checkpointer
