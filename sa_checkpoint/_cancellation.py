"""Giving up an awaited call: what is under way on a connection comes to a clean end before the caller goes on.

A cancellation that reaches SQLAlchemy in the middle of a statement costs the connection, and with it the transaction
of whoever it belongs to. So where that matters a call is protected: it is told to stop, finishes its statement, and
undoes itself.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from contextlib import suppress
from threading import Lock
from typing import Any


class GivenUp(Exception):
    """One of the calls of a transaction has been given up, and nothing of it shall be stored."""


class Cancellation:
    """Whether a call has been given up; shared by the task that awaits it and the thread or greenlet that runs it."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._is_requested = False
        self._is_protected = False

    def request(self) -> bool:
        """Ask the call to stop.

        Returns:
            Whether it is protected, and will come to an end by itself.
        """
        with self._lock:
            self._is_requested = True
            return self._is_protected

    @property
    def is_requested(self) -> bool:
        """Whether the call has been given up."""
        return self._is_requested

    def check(self) -> None:
        """Stop here if that has been asked for."""
        if self._is_requested:
            raise asyncio.CancelledError

    def protect(self) -> None:
        """Have the rest of the call not be interrupted; or stop here, if that has been asked for."""
        with self._lock:
            self.check()
            self._is_protected = True

    def unprotect(self) -> None:
        """Have the rest of the call be interrupted again. If that has been asked for, `check` says so."""
        with self._lock:
            self._is_protected = False


async def finished(work: Coroutine[Any, Any, Any], cancellation: Cancellation) -> Any:
    """Await a call, and if this is cancelled, wait until its connection has been given back.

    A call that is not protected is cancelled, too, but only once: a second time would interrupt its rollback.

    Args:
        work: The call.
        cancellation: What the call looks at.
    """
    task = asyncio.ensure_future(work)
    try:
        return await asyncio.shield(task)
    except asyncio.CancelledError:
        if not cancellation.request():
            task.cancel()
        while not task.done():
            with suppress(asyncio.CancelledError):
                await asyncio.wait([task])
        if not task.cancelled():
            task.exception()  # marked as retrieved: the caller asked for the end, and gets it
        raise
