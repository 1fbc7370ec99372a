"""LangChain's messages to bytes and back: what LangGraph's serializer does, in a third of the time.

A chat's state is its messages, and every step stores all of them. LangGraph's serializer has pydantic copy a message
before it packs the copy, and makes one by importing its class and calling four constructors, the last of which
validates. Here a message is packed as it is, to the same bytes, and made by the validation alone. Whatever is not as
expected is left to LangGraph's own code.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Container
from typing import Any, TypeGuard

from langchain_core.load.serializable import Serializable
from langchain_core.messages import BaseMessage
from langgraph.checkpoint.serde import jsonplus
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import EXT_PYDANTIC_V2, JsonPlusSerializer
from ormsgpack import OPT_NON_STR_KEYS, Ext, MsgpackEncodeError, packb, unpackb
from pydantic import BaseModel

ExtHook = Callable[[int, bytes], Any]


def _original(owner: Any, name: str) -> Any:
    """A function as its module defines it; something that nothing else is, if somebody has replaced it.

    By the file of its code: a wrapper may have the names of what it wraps.
    """
    function = getattr(owner, name, None)
    module: Any = sys.modules.get(getattr(owner, "__module__", owner.__name__))
    code = getattr(function, "__code__", None)
    return function if code is not None and code.co_filename == module.__file__ else object()


# What is done here in another way, or gone around. Where any of it was replaced, all is left to LangGraph: somebody may
# encrypt there, redact, or count.
_DUMPS_TYPED = _original(JsonPlusSerializer, "dumps_typed")
_ENCRYPTING = (_original(EncryptedSerializer, "dumps_typed"), _original(EncryptedSerializer, "loads_typed"))
_ENCODERS = (_original(jsonplus, "_msgpack_enc"), _original(jsonplus, "_msgpack_default"))
_MODEL_DUMP = _original(BaseModel, "model_dump")
_CONSTRUCTORS = tuple(_original(class_, "__init__") for class_ in (BaseMessage, Serializable, BaseModel))

# How LangGraph packs, and the types that it reads whatever it is told to allow.
_OPTION: int | None = getattr(jsonplus, "_option", None)
_SAFE_TYPES: Container[tuple[str, ...]] = getattr(
    getattr(jsonplus, "_lg_msgpack", None), "SAFE_MSGPACK_TYPES", frozenset()
)
_MODULE = "langchain_core.messages."
_MODULE_BYTES = _MODULE.encode()
# In LangGraph's extension the module's name follows the headers of an array of 4 and of a string of up to 31 bytes.
# Longer is that of RemoveMessage, whose constructor does more than to validate.
_MODULE_START = 2


def dumps_typed(serde: SerializerProtocol, value: Any) -> tuple[str, bytes]:
    """What the serde makes of a value.

    Raises:
        Exception: What the serde raises.
    """
    if _encrypts_as_usual(serde):
        tag, data = dumps_typed(serde.serde, value)
        cipher, encrypted = serde.cipher.encrypt(data)
        return f"{tag}+{cipher}", encrypted
    if not _packs_as_usual(serde) or value is None or isinstance(value, bytes | bytearray):
        return serde.dumps_typed(value)
    try:
        return "msgpack", packb(value, default=_pack, option=_OPTION)
    except MsgpackEncodeError:
        return serde.dumps_typed(value)  # it may have a fallback


def reading(serde: SerializerProtocol, around: Callable[[ExtHook], ExtHook] = lambda hook: hook) -> SerializerProtocol:
    """A serde that reads what this one reads.

    Args:
        serde: LangGraph's own, which may encrypt. Any other one is returned as it is.
        around: Makes the hook for LangGraph's extensions of msgpack from one that does without it.
    """
    if _encrypts_as_usual(serde):
        return EncryptedSerializer(serde.cipher, reading(serde.serde, around))
    if type(serde) is not JsonPlusSerializer or getattr(serde, "_custom_unpack_ext_hook", True):
        return serde
    if (BaseMessage.__init__, Serializable.__init__, BaseModel.__init__) != _CONSTRUCTORS:
        return serde
    reads = JsonPlusSerializer.__new__(JsonPlusSerializer)  # a copy, made without copy.copy()'s questions
    reads.__dict__.update(serde.__dict__)
    reads._unpack_ext_hook = around(_making_messages(serde._unpack_ext_hook))
    return reads


def _encrypts_as_usual(serde: SerializerProtocol) -> TypeGuard[EncryptedSerializer]:
    if type(serde) is not EncryptedSerializer:
        return False
    return tuple(getattr(method, "__func__", None) for method in (serde.dumps_typed, serde.loads_typed)) == _ENCRYPTING


def _packs_as_usual(serde: SerializerProtocol) -> bool:
    return (
        getattr(serde.dumps_typed, "__func__", None) is _DUMPS_TYPED
        and (getattr(jsonplus, "_msgpack_enc", None), getattr(jsonplus, "_msgpack_default", None)) == _ENCODERS
        and _OPTION is not None
    )


# By class: the names of the fields of messages that are packed as they are; none if LangGraph packs them otherwise.
_PACKED: dict[type, tuple[str, ...]] = {}


def _pack(value: Any) -> Any:
    """LangGraph's extension of msgpack for a value that msgpack does not have."""
    class_ = value.__class__
    names = _PACKED.get(class_)
    if names is None:
        other = jsonplus._msgpack_default(value)
        if _is_message(class_):
            _prove_packing(value, other)
        return other
    if tuple(value.__dict__) != names or value.__pydantic_extra__ or class_.model_dump is not _MODEL_DUMP:
        return jsonplus._msgpack_default(value)
    try:
        return _packed(value)
    except MsgpackEncodeError:
        return jsonplus._msgpack_default(value)  # there is something in it that takes more


def _packed(message: BaseMessage) -> Ext:
    class_ = message.__class__
    content = (class_.__module__, class_.__name__, message.__dict__, "model_validate_json")
    return Ext(EXT_PYDANTIC_V2, packb(content, option=_OPTION))


def _prove_packing(message: BaseMessage, other: Any) -> None:
    """Look whether a message of this class is packed as LangGraph has packed it."""
    class_ = message.__class__
    names = tuple(class_.model_fields)
    if message.__pydantic_extra__ or tuple(message.__dict__) != names or class_.model_dump is not _MODEL_DUMP:
        return  # the next one may tell
    own = class_.__pydantic_decorators__
    try:
        is_alike = packb(_packed(message)) == packb(other)
    except MsgpackEncodeError:
        return
    _PACKED[class_] = names if is_alike and not (own.field_serializers or own.model_serializers) else ()


class _Maker:
    """What makes the messages of a class.

    Attributes:
        class_: The class.
        module: The module that it is in.
        init: Its constructor, which does nothing with a message's fields but have them validated.
        count: How many fields there are.
        validate: Validates fields, and fills in a message.
    """

    __slots__ = ("class_", "count", "init", "module", "validate")

    def __init__(self, class_: type[BaseMessage]) -> None:
        self.class_ = class_
        self.module = sys.modules[class_.__module__].__dict__
        self.init = class_.__init__
        self.count = len(class_.model_fields)
        self.validate = class_.__pydantic_validator__.validate_python


# By module and name of the class; None if LangGraph makes its messages otherwise.
_MAKERS: dict[tuple[str, str], _Maker | None] = {}


def _making_messages(hook: ExtHook) -> ExtHook:
    """A hook that makes messages, and leaves everything else to this one."""

    def message_hook(code: int, data: bytes) -> Any:
        if code != EXT_PYDANTIC_V2 or not data.startswith(_MODULE_BYTES, _MODULE_START):
            return hook(code, data)
        try:
            module, name, fields, _ = unpackb(data, ext_hook=_refuse, option=OPT_NON_STR_KEYS)
            key = (module, name)
            maker = _MAKERS.get(key)
            if maker is not None:
                class_ = maker.class_
                is_usual = class_.__init__ is maker.init and maker.module.get(name) is class_
                if is_usual and len(fields) == maker.count:
                    message = class_.__new__(class_)
                    maker.validate(fields, self_instance=message)
                    if not message.__pydantic_extra__:  # so these are its fields, all of them
                        return message
            elif key not in _MAKERS and key in _SAFE_TYPES:
                other = hook(code, data)
                _prove_making(key, fields, other)
                return other
        except Exception:
            return hook(code, data)  # which takes what is wrong here in its own way
        return hook(code, data)

    return message_hook


def _refuse(_code: int, _data: bytes) -> Any:
    """LangGraph's hook is to make all of a message, if it makes something in it."""
    raise ValueError


def _prove_making(key: tuple[str, str], fields: dict[str, Any], other: Any) -> None:
    """Look whether a message of this class with these fields is as LangGraph has made it."""
    class_: Any = type(other)
    if not _is_message(class_) or fields.keys() != class_.model_fields.keys():
        return  # the next one may tell
    definer = next(base for base in class_.__mro__ if "__init__" in vars(base))
    if class_.__init__ is not _original(definer, "__init__"):
        return  # somebody wants to be told of new messages
    message = class_.__new__(class_)
    class_.__pydantic_validator__.validate_python(fields, self_instance=message)
    is_alike = all(getattr(message, slot) == getattr(other, slot) for slot in BaseModel.__slots__)
    _MAKERS[key] = _Maker(class_) if is_alike and list(vars(message)) == list(vars(other)) else None


def _is_message(class_: type) -> bool:
    """Whether it is one of LangChain's own classes of messages."""
    if not (class_.__module__.startswith(_MODULE) and issubclass(class_, BaseMessage)):
        return False
    return getattr(sys.modules.get(class_.__module__), class_.__name__, None) is class_
