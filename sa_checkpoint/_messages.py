"""LangChain's messages to bytes and back: what LangGraph's serializer does, in a third of the time.

A chat's state is its messages, and every step stores all of them. LangGraph's serializer has pydantic copy a message
before it packs the copy, and makes one by importing its class and calling four constructors, the last of which
validates. Here a message is packed as it is, to the same bytes, and made by the validation alone. Whatever is not as
expected is left to LangGraph's own code.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container
from typing import Any

from langchain_core.messages import BaseMessage
from langgraph.checkpoint.serde import jsonplus
from langgraph.checkpoint.serde.base import SerializerProtocol
from langgraph.checkpoint.serde.encrypted import EncryptedSerializer
from langgraph.checkpoint.serde.jsonplus import EXT_PYDANTIC_V2, JsonPlusSerializer
from ormsgpack import OPT_NON_STR_KEYS, Ext, MsgpackEncodeError, packb, unpackb
from pydantic import BaseModel

ExtHook = Callable[[int, bytes], Any]

_DUMPS_TYPED = JsonPlusSerializer.dumps_typed
# How LangGraph packs, and the types that it reads whatever it is told to allow. Without them, all is left to it.
_OPTION: int | None = getattr(jsonplus, "_option", None)
_pack_other: Any = getattr(jsonplus, "_msgpack_default", None)
_SAFE_TYPES: Container[tuple[str, ...]] = getattr(
    getattr(jsonplus, "_lg_msgpack", None), "SAFE_MSGPACK_TYPES", frozenset()
)
_MODULE = "langchain_core.messages."
_MODULE_BYTES = _MODULE.encode()
# In LangGraph's extension the module's name follows the headers of an array of 4 and of a short string.
_MODULE_START = 2


def dumps_typed(serde: SerializerProtocol, value: Any) -> tuple[str, bytes]:
    """What the serde makes of a value.

    Raises:
        Exception: What the serde raises.
    """
    if type(serde) is EncryptedSerializer:
        tag, data = dumps_typed(serde.serde, value)
        cipher, encrypted = serde.cipher.encrypt(data)
        return f"{tag}+{cipher}", encrypted
    is_known = getattr(serde.dumps_typed, "__func__", None) is _DUMPS_TYPED and None not in (_OPTION, _pack_other)
    if not is_known or value is None or isinstance(value, bytes | bytearray):
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
    if type(serde) is EncryptedSerializer:
        return EncryptedSerializer(serde.cipher, reading(serde.serde, around))
    if type(serde) is not JsonPlusSerializer or getattr(serde, "_custom_unpack_ext_hook", True):
        return serde
    reads = copy.copy(serde)
    reads._unpack_ext_hook = around(_making_messages(serde._unpack_ext_hook))
    return reads


# By class: the names of the fields of messages that are packed as they are; none if LangGraph packs them otherwise.
_PACKED: dict[type, tuple[str, ...]] = {}


def _pack(value: Any) -> Any:
    """LangGraph's extension of msgpack for a value that msgpack does not have."""
    class_ = value.__class__
    names = _PACKED.get(class_)
    if names is None:
        if _is_message(class_):
            _prove_packing(value)
        return _pack_other(value)
    fields = value.__dict__
    if tuple(fields) != names or value.__pydantic_extra__:
        return _pack_other(value)
    try:
        content = (class_.__module__, class_.__name__, fields, "model_validate_json")
        return Ext(EXT_PYDANTIC_V2, packb(content, option=_OPTION))
    except MsgpackEncodeError:
        return _pack_other(value)  # there is something in it that takes more


def _prove_packing(message: BaseMessage) -> None:
    """Look whether a message of this class is packed as LangGraph packs it."""
    class_ = type(message)
    names = tuple(class_.model_fields)
    if message.__pydantic_extra__ or tuple(message.__dict__) != names:
        return  # the next one may tell
    own = class_.__pydantic_decorators__
    if class_.model_dump is not BaseModel.model_dump or own.field_serializers or own.model_serializers:
        names = ()
    _PACKED[class_] = names
    if names and packb(_pack(message)) != packb(_pack_other(message)):
        _PACKED[class_] = ()


class _Maker:
    """What makes the messages of a class.

    Attributes:
        class_: The class.
        init: Its constructor, which does nothing with a message's fields but have them validated.
        count: How many fields there are.
        validate: Validates fields, and fills in a message.
    """

    __slots__ = ("class_", "count", "init", "validate")

    def __init__(self, class_: type[BaseMessage]) -> None:
        self.class_ = class_
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
            module, name, fields, _ = unpackb(data, ext_hook=message_hook, option=OPT_NON_STR_KEYS)
            key = (module, name)
            maker = _MAKERS.get(key)
            if maker is not None:
                class_ = maker.class_
                if len(fields) == maker.count and class_.__init__ is maker.init:
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


def _prove_making(key: tuple[str, str], fields: dict[str, Any], other: Any) -> None:
    """Look whether a message of this class with these fields is as LangGraph has made it."""
    class_: Any = type(other)
    if not _is_message(class_) or fields.keys() != class_.model_fields.keys():
        return  # the next one may tell
    if not class_.__init__.__module__.startswith(_MODULE):
        return  # somebody wants to be told of new messages
    message = class_.__new__(class_)
    class_.__pydantic_validator__.validate_python(fields, self_instance=message)
    is_alike = all(getattr(message, slot) == getattr(other, slot) for slot in BaseModel.__slots__)
    _MAKERS[key] = _Maker(class_) if is_alike and list(vars(message)) == list(vars(other)) else None


def _is_message(class_: type) -> bool:
    return class_.__module__.startswith(_MODULE) and issubclass(class_, BaseMessage)
