"""The checkpointer of LangGraph's server.

In langgraph.json: `"checkpointer": {"path": "sa_checkpoint.server:checkpointer"}`. A dot does for the colon, too.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from sa_checkpoint._urls import default_url
from sa_checkpoint.aio import AsyncSQLAlchemySaver


@asynccontextmanager
async def checkpointer() -> AsyncIterator[AsyncSQLAlchemySaver]:
    """The saver that the server keeps its threads with, its tables created or upgraded.

    The engine is the saver's own: made when the server enters the block, and disposed of when it leaves it, which it
    does when it stops. The database is that of `$SA_CHECKPOINT_URL`, else `sqlite:///checkpoints.db`.

    Yields:
        A saver on an engine of its own.

    Raises:
        InvalidConfig: `$SA_CHECKPOINT_URL` is not a URL.
        InvalidBind: Its driver has no async mode.
        MissingDriver: Its driver, or greenlet, is not installed.
    """
    async with AsyncSQLAlchemySaver.from_conn_string(default_url()) as saver:
        await saver.setup()
        yield saver
