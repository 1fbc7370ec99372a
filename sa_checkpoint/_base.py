"""The methods that both savers share: each makes an operation and has it run, here or on an event loop.

What an operation does is in `_operations`; where it gets its connection, in `_binds`. The savers differ in nothing but
`_run` and `_arun`.
"""

from __future__ import annotations

import copy
from abc import abstractmethod
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from functools import partial
from typing import Any, Self, TypeVar

from langchain_core.runnables import RunnableConfig
from langgraph.checkpoint.base import (
    BaseCheckpointSaver,
    ChannelVersions,
    Checkpoint,
    CheckpointMetadata,
    CheckpointTuple,
    DeltaChannelHistory,
)
from langgraph.checkpoint.serde.base import SerializerProtocol
from sqlalchemy import Connection, Dialect
from sqlalchemy.exc import DBAPIError, IntegrityError

from sa_checkpoint import _codec, _history, _maintenance, _operations, _revision, _turns
from sa_checkpoint._binds import Bind
from sa_checkpoint._cancellation import Cancellation
from sa_checkpoint._event_loop import SLOW_BYTES, unblocked
from sa_checkpoint._execution import Operation, strategy_for
from sa_checkpoint._operations import Listing
from sa_checkpoint._schema import check_schema
from sa_checkpoint.errors import SchemaOutOfDate, is_locked, is_schema_error, is_transient, may_be_duplicate

T = TypeVar("T")

# Isolation levels above PostgreSQL's default let one of two concurrent transactions fail, and InnoDB's are often in a
# deadlock when they insert the same rows.
_ATTEMPTS = 25


async def _aprepare(prepare: Callable[[], Operation[T]], values: Any) -> Operation[T]:
    return await unblocked(prepare, is_slow=_codec.is_heavy(values))


class BaseSQLAlchemySaver(BaseCheckpointSaver[str]):
    """LangGraph's checkpointer interface on a SQLAlchemy bind.

    Every method raises `InvalidConfig` or `InvalidValue` for arguments that cannot be stored, before anything is
    written; `SchemaOutOfDate` if `alembic upgrade head` has not been run; and SQLAlchemy's own errors for everything
    that the database reports. With an engine, each call is one transaction of its own.
    """

    _bind: Bind

    def __init__(self, bind: Bind, *, serde: SerializerProtocol | None, schema: str | None) -> None:
        super().__init__(serde=serde)
        self._bind = bind
        self._schema = check_schema(schema)

    @abstractmethod
    def _run(self, operation: Operation[T]) -> T:
        """Run an operation and wait for it."""

    @abstractmethod
    async def _arun(self, operation: Operation[T]) -> T:
        """Run an operation and await it."""

    def _on(self, bind: Bind) -> Self:
        """This saver on another bind."""
        saver = copy.copy(self)
        saver._bind = bind
        return saver

    def _execute(self, operation: Operation[Any], cancellation: Cancellation) -> Any:
        """Execute an operation on a connection; again, if a transaction of ours lost against another one.

        Args:
            operation: What to execute.
            cancellation: Whether the call has been given up.

        Raises:
            SchemaOutOfDate: A table or column is missing.
        """

        def is_one(dialect: Dialect) -> bool:
            return operation.is_one_statement(dialect, self._schema)

        connection: Connection | None = None

        def work(given: Connection) -> Any:
            nonlocal connection
            connection = given
            return operation.execute(connection, self._schema)

        for attempt in range(_ATTEMPTS):
            connection = None
            try:
                return self._bind.run(
                    work,
                    cancellation,
                    writes=operation.writes,
                    is_one=is_one,
                    is_short=not operation.is_several,
                    is_constant=operation.is_constant,
                )
            except DBAPIError as error:
                if is_schema_error(error):
                    raise self._out_of_date(error, cancellation) from error
                if (
                    attempt == _ATTEMPTS - 1
                    or connection is None
                    or not self._may_try_again(connection, error, attempt)
                ):
                    raise
            _turns.pause(attempt, is_async=self._bind.is_async)
        raise AssertionError("unreachable")

    def _may_try_again(self, connection: Connection, error: DBAPIError, attempt: int) -> bool:
        dialect = connection.dialect.name
        looks_first = strategy_for(dialect, self._schema).looks_first
        if isinstance(error, IntegrityError):
            # Also in a transaction of the caller's, which the savepoint has left as it was; but once, since it may be
            # one that never sees the other row.
            return looks_first and may_be_duplicate(error, dialect) and (connection.closed or attempt == 0)
        return connection.closed and (is_transient(error) or (looks_first and is_locked(error)))

    def _out_of_date(self, error: DBAPIError, cancellation: Cancellation) -> SchemaOutOfDate:
        with self._bind.connect(cancellation, writes=False) as connection:
            return _revision.out_of_date(connection, self._schema, str(error.orig))

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
            serde = page.serde(self.serde)
            for record in page.records:
                yield record.load(serde)
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
            serde = page.serde(self.serde)
            for record in page.records:
                yield await unblocked(partial(record.load, serde), is_slow=record.weight > SLOW_BYTES)
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
        prepare = partial(_operations.put, self.serde, config, checkpoint, metadata, new_versions)
        return await self._arun(await _aprepare(prepare, checkpoint))

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
        prepare = partial(_operations.put_writes, self.serde, config, writes, task_id, task_path)
        await self._arun(await _aprepare(prepare, writes))

    def delete_thread(self, thread_id: str) -> None:
        """Delete all checkpoints, blobs and writes of a thread, in all its namespaces.

        Args:
            thread_id: The thread. One that does not exist is no error.
        """
        self._run(_operations.delete_thread(thread_id))

    async def adelete_thread(self, thread_id: str) -> None:
        """The async twin of `delete_thread`."""
        await self._arun(_operations.delete_thread(thread_id))

    def delete_for_runs(self, run_ids: Sequence[str]) -> None:
        """Delete the checkpoints that runs stored, with their writes and the blobs nobody else needs.

        Each thread is one transaction. A checkpoint that stays and whose parent is deleted is left without a parent.
        Do not delete a run in the middle of a thread with a `DeltaChannel`: the runs after it need its writes.

        Args:
            run_ids: The runs, as the `run_id` in the checkpoints' metadata names them. Those that stored nothing are
                no error.

        Raises:
            TypeError: `run_ids` is a single string.
        """
        runs = _maintenance.ids_of("run_id", run_ids)
        for thread_id in self._run(_maintenance.threads_of_runs(runs)) if runs else ():
            self._run(_maintenance.delete_runs_of_thread(thread_id, runs))

    async def adelete_for_runs(self, run_ids: Sequence[str]) -> None:
        """The async twin of `delete_for_runs`."""
        runs = _maintenance.ids_of("run_id", run_ids)
        for thread_id in await self._arun(_maintenance.threads_of_runs(runs)) if runs else ():
            await self._arun(_maintenance.delete_runs_of_thread(thread_id, runs))

    def copy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """Copy all checkpoints, blobs and writes of a thread, inside the database and in one transaction.

        Args:
            source_thread_id: The thread. One that does not exist is no error, and nothing is copied.
            target_thread_id: Another thread, which has nothing stored.

        Raises:
            ThreadExists: The target has rows.
            InvalidValue: Source and target are the same.
        """
        self._run(_maintenance.copy_thread(source_thread_id, target_thread_id))

    async def acopy_thread(self, source_thread_id: str, target_thread_id: str) -> None:
        """The async twin of `copy_thread`."""
        await self._arun(_maintenance.copy_thread(source_thread_id, target_thread_id))

    def prune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """Delete what threads do not need any more. Each thread is one transaction.

        "keep_latest" keeps the latest checkpoint of each namespace with its pending writes, every blob that a kept
        checkpoint names, the parent that a checkpoint older than format 4 reads its pending sends from, and for delta
        channels the ancestors back to the nearest stored value of each. The namespace of a subgraph call goes with the
        root checkpoint that the call started from; a `checkpointer=True` subgraph keeps its latest checkpoint. A
        checkpoint that stays and whose parent is deleted is left without a parent. A run that goes on with the thread
        meanwhile loses nothing; one that forks from a checkpoint being deleted may.

        Args:
            thread_ids: The threads. Those that do not exist are no error.
            strategy: "keep_latest", or "delete" for everything.

        Raises:
            TypeError: `thread_ids` is a single string.
            ValueError: The strategy is unknown.
        """
        _maintenance.check_strategy(strategy)
        for thread_id in _maintenance.ids_of("thread_id", thread_ids):
            self._run(_maintenance.prune_thread(thread_id, strategy))

    async def aprune(self, thread_ids: Sequence[str], *, strategy: str = "keep_latest") -> None:
        """The async twin of `prune`."""
        _maintenance.check_strategy(strategy)
        for thread_id in _maintenance.ids_of("thread_id", thread_ids):
            await self._arun(_maintenance.prune_thread(thread_id, strategy))

    def get_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """What was written to delta channels on the way to a checkpoint, in one statement for all channels.

        Args:
            config: The checkpoint, as in `get_tuple`. Its own writes are pending, and not part of the history.
            channels: The channels.

        Returns:
            For each channel its writes, oldest first, since the nearest ancestor that holds a value of it, and that
            value as `seed`; without a `seed` if there is none up to the root.
        """
        return self._run(_history.get_delta_channel_history(self.serde, config, channels)) if channels else {}

    async def aget_delta_channel_history(
        self, *, config: RunnableConfig, channels: Sequence[str]
    ) -> Mapping[str, DeltaChannelHistory]:
        """The async twin of `get_delta_channel_history`."""
        return await self._arun(_history.get_delta_channel_history(self.serde, config, channels)) if channels else {}
