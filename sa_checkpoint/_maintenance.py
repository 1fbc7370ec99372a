"""Maintenance of whole threads: prune, delete the checkpoints of runs, copy. Each thread is one transaction."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass
from typing import Any

from sqlalchemy.exc import IntegrityError

from sa_checkpoint import _operations
from sa_checkpoint._execution import Operation, Transaction
from sa_checkpoint._strategy import Key, Thread
from sa_checkpoint._text import identifier
from sa_checkpoint.errors import InvalidValue, ThreadExists, is_duplicate

# "delete_all" is what LangGraph's server says for "delete" (langgraph_grpc_common, prune_strategy_from_proto).
STRATEGIES = ("keep_latest", "delete", "delete_all")


def ids_of(name: str, values: Sequence[Any]) -> list[str]:
    """Check a sequence of thread or run ids; drops repetitions.

    Raises:
        TypeError: It is a single string, whose characters would be taken for ids.
        InvalidConfig: One of them is not an id.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Sequence):
        raise TypeError(f"{name}s must be a sequence of ids, not {type(values).__name__}: pass [{values!r}].")
    return list(dict.fromkeys(identifier(name, value) for value in values))


# -------------------------------------------------------------------------------------------------------------- copy


def copy_thread(source_thread_id: str, target_thread_id: str) -> Operation[None]:
    """Copy all checkpoints, blobs and writes of a thread to another, which has to be empty."""
    source = identifier("source_thread_id", source_thread_id)
    target = identifier("target_thread_id", target_thread_id)
    if source == target:
        raise InvalidValue(f"Thread {source!r} cannot be copied to itself: pass another target_thread_id.")
    exists = ThreadExists(
        f"Thread {target!r} has rows already, and a copy would mix with them: pass another target_thread_id, or call "
        "delete_thread on it first."
    )

    def work(transaction: Transaction) -> None:
        strategy = transaction.strategy
        strategy.lock_thread(transaction, target)
        if strategy.has_rows(transaction, target):
            raise exists
        try:
            strategy.copy(transaction, source, target)
        except IntegrityError as error:
            if not is_duplicate(error):
                raise
            raise exists from error

    return Operation(work, _operations.nothing, is_several=True)


# -------------------------------------------------------------------------------------------------------------- runs


def threads_of_runs(run_ids: Sequence[str]) -> Operation[Sequence[str]]:
    """The threads in which runs stored checkpoints."""

    return Operation(
        lambda transaction: transaction.strategy.threads_of_runs(transaction, run_ids),
        lambda thread_ids: thread_ids,
        writes=False,
    )


def delete_runs_of_thread(thread_id: str, run_ids: Sequence[str]) -> Operation[None]:
    """Delete the checkpoints that runs stored in a thread, with their writes and the blobs nobody else needs."""

    def work(transaction: Transaction) -> None:
        strategy = transaction.strategy
        strategy.lock_thread(transaction, thread_id)
        doomed = strategy.checkpoints_of_runs(transaction, thread_id, run_ids)
        if doomed:
            strategy.thread(transaction, thread_id).delete(doomed, [])

    return Operation(work, _operations.nothing, is_several=True)


# ------------------------------------------------------------------------------------------------------------- prune


def check_strategy(strategy: str) -> None:
    """Raise ValueError for a strategy of prune that does not exist."""
    if strategy not in STRATEGIES:
        raise InvalidValue(f"Unknown prune strategy {strategy!r}: use 'keep_latest' or 'delete'.")


def prune_thread(thread_id: str, strategy: str) -> Operation[None]:
    """Delete all of a thread, or all that its latest checkpoints do not need."""
    if strategy != "keep_latest":
        return _operations.delete_thread(thread_id)

    def work(transaction: Transaction) -> None:
        transaction.strategy.lock_thread(transaction, thread_id)
        thread = transaction.strategy.thread(transaction, thread_id)
        doomed, dead = _Plan(thread, _namespaces(thread.outline())).make()
        if doomed or dead:
            thread.delete(doomed, dead)

    return Operation(work, _operations.nothing, is_several=True)


def _namespaces(rows: Sequence[Any]) -> dict[str, list[Any]]:
    """The rows of an outline by namespace, newest first as they came."""
    namespaces: dict[str, list[Any]] = {}
    for row in rows:
        namespaces.setdefault(row.checkpoint_ns, []).append(row)
    return namespaces


@dataclass(frozen=True)
class _Plan:
    """What keep_latest deletes of a thread: a list of checkpoints, so that what is stored meanwhile stays."""

    thread: Thread
    namespaces: Mapping[str, Sequence[Any]]

    def make(self) -> tuple[list[Key], list[str]]:
        """The doomed checkpoints, and the dead namespaces."""
        heads = {ns: rows[0] for ns, rows in self.namespaces.items()}
        kept = {(ns, head.checkpoint_id) for ns, head in heads.items()} | self._with_sends(heads)
        dead = self._dead_calls(kept)
        kept |= self._delta_ancestors({ns: head for ns, head in heads.items() if ns not in dead})
        every = {(ns, row.checkpoint_id) for ns, rows in self.namespaces.items() for row in rows}
        return sorted(key for key in every if key not in kept or key[0] in dead), sorted(dead)

    def _dead_calls(self, kept: Set[Key]) -> set[str]:
        """Namespaces of subgraph calls that started from a checkpoint of the root graph which is not kept.

        A call's namespace has its task's id after a ":"; that of a `checkpointer=True` subgraph has none, since its
        state outlives the call. While the root checkpoint is not stored yet, the call is not dead but early: runs
        store in the background.
        """
        deleted = {row.checkpoint_id for row in self.namespaces.get("", ()) if ("", row.checkpoint_id) not in kept}
        return {ns for ns, rows in self.namespaces.items() if ":" in rows[0].namespace and rows[0].root in deleted}

    def _with_sends(self, heads: Mapping[str, Any]) -> set[Key]:
        """The parents that checkpoints older than format 4 read their pending sends from."""
        parents = [
            (ns, head.parent_checkpoint_id)
            for ns, head in heads.items()
            if head.parent_checkpoint_id and head.format is not None and head.format < 4
        ]
        if not parents:
            return set()
        rows = self.thread.with_sends(parents)
        every = {(ns, row.checkpoint_id) for ns, rows in self.namespaces.items() for row in rows}
        return {(row.checkpoint_ns, row.checkpoint_id) for row in rows} & every

    def _delta_ancestors(self, heads: Mapping[str, Any]) -> set[Key]:
        """The ancestors that the delta channels of the kept checkpoints are rebuilt from."""
        channels = {ns: _delta_channels(self.namespaces[ns]) for ns in heads}
        kept = {
            (ns, row.checkpoint_id)
            for ns in heads
            if not channels[ns] and any(row.delta_versioned for row in self.namespaces[ns])
            # LangGraph.js marks such threads, but does not name the channels: all of it may be needed.
            for row in self.namespaces[ns]
        }
        wanted = [(ns, channel) for ns, names in channels.items() for channel in names]
        if not wanted:
            return kept
        rows = self.thread.with_values(wanted)
        values: dict[Key, set[str]] = {}
        for row in rows:
            values.setdefault((row.checkpoint_ns, row.checkpoint_id), set()).add(row.channel)
        # LangGraph counts a channel that was never written, too. It has no version, and nothing is rebuilt for it.
        keys = [(ns, head.checkpoint_id) for ns, head in heads.items() if channels[ns]]
        versioned = {(row.checkpoint_ns, row.channel) for row in self.thread.channels_of(keys)}
        for ns, head in heads.items():
            needed = {channel for channel in channels[ns] if (ns, channel) in versioned}
            kept |= self._ancestors(ns, head, needed, values)
        return kept

    def _ancestors(self, ns: str, head: Any, channels: set[str], values: Mapping[Key, set[str]]) -> set[Key]:
        """From the head along parent links to the nearest value of each channel, or to the root."""
        by_id = {row.checkpoint_id: row for row in self.namespaces[ns]}
        missing = channels - values.get((ns, head.checkpoint_id), set())
        kept: set[Key] = set()
        row = by_id.get(head.parent_checkpoint_id)
        while missing and row is not None and (key := (ns, row.checkpoint_id)) not in kept:
            kept.add(key)
            missing -= values.get(key, set())
            row = by_id.get(row.parent_checkpoint_id)
        return kept


def _delta_channels(rows: Sequence[Any]) -> set[str]:
    """The delta channels of a namespace: LangGraph counts, in the metadata, the steps since each one's snapshot."""
    counters = (json.loads(row.delta_counters) for row in rows if (row.delta_counters or "").startswith("{"))
    return {channel for counted in counters for channel in counted}
