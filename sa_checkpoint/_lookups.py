"""Rows of a namespace by lists of what identifies them: statements that any SQL database understands."""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from functools import cached_property
from typing import Any, TypeVar

from langgraph.checkpoint.serde.types import TASKS
from sqlalchemy import ColumnElement, Executable, and_, bindparam, literal_column, select

from sa_checkpoint._codec import EMPTY
from sa_checkpoint._keys import stored_key
from sa_checkpoint._strategy import Call, Executor, Parameters, ReadRow, RowKind, text_parameter
from sa_checkpoint._tables import Tables
from sa_checkpoint._types import json_to_text

T = TypeVar("T")

CHUNK = 200
"""How many values a list has at most: SQL Server takes 2,100 parameters, Oracle 1,000 in one list."""


def chunks(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Parts of a sequence, each short enough for a list."""
    return (values[start : start + CHUNK] for start in range(0, len(values), CHUNK))


def in_list(column: ColumnElement[str], name: str) -> ColumnElement[bool]:
    """The condition that a column is in the list bound to a parameter."""
    return column.in_(bindparam(name, expanding=True))


def in_namespace(columns: Any) -> ColumnElement[bool]:
    """The condition that a row is in the thread and namespace of the parameters "thread" and "namespace"."""
    return and_(columns.thread_id == text_parameter("thread"), columns.checkpoint_ns == text_parameter("namespace"))


def namespace_of(row: Any) -> dict[str, str]:
    """The parameters of `in_namespace` for the namespace that a row is in."""
    return {"thread": row.thread_id, "namespace": row.checkpoint_ns}


class Lookups:
    """What is looked up in one set of tables. A namespace is given as `namespace_of` has it."""

    def __init__(self, tables: Tables) -> None:
        self.tables = tables

    def blobs(self, executor: Executor, namespace: Parameters, named: Collection[tuple[str, str]]) -> Iterator[Any]:
        """The blobs of these channels and versions, but for empty ones.

        Args:
            executor: The transaction.
            namespace: Where to look.
            named: Channels and versions, as the checkpoints name them.

        Yields:
            Rows of `READ_COLUMNS`.
        """
        by_key = {(stored_key("channel", name[0]), stored_key("version", name[1])): name for name in named}
        for row in self._in_lists(executor, self._blobs, namespace, by_key):
            channel, version = by_key[row.channel, row.version]
            thread_id, checkpoint_ns = namespace["thread"], namespace["namespace"]
            yield ReadRow(
                RowKind.BLOB, thread_id, checkpoint_ns, channel=channel, version=version, type=row.type, blob=row.blob
            )

    def blob_keys(
        self, executor: Executor, namespace: Parameters, keys: Collection[tuple[str, str]], *, empty: bool
    ) -> set[tuple[str, str]]:
        """Those of some blobs that are there, by channel and version as their columns hold them.

        Args:
            executor: The transaction.
            namespace: Where to look.
            keys: The blobs.
            empty: Whether those that stand for no value count.
        """
        rows = self._in_lists(executor, self._blob_keys, namespace, keys)
        return {(row.channel, row.version) for row in rows if empty or row.type != EMPTY}

    def _in_lists(
        self, executor: Executor, statement: Executable, namespace: Parameters, keys: Collection[tuple[str, str]]
    ) -> Iterator[Any]:
        """Rows by channel and version. Not all databases take lists of pairs; what else fits two lists is left out."""
        for versions in chunks(sorted({version for _, version in keys})):
            wanted = {key for key in keys if key[1] in set(versions)}
            for channels in chunks(sorted({channel for channel, _ in wanted})):
                call = Call(statement, {**namespace, "channels": channels, "versions": versions})
                yield from (row for row in executor.fetch(call) if (row.channel, row.version) in wanted)

    @cached_property
    def _blobs(self) -> Executable:
        columns = self.tables.blobs.c
        found = select(columns.channel, columns.version, columns.type, columns.blob)
        return found.where(self._is_listed, columns.type != literal_column(f"'{EMPTY}'"))

    @cached_property
    def _blob_keys(self) -> Executable:
        columns = self.tables.blobs.c
        return select(columns.channel, columns.version, columns.type).where(self._is_listed)

    @property
    def _is_listed(self) -> ColumnElement[bool]:
        columns = self.tables.blobs.c
        return and_(in_namespace(columns), in_list(columns.channel, "channels"), in_list(columns.version, "versions"))

    def _by_ids(
        self, executor: Executor, statement: Executable, namespace: Parameters, ids: Sequence[str]
    ) -> Iterator[Any]:
        """Rows by the ids of checkpoints."""
        for some in chunks(ids):
            yield from executor.fetch(Call(statement, {**namespace, "ids": some}))

    def writes(self, executor: Executor, namespace: Parameters, ids: Sequence[str]) -> Iterator[Any]:
        """All writes that belong to these checkpoints, as rows of `READ_COLUMNS`."""
        thread_id, checkpoint_ns = namespace["thread"], namespace["namespace"]
        for row in self._by_ids(executor, self._writes, namespace, ids):
            yield ReadRow(RowKind.WRITE, thread_id, checkpoint_ns, **row._mapping)

    @cached_property
    def _writes(self) -> Executable:
        columns = self.tables.writes.c
        names = ("checkpoint_id", "task_id", "task_path", "idx", "channel", "type", "blob")
        found = select(*(columns[name] for name in names))
        return found.where(in_namespace(columns), in_list(columns.checkpoint_id, "ids"))

    def with_sends(self, executor: Executor, namespace: Parameters, ids: Sequence[str]) -> set[str]:
        """Those of some checkpoints that have TASKS writes."""
        return {row.checkpoint_id for row in self._by_ids(executor, self._sends, namespace, ids)}

    @cached_property
    def _sends(self) -> Executable:
        columns = self.tables.writes.c
        is_send = columns.channel == literal_column(f"'{TASKS}'")
        return select(columns.checkpoint_id).where(
            in_namespace(columns), in_list(columns.checkpoint_id, "ids"), is_send
        )

    def documents(self, executor: Executor, namespace: Parameters, ids: Sequence[str]) -> Mapping[str, str]:
        """The JSON text of checkpoints."""
        return {row.checkpoint_id: row.checkpoint for row in self._by_ids(executor, self._documents, namespace, ids)}

    @cached_property
    def _documents(self) -> Executable:
        columns = self.tables.checkpoints.c
        found = select(columns.checkpoint_id, json_to_text(columns.checkpoint).label("checkpoint"))
        return found.where(in_namespace(columns), in_list(columns.checkpoint_id, "ids"))

    def are_there(self, executor: Executor, namespace: Parameters, ids: Sequence[str]) -> bool:
        """Whether all these checkpoints are there still.

        What belongs to a checkpoint is deleted in one transaction with it. So if it is there after all that has been
        read, nothing is missing, though each statement may have seen another state of the database.
        """
        return len(list(self._by_ids(executor, self._ids, namespace, ids))) == len(set(ids))

    @cached_property
    def _ids(self) -> Executable:
        columns = self.tables.checkpoints.c
        return select(columns.checkpoint_id).where(in_namespace(columns), in_list(columns.checkpoint_id, "ids"))
