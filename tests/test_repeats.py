"""A list deserialises a message once, however many of its checkpoints have it, and each gets a message of its own."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import pytest
from langchain_core.messages import BaseMessage, HumanMessage
from langgraph.checkpoint.base import CheckpointTuple
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from pydantic import BaseModel

from tests.backends import Client, Database, on_strategies, saver_on
from tests.checkpoints import checkpoint_of, config_of
from tests.messages import MESSAGES

on_sqlite = on_strategies("sqlite")


def containers_of(value: Any) -> Iterator[Any]:
    """All that could be changed in a value."""
    if isinstance(value, BaseModel):
        yield value
        for part in (value.__dict__, value.__pydantic_extra__, value.model_fields_set):
            yield from containers_of(part)
    elif isinstance(value, dict):
        yield value
        for part in value.values():
            yield from containers_of(part)
    elif isinstance(value, list | set):
        yield value
        for part in value:
            yield from containers_of(part)


def steps_of(listed: Any) -> list[list[BaseMessage]]:
    return [found.checkpoint["channel_values"]["messages"] for found in listed]


async def put_steps(client: Client, thread: str, messages: Any, steps: int) -> None:
    for step in range(steps):
        version = f"{step + 1:032}.0"
        checkpoint = checkpoint_of({"messages": [*messages, HumanMessage(f"{step}")]}, {"messages": version})
        await client.put(config_of(thread), checkpoint, {"step": step}, {"messages": version})


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The contents of the human messages that have been validated."""
    contents: list[str] = []
    original = HumanMessage.__init__

    def noting(self: HumanMessage, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        contents.append(str(self.content))

    monkeypatch.setattr(HumanMessage, "__init__", noting)
    return contents


@on_sqlite
@pytest.mark.parametrize(
    "serde", [JsonPlusSerializer(), EncryptedSerializer.from_pycryptodome_aes(key=b"0123456789abcdef")]
)
async def test_a_message_is_made_once_for_all_checkpoints_of_a_page(
    database: Database, thread: str, made: list[str], serde: Any
) -> None:
    async with database.engine() as engine:
        client = Client(saver_on(engine, serde=serde), database.backend)
        await put_steps(client, thread, [HumanMessage("first"), HumanMessage("second")], steps=5)
        made.clear()
        listed = await client.list(config_of(thread))
        assert sorted(made) == [*"01234", "first", "second"]
        assert [len(messages) for messages in steps_of(listed)] == [3] * 5


@on_sqlite
@pytest.mark.parametrize("name", MESSAGES)
async def test_each_checkpoint_has_messages_of_its_own_which_are_those_that_get_tuple_returns(
    client: Client, thread: str, name: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.ERROR)  # LangGraph warns of a type that it does not know
    await put_steps(client, thread, [MESSAGES[name]] * 2, steps=3)
    listed = await client.list(config_of(thread))
    seen: set[int] = set()
    for found in listed:
        alone = await client.load(found.config)
        for one, other in zip(*steps_of([found, alone]), strict=True):
            assert type(one) is type(other)
            assert one == other
            assert one.model_dump() == other.model_dump()
            assert one.model_fields_set == other.model_fields_set
            assert vars(one).keys() == vars(other).keys()
            parts = [id(part) for part in containers_of(one)]
            assert seen.isdisjoint(parts)
            seen.update(parts)
    assert steps_of(listed)[0][0].content == MESSAGES[name].content


@on_sqlite
async def test_a_single_checkpoint_is_deserialised_without_a_copy(client: Client, thread: str, made: list[str]) -> None:
    await put_steps(client, thread, [HumanMessage("first")] * 2, steps=2)
    made.clear()
    await client.list(config_of(thread), limit=1)
    assert made == ["first", "first", "1"]


@on_sqlite
async def test_what_is_changed_in_one_checkpoint_stays_as_it_was_in_the_next(client: Client, thread: str) -> None:
    await put_steps(client, thread, [MESSAGES["ai"]], steps=3)
    found: list[CheckpointTuple] = []
    async for one in client.iterate(config_of(thread)):
        (message, _) = one.checkpoint["channel_values"]["messages"]
        assert message == MESSAGES["ai"]
        message.content = "changed"
        message.tool_calls[0]["args"]["words"].append("changed")
        message.response_metadata.clear()
        found.append(one)
    assert len(found) == 3


@on_sqlite
async def test_types_that_are_not_allowed_stay_blocked(database: Database, thread: str) -> None:
    async with database.engine() as engine:
        client = Client(saver_on(engine, serde=JsonPlusSerializer(allowed_msgpack_modules=None)), database.backend)
        await put_steps(client, thread, [MESSAGES["own"]], steps=2)
        for messages in steps_of(await client.list(config_of(thread))):
            assert not isinstance(messages[0], BaseMessage)
