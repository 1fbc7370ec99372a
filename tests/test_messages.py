"""Messages are stored and read as LangGraph's serializer does it, to the byte, with less work."""

from __future__ import annotations

import copy
import logging
import subprocess
import sys
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial, wraps
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from langchain_core.load.serializable import Serializable
from langchain_core.messages import AIMessage, BaseMessage, HumanMessage, SystemMessage, ToolMessage, human
from langgraph.checkpoint.serde import jsonplus
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.event_hooks import register_serde_event_listener
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
from ormsgpack import OPT_NON_STR_KEYS, Ext, packb
from pydantic import BaseModel

from sa_checkpoint import _messages
from sa_checkpoint._messages import dumps_typed, reading
from tests.messages import MESSAGES, Whisper

SERDE = JsonPlusSerializer()
KEY = b"0123456789abcdef"


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR)  # LangGraph warns of a type that it does not know


@pytest.fixture
def nothing_known(monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a new process, which has seen no message."""
    monkeypatch.setattr(_messages, "_PACKED", {})
    monkeypatch.setattr(_messages, "_MAKERS", {})


@pytest.fixture(params=["first", "later"])
def again(request: pytest.FixtureRequest, nothing_known: None) -> Callable[[Callable[[], Any]], Any]:
    """Calls something in a process that sees its first message, or has seen some."""

    def call(function: Callable[[], Any]) -> Any:
        if request.param == "later":
            for message in (HumanMessage("x"), AIMessage("x"), SystemMessage("x"), ToolMessage("x", tool_call_id="1")):
                reading(SERDE).loads_typed(dumps_typed(SERDE, message))
            assert len(_messages._PACKED) == len(_messages._MAKERS) == 4
        return function()

    return call


def all_of(value: Any) -> Any:
    """Everything there is to a value, in a form that compares order and types."""
    if isinstance(value, BaseModel):
        slots = (getattr(value, slot) for slot in BaseModel.__slots__)
        return (type(value), *(sorted(part) if isinstance(part, set) else all_of(part) for part in slots))
    if isinstance(value, dict):
        return (type(value), [(key, all_of(part)) for key, part in value.items()])
    return (type(value), [all_of(part) for part in value]) if isinstance(value, list | tuple) else (type(value), value)


def assert_stored_and_read_alike(value: Any) -> None:
    before = all_of(value)
    stored = SERDE.dumps_typed(value)
    assert dumps_typed(SERDE, value) == stored
    assert all_of(value) == before
    assert all_of(reading(SERDE).loads_typed(stored)) == all_of(SERDE.loads_typed(stored))


@pytest.mark.parametrize("name", MESSAGES)
def test_a_message_is_stored_and_read_as_langgraph_does_it(name: str, again: Any) -> None:
    message = MESSAGES[name]
    again(lambda: assert_stored_and_read_alike(message))
    assert_stored_and_read_alike([message, {"nested": (message, message)}])


def _call(class_: type[BaseMessage], fields: dict[str, Any]) -> BaseMessage:
    return class_(**fields)


TEXTS = st.text(st.characters(exclude_categories=["Cs"]))
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.floats(allow_nan=False) | TEXTS | st.binary(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=6,
)
CONTENTS = TEXTS | st.lists(TEXTS | st.dictionaries(TEXTS, JSON, max_size=2), max_size=3)
CALLS = st.lists(
    st.fixed_dictionaries({"name": TEXTS, "args": st.dictionaries(TEXTS, JSON, max_size=2), "id": TEXTS | st.none()}),
    max_size=2,
)
TOKENS = st.fixed_dictionaries({f"{name}_tokens": st.integers(0, 9) for name in ("input", "output", "total")})
COMMON = {
    "content": CONTENTS,
    "additional_kwargs": st.dictionaries(TEXTS, JSON, max_size=2),
    "response_metadata": st.dictionaries(TEXTS, JSON, max_size=2),
}
OPTIONAL = {"name": TEXTS, "id": TEXTS, "more": JSON}


KINDS: dict[type[Any], Any] = {
    HumanMessage: st.fixed_dictionaries(COMMON, optional=OPTIONAL),
    AIMessage: st.fixed_dictionaries(COMMON, optional={**OPTIONAL, "tool_calls": CALLS, "usage_metadata": TOKENS}),
    ToolMessage: st.fixed_dictionaries({**COMMON, "tool_call_id": TEXTS}, optional={**OPTIONAL, "artifact": JSON}),
}


@given(st.one_of(*(fields.map(partial(_call, class_)) for class_, fields in KINDS.items())))
def test_any_message_is_stored_and_read_as_langgraph_does_it(message: BaseMessage) -> None:
    assert_stored_and_read_alike(message)


def changed() -> Iterator[tuple[str, Callable[[BaseMessage], object]]]:
    yield "content of another type", lambda message: message.__dict__.update(content=5)
    yield "a field less", lambda message: message.__dict__.pop("name")
    yield "another order", lambda message: message.__dict__.update(content=message.__dict__.pop("content"))
    yield "something cached", lambda message: message.__dict__.update(cached=["x"])
    yield "one for another", lambda message: (message.__dict__.pop("id"), message.__dict__.update(cached=1))
    yield "a set", lambda message: message.additional_kwargs.update(words={"a"})
    yield "a message", lambda message: message.additional_kwargs.update(inner=HumanMessage("inner"))
    yield "a model", lambda message: message.additional_kwargs.update(inner=Whisper(content="inner", volume=[1]))
    yield "a tuple", lambda message: message.response_metadata.update(pair=(1, [2]))


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
@pytest.mark.parametrize("change", [pytest.param(change, id=name) for name, change in changed()])
def test_a_message_that_was_changed_is_stored_and_read_as_langgraph_does_it(change: Any, again: Any) -> None:
    message = AIMessage("hello", id="1")
    change(message)
    again(lambda: assert_stored_and_read_alike([message, AIMessage("next")]))


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"content": None},
        {"content": "x", "content_blocks": []},
        {"content": "x", "self": 1, "class_": 2},
        {**AIMessage("x").model_dump(), "tool_calls": "none"},
        {**AIMessage("x").model_dump(), "usage_metadata": {"input_tokens": "many"}},
        {**AIMessage("x").model_dump(), "type": "human"},
        {1: 2},
        ["content"],
        "content",
    ],
)
def test_what_is_no_valid_message_is_read_as_langgraph_does_it(fields: Any, again: Any) -> None:
    stored = ("msgpack", ext(("langchain_core.messages.ai", "AIMessage", fields, "model_validate_json")))
    found = again(lambda: reading(SERDE).loads_typed(stored))
    assert all_of(found) == all_of(SERDE.loads_typed(stored))


@pytest.mark.parametrize(
    "content",
    [
        ("langchain_core.messages.ai", "NoMessage", {"content": "x"}, ""),
        ("langchain_core.messages.utils", "count_tokens_approximately", {"messages": []}, ""),
        ("langchain_core.messages.ai", "AIMessage", {"content": "x"}),
        ("langchain_core.messages.ai", ["AIMessage"], {}, ""),
    ],
)
def test_an_extension_that_is_no_message_is_read_as_langgraph_does_it(content: Any, again: Any) -> None:
    stored = ("msgpack", ext(content))
    assert again(lambda: reading(SERDE).loads_typed(stored)) == SERDE.loads_typed(stored)


def ext(content: Any) -> bytes:
    return packb(Ext(5, packb(content, option=OPT_NON_STR_KEYS)))


def test_messages_are_made_without_their_constructors_and_packed_without_a_copy() -> None:
    value = [HumanMessage("question"), AIMessage("answer"), ToolMessage("result", tool_call_id="1")] * 5
    stored = dumps_typed(SERDE, value)
    reading(SERDE).loads_typed(stored)
    assert called("model_dump", lambda: SERDE.dumps_typed(value)) == 15
    assert called("model_dump", lambda: dumps_typed(SERDE, value)) == 0
    assert called("__init__", lambda: SERDE.loads_typed(stored)) >= 15
    assert called("__init__", lambda: reading(SERDE).loads_typed(stored)) == 0


def called(name: str, function: Callable[[], object]) -> int:
    """How often functions of Python with this name are called meanwhile."""
    count = 0

    def look(frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event == "call" and frame.f_code.co_name == name

    sys.setprofile(look)
    try:
        function()
    finally:
        sys.setprofile(None)
    return count


class Upper(JsonPlusSerializer):
    def dumps_typed(self, obj: Any) -> tuple[str, bytes]:
        return "upper", super().dumps_typed(obj)[1]

    def loads_typed(self, data: tuple[str, bytes]) -> Any:
        return super().loads_typed(("msgpack", data[1]))


@pytest.mark.parametrize(
    "serde", [Upper(), JsonPlusSerializer(__unpack_ext_hook__=lambda _code, _data: "hooked"), object()]
)
def test_a_serde_of_the_applications_own_reads_for_itself(serde: Any) -> None:
    assert reading(serde) is serde


def test_a_serde_of_the_applications_own_stores_for_itself() -> None:
    assert dumps_typed(Upper(), AIMessage("x")) == Upper().dumps_typed(AIMessage("x"))


def test_an_encrypting_serde_encrypts() -> None:
    serde = EncryptedSerializer.from_pycryptodome_aes(key=KEY)
    for value in (AIMessage("secret"), [HumanMessage("secret")], "secret", None, b"secret"):
        tag, data = dumps_typed(serde, value)
        assert tag.endswith("+aes")
        assert b"secret" not in data
        assert serde.loads_typed((tag, data)) == value
        assert reading(serde).loads_typed((tag, data)) == value
        assert reading(serde).loads_typed(SERDE.dumps_typed(value)) == value
    assert dumps_typed(EncryptedSerializer(serde.cipher, Upper()), [1])[0] == "upper+aes"


@pytest.mark.parametrize("value", [None, b"x", bytearray(b"x"), "x", {"a": [1]}, {1, 2}, copy, 2**70])
@pytest.mark.parametrize("serde", [SERDE, JsonPlusSerializer(pickle_fallback=True)])
def test_other_values_and_errors_are_those_of_the_serde(serde: SerializerProtocol, value: Any) -> None:
    try:
        expected = serde.dumps_typed(value)
    except Exception as error:
        with pytest.raises(type(error)) as raised:
            dumps_typed(serde, value)
        assert str(raised.value) == str(error)
    else:
        assert dumps_typed(serde, value) == expected
        assert reading(serde).loads_typed(expected) == value


def test_types_that_are_not_allowed_stay_blocked() -> None:
    serde = JsonPlusSerializer(allowed_msgpack_modules=None)
    stored = serde.dumps_typed([Whisper(content="psst"), AIMessage("x")])
    whisper, message = reading(serde).loads_typed(stored)
    assert isinstance(whisper, dict)
    assert message == AIMessage("x")


@pytest.mark.usefixtures("nothing_known")
def test_a_class_that_langgraph_makes_otherwise_is_left_to_it() -> None:
    serde = JsonPlusSerializer()
    hook = serde._unpack_ext_hook
    serde._unpack_ext_hook = lambda code, data: hook(code, data).model_copy(update={"name": "made otherwise"})
    for _ in range(3):
        assert reading(serde).loads_typed(SERDE.dumps_typed(AIMessage("x"))).name == "made otherwise"


def redacting(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function that hides secrets, as an application may put it around one of its libraries'."""

    @wraps(function)
    def redacted(self: Any, *args: Any, **kwargs: Any) -> Any:
        result = function(self, *args, **kwargs)
        if isinstance(result, dict):
            return {key: "*" if value == "secret" else value for key, value in result.items()}
        tag, data = result if isinstance(result, tuple) else (None, result)
        if isinstance(data, bytes):
            data = data.replace(b"secret", b"******")
        return data if tag is None else (tag, data)

    return redacted


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (HumanMessage, "model_dump"),
        (BaseMessage, "model_dump"),
        (BaseModel, "model_dump"),
        (jsonplus, "_msgpack_enc"),
        (JsonPlusSerializer, "dumps_typed"),
    ],
)
def test_what_was_put_around_a_function_is_asked(
    owner: Any, name: str, again: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def store() -> None:
        monkeypatch.setattr(owner, name, redacting(getattr(owner, name)))
        harmless, secret = [HumanMessage("harmless", response_metadata={"set": {1}})], [HumanMessage("secret")]
        for value in (harmless, [HumanMessage("harmless")], secret):
            assert dumps_typed(SERDE, value) == SERDE.dumps_typed(value)
        assert b"secret" not in dumps_typed(SERDE, secret)[1]

    again(store)


def test_what_was_put_around_a_function_before_we_were_imported_is_asked() -> None:
    script = """
from functools import wraps
from langchain_core.messages import HumanMessage
from langgraph.checkpoint.serde.jsonplus import JsonPlusSerializer
original = JsonPlusSerializer.dumps_typed
@wraps(original)
def encrypting(self, value):
    tag, data = original(self, value)
    return tag + "+own", bytes(255 - byte for byte in data)
JsonPlusSerializer.dumps_typed = encrypting
from sa_checkpoint._messages import dumps_typed
for _ in range(3):
    tag, data = dumps_typed(JsonPlusSerializer(), [HumanMessage("secret")])
    assert tag == "msgpack+own" and b"secret" not in data, (tag, data)
"""
    subprocess.run([sys.executable, "-c", script], check=True)


def test_what_was_put_around_an_encrypting_serde_is_asked() -> None:
    serde: Any = EncryptedSerializer.from_pycryptodome_aes(key=KEY)
    usual = serde.dumps_typed
    serde.dumps_typed = lambda value: usual({"redacted": True})
    assert serde.loads_typed(dumps_typed(serde, AIMessage("secret"))) == {"redacted": True}
    assert reading(serde) is serde


@pytest.mark.parametrize("owner", [HumanMessage, BaseMessage, Serializable])
@pytest.mark.parametrize("wrapping", [True, False])
def test_a_constructor_that_somebody_has_replaced_is_called(
    owner: Any, wrapping: bool, again: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    stored = SERDE.dumps_typed([HumanMessage("x")] * 3)
    told: list[str] = []
    original = owner.__init__

    def telling(self: Any, *args: Any, **kwargs: Any) -> None:
        original(self, *args, **kwargs)
        told.append(str(self.content))

    def read() -> None:
        with monkeypatch.context() as patch:
            patch.setattr(owner, "__init__", wraps(original)(telling) if wrapping else telling)
            reading(SERDE).loads_typed(stored)
            assert told == ["x"] * 3
        reading(SERDE).loads_typed(stored)
        assert told == ["x"] * 3

    again(read)


def test_a_class_that_somebody_has_replaced_is_used(again: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    class Own(HumanMessage):
        pass

    def read() -> None:
        monkeypatch.setattr(human, "HumanMessage", Own)
        assert type(reading(SERDE).loads_typed(stored)) is Own

    stored = SERDE.dumps_typed(HumanMessage("x"))
    again(read)


class Mood(Enum):
    GOOD = 1


@pytest.mark.parametrize("more", [{}, {"more": "fields"}])
def test_langgraph_is_told_once_of_a_type_that_it_does_not_know(again: Any, more: dict[str, Any]) -> None:
    stored = SERDE.dumps_typed([AIMessage("x", additional_kwargs={"mood": Mood.GOOD}, **more)])

    def events_of(serde: SerializerProtocol) -> list[Any]:
        events: list[Any] = []
        remove = register_serde_event_listener(events.append)
        serde.loads_typed(stored)
        remove()
        return events

    assert again(lambda: events_of(reading(SERDE))) == events_of(SERDE) != []


@pytest.mark.parametrize("name", ["_OPTION", "_ENCODERS", "_SAFE_TYPES", "_MODEL_DUMP"])
@pytest.mark.usefixtures("nothing_known")
def test_without_what_is_needed_of_langgraph_all_is_left_to_it(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(_messages, name, frozenset() if name == "_SAFE_TYPES" else None)
    assert_stored_and_read_alike([AIMessage("x"), AIMessage("y")])
    assert not (_messages._MAKERS if name == "_SAFE_TYPES" else _messages._PACKED)


@pytest.mark.parametrize("name", ["_msgpack_enc", "_msgpack_default"])
def test_a_langgraph_that_has_other_functions_is_left_to_itself(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.delattr(jsonplus, name)
    assert not _messages._packs_as_usual(SERDE)
    assert dumps_typed(SERDE, None) == ("null", b"")
