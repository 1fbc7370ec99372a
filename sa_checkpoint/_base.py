"""The methods that both savers share: each makes an operation and has it run, here or on an event loop.

What an operation does is in `_operations`; where it gets its connection, in `_binds`. The savers differ in nothing but
`_run` and `_arun`.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Iterator, Sequence
from typing import Any, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
)
from langgraph.checkpoint.serde.base import SerializerProtocol

from sa_checkpoint import _codec, _operations
from sa_checkpoint._binds import Bind
from sa_checkpoint._execution import Operation
from sa_checkpoint._operations import Listing

T = TypeVar("T")


class BaseSQLAlchemySaver(BaseCheckpointSaver[str]):
    """LangGraph's checkpointer interface on a SQLAlchemy bind.

    Every method raises `InvalidConfig` or `InvalidValue` for arguments that cannot be stored, before anything is
    written; `SchemaOutOfDate` if `alembic upgrade head` has not been run; and SQLAlchemy's own errors for everything
    that the database reports. With an engine, each call is one transaction of its own.
    """

    _bind: Bind

    def __init__(self, bind: Bind, *, serde: SerializerProtocol | None) -> None:
        super().__init__(serde=serde)
        self._bind = bind

    @abstractmethod
    def _run(self, operation: Operation[T]) -> T:
        """Run an operation and wait for it."""

    @abstractmethod
    async def _arun(self, operation: Operation[T]) -> T:
        """Run an operation and await it."""

    def _execute(self, operation: Operation[Any]) -> Any:
        with self._bind.connect() as connection:
            return operation.execute(connection)

    def get_next_version(self, current: str | None, channel: None) -> str:
        """The version after `current`, in the form that langgraph-checkpoint-postgres uses.

        Args:
            current: The channel's version now: this form, an int, or None for a new channel.
            channel: Not used; LangGraph passes it for older savers.

        Returns:
            A count of 32 digits and a random fraction, greater than every version with a smaller count.
        """
        return _codec.next_version(current)

    def get_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """Fetch a checkpoint with its pending writes.

        Args:
            config: `thread_id`, and optionally `checkpoint_ns` (else the root graph) and `checkpoint_id` (else the
                latest checkpoint, the one with the greatest id).

        Returns:
            The checkpoint, its pending writes in the order that LangGraph applies them in, or None if there is none.
        """
        return self._run(_operations.get_tuple(self.serde, config))

    async def aget_tuple(self, config: RunnableConfig) -> CheckpointTuple | None:
        """The async twin of `get_tuple`."""
        return await self._arun(_operations.get_tuple(self.serde, config))

    def list(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> Iterator[CheckpointTuple]:
        """List checkpoints, newest first.

        They are read by the page, and no connection is held between two of them: any other method may be called
        inside the loop, and the loop may be left at any point.

        Args:
            config: `thread_id`, and optionally `checkpoint_ns` and `checkpoint_id`; None for all threads.
            filter: What the metadata has to contain, in the sense of JSONB containment (`@>`): nested objects and
                arrays in part, scalars whole, with true, 1, "1" and null kept apart.
            before: Only checkpoints with an id less than this config's `checkpoint_id`.
            limit: At most so many.

        Returns:
            An iterator of checkpoints with their pending writes.
        """
        return self._pages(_operations.listing(config, filter=filter, before=before, limit=limit))

    def _pages(self, listing: Listing | None) -> Iterator[CheckpointTuple]:
        while listing is not None:
            page = self._run(listing.page())
            for record in page.records:
                yield record.load(self.serde)
            listing = page.rest

    def alist(
        self,
        config: RunnableConfig | None,
        *,
        filter: dict[str, Any] | None = None,
        before: RunnableConfig | None = None,
        limit: int | None = None,
    ) -> AsyncIterator[CheckpointTuple]:
        """The async twin of `list`."""
        return self._apages(_operations.listing(config, filter=filter, before=before, limit=limit))

    async def _apages(self, listing: Listing | None) -> AsyncIterator[CheckpointTuple]:
        while listing is not None:
            page = await self._arun(listing.page())
            for record in page.records:
                yield record.load(self.serde)
            listing = page.rest

    def put(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """Store a checkpoint. Storing it again replaces its values and metadata, and keeps its parent and its writes.

        Args:
            config: `thread_id` and `checkpoint_ns` (else the root graph); its `checkpoint_id` is the parent.
            checkpoint: The checkpoint.
            metadata: JSON values only; what `config` has in `metadata` and `configurable` is merged in.
            new_versions: The channels that changed since the parent, whose values are stored.

        Returns:
            The config that names the stored checkpoint.
        """
        return self._run(_operations.put(self.serde, config, checkpoint, metadata, new_versions))

    async def aput(
        self,
        config: RunnableConfig,
        checkpoint: Checkpoint,
        metadata: CheckpointMetadata,
        new_versions: ChannelVersions,
    ) -> RunnableConfig:
        """The async twin of `put`."""
        return await self._arun(_operations.put(self.serde, config, checkpoint, metadata, new_versions))

    def put_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """Store a task's pending writes. The checkpoint that they belong to may come later.

        Args:
            config: `thread_id`, `checkpoint_ns` (else the root graph) and `checkpoint_id`.
            writes: Pairs of channel and value. If all channels are special ones (errors, interrupts, resumes),
                they replace what the task wrote to them before; any other batch leaves earlier writes as they are.
            task_id: The task.
            task_path: Its path, which orders the writes of parallel tasks.
        """
        self._run(_operations.put_writes(self.serde, config, writes, task_id, task_path))

    async def aput_writes(
        self,
        config: RunnableConfig,
        writes: Sequence[tuple[str, Any]],
        task_id: str,
        task_path: str = "",
    ) -> None:
        """The async twin of `put_writes`."""
        await self._arun(_operations.put_writes(self.serde, config, writes, task_id, task_path))

    def delete_thread(self, thread_id: str) -> None:
        """Delete all checkpoints, blobs and writes of a thread, in all its namespaces.

        Args:
            thread_id: The thread. One that does not exist is no error.
        """
        self._run(_operations.delete_thread(thread_id))

    async def adelete_thread(self, thread_id: str) -> None:
        """The async twin of `delete_thread`."""
        await self._arun(_operations.delete_thread(thread_id))
