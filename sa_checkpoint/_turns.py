"""Waiting: for one's turn on a single connection, whichever savers and threads or tasks work on it, and for others."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import Lock, RLock
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy.util import await_only

_LOCKS: WeakKeyDictionary[Any, AbstractContextManager[Any]] = WeakKeyDictionary()
_LOCKS_LOCK = Lock()
_ASYNC_LOCKS: WeakKeyDictionary[Any, WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]] = WeakKeyDictionary()


def turn(key: Any) -> AbstractContextManager[Any]:
    """Wait in this thread until no other thread is at it.

    The thread that is may come in again: a listener of the application's that calls a saver is in the same transaction.

    Args:
        key: What is shared: a Connection, Session or pool.
    """
    lock = _LOCKS.get(key)
    if lock is None:
        with _LOCKS_LOCK:
            lock = _LOCKS.setdefault(key, RLock())
    return lock


@contextmanager
def async_turn(key: Any) -> Iterator[None]:
    """The same for tasks of the running event loop, inside SQLAlchemy's `greenlet_spawn`."""
    loops = _ASYNC_LOCKS.setdefault(key, WeakKeyDictionary())
    for loop in [loop for loop in loops if loop.is_closed()]:  # which the lock itself keeps alive
        del loops[loop]
    # An asyncio.Lock belongs to the loop that first waits for it.
    lock = loops.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    await_only(lock.acquire())
    try:
        yield
    finally:
        lock.release()


# Long enough in the end for some dozens of transactions on the same rows to come one after another.
_FIRST_PAUSE, _LONGEST_PAUSE = 0.002, 0.25


def pause(attempt: int, *, is_async: bool) -> None:
    """Let the transaction that was in the way come to its end: the longer, the more often that has happened.

    Args:
        attempt: How many attempts have failed.
        is_async: Whether this runs inside SQLAlchemy's `greenlet_spawn`.
    """
    # Of any length up to that, so that those who were in each other's way do not meet again.
    seconds = min(_FIRST_PAUSE * 2**attempt, _LONGEST_PAUSE) * random.random()  # noqa: S311 (not a secret)
    if is_async:
        await_only(asyncio.sleep(seconds))
    else:
        time.sleep(seconds)
