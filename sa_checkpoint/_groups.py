"""Group commit: writers who wait for one another anyway are committed together, by one of them.

SQLite has one writer at a time, and each COMMIT waits for the disk. Of many who write at once, one executes what the
others wait with, in its own transaction. If anything of it fails, nothing is stored, and each tries alone, as if it had
been alone from the beginning.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from threading import Lock
from typing import Any
from weakref import WeakKeyDictionary

from sqlalchemy import Connection
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.util import await_only

from sa_checkpoint._cancellation import Cancellation
from sa_checkpoint.errors import is_locked

# So that no transaction keeps other processes waiting for long.
_MOST = 64


class _Member:
    """A writer in a thread.

    Attributes:
        work: Executes statements.
        cancellation: Whether its call has been given up.
        leads: Whether it is the one who executes.
        is_done: Whether its work has been committed.
    """

    def __init__(self, work: Callable[[Connection], Any], cancellation: Cancellation) -> None:
        self.work = work
        self.cancellation = cancellation
        self.leads = False
        self.is_done = False
        self._is_asleep = Lock()
        self._is_asleep.acquire()

    def wait(self) -> None:
        """Wait until it is woken."""
        self._is_asleep.acquire()

    def wake(self) -> None:
        """Let it go on."""
        self._is_asleep.release()


class _AsyncMember(_Member):
    """A writer in a task of the running event loop, inside SQLAlchemy's `greenlet_spawn`."""

    def __init__(self, work: Callable[[Connection], Any], cancellation: Cancellation) -> None:
        super().__init__(work, cancellation)
        self._is_awake = asyncio.Event()

    def wait(self) -> None:
        await_only(self._is_awake.wait())

    def wake(self) -> None:
        self._is_awake.set()


class _Group:
    """Those who write at the same time, of whom one leads."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._waiting: deque[_Member] = deque()
        self._is_led = False

    def join(self, member: _Member) -> None:
        """Wait until the member leads, or is done, or has to go alone. It has to `leave` in any case."""
        with self._lock:
            self._waiting.append(member)
            if not self._is_led:
                self._is_led = member.leads = True
                return
        member.wait()

    def take(self, leader: _Member) -> Sequence[_Member]:
        """Those who go together, with the leader as the first."""
        with self._lock:
            self._waiting.remove(leader)
            return [leader, *(self._waiting.popleft() for _ in range(min(len(self._waiting), _MOST - 1)))]

    def leave(self, member: _Member) -> None:
        """Wait no more, and if the member leads, let somebody else."""
        with self._lock:
            with suppress(ValueError):
                self._waiting.remove(member)
            if not member.leads:
                return
            if self._waiting:
                self._waiting[0].leads = True
                self._waiting[0].wake()
            else:
                self._is_led = False


class Groups:
    """The writers on one engine: threads, or the tasks of each event loop.

    Args:
        turn: Waits for the turn of writing; nobody else of this process has it meanwhile.
        connect: A connection in a transaction of its own, for a call that may be given up.
        is_async: Whether the writers are tasks.
    """

    def __init__(
        self,
        turn: Callable[[], AbstractContextManager[None]],
        connect: Callable[[Cancellation], AbstractContextManager[Connection]],
        *,
        is_async: bool,
    ) -> None:
        self._turn = turn
        self._connect = connect
        self._is_async = is_async
        self._threads = _Group()
        self._tasks: WeakKeyDictionary[asyncio.AbstractEventLoop, _Group] = WeakKeyDictionary()

    def run(self, work: Callable[[Connection], Any], cancellation: Cancellation) -> None:
        """Have work done and committed, by itself or together with others'.

        Args:
            work: Executes statements.
            cancellation: The call's.
        """
        member = (_AsyncMember if self._is_async else _Member)(work, cancellation)
        group = self._group()
        try:
            group.join(member)
            if member.is_done:
                return
            with self._turn():
                members = group.take(member) if member.leads else [member]
                if len(members) == 1 or not self._commit(members):
                    with self._connect(cancellation) as connection:
                        work(connection)
        finally:
            group.leave(member)

    def _group(self) -> _Group:
        if self._is_async:  # an asyncio.Event belongs to the loop that waits for it
            return self._tasks.setdefault(asyncio.get_running_loop(), _Group())
        return self._threads

    def _commit(self, members: Sequence[_Member]) -> bool:
        """Execute the work of members in one transaction, and wake the others.

        Returns:
            Whether the first one, whose turn it is, is done. Otherwise nothing is left of its work.

        Raises:
            DBAPIError: Another process has kept the database locked for as long as one waits.
            TimeoutError: The pool has had no connection for as long.
        """
        wanted = [member for member in members if _is_wanted(member)]
        try:
            with self._connect(Cancellation()) as connection:
                for member in wanted:
                    member.work(connection)
                if any(member.cancellation.is_requested for member in wanted):
                    raise _GivenUp
            for member in wanted:
                member.is_done = True
        except Exception as error:
            if is_locked(error) or isinstance(error, PoolTimeout):
                raise
        finally:
            for member in members[1:]:
                member.wake()
        return members[0].is_done


class _GivenUp(Exception):
    """One of the calls has been given up, and nothing of it shall be stored."""


def _is_wanted(member: _Member) -> bool:
    """Whether a call still goes on; from here on it is not interrupted."""
    try:
        member.cancellation.protect()
    except asyncio.CancelledError:
        return False
    return True
