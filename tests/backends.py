"""The databases and drivers that every test runs on, and one way to use a saver on any of them.

A backend is a driver, sync or async. `Client` calls the methods that belong to it, so that one test says what both
savers do.
"""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import pytest
from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.graph.state import CompiledStateGraph
from sqlalchemy import URL, AsyncAdaptedQueuePool, Engine, create_engine
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from sa_checkpoint import AsyncSQLAlchemySaver, SQLAlchemySaver

Saver = SQLAlchemySaver | AsyncSQLAlchemySaver
Graph = CompiledStateGraph[Any, Any, Any, Any]


@dataclass(frozen=True)
class Backend:
    """A driver: its name in a SQLAlchemy URL, and whether it is used with the async saver."""

    id: str
    drivername: str
    is_async: bool
    is_portable: bool = False
    """Whether the statements for any other dialect are used instead of the dialect's own."""

    @property
    def dialect(self) -> str:
        return self.drivername.split("+")[0]

    @property
    def strategy(self) -> str:
        """Which statements are used."""
        return "portable" if self.is_portable else self.dialect


def on_strategies(*strategies: str) -> pytest.MarkDecorator:
    """Run a test on the backends with these strategies only."""
    return on_backends(*(backend for backend in BACKENDS if backend.strategy in strategies))


def on_backends(*backends: Backend) -> pytest.MarkDecorator:
    """Run a test on these backends only."""
    # Indirect, so that the fixtures that are made from a backend are made anew for each.
    return pytest.mark.parametrize("backend", backends, ids=lambda backend: backend.id, indirect=True, scope="module")


SYNC_DRIVERS = {"sqlite": "sqlite+pysqlite", "postgresql": "postgresql+psycopg", "mysql": "mysql+pymysql"}


def with_sync_driver(url: URL) -> URL:
    """The same database over a sync driver, for a look past the savers."""
    return url.set(drivername=SYNC_DRIVERS[url.get_backend_name()])


BACKENDS = (
    Backend("sqlite", "sqlite+pysqlite", is_async=False),
    Backend("aiosqlite", "sqlite+aiosqlite", is_async=True),
    Backend("psycopg", "postgresql+psycopg", is_async=False),
    Backend("psycopg-async", "postgresql+psycopg", is_async=True),
    Backend("asyncpg", "postgresql+asyncpg", is_async=True),
    Backend("psycopg2", "postgresql+psycopg2", is_async=False),
    Backend("pymysql", "mysql+pymysql", is_async=False),
    Backend("asyncmy", "mysql+asyncmy", is_async=True),
    Backend("portable-sqlite", "sqlite+pysqlite", is_async=False, is_portable=True),
    Backend("portable-postgresql", "postgresql+asyncpg", is_async=True, is_portable=True),
    Backend("portable-mariadb", "mysql+pymysql", is_async=False, is_portable=True),
)


@dataclass(frozen=True)
class Database:
    """A migrated database of a test module, and the driver to reach it by."""

    backend: Backend
    url: URL

    @asynccontextmanager
    async def engine(self, **options: Any) -> AsyncIterator[Engine | AsyncEngine]:
        """An engine as an application would make it."""
        if self.backend.id == "aiosqlite" and "pool_size" in options:
            options["poolclass"] = AsyncAdaptedQueuePool  # SQLAlchemy's default since 2.0.38
        if self.backend.is_async:
            async_engine = create_async_engine(self.url, **options)
            try:
                yield async_engine
            finally:
                await async_engine.dispose()
        else:
            engine = create_engine(self.url, **options)
            try:
                yield engine
            finally:
                engine.dispose()


async def done(result: Any) -> Any:
    """What a call returned, awaited if need be: an application's session or connection is of either kind."""
    return await result if inspect.isawaitable(result) else result


@asynccontextmanager
async def entered(manager: Any) -> AsyncIterator[Any]:
    """`with` or `async with`, whichever the context manager is for."""
    if hasattr(manager, "__aenter__"):
        async with manager as value:
            yield value
    else:
        with manager as value:
            yield value


def saver_on(bind: Any, **options: Any) -> Saver:
    """The saver that takes this bind."""
    is_async = type(bind).__name__.lower().startswith("async")
    return AsyncSQLAlchemySaver(bind, **options) if is_async else SQLAlchemySaver(bind, **options)


@dataclass(frozen=True)
class Client:
    """A saver, and graphs on it, through the methods of its own kind: blocking or awaited."""

    saver: Saver
    backend: Backend

    @property
    def sync_engine(self) -> Engine:
        """What SQLAlchemy's events of the engine are listened for on."""
        source = self.saver._bind.source
        assert isinstance(source, Engine)
        return source

    async def _call(self, target: Any, name: str, *args: Any, **kwargs: Any) -> Any:
        if self.backend.is_async:
            return await getattr(target, f"a{name}")(*args, **kwargs)
        return getattr(target, name)(*args, **kwargs)

    async def put(self, *args: Any) -> RunnableConfig:
        config: RunnableConfig = await self._call(self.saver, "put", *args)
        return config

    async def put_writes(self, *args: Any, **kwargs: Any) -> None:
        await self._call(self.saver, "put_writes", *args, **kwargs)

    async def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        found: CheckpointTuple | None = await self._call(self.saver, "get_tuple", config)
        return found

    async def load(self, config: RunnableConfig) -> CheckpointTuple:
        """`get_tuple` of a checkpoint that has to be there."""
        found = await self.get_tuple(config)
        assert found is not None
        return found

    async def list(self, config: RunnableConfig | None, **kwargs: Any) -> Sequence[CheckpointTuple]:
        return [found async for found in self.iterate(config, **kwargs)]

    async def iterate(self, config: RunnableConfig | None, **kwargs: Any) -> AsyncIterator[CheckpointTuple]:
        """`list` one by one, so that a test can do something else inside the loop."""
        if self.backend.is_async:
            async for found in self.saver.alist(config, **kwargs):
                yield found
        else:
            for found in self.saver.list(config, **kwargs):
                yield found

    async def delete_thread(self, thread_id: str) -> None:
        await self._call(self.saver, "delete_thread", thread_id)

    async def delete_for_runs(self, run_ids: Any) -> None:
        await self._call(self.saver, "delete_for_runs", run_ids)

    async def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        await self._call(self.saver, "copy_thread", source_thread_id, target_thread_id)

    async def prune(self, thread_ids: Any, **kwargs: Any) -> None:
        await self._call(self.saver, "prune", thread_ids, **kwargs)

    async def delta_history(self, config: RunnableConfig, channels: Sequence[str]) -> Any:
        return await self._call(self.saver, "get_delta_channel_history", config=config, channels=channels)

    async def setup(self) -> None:
        if isinstance(self.saver, AsyncSQLAlchemySaver):
            await self.saver.setup()
        else:
            self.saver.setup()

    async def invoke(self, graph: Graph, *args: Any, **kwargs: Any) -> Any:
        return await self._call(graph, "invoke", *args, **kwargs)

    async def get_state(self, graph: Graph, *args: Any, **kwargs: Any) -> Any:
        return await self._call(graph, "get_state", *args, **kwargs)

    async def update_state(self, graph: Graph, *args: Any, **kwargs: Any) -> Any:
        return await self._call(graph, "update_state", *args, **kwargs)

    async def history(self, graph: Graph, *args: Any, **kwargs: Any) -> Sequence[Any]:
        """`get_state_history`, newest first."""
        if self.backend.is_async:
            return [state async for state in graph.aget_state_history(*args, **kwargs)]
        return list(graph.get_state_history(*args, **kwargs))
