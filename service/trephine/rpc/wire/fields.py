"""Validation of single fields; every refusal carries the path of the field that caused it."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from math import isfinite
from typing import TypeVar
from uuid import UUID, uuid4

from trephine.domain.errors import (
    EmptyPromptError,
    ErrorKind,
    InvalidRequestError,
    NonFiniteValueError,
    TrephineError,
)

NumberT = TypeVar("NumberT", bound=int)
ValueT = TypeVar("ValueT")

_RESOURCE_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_PATHED = {ErrorKind.INVALID, ErrorKind.UNSUPPORTED}


@contextmanager
def within(path: str) -> Iterator[None]:
    """Prefix the field of an error raised inside: `rows[2]` and `prompt` make `rows[2].prompt`."""
    try:
        yield
    except TrephineError as error:
        if error.kind in _PATHED:
            inner = error.context.get("field")
            error.context["field"] = f"{path}.{inner}" if inner else path
        raise


def finite(value: float, field: str) -> float:
    """Return a number that is neither NaN nor infinite.

    Raises:
        NonFiniteValueError: Naming the field.
    """
    if not isfinite(value):
        raise NonFiniteValueError(f"{field} must be a finite number, got {value}", field=field)
    return value


def at_least(value: int, smallest: int, field: str) -> int:
    """Return a whole number that is not below `smallest`.

    Raises:
        InvalidRequestError: Naming the field.
    """
    if value < smallest:
        raise InvalidRequestError(f"{field} must be at least {smallest}, got {value}", field=field)
    return value


def one_of(value: NumberT, table: Mapping[NumberT, ValueT], field: str) -> ValueT:
    """Translate an enum number; unspecified and unknown ones are refused unless the table holds them.

    Raises:
        InvalidRequestError: Naming the field.
    """
    if value not in table:
        raise InvalidRequestError(f"{field} must be set to a known value, got {value}", field=field)
    return table[value]


def required(text: str, field: str) -> str:
    """Return a text that is not empty.

    Raises:
        InvalidRequestError: Naming the field.
    """
    if not text:
        raise InvalidRequestError(f"{field} is required", field=field)
    return text


def named(text: str, field: str) -> str:
    """Return a name, as it stands, that is more than blanks.

    Raises:
        InvalidRequestError: Naming the field.
    """
    if text and not text.strip():
        raise InvalidRequestError(f"{field} holds blanks alone; write a name, or leave it out", field=field)
    return required(text, field)


def prompt(text: str, field: str = "prompt") -> str:
    """Return a prompt that is not empty.

    Raises:
        EmptyPromptError: Naming the field.
    """
    if not text:
        raise EmptyPromptError(f"{field} must hold at least one token", field=field)
    return text


def resource_id(name: str, collection: str, field: str = "name") -> str:
    """Return the id of `collection/id`, parsed strictly: one slash, no dots in front, no blanks.

    Raises:
        InvalidRequestError: Naming the field and the expected form.
    """
    prefix, _, identifier = name.partition("/")
    if prefix != collection or not is_resource_id(identifier):
        raise InvalidRequestError(
            f"{field} must be a resource name like {collection}/ID, got {printable(name)!r}", field=field
        )
    return identifier


def request_id(text: str, field: str = "request_id") -> str:
    """Return the client's UUID in its usual form, or a new one if none was given.

    Raises:
        InvalidRequestError: If it is no UUID.
    """
    if not text:
        return str(uuid4())
    try:
        return str(UUID(text))
    except ValueError as error:
        message = f"{field} must be a UUID, got {printable(text)!r}"
        raise InvalidRequestError(message, field=field) from error


def qualified(collection: str, name: str) -> str:
    """`collection/name`, whether or not the collection is there already."""
    return clean(name if name.startswith(f"{collection}/") else f"{collection}/{name}")


def is_resource_id(text: str) -> bool:
    """True for letters, digits, dots, dashes, underscores; not beginning with a mark; at most 128."""
    return _RESOURCE_ID.fullmatch(text) is not None


def printable(text: str, limit: int = 200) -> str:
    """Return text that protobuf can carry, cut: lone surrogates become the replacement character."""
    return clean(text if len(text) <= limit else text[: limit - 1] + "…")


def clean(text: str) -> str:
    """Replace lone surrogates, which UTF-8 cannot hold, by the replacement character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
    return text
