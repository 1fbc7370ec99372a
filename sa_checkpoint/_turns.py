"""Taking turns on a single connection, whichever savers and threads or tasks work on it."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy.util import await_only

_LOCKS: WeakKeyDictionary[Any, Lock] = WeakKeyDictionary()
_LOCKS_LOCK = Lock()
_ASYNC_LOCKS: WeakKeyDictionary[Any, WeakKeyDictionary[asyncio.AbstractEventLoop, asyncio.Lock]] = WeakKeyDictionary()


@contextmanager
def turn(key: Any) -> Iterator[None]:
    """Wait in this thread until nobody else is at it.

    Args:
        key: What is shared: a Connection, Session or pool. None if nothing is.
    """
    if key is None:
        yield
        return
    with _LOCKS_LOCK:
        lock = _LOCKS.setdefault(key, Lock())
    with lock:
        yield


@contextmanager
def async_turn(key: Any) -> Iterator[None]:
    """The same for tasks of the running event loop, inside SQLAlchemy's `greenlet_spawn`."""
    if key is None:
        yield
        return
    loops = _ASYNC_LOCKS.setdefault(key, WeakKeyDictionary())
    # An asyncio.Lock belongs to the loop that first waits for it.
    lock = loops.setdefault(asyncio.get_running_loop(), asyncio.Lock())
    await_only(lock.acquire())
    try:
        yield
    finally:
        lock.release()
