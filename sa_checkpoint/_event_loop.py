"""Work that would hold up an event loop, done beside it."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

SLOW_BYTES = 200_000
"""From how many bytes on deserialising is left to a thread: some 5 ms for LangChain's messages."""


async def unblocked(work: Callable[[], T], *, is_slow: bool) -> T:
    """The result of a computation, in a worker thread if it is slow.

    A thread gives way to the event loop between any two values. A serializer that does not return to Python while it
    works on a single large value does not.
    """
    return await asyncio.to_thread(work) if is_slow else work()
