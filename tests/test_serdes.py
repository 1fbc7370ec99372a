"""The serializer is the application's: whatever it is, each value passes through it, and encryption leaves none out."""

from __future__ import annotations

import json
import pickle
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.checkpoint.serde.types import INTERRUPT, _DeltaSnapshot
from sqlalchemy import URL, Text, cast, create_engine, select, text

from sa_checkpoint import models
from tests.backends import Backend, Client, Database, saver_on, with_sync_driver
from tests.checkpoints import checkpoint_of, config_of

KEY = b"0123456789abcdef"
NUMBER = 7_316_717_653_133_062_491
MARKS = {
    "short text": b"MARK-SHORT",
    "long text": b"MARK-LONG",
    "text with a lone surrogate": b"MARK-LONE",
    "text with a surrogate pair": b"MARK-PAIR",
    "number in JSON": str(NUMBER).encode(),
    "number in msgpack": (NUMBER + 1).to_bytes(8),
    "number beyond 64 bits": b"31415926535897932384626433832795",
    "float": b"27182.818284",
    "nested text": b"MARK-NESTED",
    "bytes": b"MARK-BYTES",
    "snapshot": b"MARK-SNAPSHOT",
    "unversioned": b"MARK-UNVERSIONED",
    "write": b"MARK-WRITE",
    "special write": b"MARK-INTERRUPT",
}
VALUES = {
    "short": "MARK-SHORT",
    "long": "MARK-LONG" * 1000,
    "lone": "MARK-LONE\ud800",
    "pair": "MARK-PAIR\ud83d\ude00",
    "int": NUMBER,
    "nested": {"a": [NUMBER + 1, {"b": "MARK-NESTED"}]},
    "huge": 31415926535897932384626433832795,
    "float": 27182.818284,
    "bytes": b"MARK-BYTES",
    "snapshot": _DeltaSnapshot(["MARK-SNAPSHOT"]),
    "unversioned": "MARK-UNVERSIONED",
    "true": True,
    "none": None,
}
VERSIONS: dict[str, Any] = dict.fromkeys(VALUES.keys() - {"unversioned"}, "1")
WRITES = [("a", {"b": ["MARK-WRITE"]}), ("c", 1), (INTERRUPT, "MARK-INTERRUPT")]


class Scrambling(JsonPlusSerializer):
    """An application's own encryption, short of a cipher."""

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return "scrambled", bytes(byte ^ 0x55 for byte in pickle.dumps(obj))

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return pickle.loads(bytes(byte ^ 0x55 for byte in data[1]))


class Recording:
    """A serde that is none of LangGraph's, and notes what it is given."""

    def __init__(self) -> None:
        self.dumped: list[Any] = []
        self.loaded: list[Any] = []

    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        self.dumped.append(obj)
        return "mine", pickle.dumps(obj)[::-1]

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        assert data[0] == "mine"
        self.loaded.append(pickle.loads(data[1][::-1]))
        return self.loaded[-1]


class Untyped:
    """A serde as they were before `dumps_typed`."""

    def dumps(self, obj: Any) -> bytes:
        return pickle.dumps(obj)

    def loads(self, data: bytes) -> Any:
        return pickle.loads(data)


@dataclass
class Listed:
    name: str


@dataclass
class Unlisted:
    name: str


class Unpackable:
    """What msgpack cannot hold and pickle can."""

    __slots__ = ("held",)

    def __init__(self, held: Any) -> None:
        self.held = held

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Unpackable) and other.held == self.held

    __hash__ = None  # type: ignore[assignment]


@asynccontextmanager
async def client_with(database: Database, serde: Any) -> AsyncIterator[Client]:
    async with database.engine() as engine:
        yield Client(saver_on(engine, serde=serde), database.backend)


@pytest.fixture
def fresh(backend: Backend, new_url: Callable[[Backend], URL]) -> Database:
    """A database that nobody else has written to."""
    return Database(backend, new_url(backend))


def content(database: Database) -> bytes:
    """All that is stored: SQLite's files as they are, the servers' columns."""
    if database.backend.dialect == "sqlite":
        assert database.url.database is not None
        return b"".join(path.read_bytes() for path in sorted(Path(database.url.database).parent.iterdir()))
    engine = create_engine(with_sync_driver(database.url))
    with engine.connect() as connection:
        values = [
            value
            for table in models.metadata.tables
            for row in connection.execute(text(f"SELECT * FROM {table}"))
            for value in row
        ]
    engine.dispose()
    return b"\n".join(value if isinstance(value, bytes) else str(value).encode() for value in values)


# ------------------------------------------------------------------------------------------------------- encryption


@pytest.mark.parametrize(
    ("serde", "found"),
    [
        pytest.param(None, set(MARKS), id="plain, so all of it is found"),
        pytest.param(EncryptedSerializer.from_pycryptodome_aes(key=KEY), set(), id="AES"),
        pytest.param(EncryptedSerializer.from_pycryptodome_aes(Scrambling(), key=KEY), set(), id="AES over a subclass"),
        pytest.param(Scrambling(), set(), id="subclass"),
    ],
)
async def test_no_value_that_is_encrypted_is_in_any_column(fresh: Database, serde: Any, found: set[str]) -> None:
    async with client_with(fresh, serde) as client:
        await client.setup()
        config = config_of("t")
        for _ in range(2):  # the second one changes nothing and carries everything
            config = await client.put(config, checkpoint_of(VALUES, VERSIONS), {"note": "READABLE"}, VERSIONS)
            await client.put_writes(config, WRITES, "task")
            await client.put_writes(config, [WRITES[-1]], "other task")

        stored = content(fresh)
        assert {name for name, mark in MARKS.items() if mark in stored} == found
        assert b"READABLE" in stored
        listed = await client.list(config_of("t"), filter={"note": "READABLE"})
        assert len(listed) == 2
        for one in (*listed, await client.load(config)):
            values = one.checkpoint["channel_values"]
            assert values.pop("snapshot").value == ["MARK-SNAPSHOT"]
            assert values == {channel: value for channel, value in VALUES.items() if channel != "snapshot"}
            assert [(channel, value) for task, channel, value in one.pending_writes or () if task == "task"] == [
                WRITES[-1],
                *WRITES[:-1],
            ]


async def test_values_from_before_encryption_stay_readable_and_without_the_key_none_is(
    database: Database, thread: str
) -> None:
    values = {"text": "x", "list": [1], "true": True, "pair": "\ud83d\ude00"}
    versions = dict.fromkeys(values, "1")
    aes = EncryptedSerializer.from_pycryptodome_aes
    async with (
        client_with(database, None) as plain,
        client_with(database, aes(key=KEY)) as encrypted,
        client_with(database, aes(key=KEY[::-1])) as other_key,
    ):
        first = await plain.put(config_of(thread), checkpoint_of(values), {}, versions)
        assert (await encrypted.load(first)).checkpoint["channel_values"] == values
        versions = dict.fromkeys(values, "2")
        second = await encrypted.put(first, checkpoint_of(values, versions), {}, versions)
        assert (await encrypted.load(second)).checkpoint["channel_values"] == values
        for stranger in (plain, other_key):
            with pytest.raises((NotImplementedError, ValueError)):
                await stranger.load(second)


# --------------------------------------------------------------------------------------------------------- allowlist


@pytest.mark.parametrize("encrypts", [False, True], ids=["JsonPlusSerializer", "EncryptedSerializer"])
async def test_a_clone_has_its_own_allowlist_and_the_same_engine(
    database: Database, thread: str, encrypts: bool
) -> None:
    strict: Any = JsonPlusSerializer(allowed_msgpack_modules=[(__name__, "Nothing")])
    serde = EncryptedSerializer.from_pycryptodome_aes(strict, key=KEY) if encrypts else strict
    values = {"listed": Listed("l"), "unlisted": Unlisted("u")}
    blocked = {"listed": {"name": "l"}, "unlisted": {"name": "u"}}
    async with client_with(database, serde) as client:
        clone = Client(client.saver.with_allowlist([(__name__, "Listed")]), client.backend)  # type: ignore[arg-type]
        assert type(clone.saver) is type(client.saver)
        assert clone.sync_engine is client.sync_engine

        for writer in (client, clone):
            thread += "x"
            saved = await writer.put(config_of(thread), checkpoint_of(values), {}, {"listed": "1", "unlisted": "1"})
            await writer.put_writes(saved, [("a", values["listed"])], "task")
            for reader, seen in ((clone, {**blocked, "listed": Listed("l")}), (client, blocked)):
                (found,) = await reader.list(saved)
                assert await reader.load(saved) == found
                assert found.checkpoint["channel_values"] == seen
                assert found.pending_writes == [("task", "a", seen["listed"])]


# ---------------------------------------------------------------------------------------------------- other serdes


async def test_a_custom_serde_is_given_every_value(fresh: Database) -> None:
    """Known fault elsewhere: strings, numbers, bools and None are stored around the serde, in JSON."""
    serde = Recording()
    values = {name: value for name, value in VALUES.items() if name != "snapshot"}
    async with client_with(fresh, serde) as client:
        await client.setup()
        saved = await client.put(config_of("t"), checkpoint_of(values, VERSIONS), {}, VERSIONS)
        await client.put_writes(saved, WRITES, "task")
        assert serde.dumped == [*values.values(), *(value for _, value in WRITES)]

        found = await client.load(saved)
        assert found.checkpoint["channel_values"] == values
        assert len(serde.loaded) == len(serde.dumped)

    engine = create_engine(with_sync_driver(fresh.url))
    with engine.connect() as connection:
        document = connection.execute(select(cast(models.Checkpoint.checkpoint, Text))).scalar_one()
        tags = connection.execute(text("SELECT type FROM checkpoint_blobs UNION SELECT type FROM checkpoint_writes"))
        assert tags.scalars().all() == ["mine"]
    engine.dispose()
    assert json.loads(document)["channel_values"] == {}


async def test_a_serde_without_dumps_typed_works(database: Database, thread: str) -> None:
    async with client_with(database, Untyped()) as client:
        values = {**VALUES, "object": Fraction(1, 3)}
        saved = await client.put(config_of(thread), checkpoint_of(values, VERSIONS), {}, {**VERSIONS, "object": "1"})
        await client.put_writes(saved, WRITES, "task")
        found = await client.load(saved)
        assert found.checkpoint["channel_values"].keys() == values.keys()
        assert {**found.checkpoint["channel_values"], "snapshot": None} == {**values, "snapshot": None}
        assert sorted(found.pending_writes or (), key=repr) == sorted((("task", *write) for write in WRITES), key=repr)


async def test_pickle_is_used_for_what_msgpack_cannot_hold_if_it_was_asked_for(database: Database, thread: str) -> None:
    values = {"object": Unpackable([1]), "complex": 1 + 2j, "nested": [2**70], "text": "x", "lone": "\ud800"}
    versions = dict.fromkeys(values, "1")
    async with client_with(database, JsonPlusSerializer(pickle_fallback=True)) as client:
        saved = await client.put(config_of(thread), checkpoint_of(values), {}, versions)
        await client.put_writes(saved, [("a", Unpackable("b"))], "task")
        found = await client.load(saved)
        assert found.checkpoint["channel_values"] == values
        assert found.pending_writes == [("task", "a", Unpackable("b"))]

    async with client_with(database, None) as client:
        with pytest.raises(TypeError):
            await client.put(config_of(thread + "x"), checkpoint_of(values), {}, versions)
        assert await client.get_tuple(config_of(thread + "x")) is None
