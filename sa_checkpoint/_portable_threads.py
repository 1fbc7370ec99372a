"""Maintenance of a thread by reading its checkpoints, for databases that are not asked to look into JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from sqlalchemy import Executable, Select, and_, delete, null, or_, select, update

from sa_checkpoint import _codec
from sa_checkpoint._json import load_json
from sa_checkpoint._keys import stored_key
from sa_checkpoint._lookups import CHUNK, Lookups, chunks, in_list, in_namespace
from sa_checkpoint._strategy import (
    START,
    Call,
    Executor,
    Key,
    Parameters,
    ReadRow,
    RowKind,
    Rows,
    Thread,
    text_parameter,
)
from sa_checkpoint._types import json_to_text

Named = tuple[str, str]
"""Channel and version of a blob, as the checkpoints name it."""


@dataclass(frozen=True)
class Outlined:
    """What a checkpoint's JSON says that maintenance has to know: a row of `Thread.outline`, and more."""

    checkpoint_ns: str
    checkpoint_id: str
    parent_checkpoint_id: str | None
    namespace: str
    format: int | None
    root: str | None
    delta_counters: str | None
    delta_versioned: str | None
    channels: frozenset[str]
    inline: frozenset[str]
    named: frozenset[Named]
    blobs: frozenset[Named]


@dataclass(frozen=True)
class Found:
    """A row of the other methods of `Thread`."""

    checkpoint_ns: str
    checkpoint_id: str = ""
    channel: str = ""


def _outlined(row: Any) -> Outlined:
    checkpoint, metadata = load_json(row.checkpoint), load_json(row.metadata)
    parents = metadata.get("parents")
    counters, versioned = (metadata.get(name) for name in ("counters_since_delta_snapshot", "delta_writes_versioned"))
    return Outlined(
        checkpoint_ns=row.checkpoint_ns,
        checkpoint_id=row.checkpoint_id,
        parent_checkpoint_id=row.parent_checkpoint_id,
        namespace=checkpoint.get(_codec.NAMESPACE, row.checkpoint_ns),
        format=checkpoint.get("v"),
        root=parents.get("") if isinstance(parents, dict) else None,
        delta_counters=None if counters is None else json.dumps(counters),
        delta_versioned=None if versioned is None else json.dumps(versioned),
        channels=frozenset(checkpoint.get("channel_versions") or ()),
        inline=frozenset(checkpoint.get("channel_values") or ()),
        named=frozenset(
            (channel, version)
            for channel, version in _codec.blob_versions_of(checkpoint).items()
            if version is not None
        ),
        blobs=frozenset(_codec.every_blob_of(checkpoint)),
    )


class PortableThread(Thread):
    """A thread whose checkpoints are read once, by the page; of each a few names are kept.

    Args:
        lookups: The tables.
        executor: The transaction.
        thread_id: The thread.
        locking: Has a SELECT see what a transaction at the same time has just committed, where it might not.
    """

    def __init__(
        self, lookups: Lookups, executor: Executor, thread_id: str, locking: Callable[[Select[Any]], Select[Any]]
    ) -> None:
        self.lookups = lookups
        self.tables = lookups.tables
        self.executor = executor
        self.thread_id = thread_id
        self.locking = locking

    @cached_property
    def _checkpoints(self) -> Sequence[Outlined]:
        """All of them, newest first within a namespace."""
        found: list[Outlined] = []
        columns = self.tables.checkpoints.c
        namespace, id_ = text_parameter("namespace"), text_parameter("id")
        is_after = or_(
            columns.checkpoint_ns > namespace, and_(columns.checkpoint_ns == namespace, columns.checkpoint_id < id_)
        )
        first = (
            select(
                columns.checkpoint_ns,
                columns.checkpoint_id,
                columns.parent_checkpoint_id,
                json_to_text(columns.checkpoint).label("checkpoint"),
                json_to_text(columns.metadata).label("metadata"),
            )
            .where(columns.thread_id == text_parameter("thread"))
            .order_by(columns.checkpoint_ns, columns.checkpoint_id.desc())
            .limit(CHUNK)
        )
        page = self._fetch(self.locking(first), {})
        while page:
            found += map(_outlined, page)
            after = {"namespace": page[-1].checkpoint_ns, "id": page[-1].checkpoint_id}
            page = self._fetch(self.locking(first.where(is_after)), after)
        return found

    def outline(self) -> Rows:
        return self._checkpoints

    def with_sends(self, keys: Sequence[Key]) -> Rows:
        return [
            Found(ns, id_)
            for ns, ids in _grouped(keys).items()
            for id_ in self.lookups.with_sends(self.executor, self._namespace(ns), ids)
        ]

    def with_values(self, channels: Sequence[tuple[str, str]]) -> Rows:
        return [found for ns, names in _grouped(channels).items() for found in self._with_values(ns, set(names))]

    def _with_values(self, ns: str, channels: set[str]) -> Iterator[Found]:
        checkpoints = [row for row in self._checkpoints if row.checkpoint_ns == ns]
        named = {name for row in checkpoints for name in row.named if name[0] in channels}
        keys = {name: _blob_key(name) for name in named}
        stored = self.lookups.blob_keys(self.executor, self._namespace(ns), set(keys.values()), empty=False)
        for row in checkpoints:
            by_blob = {name[0] for name in row.named if keys.get(name) in stored}
            for channel in channels & (row.inline | by_blob):
                yield Found(ns, row.checkpoint_id, channel)

    def channels_of(self, keys: Sequence[Key]) -> Rows:
        wanted = set(keys)
        return [
            Found(row.checkpoint_ns, channel=channel)
            for row in self._checkpoints
            if (row.checkpoint_ns, row.checkpoint_id) in wanted
            for channel in row.channels
        ]

    def delete(self, doomed: Sequence[Key], dead: Sequence[str]) -> None:
        doomed_keys = set(doomed)
        for ns, named in self._freed(doomed_keys).items():
            self._delete_blobs(ns, named)
        for ns, ids in _grouped(doomed).items():
            self._delete_in(self.tables.writes, ns, ids)
            self._delete_in(self.tables.checkpoints, ns, ids)
            self._clear_parents(ns, ids)
        for table in (self.tables.blobs, self.tables.writes):
            for ns in dead:
                self._run(delete(table).where(in_namespace(table.c)), self._namespace(ns))

    def _freed(self, doomed: set[Key]) -> Mapping[str, set[Named]]:
        """The blobs that only doomed checkpoints name, as their columns hold them, by namespace."""
        freed: dict[str, set[Named]] = {}
        kept: dict[str, set[Named]] = {}
        for row in self._checkpoints:
            which = freed if (row.checkpoint_ns, row.checkpoint_id) in doomed else kept
            which.setdefault(row.checkpoint_ns, set()).update(map(_blob_key, row.blobs))
        return {ns: blobs - kept.get(ns, set()) for ns, blobs in freed.items()}

    def _delete_blobs(self, ns: str, blobs: set[Named]) -> None:
        columns = self.tables.blobs.c
        is_freed = and_(columns.channel == text_parameter("its_channel"), in_list(columns.version, "versions"))
        statement = delete(self.tables.blobs).where(in_namespace(columns), is_freed)
        for channel, versions in _grouped(sorted(blobs)).items():
            for some in chunks(versions):
                self._run(statement, {**self._namespace(ns), "its_channel": channel, "versions": some})

    def _delete_in(self, table: Any, ns: str, ids: Sequence[str]) -> None:
        self._run_by_ids(delete(table).where(in_namespace(table.c), in_list(table.c.checkpoint_id, "ids")), ns, ids)

    def _clear_parents(self, ns: str, ids: Sequence[str]) -> None:
        table = self.tables.checkpoints
        statement = update(table).values(parent_checkpoint_id=null())
        statement = statement.where(in_namespace(table.c), in_list(table.c.parent_checkpoint_id, "ids"))
        self._run_by_ids(statement, ns, ids)

    def _run_by_ids(self, statement: Executable, ns: str, ids: Sequence[str]) -> None:
        for some in chunks(ids):
            self._run(statement, {**self._namespace(ns), "ids": some})

    def _namespace(self, ns: str) -> Parameters:
        return {"thread": self.thread_id, "namespace": ns}

    def _fetch(self, statement: Executable, parameters: Parameters) -> Rows:
        return self.executor.fetch(Call(statement, {"thread": self.thread_id, **parameters}))

    def _run(self, statement: Executable, parameters: Parameters) -> None:
        self.executor.run(Call(statement, parameters))


def _grouped(pairs: Sequence[tuple[str, str]]) -> dict[str, list[str]]:
    grouped: dict[str, list[str]] = {}
    for key, value in pairs:
        grouped.setdefault(key, []).append(value)
    return grouped


def _blob_key(name: Named) -> Named:
    return stored_key("channel", name[0]), stored_key("version", name[1])


# ----------------------------------------------------------------------------------------------------- delta channels

_WRITE = ("type", "blob", "task_id", "task_path", "idx")


def _picked(row: Any, *names: str) -> dict[str, Any]:
    return {name: getattr(row, name) for name in names}


class Walk:
    """A walk from a checkpoint's parent along parent links, as far as channels need it: `Strategy.delta_history`."""

    def __init__(self, lookups: Lookups, executor: Executor, parameters: Parameters) -> None:
        self.lookups = lookups
        self.executor = executor
        self.parameters = parameters
        self.namespace = {"thread": parameters["thread_id"], "namespace": parameters["checkpoint_ns"]}

    def rows(self, channels: Sequence[str]) -> Rows:
        """The rows of `delta_history`."""
        while True:
            parents = self._parents()
            rows = list(self._rows(channels, parents, self._path(parents)))
            steps = {row.checkpoint_id for row in rows if row.kind == RowKind.ANCESTOR}
            if self.lookups.are_there(self.executor, self.namespace, sorted(steps)):
                return rows

    def _rows(self, channels: Sequence[str], parents: Mapping[str, str | None], path: Sequence[str]) -> Iterator[Any]:
        missing = set(channels)
        for some in chunks(path):
            if not missing:
                return
            documents = self.lookups.documents(self.executor, self.namespace, some)
            checkpoints = {id_: load_json(document) for id_, document in documents.items()}
            named = {id_: self._named(checkpoint, missing) for id_, checkpoint in checkpoints.items()}
            every = {name for names in named.values() for name in names}
            blobs = {
                (row.channel, row.version): row for row in self.lookups.blobs(self.executor, self.namespace, every)
            }
            writes: dict[str, list[Any]] = {}
            for row in self.lookups.writes(self.executor, self.namespace, some):
                writes.setdefault(row.checkpoint_id, []).append(row)
            for id_ in (id_ for id_ in some if id_ in documents):
                found = {name[0]: blobs[name] for name in named[id_] if name in blobs}
                valued = {*found, *(checkpoints[id_].get("channel_values") or {})}
                for channel in sorted(missing):
                    step: dict[str, Any] = {
                        "checkpoint_id": id_,
                        "parent_checkpoint_id": parents[id_],
                        "channel": channel,
                        "version": START if id_ == path[0] else "",
                    }
                    of_channel = [_picked(row, *_WRITE) for row in writes.get(id_, ()) if row.channel == channel]
                    yield from (ReadRow(RowKind.ANCESTOR, **step, **write) for write in of_channel or [{}])
                for channel in sorted(missing & valued):
                    value = _picked(found[channel], "type", "blob") if channel in found else {}
                    yield ReadRow(RowKind.SEED, checkpoint_id=id_, checkpoint=documents[id_], channel=channel, **value)
                missing -= valued

    def _named(self, checkpoint: Mapping[str, Any], channels: set[str]) -> set[Named]:
        return {name for name in _codec.named_blobs(checkpoint) if name[0] in channels}

    def _parents(self) -> Mapping[str, str | None]:
        """The parent of each checkpoint of the namespace, newest first."""
        columns = self.lookups.tables.checkpoints.c
        found = select(columns.checkpoint_id, columns.parent_checkpoint_id).where(in_namespace(columns))
        rows = self.executor.fetch(Call(found.order_by(columns.checkpoint_id.desc()), self.namespace))
        return {row.checkpoint_id: row.parent_checkpoint_id for row in rows}

    def _path(self, parents: Mapping[str, str | None]) -> list[str]:
        """The ancestors, nearest first; each once, if the links are a cycle."""
        start = self.parameters.get("checkpoint_id") or next(iter(parents), None)
        path: dict[str, None] = {}
        id_ = parents.get(start) if start else None
        while id_ is not None and id_ in parents and id_ not in path:
            path[id_] = None
            id_ = parents[id_]
        return list(path)
