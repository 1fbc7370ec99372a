"""Group commit: writers who wait for one another anyway are committed together, by one of them.

SQLite has one writer at a time, and each COMMIT waits for the disk. Of many who write at once one leads: when it has
the write lock, it executes what the others wait with, too. If anything of that fails, nothing is stored, and each tries
alone, as if it had been alone from the beginning.

That one leads is for speed only. Whoever executes anything has the turn of writing, and what is executed twice is the
same as once.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection, Engine
from sqlalchemy.util import await_only

from sa_checkpoint._cancellation import Cancellation, GivenUp
from sa_checkpoint._single import Single

Work = Callable[[Connection], Any]
"""Executes statements."""

Transact = Callable[[Work, Cancellation], Any]
"""Has work done on a connection in a transaction of its own, for a call that may be given up."""

# So that no transaction keeps other processes waiting for long.
_MOST = 64

# How long to wait for the one who leads before looking for oneself: KeyboardInterrupt may have ended it anywhere.
_PATIENCE = 1.0


class _Member:
    """A writer in a thread.

    Attributes:
        work: Executes statements.
        cancellation: Whether its call has been given up.
        leads: Whether it executes what others wait with, too.
        is_awake: Whether it has been told to go on.
        is_done: Whether its work has been committed.
    """

    def __init__(self, work: Work, cancellation: Cancellation) -> None:
        self.work = work
        self.cancellation = cancellation
        self.leads = False
        self.is_awake = False
        self.is_done = False
        self._sleep = Lock()
        self._sleep.acquire()

    def wait(self) -> None:
        """Wait until it is woken, or loses patience."""
        self._sleep.acquire(timeout=_PATIENCE)

    def wake(self) -> None:
        """Let it go on. Two who lead may both do so."""
        self.is_awake = True
        with suppress(RuntimeError):
            self._sleep.release()


class _AsyncMember(_Member):
    """A writer in a task of the running event loop, inside SQLAlchemy's `greenlet_spawn`."""

    def __init__(self, work: Work, cancellation: Cancellation) -> None:
        super().__init__(work, cancellation)
        self._event = asyncio.Event()

    def wait(self) -> None:
        await_only(self._event.wait())

    def wake(self) -> None:
        self.is_awake = True
        self._event.set()


class _Group:
    """Those who write at the same time, of whom one leads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: list[_Member] = []
        self._is_led = False

    def join(self, member: _Member) -> None:
        """Wait until the member leads, or is done, or has to go alone. It has to `leave` in any case."""
        with self._lock:
            self._waiting.append(member)
            if not self._is_led:
                self._is_led = member.leads = True
                return
        member.wait()
        if not member.is_awake:
            member.leads = True  # as somebody else may; they take turns

    def has_others(self, leader: _Member) -> bool:
        """Whether anybody but the leader waits."""
        with self._lock:
            return any(member is not leader for member in self._waiting)

    def take(self, leader: _Member) -> Sequence[_Member]:
        """Take out those who wait, but for the leader."""
        with self._lock:
            others = [member for member in self._waiting if member is not leader]
            self._waiting = others[_MOST - 1 :]
        return others[: _MOST - 1]

    def leave(self, member: _Member) -> None:
        """Wait no more, and if the member leads, let somebody else."""
        with self._lock:
            if member in self._waiting:
                self._waiting.remove(member)
            if not member.leads:
                return
            if self._waiting:
                self._waiting[0].leads = True
                self._waiting[0].wake()
            else:
                self._is_led = False


class Groups:
    """The writers on the pools of one engine: threads, or the tasks of each event loop.

    Args:
        engine: The engine.
        turn: Waits for the turn of writing on a pool; nobody else of this process has it meanwhile.
        is_async: Whether the writers are tasks.
    """

    def __init__(self, engine: Engine, turn: Callable[[Any], AbstractContextManager[None]], *, is_async: bool) -> None:
        self._engine = engine
        self._turn = turn
        self._is_async = is_async
        # By pool, which Engine.dispose() replaces, in a child process after a fork for instance.
        self._groups: WeakKeyDictionary[Any, _Group] = WeakKeyDictionary()
        self._async_groups: WeakKeyDictionary[Any, WeakKeyDictionary[asyncio.AbstractEventLoop, _Group]]
        self._async_groups = WeakKeyDictionary()

    def run(self, work: Work, cancellation: Cancellation, transact: Transact) -> None:
        """Have work done and committed, by itself or together with others'.

        Args:
            work: Executes statements.
            cancellation: The call's.
            transact: How.
        """
        pool = self._engine.pool
        group = self._group(pool)
        member = (_AsyncMember if self._is_async else _Member)(work, cancellation)
        try:
            group.join(member)
            if member.is_done:
                return
            cancellation.check()
            with self._turn(pool):
                if member.is_done:
                    return
                if not (member.leads and self._lead(group, member, transact)):
                    transact(work, cancellation)
        finally:
            group.leave(member)

    def _group(self, pool: Any) -> _Group:
        if not self._is_async:
            return self._groups.get(pool) or self._groups.setdefault(pool, _Group())
        # An asyncio.Event belongs to the loop that waits for it.
        loops = self._async_groups.setdefault(pool, WeakKeyDictionary())
        return loops.setdefault(asyncio.get_running_loop(), _Group())

    def _lead(self, group: _Group, leader: _Member, transact: Transact) -> bool:
        """Execute the leader's work, and then that of those who wait, in one transaction.

        Returns:
            Whether it has been committed. Otherwise something of the others' was wrong, and nothing is left.
        """
        others: Sequence[_Member] = []
        wanted: Sequence[_Member] = []

        def work(connection: Connection) -> None:
            nonlocal others, wanted
            leader.work(connection)
            batch = connection.batch if isinstance(connection, Single) else None
            if batch is not None:
                await_only(asyncio.sleep(0))  # for those who are about to join
                if group.has_others(leader):
                    connection.flush()
            # Now we have the write lock, for which nobody else has to wait; or there is nobody else.
            others = group.take(leader)
            wanted = [member for member in others if _is_wanted(member)]
            for member in wanted:
                member.work(connection)
                if batch is not None:
                    batch.calls.append(member.cancellation)
            if any(member.cancellation.is_requested for member in wanted):
                raise GivenUp

        try:
            transact(work, leader.cancellation)
            for member in wanted:
                member.is_done = True
        except Exception:
            if not others:
                raise
            return False
        finally:
            for member in others:
                if not member.is_done:
                    member.cancellation.unprotect()
                member.wake()
        return True


def _is_wanted(member: _Member) -> bool:
    """Whether a call still goes on; from here on it is not interrupted."""
    try:
        member.cancellation.protect()
    except asyncio.CancelledError:
        return False
    return True
