"""The async saver leaves the event loop to others, however large a state is."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine, Iterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
from langchain_core.messages import HumanMessage

from sa_checkpoint._codec import is_heavy
from tests.backends import BACKENDS, Client, Database, on_backends, saver_on
from tests.checkpoints import config_of
from tests.large import large_checkpoint, large_packets, large_values

LONGEST_PAUSE_SECONDS = {"aput": 0.010, "aget_tuple": 0.010}
# psycopg makes Python objects of all rows of a result at once. asyncmy makes several copies of a statement.
LONGEST_PAUSES = {
    "psycopg-async": LONGEST_PAUSE_SECONDS | {"aget_tuple": 0.100},
    "asyncmy": LONGEST_PAUSE_SECONDS | {"aput": 0.030},
}
# Of a single value of this size, the serializer alone makes bytes for some 30 ms without returning to Python, and each
# driver copies them at once; asyncmy several times.
LONGEST_PAUSE_FOR_ONE_VALUE_SECONDS = {"asyncmy": 2.0}
ATTEMPTS = 5

on_async = on_backends(*(one for one in BACKENDS if one.is_async and not one.is_portable))


@pytest.fixture(scope="module")
def database(database: Database) -> Iterator[Database]:
    """A database that takes statements of this size."""
    with large_packets(database):
        yield database


@asynccontextmanager
async def heartbeat() -> AsyncIterator[list[float]]:
    """How long another task had to wait for its turn each time, in seconds.

    In seconds that this process has worked, in all its threads: other programs on the machine do not count.
    """
    pauses: list[float] = []

    async def beat() -> None:
        while True:
            started = time.process_time()
            await asyncio.sleep(0.001)
            pauses.append(time.process_time() - started)

    task = asyncio.create_task(beat())
    await asyncio.sleep(0.01)
    pauses.clear()
    yield pauses
    await asyncio.sleep(0.002)  # the beat that is under way
    task.cancel()


async def longest_pause(call: Coroutine[Any, Any, Any]) -> float:
    async with heartbeat() as pauses:
        await call
    return max(pauses)


async def longest_pauses(database: Database, thread: str, channels: int) -> dict[str, float]:
    """The longest pauses of each operation, in seconds, by the best attempt: the machine has other things to do."""
    values = large_values(channels=channels)
    pauses: dict[str, list[float]] = {"aput": [], "aget_tuple": []}
    async with database.engine() as engine:
        client = Client(saver_on(engine), database.backend)
        assert await client.get_tuple(config_of(thread)) is None  # connect and compile
        for attempt in range(ATTEMPTS):
            config = config_of(f"{thread} {attempt}")
            checkpoint, versions = large_checkpoint(values)
            pauses["aput"].append(await longest_pause(client.put(config, checkpoint, {}, versions)))
            pauses["aget_tuple"].append(await longest_pause(client.get_tuple(config)))
            assert (await client.load(config)).checkpoint["channel_values"] == values
            await client.delete_thread(f"{thread} {attempt}")
    return {operation: min(found) for operation, found in pauses.items()}


@on_async
async def test_the_event_loop_goes_on_while_50_values_of_1_mb_are_stored_and_read(
    database: Database, thread: str
) -> None:
    pauses = await longest_pauses(database, thread, channels=50)
    allowed = LONGEST_PAUSES.get(database.backend.id, LONGEST_PAUSE_SECONDS)
    assert {operation: pause for operation, pause in pauses.items() if pause > allowed[operation]} == {}


@on_async
async def test_a_single_value_of_50_mb_stops_the_event_loop_for_little_more_than_it_is_copied(
    database: Database, thread: str
) -> None:
    pauses = await longest_pauses(database, thread, channels=1)
    assert max(pauses.values()) < LONGEST_PAUSE_FOR_ONE_VALUE_SECONDS.get(database.backend.id, 0.3), pauses


def test_what_may_take_long_to_serialise_is_known_by_a_look_at_it() -> None:
    class Array:
        __slots__ = ("nbytes",)

        def __init__(self, nbytes: int) -> None:
            self.nbytes = nbytes

    message = HumanMessage("sunny?")
    for heavy in (
        ["x" * 2_000_000],
        {"a": {"b": [b"x" * 2_000_000]}},
        [message] * 10_000,
        list(range(10_000)),
        Array(10**7),
    ):
        assert is_heavy({"channel_values": {"a": heavy}})
    for light in (None, 1.5, "x" * 1000, [message] * 20, {"a": {1: True}}, {1, 2}, Array(8), is_heavy):
        assert not is_heavy({"channel_values": {"a": light}})
