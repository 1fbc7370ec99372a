"""What was put comes back equal and of its type: channel values, pending writes and metadata, on every backend."""

from __future__ import annotations

import math
import random
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, date, datetime, time, timedelta, timezone
from decimal import Decimal
from enum import Enum, IntEnum, StrEnum
from ipaddress import ip_address, ip_interface, ip_network
from operator import add
from pathlib import Path
from typing import Annotated, Any, NamedTuple, TypedDict
from uuid import UUID, uuid4
from zoneinfo import ZoneInfo

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from langchain_core.messages import AIMessage, HumanMessage, ToolMessage
from langgraph.checkpoint.postgres import PostgresSaver
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from langgraph.graph import START, StateGraph
from pydantic import BaseModel
from sqlalchemy import URL, create_engine

from sa_checkpoint import SQLAlchemySaver, migrations
from sa_checkpoint._codec import MAX_INLINE_STRING
from sa_checkpoint.errors import InvalidValue
from tests.backends import Client, Database, saver_on
from tests.checkpoints import checkpoint_of, config_of

SERDE = JsonPlusSerializer()


class Model(BaseModel):
    name: str
    when: datetime


@dataclass
class Data:
    name: str
    parts: list[int]


class Point(NamedTuple):
    x: int
    y: int


class Colour(Enum):
    RED = "red"


class Word(StrEnum):
    YES = "yes"


class Level(IntEnum):
    HIGH = 3


STRINGS = (
    "",
    "\0",
    "a\0b",
    "\\u0000",
    "\ud800",
    "a\udfffb",
    "\ud83d\ude00",
    "\udc00\ud800",
    "😀",
    "'\"%s %(a)s :x \\ ?{}[]$",
    "zażółć",
    "null",
    "1",
    *("x" * (MAX_INLINE_STRING + more) for more in (-1, 0, 1)),
    *("😀" * (MAX_INLINE_STRING + more) for more in (-1, 0, 1)),
    "\0" * (MAX_INLINE_STRING + 1),
    "\ud800" * (MAX_INLINE_STRING + 1),
)
NUMBERS: tuple[float, ...] = (
    *(float(text) for text in "nan inf -inf 0.0 -0.0 1.0 0.1 1e15 1e16 1e23 1e-4 1e-5 1e-7 5e-324 1e308".split()),
    *(sign * (2**bits + more) for bits in (31, 32, 53, 63, 64, 200) for sign in (1, -1) for more in (-1, 0, 1)),
    10**4000,
)
SCALARS = (None, True, False, 0, 1, *NUMBERS, *STRINGS, b"", b"\0\xff", bytearray(), bytearray(b"\0\xff"))
OBJECTS: tuple[Any, ...] = (
    datetime(2026, 11, 22, 12, 30, 15, 7),
    datetime(2026, 11, 22, tzinfo=UTC),
    datetime(2026, 11, 22, tzinfo=timezone(timedelta(hours=-3, minutes=-30))),
    date(1, 1, 1),
    time(23, 59, 59, 999_999),
    timedelta(days=-1, microseconds=1),
    ZoneInfo("UTC"),
    UUID(int=7),
    Decimal("-0.10"),
    Decimal("1e400"),
    Colour.RED,
    Word.YES,
    Level.HIGH,
    set[Any](),
    {1, "1", None},
    frozenset({1.5, b"x"}),
    deque([1, "2"]),
    Path("/tmp/a b"),
    re.compile(r"a\d+", re.IGNORECASE),
    *(ip(text) for ip in (ip_address, ip_interface, ip_network) for text in ("10.0.0.1", "::1")),
    Model(name="\0", when=datetime(2026, 1, 1)),
    Data(name="'", parts=[1, 2]),
    Point(1, -1),
    HumanMessage("hi", id="1"),
    AIMessage("", id="2", tool_calls=[{"name": "look", "args": {"q": "\0", "n": [1.5, None]}, "id": "c"}]),
    ToolMessage("found", tool_call_id="c", artifact={"a": [1]}),
    [],
    {},
    [1, 1.0, True, None, "1", b"1", [[]], {"a": {"b": []}}],
    {1: "int key", None: "no key", "dot.key": {"": 0}},
    [math.nan, -0.0, 2**64 - 1, -(2**63)],
)


def same(one: Any, other: Any) -> bool:
    """Equal and of the same type, all the way down; NaN equals NaN, and -0.0 does not equal 0.0."""
    if type(one) is not type(other):
        return False
    if isinstance(one, float):
        return repr(one) == repr(other)
    if isinstance(one, list | tuple | deque):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, dict):
        return same(list(one), list(other)) and same(list(one.values()), list(other.values()))
    if isinstance(one, set | frozenset):
        return one == other and sorted(map(repr, one)) == sorted(map(repr, other))
    return bool(one == other)


def expected(value: Any) -> Any:
    """The value itself; for what holds others, what the serde makes of it: tuples become lists in there."""
    if value is None or type(value) in {bool, int, float, str, bytes, bytearray}:
        return value
    return SERDE.loads_typed(SERDE.dumps_typed(value))


def config_in_a_new_thread() -> Any:
    return config_of(uuid4().hex)


# ------------------------------------------------------------------------------------------------------- any value

CHARACTERS = st.one_of(
    st.characters(), st.characters(categories=["Cs"]), st.sampled_from("\0'\"%:\\?$.[]{} \ud83d\ude00")
)
TEXT = st.text(CHARACTERS, max_size=20) | st.builds(
    lambda text, length: (text * length)[:length],
    st.text(CHARACTERS, min_size=1, max_size=3),
    st.integers(MAX_INLINE_STRING - 2, MAX_INLINE_STRING + 2),
)
INT64 = st.integers(-(2**63), 2**64 - 1)
PARTS = st.one_of(
    st.none(),
    st.booleans(),
    INT64,
    st.floats(),
    st.text(CHARACTERS, max_size=20),
    st.binary(max_size=20),
    st.uuids(),
    st.decimals(allow_nan=False),
    st.datetimes(timezones=st.none() | st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))),
    st.dates(),
    st.times(),
    st.timedeltas(),
    st.ip_addresses(),
    st.sampled_from(OBJECTS),
)
HASHABLE = st.none() | st.booleans() | INT64 | st.text(CHARACTERS, max_size=5) | st.uuids()
CONTAINERS = st.recursive(
    PARTS,
    lambda part: (
        st.lists(part, max_size=4)
        | st.lists(part, max_size=4).map(tuple)
        | st.lists(part, max_size=4).map(deque)
        | st.dictionaries(HASHABLE, part, max_size=4)
    ),
    max_leaves=8,
) | st.one_of(st.sets(HASHABLE, max_size=4), st.frozensets(HASHABLE, max_size=4))
VALUES = st.one_of(
    st.sampled_from(SCALARS),
    TEXT,
    st.integers(),
    st.floats(),
    st.binary(max_size=2000),
    st.binary(max_size=20).map(bytearray),
    CONTAINERS,
)
NAMES = st.text(
    st.characters(codec="utf-8", exclude_characters="\0") | st.sampled_from("'\"%:\\?$.[]{} "), min_size=1, max_size=10
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | NAMES,
    lambda part: st.lists(part, max_size=4) | st.dictionaries(NAMES, part, max_size=4),
    max_leaves=12,
)
NEXT_VERSIONS = st.builds("{:032}.{}".format, st.integers(1, 10**6), st.integers(0, 10**16).map("0.{:016}".format))

one_example_after_another = settings(
    derandomize=True,
    deadline=None,
    max_examples=60,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
)


@one_example_after_another
@given(
    channels=st.dictionaries(NAMES, st.tuples(VALUES, st.none() | st.integers(1, 10**6) | NEXT_VERSIONS), max_size=8),
    writes=st.lists(st.tuples(NAMES, VALUES), max_size=4),
)
async def test_any_channel_value_and_write_comes_back(
    client: Client, channels: dict[str, tuple[Any, Any]], writes: list[tuple[str, Any]]
) -> None:
    values = {name: value for name, (value, _) in channels.items()}
    versions = {name: version for name, (_, version) in channels.items() if version is not None}
    saved = await client.put(config_in_a_new_thread(), checkpoint_of(values, versions), {}, versions)
    await client.put_writes(saved, writes, "task")

    found = await client.load(saved)
    for name, value in values.items():
        assert same(found.checkpoint["channel_values"].pop(name), expected(value))
    assert found.checkpoint["channel_values"] == {}
    assert found.checkpoint["channel_versions"] == versions
    assert same(found.pending_writes, [("task", name, expected(value)) for name, value in writes])


@one_example_after_another
@given(metadata=st.dictionaries(NAMES.filter(lambda name: name != "writes"), JSON, max_size=6))
async def test_any_metadata_that_is_json_comes_back(client: Client, metadata: Any) -> None:
    saved = await client.put(config_in_a_new_thread(), checkpoint_of(), metadata, {})
    assert (await client.load(saved)).metadata == metadata


# ------------------------------------------------------------------------------------------------- certain values


@pytest.mark.parametrize("version", ["1", 1, None], ids=["version", "number as version", "no version"])
async def test_each_of_these_values_comes_back_as_it_was(client: Client, thread: str, version: Any) -> None:
    values = {f"{number} {type(value).__name__}": value for number, value in enumerate((*SCALARS, *OBJECTS))}
    versions = {} if version is None else dict.fromkeys(values, version)
    saved = await client.put(config_of(thread), checkpoint_of(values, versions), {}, versions)
    await client.put_writes(saved, list(values.items()), "task")

    found = await client.load(saved)
    assert list(found.checkpoint["channel_values"].keys() ^ values.keys()) == []
    for channel, value in values.items():
        assert same(found.checkpoint["channel_values"][channel], value), channel
    assert found.pending_writes is not None
    for (_, channel, write), value in zip(found.pending_writes, values.values(), strict=True):
        assert same(write, value), channel


async def test_a_tuple_comes_back_as_a_list(client: Client, thread: str) -> None:
    """This is the serde's doing."""
    saved = await client.put(config_of(thread), checkpoint_of({"a": (1, (2,))}), {}, {"a": "1"})
    assert (await client.load(saved)).checkpoint["channel_values"] == {"a": [1, [2]]}


async def test_16_mib_come_back(client: Client, thread: str) -> None:
    values = {"bytes": random.Random(0).randbytes(2**24), "text": "\0😀" * 2**21}
    saved = await client.put(config_of(thread), checkpoint_of(values), {}, {"bytes": "1", "text": "1"})
    await client.put_writes(saved, [("bytes", values["bytes"])], "task")

    found = await client.load(saved)
    assert found.checkpoint["channel_values"] == values
    assert found.pending_writes == [("task", "bytes", values["bytes"])]


async def test_a_number_in_metadata_keeps_its_value_and_type(client: Client, thread: str) -> None:
    """Known fault: JSONB prints 1e23 as an integer, which is not the float that was meant."""
    numbers = [number for number in NUMBERS if isinstance(number, int) or math.isfinite(number)]
    metadata: Any = {"list": numbers, "nested": {repr(number)[:30]: number for number in numbers}}
    saved = await client.put(config_of(thread), checkpoint_of(), metadata, {})
    found: Any = (await client.load(saved)).metadata
    assert found == metadata
    assert [type(number) for number in found["list"]] == [type(number) for number in numbers]


@pytest.mark.parametrize("leaf", [1, 1e23, "\0"], ids=repr)
async def test_metadata_nested_deeply_comes_back_or_is_refused(client: Client, thread: str, leaf: Any) -> None:
    """Known fault: it ended in Python's own RecursionError, for some values only."""
    nested = leaf
    for _ in range(700):
        nested = [nested]
    try:
        saved = await client.put(config_of(thread), checkpoint_of(), {"a": nested}, {})
    except InvalidValue:
        assert await client.get_tuple(config_of(thread)) is None
    else:
        assert leaf != "\0" and repr((await client.load(saved)).metadata) == repr({"a": nested})


# ----------------------------------------------------------------------------- values that another saver had stored


def test_a_value_that_postgressaver_left_inline_is_there_in_our_next_step(new_postgres: Callable[[], URL]) -> None:
    """Known fault: a value that did not change is in no new_versions, and would be stored nowhere."""
    engine = create_engine(new_postgres())
    migrations.upgrade(engine)
    values = {"long": "x" * 5000, "float": 1e16, "text": "x", "list": [1]}
    versions: Any = dict.fromkeys(values, "1.1")
    with PostgresSaver.from_conn_string(
        engine.url.set(drivername="postgresql").render_as_string(hide_password=False)
    ) as theirs:
        first = theirs.put(config_of("t"), checkpoint_of(values, versions), {}, versions)
        ours = SQLAlchemySaver(engine)
        second = ours.put(first, checkpoint_of(values, versions), {}, {})
        third = ours.put(second, checkpoint_of(values, versions), {}, {})
        for config in (second, third):
            found = ours.get_tuple(config)
            assert found is not None
            assert found.checkpoint["channel_values"] == values
            assert type(found.checkpoint["channel_values"]["float"]) is float
            assert theirs.get_tuple(config) == found
    engine.dispose()


class State(TypedDict, total=False):
    text: str
    flag: bool
    number: float
    nothing: None
    items: Annotated[list[str], add]


async def test_a_thread_that_begins_to_be_encrypted_loses_nothing(database: Database, thread: str) -> None:
    """Known fault: what was inline before must become a blob, although it did not change."""
    builder = StateGraph(State).add_node("node", lambda state: {"items": [f"saw {state['text']}"]})
    builder.add_edge(START, "node")
    given = {"text": "t", "flag": True, "number": 1.5, "nothing": None}
    config = config_of(thread)
    async with database.engine() as engine:
        serde = EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")
        before, after = (Client(saver_on(engine, serde=serde), database.backend) for serde in (None, serde))
        plain, encrypted = (builder.compile(checkpointer=client.saver) for client in (before, after))

        await before.invoke(plain, {**given, "items": ["first"]}, config)
        history = await before.history(plain, config)
        await after.invoke(encrypted, {"items": ["second"]}, config)
        await after.invoke(encrypted, {"items": ["third"]}, config)

        assert (await after.get_state(encrypted, config)).values == {
            **given,
            "items": ["first", "saw t", "second", "saw t", "third", "saw t"],
        }
        assert (await after.history(encrypted, config))[-len(history) :] == history


# ------------------------------------------------------------------------------------------------------------ forks


class Absent:
    """The channel has a version and no value, as after it was consumed."""


@pytest.mark.parametrize("numbered", [False, True], ids=["next versions", "numbers as versions"])
@pytest.mark.parametrize(
    ("one", "two"),
    [
        pytest.param([1], [2], id="blobs"),
        pytest.param("one", "two", id="inline"),
        pytest.param(1, True, id="alike"),
        pytest.param("text", [1], id="text or blob"),
        pytest.param(None, [1], id="None or blob"),
        pytest.param(False, [1], id="False or blob"),
        pytest.param(True, [1], id="True or blob"),
        pytest.param(1e16, [1], id="number or blob"),
        pytest.param("x" * 2000, "y" * 2000, id="long texts"),
        pytest.param(Absent, [1], id="absent or blob"),
    ],
)
async def test_two_forks_keep_their_own_values(client: Client, thread: str, one: Any, two: Any, numbered: bool) -> None:
    def next_version(version: Any) -> Any:
        return version + 1 if numbered else client.saver.get_next_version(version, None)

    async def put(parent: Any, value: Any, version: Any, new_versions: Any) -> Any:
        values = {"kept": ["kept"]} if value is Absent else {"a": value, "kept": ["kept"]}
        versions = {"a": version, "kept": first}
        return await client.put(parent, checkpoint_of(values, versions), {}, new_versions)

    first = next_version(0 if numbered else None)
    for values in ((one, two), (two, one)):
        thread += "x"
        parent = await put(config_of(thread), [0], first, {"a": first, "kept": first})
        versions = [next_version(first) for _ in values]
        forks = [await put(parent, *fork, {"a": fork[1]}) for fork in zip(values, versions, strict=True)]
        # A child carries what its parent had, and says that nothing changed.
        children = [await put(*fork, {}) for fork in zip(forks, values, versions, strict=True)]
        grandchildren = [await put(*child, {}) for child in zip(children, values, versions, strict=True)]

        for generation in (forks, children, grandchildren):
            for config, value in zip(generation, values, strict=True):
                found = (await client.load(config)).checkpoint["channel_values"]
                assert found.pop("kept") == ["kept"]
                assert same(found, {} if value is Absent else {"a": value})
        assert (await client.load(parent)).checkpoint["channel_values"]["a"] == [0]
