"""From protobuf messages to the client's own frozen values, by field name.

A value class names its fields as the message does, so that one function decodes them all and a test
can hold the two in step. The message stays attached for `to_json`.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from enum import StrEnum
from functools import cache
from types import NoneType, UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

from google.protobuf.json_format import MessageToJson
from google.protobuf.message import Message

ValueT = TypeVar("ValueT", bound="WireValue")


class WireValue:
    """Base of every value that came from the server."""

    __slots__ = ("_message",)
    _message: Any

    @property
    def message(self) -> Message:
        """The response that this was decoded from.

        Raises:
            ValueError: If it was built by hand.
        """
        found = getattr(self, "_message", None)
        if not isinstance(found, Message):
            raise ValueError(f"this {type(self).__name__} did not come from a server")
        return found

    def to_json(self) -> str:
        """The response in proto-JSON, as the contract defines it."""
        return message_json(self.message)


def message_json(message: Message, *, one_line: bool = False) -> str:
    """A message in proto-JSON; what is 0, false or empty is told, what is unset is not."""
    return str(
        MessageToJson(
            message,
            ensure_ascii=True,
            indent=None if one_line else 2,
            always_print_fields_with_no_presence=True,
        )
    )


def decode(kind: type[ValueT], message: Message) -> ValueT:
    """Build a value from the message whose fields have the same names."""
    hashable: Any = kind
    value = kind(**{name: _read(message, name, hint) for name, hint in _hints(hashable)})
    object.__setattr__(value, "_message", message)
    return value


@cache
def _hints(kind: Any) -> tuple[tuple[str, Any], ...]:
    hints = get_type_hints(kind)
    return tuple((field.name, hints[field.name]) for field in fields(kind) if field.init)


def _read(message: Message, name: str, hint: Any) -> Any:
    inner, optional = _without_none(hint)
    if optional and not message.HasField(name):
        return None
    raw = getattr(message, name)
    if _is_enum(inner):
        return _enum(message, name, raw, inner)
    if get_origin(inner) is tuple and _is_enum(item := get_args(inner)[0]):
        return tuple(_enum(message, name, one, item) for one in raw)
    return _convert(raw, inner)


def _is_enum(hint: Any) -> bool:
    return isinstance(hint, type) and issubclass(hint, StrEnum)


def _convert(raw: Any, hint: Any) -> Any:
    if get_origin(hint) is tuple:
        item = get_args(hint)[0]
        return tuple(_convert(one, item) for one in raw)
    if get_origin(hint) is dict:
        return dict(raw)
    if is_dataclass(hint) and isinstance(hint, type):
        custom = getattr(hint, "from_message", None)
        return custom(raw) if custom is not None else decode(hint, raw)  # type: ignore[type-var]
    return raw


def _without_none(hint: Any) -> tuple[Any, bool]:
    if get_origin(hint) in (Union, UnionType):
        rest = [part for part in get_args(hint) if part is not NoneType]
        return rest[0], len(rest) < len(get_args(hint))
    return hint, False


def _enum(message: Message, name: str, number: int, kind: type[StrEnum]) -> StrEnum:
    """`VERDICT_PASS` becomes `Verdict.PASS`; the zero value is spelt `unspecified`."""
    enum_type: Any = message.DESCRIPTOR.fields_by_name[name].enum_type
    prefix = f"{enum_type.values_by_number[0].name.removesuffix('UNSPECIFIED')}"
    found = enum_type.values_by_number.get(number)
    return kind(found.name.removeprefix(prefix).lower() if found is not None else "unspecified")
